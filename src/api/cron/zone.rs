//! Time zones by name, from the database of the system.
//!
//! This is the one place of `api` that looks at the machine: names of time zones and what they mean are
//! data of the system, which keeps them up to date. They are read once and kept.

use jiff::tz::TimeZone;

/// Why there is no such time zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// `Local` means something else on each server: refuse it.
    #[error("timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones")]
    Local,
    /// The database does not have it: refuse it.
    #[error("unknown time zone {0}")]
    Unknown(String),
    /// This server has no database: refuse it, and say what to install.
    #[error(
        "unknown time zone {0}: this server has no time zone database; install tzdata on the servers, or use UTC"
    )]
    NoDatabase(String),
}

/// The time zone of that name; UTC is always there.
///
/// # Errors
///
/// When this server does not know it.
pub fn time_zone(name: &str) -> Result<TimeZone, ZoneError> {
    if name.is_empty() || name.eq_ignore_ascii_case("local") {
        return Err(ZoneError::Local);
    }
    if matches!(name, "UTC" | "Etc/UTC") {
        return Ok(TimeZone::UTC);
    }
    TimeZone::get(name).map_err(|_| {
        let name = name.to_owned();
        let has_database = jiff::tz::db().available().next().is_some();
        if has_database { ZoneError::Unknown(name) } else { ZoneError::NoDatabase(name) }
    })
}
