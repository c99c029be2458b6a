//! Archives in a folder of a server's data: loaded at each start, as k3s does.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::roles::bundle::{BundleError, LoadPlan, Loaded, load};

/// Pause before another try while the cluster has no leader.
const RETRY: Duration = Duration::from_secs(2);
/// Pause before what the disk had no room for is tried again.
const ROOM_RETRY: Duration = Duration::from_secs(60);
/// Most files that are loaded.
const FILES_MAX: usize = 256;

/// Loads one archive.
type Loader<'a> = &'a (dyn Fn(PathBuf) -> BoxFuture<'a, Result<Loaded, BundleError>> + Send + Sync);

/// Loads all archives of a folder in the order of their names; the folder need not exist. An archive
/// that cannot be used does not keep the others, nor does one that the disk has no room for.
///
/// # Cancel safety
///
/// What was loaded so far stays; the next start goes on with it.
pub(in crate::roles) async fn load_folder(folder: &Path, client: &kube::Client) {
    let one = |file: PathBuf| {
        async move { load(&LoadPlan { file, name: None }, client, &mut |_| {}).await }.boxed()
    };
    load_all(archives(folder), &one).await;
}

async fn load_all(files: Vec<PathBuf>, load: Loader<'_>) {
    let (mut left, mut told) = (VecDeque::from(files), BTreeSet::new());
    // Archives in a row that found no room: once that is all of them, somebody has to make some.
    let mut without_room = 0;
    while let Some(file) = left.pop_front() {
        let path = file.display().to_string();
        match load(file.clone()).await {
            Ok(done) => {
                let (images, sent) = (done.images.len(), done.sent);
                tracing::info!(file = path, images, sent, "images loaded from the folder");
                without_room = 0;
            }
            Err(BundleError::Unreachable(why)) => {
                tracing::debug!(file = path, why, "images are loaded later");
                left.push_front(file);
                tokio::time::sleep(RETRY).await;
            }
            Err(BundleError::NoRoom { image }) => {
                if told.insert(file.clone()) {
                    tracing::warn!(
                        file = path,
                        image,
                        "no room on the disk for images of the folder, they are tried again"
                    );
                }
                left.push_back(file);
                without_room += 1;
                if without_room >= left.len() {
                    without_room = 0;
                    tokio::time::sleep(ROOM_RETRY).await;
                }
            }
            Err(err) => tracing::error!(%err, "cannot load images from the folder"),
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

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_archive_without_room_waits_behind_the_others_until_there_is_some() {
        let started = tokio::time::Instant::now();
        let seen = Mutex::new(Vec::new());
        let load = |file: PathBuf| {
            let name = file.display().to_string();
            let is_full = name == "big" && started.elapsed() < 2 * ROOM_RETRY;
            seen.lock().push(name);
            let outcome = if is_full {
                Err(BundleError::NoRoom { image: "app".to_owned() })
            } else {
                Ok(Loaded::default())
            };
            std::future::ready(outcome).boxed()
        };
        load_all(vec!["big".into(), "small".into(), "tiny".into()], &load).await;
        assert_eq!(*seen.lock(), ["big", "small", "tiny", "big", "big", "big"]);
        assert_eq!(started.elapsed(), 2 * ROOM_RETRY);
    }
}
