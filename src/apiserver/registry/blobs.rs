//! Blobs on disk, by digest.

use std::io;
use std::path::{Path, PathBuf};

use tokio::fs::{self, File};

/// Content-addressed files under `<dir>/sha256/`.
#[derive(Debug)]
pub(super) struct Blobs {
    dir: PathBuf,
}

impl Blobs {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir: dir.join("sha256") }
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
    pub(super) async fn adopt(&self, file: &Path, hex: &str) -> io::Result<()> {
        fs::create_dir_all(&self.dir).await?;
        fs::rename(file, self.path(hex)).await?;
        File::open(&self.dir).await?.sync_all().await
    }
}
