//! The log writer: structured lines on stderr.

use std::io::IsTerminal as _;

use tracing::Level;
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
    let filter =
        settings.filter.parse().unwrap_or_else(|_| Targets::new().with_default(Level::INFO));
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
}
