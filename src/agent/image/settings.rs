//! How images are pulled and kept.

use std::path::PathBuf;
use std::time::Duration;

use crate::agent::image::{BackoffSettings, ImageGcSettings};
use crate::config::Proxies;

/// How images are pulled and kept. The defaults are kubelet's unless they say otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSettings {
    /// `registries.yaml`; it need not exist. Default: none.
    pub registries_file: Option<PathBuf>,
    /// Proxies on the way to registries outside of the cluster. Default: none.
    pub proxies: Proxies,
    /// Pause between pulls that fail. Default 1 s doubling to 60 s; kubelet's is 10 s to 300 s.
    pub pull_backoff: BackoffSettings,
    /// Pause between compiles that run out of time or memory. Default 10 s doubling to 300 s.
    pub compile_backoff: BackoffSettings,
    /// When images that nobody uses are deleted.
    pub gc: ImageGcSettings,
}

impl Default for ImageSettings {
    fn default() -> Self {
        let seconds = |min, max| BackoffSettings {
            min: Duration::from_secs(min),
            max: Duration::from_secs(max),
        };
        Self {
            registries_file: None,
            proxies: Proxies::default(),
            pull_backoff: seconds(1, 60),
            compile_backoff: seconds(10, 300),
            gc: ImageGcSettings::default(),
        }
    }
}
