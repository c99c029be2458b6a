use jiff::tz::TimeZone;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// The next times of a schedule, in UTC.
fn times(text: &str, after: &str, count: usize) -> Vec<String> {
    times_in(text, after, count, &TimeZone::UTC)
}

fn times_in(text: &str, after: &str, count: usize, zone: &TimeZone) -> Vec<String> {
    let schedule = Schedule::parse(text).unwrap();
    let mut after = at(after);
    let next = || {
        after = schedule.next(after, zone)?;
        Some(after.to_string())
    };
    std::iter::from_fn(next).take(count).collect()
}

/// A zone with summer time by rule, so that no database is needed.
fn new_york() -> TimeZone {
    TimeZone::posix("EST5EDT,M3.2.0,M11.1.0").unwrap()
}

#[test]
fn the_next_times_are_those_of_the_fields() {
    for (text, after, wanted) in [
        ("* * * * *", "2026-01-01T00:00:00Z", ["2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z"]),
        ("* * * * *", "2026-01-01T00:00:59Z", ["2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z"]),
        ("*/15 * * * *", "2026-01-01T00:50:00Z", ["2026-01-01T01:00:00Z", "2026-01-01T01:15:00Z"]),
        ("5/20 3 * * ?", "2026-01-01T03:30:00Z", ["2026-01-01T03:45:00Z", "2026-01-02T03:05:00Z"]),
        (
            "0 9-17/4 * * *",
            "2026-01-01T10:00:00Z",
            ["2026-01-01T13:00:00Z", "2026-01-01T17:00:00Z"],
        ),
        (
            "30 8 * * MON-fri",
            "2026-01-02T09:00:00Z",
            ["2026-01-05T08:30:00Z", "2026-01-06T08:30:00Z"],
        ),
        ("0 0 29 2 *", "2026-01-01T00:00:00Z", ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]),
        (
            "0 0 1,15 jan,Feb *",
            "2026-01-20T00:00:00Z",
            ["2026-02-01T00:00:00Z", "2026-02-15T00:00:00Z"],
        ),
        // Either day is enough when both are restricted (the 13th, or a Friday) …
        ("0 0 13 * 5", "2026-01-01T00:00:00Z", ["2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z"]),
        // … and a star with a step is a restriction.
        ("0 0 */31 * 5", "2026-01-01T00:00:00Z", ["2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z"]),
        ("0 0 31 * *", "2026-01-31T00:00:00Z", ["2026-03-31T00:00:00Z", "2026-05-31T00:00:00Z"]),
        ("@hourly", "2026-01-01T00:00:00Z", ["2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z"]),
        ("@daily", "2026-01-01T00:00:00Z", ["2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"]),
        ("@weekly", "2026-01-01T00:00:00Z", ["2026-01-04T00:00:00Z", "2026-01-11T00:00:00Z"]),
        ("@monthly", "2026-01-01T00:00:00Z", ["2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"]),
        ("@yearly", "2026-01-01T00:00:00Z", ["2027-01-01T00:00:00Z", "2028-01-01T00:00:00Z"]),
        (
            "@every 1h30m",
            "2026-01-01T00:00:00.5Z",
            ["2026-01-01T01:30:00Z", "2026-01-01T03:00:00Z"],
        ),
    ] {
        assert_eq!(times(text, after, 2), wanted, "{text}");
    }
}

#[test]
fn a_day_that_never_comes_has_no_next_time() {
    assert_eq!(times("0 0 30 2 *", "2026-01-01T00:00:00Z", 1), Vec::<String>::new());
}

#[test]
fn what_is_no_schedule_is_refused() {
    for (text, why) in [
        ("", "expected exactly 5 fields, found 0"),
        ("* * * *", "expected exactly 5 fields, found 4"),
        ("* * * * * *", "expected exactly 5 fields, found 6"),
        ("60 * * * *", "above maximum (59)"),
        ("* 24 * * *", "above maximum (23)"),
        ("* * 0 * *", "below minimum (1)"),
        ("* * * 13 *", "above maximum (12)"),
        ("* * * * 7", "above maximum (6)"),
        ("*/0 * * * *", "positive number"),
        ("5-1 * * * *", "beyond end of range"),
        ("a * * * *", "failed to parse int"),
        ("1- * * * *", "failed to parse int"),
        ("+1 * * * *", "failed to parse int"),
        ("@soon", "unrecognized descriptor"),
        ("@every 5", "unrecognized descriptor"),
        ("TZ=UTC * * * * *", "use timeZone field instead"),
        ("CRON_TZ=UTC * * * * *", "use timeZone field instead"),
    ] {
        let refused = Schedule::parse(text).unwrap_err().to_string();
        assert!(refused.contains(why), "{text}: {refused}");
    }
}

#[test]
fn times_are_those_of_the_clocks_of_the_zone() {
    // 8 March 2026: 02:00 becomes 03:00. 1 November: 02:00 becomes 01:00.
    let zone = new_york();
    let daily = times_in("0 12 * * *", "2026-03-07T00:00:00Z", 2, &zone);
    assert_eq!(daily, ["2026-03-07T17:00:00Z", "2026-03-08T16:00:00Z"]);
    let left_out = times_in("30 2 * * *", "2026-03-07T08:00:00Z", 1, &zone);
    assert_eq!(left_out, ["2026-03-09T06:30:00Z"], "02:30 of the 8th does not exist");
    let twice = times_in("30 1 * * *", "2026-11-01T00:00:00Z", 3, &zone);
    let wanted = ["2026-11-01T05:30:00Z", "2026-11-01T06:30:00Z", "2026-11-02T06:30:00Z"];
    assert_eq!(twice, wanted, "01:30 comes twice");
    let hourly = times_in("0 * * * *", "2026-03-08T06:30:00Z", 2, &zone);
    assert_eq!(hourly, ["2026-03-08T07:00:00Z", "2026-03-08T08:00:00Z"]);
}

#[test]
fn only_the_last_missed_time_counts_and_very_many_cost_little() {
    let missed = |text: &str, after: &str, now: &str| {
        let found = Schedule::parse(text).unwrap().missed(at(after), at(now), &TimeZone::UTC, 100);
        found.map(|(last, count)| (last.to_string(), count))
    };
    let is = |time: &str, count| Some((time.to_owned(), count));
    let day = "2026-01-01T00:00:00Z";
    assert_eq!(missed("0 * * * *", day, "2026-01-01T00:59:59Z"), None);
    assert_eq!(missed("0 * * * *", day, "2026-01-01T01:00:00Z"), is("2026-01-01T01:00:00Z", 1));
    assert_eq!(missed("0 * * * *", day, "2026-01-01T03:10:00Z"), is("2026-01-01T03:00:00Z", 3));
    assert_eq!(missed("* * * * *", day, "2029-01-01T00:00:30Z"), is("2029-01-01T00:00:00Z", 100));
    assert_eq!(missed("0 0 1 * *", day, "2046-03-02T00:00:00Z"), is("2046-03-01T00:00:00Z", 100));
    assert_eq!(missed("@every 10s", day, "2026-01-02T00:00:05Z"), is("2026-01-02T00:00:00Z", 100));
}

#[test]
fn a_zone_is_named_and_known() {
    assert_eq!(time_zone("UTC").unwrap(), TimeZone::UTC);
    assert_eq!(time_zone("Etc/UTC").unwrap(), TimeZone::UTC);
    assert_eq!(time_zone("Local").unwrap_err(), ZoneError::Local);
    let unknown = time_zone("Middle/Earth").unwrap_err().to_string();
    assert!(unknown.starts_with("unknown time zone Middle/Earth"), "{unknown}");
}
