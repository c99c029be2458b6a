//! The process environment, read once.

use std::path::PathBuf;

/// What edgeorc takes from the environment.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `KUBECONFIG`: file with the address of a cluster and its credentials.
    pub kubeconfig: Option<PathBuf>,
    /// `EDGEORC_DATA_DIR`: where a node keeps its state.
    pub data_dir: Option<PathBuf>,
    /// `EDGEORC_LOG`: log filter, for example `info,edgeorc::mesh=debug`. Default `info`.
    pub log: Option<String>,
    /// `EDGEORC_LOG_FORMAT`: `text` or `json`. Default `text`.
    pub log_format: Option<String>,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `NO_COLOR` is set: never write colours.
    pub no_color: bool,
}

impl Environment {
    /// Reads the process environment.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads it")]
    pub fn read() -> Self {
        let var = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        Self {
            kubeconfig: var("KUBECONFIG").map(PathBuf::from),
            data_dir: var("EDGEORC_DATA_DIR").map(PathBuf::from),
            log: var("EDGEORC_LOG"),
            log_format: var("EDGEORC_LOG_FORMAT"),
            home: var("HOME").map(PathBuf::from),
            no_color: var("NO_COLOR").is_some(),
        }
    }

    /// Where a node keeps its state unless told otherwise: `/var/lib/edgeorc` for root,
    /// `~/.local/share/edgeorc` for others.
    #[must_use]
    pub fn default_data_dir(&self) -> PathBuf {
        if let Some(dir) = &self.data_dir {
            return dir.clone();
        }
        match &self.home {
            Some(home) if !rustix::process::geteuid().is_root() => {
                home.join(".local/share/edgeorc")
            }
            _ => PathBuf::from("/var/lib/edgeorc"),
        }
    }
}
