//! The log writer: structured lines on stderr.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

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
    /// Directives of `tracing_subscriber::EnvFilter`. Default `info`.
    pub filter: String,
    /// Default text.
    pub format: LogFormat,
    /// Colours; default only on a terminal and without `NO_COLOR`.
    pub has_colors: bool,
}

impl LogSettings {
    /// Takes filter and format from the environment; `default_filter` where it says nothing.
    #[must_use]
    pub fn from_environment(environment: &Environment, default_filter: &str) -> Self {
        let is_json = environment.log_format.as_deref() == Some("json");
        Self {
            filter: environment.log.clone().unwrap_or_else(|| default_filter.to_owned()),
            format: if is_json { LogFormat::Json } else { LogFormat::Text },
            has_colors: !environment.no_color && std::io::stderr().is_terminal(),
        }
    }
}

/// Installs the writer for the whole process. Only the first call has an effect.
///
/// A filter that does not parse falls back to `info`.
pub fn init_logs(settings: &LogSettings) {
    let filter = EnvFilter::try_new(&settings.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(settings.has_colors);
    let _ = match settings.format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}
