//! Archives in a folder of a server's data: loaded at each start, as k3s does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::roles::bundle::{BundleError, LoadPlan, load};

/// Pause before another try while the cluster has no leader.
const RETRY: Duration = Duration::from_secs(2);
/// Most files that are loaded.
const FILES_MAX: usize = 256;

/// Loads all archives of a folder in the order of their names; the folder need not exist. An archive
/// that cannot be used does not keep the others.
///
/// # Cancel safety
///
/// What was loaded so far stays; the next start goes on with it.
pub(in crate::roles) async fn load_folder(folder: &Path, client: &kube::Client) {
    for file in archives(folder) {
        let plan = LoadPlan { file, name: None };
        let path = plan.file.display();
        loop {
            match load(&plan, client, &mut |_| {}).await {
                Ok(done) => {
                    let (images, sent) = (done.images.len(), done.sent);
                    tracing::info!(file = %path, images, sent, "images loaded from the folder");
                    break;
                }
                Err(BundleError::Unreachable(why)) => {
                    tracing::debug!(file = %path, why, "images are loaded later");
                    tokio::time::sleep(RETRY).await;
                }
                Err(err) => {
                    tracing::error!(%err, "cannot load images from the folder");
                    break;
                }
            }
        }
    }
}

fn archives(folder: &Path) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(cause) => {
            if cause.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(err = %cause, "cannot read the folder with images");
            }
            return Vec::new();
        }
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let (mut tars, others): (Vec<_>, Vec<_>) =
        paths.partition(|path| path.extension().is_some_and(|end| end == "tar"));
    for other in others {
        tracing::warn!(file = %other.display(), "not loaded: its name does not end in .tar");
    }
    tars.sort();
    tars.truncate(FILES_MAX);
    tars
}
