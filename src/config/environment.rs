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
    /// Places that may be in memory: `RUNTIME_DIRECTORY` of systemd; for root `/run` and `/dev/shm`.
    /// What other users have there goes when they log out.
    pub memory_dirs: Vec<PathBuf>,
    /// `NO_COLOR` is set: never write colours.
    pub no_color: bool,
    /// `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, or the same in small letters.
    pub proxies: Proxies,
}

/// Proxies for requests that leave the cluster, as other programs read them from the environment:
/// URLs, and hosts that are reached without. Empty: none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For `http:` URLs.
    pub http: String,
    /// For `https:` URLs.
    pub https: String,
    /// For both, where there is no other.
    pub all: String,
    /// Host names with all below them, addresses and ranges, separated by commas.
    pub no: String,
}

impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URLs may have passwords in them.
        f.debug_struct("Proxies").field("no", &self.no).finish_non_exhaustive()
    }
}

impl Environment {
    /// Reads the process environment.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads it")]
    pub fn read() -> Self {
        let var = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let either =
            |large: &str, small: &str| var(large).or_else(|| var(small)).unwrap_or_default();
        // Of systemd's there may be several, the first one is ours.
        let runtime = var("RUNTIME_DIRECTORY");
        let runtime = runtime.as_deref().and_then(|dirs| dirs.split(':').next());
        let own = runtime.map(PathBuf::from);
        let is_root = rustix::process::geteuid().is_root();
        let of_root = ["/run", "/dev/shm"].into_iter().filter(|_| is_root).map(PathBuf::from);
        Self {
            memory_dirs: own.into_iter().chain(of_root).collect(),
            kubeconfig: var("KUBECONFIG").map(PathBuf::from),
            data_dir: var("EDGEORC_DATA_DIR").map(PathBuf::from),
            log: var("EDGEORC_LOG"),
            log_format: var("EDGEORC_LOG_FORMAT"),
            home: var("HOME").map(PathBuf::from),
            no_color: var("NO_COLOR").is_some(),
            proxies: Proxies {
                http: either("HTTP_PROXY", "http_proxy"),
                https: either("HTTPS_PROXY", "https_proxy"),
                all: either("ALL_PROXY", "all_proxy"),
                no: either("NO_PROXY", "no_proxy"),
            },
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
