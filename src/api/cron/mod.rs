//! Schedules of CronJobs: five fields or a macro, as Kubernetes reads them, and when they are due.
//!
//! Times are found in the absolute order of minutes: one that a change of the clock leaves out does not
//! come, one that it repeats comes twice, as in Kubernetes.
//!
//! Data in: the text of a schedule, a zone, a time. Data out: the next time that it names.
//!
//! # Invariants
//!
//! - A search ends after a bounded number of steps, whatever the schedule.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan as _};

mod field;
mod zone;

pub use zone::{ZoneError, time_zone};

use field::Field;

/// Steps of one search: five years of days that do not match, with what is lost at changes of the clock.
const STEPS_MAX: usize = 10_000;
/// How far a search looks ahead; a schedule without a day in so many years has none.
const SECONDS_AHEAD_MAX: i64 = 5 * 366 * 86_400;

/// When something is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Fields(Fields),
    /// `@every`: so long after the time before.
    Every(SignedDuration),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Fields {
    minutes: Field,
    hours: Field,
    days: Field,
    months: Field,
    weekdays: Field,
}

/// Why a text is no schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// It names a time zone: refuse it, there is a field for that.
    #[error("cannot use TZ or CRON_TZ in schedule, use timeZone field instead")]
    TimeZone,
    /// There are not five fields: refuse it.
    #[error("expected exactly 5 fields, found {0}: {1:?}")]
    Fields(usize, String),
    /// A field makes no sense: refuse it.
    #[error("{0}")]
    Field(String),
    /// No macro has that name: refuse it.
    #[error("unrecognized descriptor: {0:?}")]
    Macro(String),
}

impl Schedule {
    /// Parses `*/5 0-6 1,15 jan-mar mon`, `@daily`, `@every 90s`.
    ///
    /// # Errors
    ///
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        if text.contains("TZ") {
            return Err(ScheduleError::TimeZone);
        }
        let text = text.trim();
        let fields = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other if other.starts_with('@') => {
                let every = other.strip_prefix("@every ").and_then(go_duration);
                let every = every.ok_or_else(|| ScheduleError::Macro(other.to_owned()))?;
                return Ok(Self(Kind::Every(every.max(SignedDuration::from_secs(1)))));
            }
            other => other,
        };
        let parts: Vec<&str> = fields.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = parts.as_slice() else {
            return Err(ScheduleError::Fields(parts.len(), text.to_owned()));
        };
        let field = |text: &str, bounds| Field::parse(text, bounds).map_err(ScheduleError::Field);
        Ok(Self(Kind::Fields(Fields {
            minutes: field(minutes, field::MINUTES)?,
            hours: field(hours, field::HOURS)?,
            days: field(days, field::DAYS)?,
            months: field(months, field::MONTHS)?,
            weekdays: field(weekdays, field::WEEKDAYS)?,
        })))
    }

    /// The first time after `after` that the clocks of `zone` show a due time; `None` if there is none
    /// within five years.
    #[must_use]
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match &self.0 {
            Kind::Every(every) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(*every).ok()
            }
            Kind::Fields(fields) => fields.next(after, zone),
        }
    }

    /// The last time that was due after `after` and not after `now`, with how many there were, counted
    /// up to `count_max`.
    #[must_use]
    pub fn missed(
        &self,
        after: Timestamp,
        now: Timestamp,
        zone: &TimeZone,
        count_max: usize,
    ) -> Option<(Timestamp, usize)> {
        let first = self.next(after, zone).filter(|first| *first <= now)?;
        let (mut last, mut count) = (first, 1);
        while let Some(next) = self.next(last, zone).filter(|next| *next <= now) {
            if count >= count_max {
                return Some((self.last_until(last, now, zone), count));
            }
            (last, count) = (next, count + 1);
        }
        Some((last, count))
    }

    /// The last due time up to `now`, which is `known` or later: looked for backwards, since there may
    /// be very many.
    fn last_until(&self, known: Timestamp, now: Timestamp, zone: &TimeZone) -> Timestamp {
        if let Kind::Every(every) = &self.0 {
            let passed = now.as_second().saturating_sub(known.as_second());
            let whole = passed - passed % every.as_secs().max(1);
            return known.checked_add(SignedDuration::from_secs(whole)).unwrap_or(known);
        }
        let mut window = 60;
        while window < SECONDS_AHEAD_MAX {
            let from =
                now.checked_sub(SignedDuration::from_secs(window)).unwrap_or(known).max(known);
            if let Some(mut last) = self.next(from, zone).filter(|next| *next <= now) {
                while let Some(next) = self.next(last, zone).filter(|next| *next <= now) {
                    last = next;
                }
                return last;
            }
            window *= 2;
        }
        known
    }
}

impl Fields {
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let limit = after.as_second().checked_add(SECONDS_AHEAD_MAX)?;
        let minute = after.as_second().div_euclid(60).checked_add(1)?;
        let mut at = Timestamp::from_second(minute.checked_mul(60)?).ok()?;
        for _ in 0..STEPS_MAX {
            if at.as_second() > limit {
                return None;
            }
            let local = at.to_zoned(zone.clone());
            let then = if !self.months.has(local.month()) {
                let next = local.date().first_of_month().checked_add(1.month()).ok()?;
                next.to_zoned(zone.clone()).ok()?.timestamp()
            } else if !self.has_day(&local) {
                let next = local.date().tomorrow().ok()?;
                next.to_zoned(zone.clone()).ok()?.timestamp()
            } else if !self.hours.has(local.hour()) {
                let minutes = 60 - i64::from(local.minute());
                at.checked_add(SignedDuration::from_mins(minutes)).ok()?
            } else if !self.minutes.has(local.minute()) {
                at.checked_add(SignedDuration::from_mins(1)).ok()?
            } else {
                return Some(at);
            };
            // Whatever the clocks do, the search goes on.
            at = then.max(at.checked_add(SignedDuration::from_mins(1)).ok()?);
        }
        None
    }

    /// With both kinds of days restricted, one of them is enough; else both must hold.
    fn has_day(&self, local: &jiff::Zoned) -> bool {
        let day = self.days.has(local.day());
        let weekday = self.weekdays.has(local.weekday().to_sunday_zero_offset());
        if self.days.is_star || self.weekdays.is_star { day && weekday } else { day || weekday }
    }
}

/// `1h30m`, `90s`: as Go writes durations, in whole seconds.
fn go_duration(text: &str) -> Option<SignedDuration> {
    let (mut seconds, mut number) = (0_i64, String::new());
    let mut rest = text.trim().chars().peekable();
    rest.peek()?;
    while let Some(c) = rest.next() {
        let unit = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            'h' => 3600,
            'm' if rest.peek() != Some(&'s') => 60,
            's' => 1,
            _ => return None,
        };
        let amount: i64 = std::mem::take(&mut number).parse().ok()?;
        seconds = seconds.checked_add(amount.checked_mul(unit)?)?;
    }
    number.is_empty().then(|| SignedDuration::from_secs(seconds))
}

#[cfg(test)]
#[path = "cron_test.rs"]
mod tests;
