//! Uploads under way: a file each, with the running digest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures_util::StreamExt as _;
use http::StatusCode;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::fs::{self, File, OpenOptions};
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

use crate::apiserver::registry::name::OciError;

/// Uploads under way at once.
const UPLOADS_MAX: usize = 64;
/// Largest blob, in bytes.
pub(super) const BLOB_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How long an upload may rest before its place is given away.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// How long one piece of a body may take to arrive.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(60);

/// An upload that requests take turns at.
type SharedUpload = Arc<tokio::sync::Mutex<Upload>>;

/// The uploads under way, with the time each was touched last.
#[derive(Debug)]
pub(super) struct Uploads {
    dir: PathBuf,
    open: Mutex<BTreeMap<String, (Instant, SharedUpload)>>,
}

/// One upload.
#[derive(Debug)]
pub(super) struct Upload {
    path: PathBuf,
    size: u64,
    hash: Sha256,
}

impl Uploads {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, open: Mutex::default() }
    }

    /// Starts an upload named `id`.
    pub(super) async fn begin(&self, id: &str) -> Result<(), OciError> {
        fs::create_dir_all(&self.dir).await.map_err(|cause| OciError::io(&cause))?;
        let stale = self.expire();
        for path in stale {
            let _ = fs::remove_file(path).await;
        }
        let path = self.dir.join(id);
        File::create(&path).await.map_err(|cause| OciError::io(&cause))?;
        let upload = Upload { path, size: 0, hash: Sha256::new() };
        let mut open = self.open.lock();
        if open.len() >= UPLOADS_MAX {
            let message = format!("{UPLOADS_MAX} uploads are under way, try again later");
            return Err(OciError::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message));
        }
        open.insert(id.to_owned(), (Instant::now(), Arc::new(tokio::sync::Mutex::new(upload))));
        Ok(())
    }

    /// Forgets uploads that rest for too long; their files.
    fn expire(&self) -> Vec<PathBuf> {
        let mut open = self.open.lock();
        let is_stale = |at: &Instant| at.elapsed() > IDLE_MAX;
        let stale: Vec<String> =
            open.iter().filter(|(_, (at, _))| is_stale(at)).map(|(id, _)| id.clone()).collect();
        stale.iter().filter_map(|id| open.remove(id).map(|_| self.dir.join(id))).collect()
    }

    fn find(&self, id: &str) -> Result<SharedUpload, OciError> {
        let mut open = self.open.lock();
        let entry = open.get_mut(id);
        let (at, upload) =
            entry.ok_or_else(|| OciError::not_found("BLOB_UPLOAD_UNKNOWN", "this upload"))?;
        *at = Instant::now();
        Ok(Arc::clone(upload))
    }

    /// Appends a body. Returns the size so far.
    pub(super) async fn append(&self, id: &str, body: Body) -> Result<u64, OciError> {
        let upload = self.find(id)?;
        let mut upload = upload.lock().await;
        upload.append(body).await?;
        Ok(upload.size)
    }

    /// The size so far.
    pub(super) async fn size(&self, id: &str) -> Result<u64, OciError> {
        Ok(self.find(id)?.lock().await.size)
    }

    /// Ends an upload: its file, when the bytes have the digest.
    pub(super) async fn finish(&self, id: &str, hex: &str) -> Result<PathBuf, OciError> {
        let upload = self.find(id)?;
        self.open.lock().remove(id);
        let upload = upload.lock().await;
        let found = hex::encode(upload.hash.clone().finalize());
        if found != hex {
            let _ = fs::remove_file(&upload.path).await;
            let message = format!("the bytes have the digest sha256:{found}");
            return Err(OciError::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message));
        }
        sync(&upload.path).await.map_err(|cause| OciError::io(&cause))?;
        Ok(upload.path.clone())
    }

    /// Gives an upload up.
    pub(super) async fn cancel(&self, id: &str) -> Result<(), OciError> {
        let upload = self.find(id)?;
        self.open.lock().remove(id);
        let path = upload.lock().await.path.clone();
        let _ = fs::remove_file(path).await;
        Ok(())
    }
}

async fn sync(path: &Path) -> std::io::Result<()> {
    File::open(path).await?.sync_all().await
}

impl Upload {
    async fn append(&mut self, body: Body) -> Result<(), OciError> {
        let io = |cause: std::io::Error| OciError::io(&cause);
        let mut file = OpenOptions::new().append(true).open(&self.path).await.map_err(io)?;
        let mut chunks = body.into_data_stream();
        let broken = |why: &str| OciError::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", why);
        loop {
            let chunk = tokio::time::timeout(CHUNK_TIMEOUT, chunks.next())
                .await
                .map_err(|_| broken("the body stopped arriving"))?;
            let Some(chunk) = chunk else { break };
            let chunk = chunk.map_err(|_| broken("the body ended early"))?;
            self.size += chunk.len() as u64;
            if self.size > BLOB_BYTES_MAX {
                let message = format!("blobs may have at most {BLOB_BYTES_MAX} bytes");
                return Err(OciError::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message));
            }
            self.hash.update(&chunk);
            file.write_all(&chunk).await.map_err(io)?;
        }
        file.flush().await.map_err(io)
    }
}
