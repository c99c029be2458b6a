//! The file `registries.yaml`: read at the start and again when it changes. What was good last is kept,
//! for a start with a broken one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::agent::dirs::write_atomic;
use crate::agent::image::proxy::Rules;
use crate::agent::image::registries::Settings;
use crate::config::Proxies;

/// Largest file, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Why `registries.yaml` cannot be used. Go on with what was known: a person must mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
enum RegistriesError {
    /// It cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{path}: {why}")]
    Invalid {
        /// The file.
        path: String,
        /// Where and what.
        why: String,
    },
}

/// The file, read again when it changes. Clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Registries {
    path: Option<PathBuf>,
    /// A copy of what was good last.
    kept: Option<PathBuf>,
    known: Arc<Mutex<Known>>,
    proxies: Arc<Rules>,
}

#[derive(Debug, Default)]
struct Known {
    stamp: Stamp,
    settings: Arc<Settings>,
    /// What is wrong with the file, if it is broken.
    complaint: Option<String>,
}

/// Tells one state of the file from another; `None` when there is no file.
type Stamp = Option<(SystemTime, u64)>;

impl Registries {
    /// Reads the file; there may be none. Of one that was good a copy is written to `kept`.
    ///
    /// A broken file does not keep a node from starting: what is on its disk must run, above all
    /// after a power cut. The last good one counts then. What is wrong is said in the log and with
    /// every pull that fails, and the file is read again once it changes.
    pub(crate) fn open(path: Option<PathBuf>, kept: Option<PathBuf>, proxies: &Proxies) -> Self {
        let proxies = Arc::new(Rules::of(proxies));
        let this = Self { path, kept, known: Arc::default(), proxies };
        let Some(path) = &this.path else { return this };
        let mut known = Known { stamp: stamp(path), ..Known::default() };
        match read(path) {
            Ok((settings, text)) => {
                this.keep(&text);
                known.settings = Arc::new(settings);
            }
            Err(err) => {
                let last = this.kept.as_deref().and_then(|kept| read(kept).ok());
                let has_last = last.is_some();
                known.settings = Arc::new(last.map(|(settings, _)| settings).unwrap_or_default());
                known.complaint = Some(err.to_string());
                if has_last {
                    tracing::error!(%err, "registries.yaml is broken, the last good one counts until it is mended");
                } else {
                    tracing::error!(%err, "registries.yaml is broken, going on without it until it is mended");
                }
            }
        }
        *this.known.lock() = known;
        this
    }

    /// The proxies of the environment, for hosts that the file has none for.
    pub(super) fn proxies(&self) -> Arc<Rules> {
        Arc::clone(&self.proxies)
    }

    /// What the file says now; what it said before if it is broken.
    pub(super) fn settings(&self) -> Arc<Settings> {
        let mut known = self.known.lock();
        let Some(path) = &self.path else { return Arc::clone(&known.settings) };
        let stamp = stamp(path);
        if stamp != known.stamp {
            known.stamp = stamp;
            match read(path) {
                Ok((settings, text)) => {
                    tracing::info!("registries.yaml read again");
                    self.keep(&text);
                    (known.settings, known.complaint) = (Arc::new(settings), None);
                }
                Err(err) => {
                    tracing::warn!(%err, "registries.yaml is broken, the last one stays");
                    known.complaint = Some(err.to_string());
                }
            }
        }
        Arc::clone(&known.settings)
    }

    /// What is wrong with the file, if it is broken.
    pub(super) fn complaint(&self) -> Option<String> {
        self.known.lock().complaint.clone()
    }

    fn keep(&self, text: &str) {
        let Some(kept) = &self.kept else { return };
        if std::fs::read_to_string(kept).is_ok_and(|had| had == text) {
            return;
        }
        if let Err(err) = write_atomic(kept, text.as_bytes()) {
            tracing::warn!(%err, "cannot keep a copy of registries.yaml");
        }
    }
}

/// Whether the file can be used; there may be none.
///
/// # Errors
///
/// What is wrong, and where.
pub fn check_registries_file(path: &Path) -> Result<(), String> {
    read(path).map(drop).map_err(|err| err.to_string())
}

fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// What the file says, with its text.
fn read(path: &Path) -> Result<(Settings, String), RegistriesError> {
    let name = || path.display().to_string();
    let text = match std::fs::metadata(path) {
        Ok(meta) if meta.len() > FILE_BYTES_MAX => {
            let why = format!("it is larger than {FILE_BYTES_MAX} bytes");
            return Err(RegistriesError::Invalid { path: name(), why });
        }
        Ok(_) => std::fs::read_to_string(path),
        Err(cause) => Err(cause),
    };
    let text = match text {
        Ok(text) => text,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Default::default());
        }
        Err(cause) => return Err(RegistriesError::Read { path: name(), cause }),
    };
    if text.trim().is_empty() {
        return Ok((Settings::default(), text));
    }
    match Settings::parse(&text) {
        Ok(settings) => Ok((settings, text)),
        Err(why) => Err(RegistriesError::Invalid { path: name(), why }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "images: {busybox: httpd:v1}";

    #[test]
    fn a_broken_file_leaves_what_was_good_last_also_at_a_start() {
        let folder = tempfile::tempdir().unwrap();
        let (path, kept) = (folder.path().join("registries.yaml"), folder.path().join("kept"));
        let open = || Registries::open(Some(path.clone()), Some(kept.clone()), &Proxies::default());
        let stand_in =
            |registries: &Registries| registries.settings().stand_in("busybox").to_owned();
        // Broken before it was ever good: the node goes on without it.
        std::fs::write(&path, "mirors: {}").unwrap();
        let first = open();
        assert_eq!(stand_in(&first), "busybox");
        assert!(first.complaint().unwrap().contains("mirors"));
        std::fs::write(&path, GOOD).unwrap();
        assert_eq!(stand_in(&first), "httpd:v1");
        assert_eq!(first.complaint(), None);
        std::fs::write(&path, "images:\n  busybox: httpd:v1\n  oops\n").unwrap();
        assert_eq!(stand_in(&first), "httpd:v1", "the last one stays");
        // So it does over a restart, and what is wrong is said with its line.
        let second = open();
        assert_eq!(stand_in(&second), "httpd:v1");
        let complaint = second.complaint().unwrap();
        assert!(complaint.contains("line 3") || complaint.contains(":3:"), "{complaint}");
        assert_eq!(check_registries_file(&path).unwrap_err(), complaint);
        // A file that is taken away is no broken one.
        std::fs::remove_file(&path).unwrap();
        assert_eq!(stand_in(&second), "busybox");
        assert_eq!(stand_in(&open()), "busybox");
        assert!(check_registries_file(&path).is_ok());
    }
}
