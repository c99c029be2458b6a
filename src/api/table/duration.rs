//! Durations as kubectl prints them: two units at most, precise only where it matters.

use jiff::Timestamp;
use serde_json::Value;

use crate::api::meta;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// Time since the object was created, or `<unknown>`.
#[must_use]
pub fn age(object: &Value, now: Timestamp) -> String {
    since(meta::creation_timestamp(object), now)
}

/// Time since `at` (RFC 3339), or `<unknown>`.
pub(crate) fn since(at: Option<&str>, now: Timestamp) -> String {
    match at.and_then(|text| text.parse::<Timestamp>().ok()) {
        Some(at) => human_duration(now.as_second().saturating_sub(at.as_second())),
        None => "<unknown>".to_owned(),
    }
}

/// A number of seconds in kubectl's words: `45s`, `5m3s`, `7h22m`, `3d`, `2y45d`.
#[must_use]
pub fn human_duration(seconds: i64) -> String {
    // Clocks of two machines differ a little; kubectl forgives one second.
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let pair = |large: i64, large_unit: &str, small: i64, small_unit: &str| {
        let (whole, rest) = (seconds / large, seconds % large / small);
        if rest == 0 {
            format!("{whole}{large_unit}")
        } else {
            format!("{whole}{large_unit}{rest}{small_unit}")
        }
    };
    match seconds {
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => pair(MINUTE, "m", 1, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => pair(HOUR, "h", MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => pair(DAY, "d", HOUR, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => pair(YEAR, "y", DAY, "d"),
        s => format!("{}y", s / YEAR),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_are_printed_like_kubectl_does() {
        let table = [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (303, "5m3s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (26_520, "7h22m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (691_200, "8d"),
            (2 * YEAR, "2y"),
            (2 * YEAR + 45 * DAY, "2y45d"),
            (9 * YEAR, "9y"),
        ];
        for (seconds, text) in table {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn an_object_without_a_time_has_an_unknown_age() {
        let now = Timestamp::from_second(100).unwrap();
        assert_eq!(age(&json!({}), now), "<unknown>");
        assert_eq!(age(&json!({"metadata": {"creationTimestamp": "x"}}), now), "<unknown>");
        let object = json!({"metadata": {"creationTimestamp": "1970-01-01T00:00:40Z"}});
        assert_eq!(age(&object, now), "60s");
    }
}
