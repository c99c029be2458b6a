//! The process' metrics, in Prometheus' text format.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text::encode};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// Collects what the rooms register. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    /// A registry that already reports the process' own memory and CPU time.
    #[must_use]
    pub fn new() -> Self {
        let metrics = Self::default();
        metrics.register(|registry| registry.register_collector(Box::new(Process)));
        metrics
    }

    /// Lets `add` register its metrics. Called once per room, at start.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.0.lock());
    }

    /// The text of `/metrics`.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail; a collector that does leaves a short text.
        let _ = encode(&mut text, &self.0.lock());
        text
    }
}

/// Memory and CPU time of this process, read when asked.
#[derive(Debug)]
struct Process;

/// `utime` and `stime` in `/proc/self/stat`, counted from the field after the command name.
const STAT_UTIME: usize = 11;
/// Resident pages in `/proc/self/statm`.
const STATM_RESIDENT: usize = 1;

impl Process {
    fn resident_bytes() -> Option<u64> {
        let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
        let pages: u64 = statm.split_whitespace().nth(STATM_RESIDENT)?.parse().ok()?;
        let page_bytes = u64::try_from(rustix::param::page_size()).ok()?;
        Some(pages * page_bytes)
    }

    fn cpu_seconds() -> Option<f64> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let (_, after_name) = stat.rsplit_once(')')?;
        let mut fields = after_name.split_whitespace().skip(STAT_UTIME);
        let user: f64 = fields.next()?.parse().ok()?;
        let system: f64 = fields.next()?.parse().ok()?;
        let ticks = u32::try_from(rustix::param::clock_ticks_per_second()).ok()?;
        Some((user + system) / f64::from(ticks))
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        if let Some(bytes) = Self::resident_bytes() {
            let gauge = ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX));
            let help = "Resident memory size";
            let head = encoder.encode_descriptor(
                "process_resident_memory",
                help,
                Some(&Unit::Bytes),
                gauge.metric_type(),
            )?;
            gauge.encode(head)?;
        }
        if let Some(seconds) = Self::cpu_seconds() {
            let counter = ConstCounter::new(seconds);
            let help = "User and system CPU time spent";
            let head = encoder.encode_descriptor(
                "process_cpu",
                help,
                Some(&Unit::Seconds),
                counter.metric_type(),
            )?;
            counter.encode(head)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_reports_its_memory_and_cpu_time() {
        let text = Metrics::new().encode();
        assert!(text.contains("process_resident_memory_bytes "), "{text}");
        assert!(text.contains("process_cpu_seconds_total "), "{text}");
    }
}
