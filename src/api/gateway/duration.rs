//! Durations as the Gateway API writes them (GEP-2257).

use std::time::Duration;

/// Parts of one duration.
const PARTS_MAX: usize = 4;
/// Digits of one part.
const DIGITS_MAX: usize = 5;

/// Reads `1h30m`, `10s`, `500ms`. `None` when it is none.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at_checked(digits)?;
        if digits > DIGITS_MAX || parts == PARTS_MAX {
            return None;
        }
        let number: u64 = number.parse().ok()?;
        // `ms` before `m`.
        let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
        let (unit, millis) = units.into_iter().find(|(unit, _)| after.starts_with(unit))?;
        rest = after.strip_prefix(unit)?;
        total = total.checked_add(Duration::from_millis(number.checked_mul(millis)?))?;
        parts += 1;
    }
    (parts > 0).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_gep_2257_has_them() {
        for (text, millis) in
            [("0s", 0), ("10s", 10_000), ("1h30m", 5_400_000), ("500ms", 500), ("1m1ms", 60_001)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "10", "s", "-1s", "1.5s", "1d", "100000s", "1s1s1s1s1s", "1 s", "5ß"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
