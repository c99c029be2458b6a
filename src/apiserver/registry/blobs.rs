//! Blobs on disk, by digest.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::fs::File;

use crate::apiserver::registry::name::SHA256_HEX;
use crate::apiserver::registry::uploads::Whole;

/// A file whose time is younger than this is not written to once more.
const HELD_AFTER: Duration = Duration::from_secs(600);

/// Content-addressed files under `<dir>/sha256/`. The time of a file's modification is when somebody
/// counted on it last: pushed it, was told that it is here, or named it in a manifest.
#[derive(Debug)]
pub(super) struct Blobs {
    dir: PathBuf,
    /// Held while a file is looked at and noted as counted on, or deleted: never both.
    turn: Arc<Mutex<()>>,
}

/// The file of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlobFile {
    pub(super) bytes: u64,
    /// When somebody counted on it last.
    pub(super) held: SystemTime,
}

impl Blobs {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir: dir.join("sha256"), turn: Arc::default() }
    }

    /// Where they are; made when the first one comes.
    pub(super) fn folder(&self) -> &Path {
        &self.dir
    }

    /// Where a blob is, if it is here.
    pub(super) fn path(&self, hex: &str) -> PathBuf {
        self.dir.join(hex)
    }

    /// Opens a blob; its size.
    pub(super) async fn open(&self, hex: &str) -> io::Result<Option<(File, u64)>> {
        match File::open(self.path(hex)).await {
            Ok(file) => {
                let size = file.metadata().await?.len();
                Ok(Some((file, size)))
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    /// Takes over a complete, checked and synced file.
    pub(super) async fn adopt(&self, file: Whole, hex: &str) -> io::Result<()> {
        let (dir, path) = (self.dir.clone(), self.path(hex));
        // In turn: an older file of that name may be about to be deleted.
        self.in_turn(move || {
            std::fs::create_dir_all(&dir)?;
            std::fs::rename(file.path(), path)?;
            std::fs::File::open(&dir)?.sync_all()
        })
        .await
    }

    /// Notes that somebody counts on a blob `now`, if it is here; what was known of it before.
    pub(super) async fn hold(&self, hex: &str, now: SystemTime) -> io::Result<Option<BlobFile>> {
        let path = self.path(hex);
        self.in_turn(move || {
            let file = match std::fs::File::open(path) {
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
                file => file?,
            };
            let meta = file.metadata()?;
            let held = meta.modified()?;
            if !now.duration_since(held).is_ok_and(|age| age < HELD_AFTER) {
                file.set_modified(now)?;
            }
            Ok(Some(BlobFile { bytes: meta.len(), held }))
        })
        .await
    }

    /// Deletes a blob that nobody has counted on since `before`. Whether it did.
    pub(super) async fn delete_unless_held(
        &self,
        hex: &str,
        before: SystemTime,
    ) -> io::Result<bool> {
        let path = self.path(hex);
        self.in_turn(move || {
            let held = match std::fs::metadata(&path) {
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(false),
                meta => meta?.modified()?,
            };
            if held >= before {
                return Ok(false);
            }
            std::fs::remove_file(&path).map(|()| true)
        })
        .await
    }

    /// All that are here, by digest; none if there never was one.
    pub(super) async fn files(&self) -> io::Result<BTreeMap<String, BlobFile>> {
        let dir = self.dir.clone();
        let read = move || {
            let mut all = BTreeMap::new();
            let entries = match std::fs::read_dir(dir) {
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(all),
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                if name.len() == SHA256_HEX {
                    let meta = entry.metadata()?;
                    all.insert(name, BlobFile { bytes: meta.len(), held: meta.modified()? });
                }
            }
            Ok(all)
        };
        tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
    }

    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let turn = Arc::clone(&self.turn);
        let work = move || {
            let _turn = turn.lock();
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
    }
}
