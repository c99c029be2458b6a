//! Values of flags that are words of their own.

use std::time::Duration;

/// Most pods that Kubernetes counts: its field is a signed number of 32 bits.
const REPLICAS_MAX: u32 = i32::MAX.unsigned_abs();
/// Longest time taken: more is a slip of the finger.
const TIME_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Parses a number of pods.
pub(super) fn replicas(text: &str) -> Result<u32, String> {
    let refused = || format!("a number of pods is a whole number from 0 to {REPLICAS_MAX}");
    text.parse().ok().filter(|replicas| *replicas <= REPLICAS_MAX).ok_or_else(refused)
}

/// Parses a time as kubectl takes it (`90s`, `2m30s`, `1h`), or a bare number of seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let refused = || format!("{text:?} is no time; write seconds, or for example 2m30s");
    if let Ok(seconds) = text.parse() {
        let time = Duration::from_secs(seconds);
        return if time > TIME_MAX { Err(refused()) } else { Ok(time) };
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(refused)?;
        let (number, after) = rest.split_at_checked(digits).ok_or_else(refused)?;
        let number: u64 = number.parse().map_err(|_| refused())?;
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(unit).ok_or_else(refused)?;
        let part = match unit {
            "ms" => Some(Duration::from_millis(number)),
            "s" => Some(Duration::from_secs(number)),
            "m" => number.checked_mul(60).map(Duration::from_secs),
            "h" => number.checked_mul(3600).map(Duration::from_secs),
            "d" => number.checked_mul(86_400).map(Duration::from_secs),
            _ => None,
        };
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(refused)?;
        rest = after;
    }
    if text.is_empty() || total > TIME_MAX { Err(refused()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_kubectl_reads_them() {
        let cases = [("90", 90), ("90s", 90), ("2m30s", 150), ("1h", 3600), ("1d", 86_400)];
        for (text, seconds) in cases {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "s", "5x", "-1s", "5s5", "99999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
