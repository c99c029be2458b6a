//! What a node uses, as its heartbeat tells it: annotations of its Lease, in coarse steps.

use std::collections::BTreeMap;

use crate::api::quantity::{format_bytes, format_cpu_millis, parse_bytes, parse_cpu_millis};

/// CPU in use on the whole machine, over the last minute or so.
pub const CPU: &str = "edgeorc.io/used-cpu";
/// Memory in use on the whole machine.
pub const MEMORY: &str = "edgeorc.io/used-memory";

/// The annotations.
#[must_use]
pub fn annotations(cpu_millis: u64, memory_bytes: u64) -> BTreeMap<String, String> {
    let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    [
        (CPU.to_owned(), format_cpu_millis(whole(cpu_millis))),
        (MEMORY.to_owned(), format_bytes(whole(memory_bytes))),
    ]
    .into()
}

/// Thousandths of a core and bytes; `None` if a node does not tell.
#[must_use]
pub fn read(annotations: &BTreeMap<String, String>) -> Option<(i64, i64)> {
    let cpu = parse_cpu_millis(annotations.get(CPU)?).ok()?;
    let memory = parse_bytes(annotations.get(MEMORY)?).ok()?;
    (cpu >= 0 && memory >= 0).then_some((cpu, memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read() {
        assert_eq!(read(&annotations(1500, 3 << 20)), Some((1500, 3 << 20)));
        assert_eq!(read(&annotations(0, 0)), Some((0, 0)));
        assert_eq!(read(&BTreeMap::new()), None);
        let wrong = [(CPU.to_owned(), "x".to_owned()), (MEMORY.to_owned(), "1".to_owned())];
        assert_eq!(read(&wrong.into()), None);
    }
}
