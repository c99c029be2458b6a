//! The log writer: structured lines on stderr.

use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::Environment;

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// A level, or `target=level` pairs with commas. Default `info`.
    pub filter: String,
    /// Default text.
    pub format: LogFormat,
    /// Colours; default only on a terminal and without `NO_COLOR`.
    pub has_colors: bool,
}

/// Why nothing can be logged as asked. Give up at start: the text names what to change.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogSettingsError {
    /// A part of the filter means nothing.
    #[error(
        "EDGEORC_LOG: {directive:?} is neither a level (off, error, warn, info, debug, trace) nor TARGET=LEVEL, for example `info,edgeorc::mesh=debug`"
    )]
    Directive {
        /// The part between two commas.
        directive: String,
    },
    /// The format is unknown.
    #[error("EDGEORC_LOG_FORMAT: {format:?} is neither `text` nor `json`")]
    Format {
        /// What was given.
        format: String,
    },
}

impl LogSettings {
    /// Takes filter and format from the environment; `default_filter` where it says nothing.
    ///
    /// # Errors
    ///
    /// [`LogSettingsError`] when the format is unknown; the filter is checked by [`init_logs`].
    pub fn from_environment(
        environment: &Environment,
        default_filter: &str,
    ) -> Result<Self, LogSettingsError> {
        let format = match environment.log_format.as_deref() {
            None | Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            Some(other) => return Err(LogSettingsError::Format { format: other.to_owned() }),
        };
        Ok(Self {
            filter: environment.log.clone().unwrap_or_else(|| default_filter.to_owned()),
            format,
            has_colors: !environment.no_color && std::io::stderr().is_terminal(),
        })
    }
}

/// Installs the writer for the whole process. Only the first call has an effect.
///
/// # Errors
///
/// [`LogSettingsError`] with the first part of the filter that means nothing; then nothing was
/// installed.
pub fn init_logs(settings: &LogSettings) -> Result<(), LogSettingsError> {
    let filter = parse_filter(&settings.filter)?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(settings.has_colors);
    let registry = tracing_subscriber::registry();
    let _ = match settings.format {
        LogFormat::Text => registry.with(lines.with_target(false).with_filter(filter)).try_init(),
        LogFormat::Json => {
            registry.with(lines.json().flatten_event(true).with_filter(filter)).try_init()
        }
    };
    Ok(())
}

/// Stricter than the filter's own parser, for which a misspelt level is the name of a target.
fn parse_filter(text: &str) -> Result<Targets, LogSettingsError> {
    let mut filter = Targets::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let refused = || LogSettingsError::Directive { directive: part.to_owned() };
        let (target, level) = match part.split_once('=') {
            Some((target, level)) => (Some(target.trim()), level.trim()),
            None => (None, part),
        };
        // The parser also takes an empty text, as `error`.
        let level = Some(level).filter(|level| !level.is_empty()).ok_or_else(refused)?;
        let level: LevelFilter = level.parse().map_err(|_| refused())?;
        filter = match target {
            None => filter.with_default(level),
            Some(target) if is_target(target) => filter.with_target(target, level),
            Some(_) => return Err(refused()),
        };
    }
    Ok(filter)
}

/// A path of Rust modules.
fn is_target(text: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | ':' | '.');
    !text.is_empty() && text.chars().all(is_part)
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_filter_is_levels_and_targets() {
        let filter = parse_filter("warn, edgeorc::mesh=debug,openraft=off").unwrap();
        assert!(filter.would_enable("hyper", &Level::WARN));
        assert!(!filter.would_enable("hyper", &Level::INFO));
        assert!(filter.would_enable("edgeorc::mesh::tcp", &Level::DEBUG));
        assert!(!filter.would_enable("openraft", &Level::ERROR));
    }

    #[test]
    fn a_directive_that_means_nothing_is_named() {
        for bad in ["inof", "edgeorc=debgu", "=debug", "edgeorc=", "edgeorc[span]=info", "a b=info"]
        {
            let refused = parse_filter(&format!("info,{bad},warn")).unwrap_err();
            assert_eq!(refused, LogSettingsError::Directive { directive: bad.to_owned() });
            assert!(refused.to_string().contains(bad), "{refused}");
        }
    }

    #[test]
    fn an_unknown_format_is_named() {
        let environment = Environment { log_format: Some("xml".into()), ..Environment::default() };
        let refused = LogSettings::from_environment(&environment, "info").unwrap_err();
        assert!(refused.to_string().contains("xml"), "{refused}");
    }
}
