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
use crate::apiserver::registry::replicas::REPLICA;
use crate::rt::Room;

/// Uploads under way at once, and those of one user.
const UPLOADS_MAX: usize = 64;
const USER_UPLOADS_MAX: usize = 16;
/// Largest blob, in bytes.
pub(super) const BLOB_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How long an upload may rest before it is forgotten, and before it gives way when there is no place left.
const IDLE_MAX: Duration = Duration::from_secs(600);
const GIVES_WAY_AFTER: Duration = Duration::from_secs(30);
/// How long one piece of a body may take to arrive.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(60);

/// An upload that requests take turns at.
type SharedUpload = Arc<tokio::sync::Mutex<Upload>>;

/// The uploads under way.
#[derive(Debug)]
pub(super) struct Uploads {
    dir: PathBuf,
    open: Mutex<BTreeMap<String, Session>>,
}

/// An upload with its user, and the time it was touched last.
#[derive(Debug)]
struct Session {
    user: String,
    touched: Instant,
    upload: SharedUpload,
}

/// One upload.
#[derive(Debug)]
pub(super) struct Upload {
    path: PathBuf,
    size: u64,
    hash: Sha256,
    room: Room,
    /// Every byte that was hashed is in the file and no other. Not so while a body is written, nor
    /// ever after one that broke off: what the disk still writes of it nobody knows.
    is_whole: bool,
}

/// The file of an upload that is complete; removed unless it was renamed.
#[derive(Debug)]
pub(super) struct Whole(PathBuf);

impl Whole {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn broken(why: &str) -> OciError {
    OciError::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", why)
}

impl Uploads {
    /// Forgets the uploads of an earlier process: nobody can go on with them.
    pub(super) fn new(dir: PathBuf) -> Self {
        if let Err(err) = std::fs::remove_dir_all(&dir)
            && err.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%err, "cannot remove unfinished uploads");
        }
        Self { dir, open: Mutex::default() }
    }

    /// Removes what rests for too long.
    pub(super) async fn sweep(&self) {
        for path in self.expire() {
            let _ = fs::remove_file(path).await;
        }
    }

    /// Starts an upload of `user` named `id`.
    pub(super) async fn begin(&self, id: &str, user: &str) -> Result<(), OciError> {
        self.sweep().await;
        let path = self.dir.join(id);
        if let Some(path) = self.reserve(id, user, &path)? {
            let _ = fs::remove_file(path).await;
        }
        let create = async {
            fs::create_dir_all(&self.dir).await?;
            File::create(&path).await
        };
        if let Err(cause) = create.await {
            self.open.lock().remove(id);
            return Err(OciError::io(&cause));
        }
        Ok(())
    }

    /// Takes one of the places, before anything is on disk. Returns the file of the upload that gives way.
    fn reserve(&self, id: &str, user: &str, path: &Path) -> Result<Option<PathBuf>, OciError> {
        let (path, room) = (path.to_owned(), Room::new(&self.dir));
        let upload = Upload { path, size: 0, hash: Sha256::new(), room, is_whole: true };
        let mut open = self.open.lock();
        let own = open.values().filter(|session| session.user == user).count();
        // Servers have as many as there are: what they copy, clients have pushed.
        let gone = if own >= USER_UPLOADS_MAX && user != REPLICA {
            give_way(&mut open, |session| session.user == user, USER_UPLOADS_MAX)?
        } else if open.len() >= UPLOADS_MAX {
            give_way(&mut open, |_| true, UPLOADS_MAX)?
        } else {
            None
        };
        let upload = Arc::new(tokio::sync::Mutex::new(upload));
        let session = Session { user: user.to_owned(), touched: Instant::now(), upload };
        open.insert(id.to_owned(), session);
        Ok(gone)
    }

    /// Forgets uploads that rest for too long, and those that broke off; their files.
    fn expire(&self) -> Vec<PathBuf> {
        let mut open = self.open.lock();
        let mut files = Vec::new();
        open.retain(|_, session| {
            // One that is locked is being written.
            let Ok(upload) = session.upload.try_lock() else { return true };
            let is_over = !upload.is_whole || session.touched.elapsed() > IDLE_MAX;
            if is_over {
                files.push(upload.path.clone());
            }
            !is_over
        });
        files
    }

    fn find(&self, id: &str) -> Result<SharedUpload, OciError> {
        let mut open = self.open.lock();
        let session = open.get_mut(id);
        let session =
            session.ok_or_else(|| OciError::not_found("BLOB_UPLOAD_UNKNOWN", "this upload"))?;
        session.touched = Instant::now();
        Ok(Arc::clone(&session.upload))
    }

    /// Appends a body, which begins at byte `start` if that is given. Returns the size so far. An
    /// upload that fails here is gone, unless the body was only in the wrong place.
    ///
    /// # Cancel safety
    ///
    /// When dropped, the upload is of no use any more and is refused by every later request.
    pub(super) async fn append(
        &self,
        id: &str,
        start: Option<u64>,
        body: Body,
    ) -> Result<u64, OciError> {
        let upload = self.find(id)?;
        let appended = {
            let mut upload = upload.lock().await;
            if start.is_some_and(|start| start != upload.size) {
                return Err(OciError::out_of_order(upload.size));
            }
            upload.append(body).await.map(|()| upload.size)
        };
        if appended.is_err() {
            self.discard(id).await;
        } else if let Some(session) = self.open.lock().get_mut(id) {
            session.touched = Instant::now();
        }
        appended
    }

    /// The size so far.
    pub(super) async fn size(&self, id: &str) -> Result<u64, OciError> {
        Ok(self.find(id)?.lock().await.size)
    }

    /// Ends an upload: its file, when the bytes have the digest. Else nothing is left of it, nor when the
    /// file is not put into its place.
    pub(super) async fn finish(&self, id: &str, hex: &str) -> Result<Whole, OciError> {
        let upload = self.find(id)?;
        let checked = upload.lock().await.check(hex).await;
        if checked.is_err() {
            self.discard(id).await;
        } else {
            self.open.lock().remove(id);
        }
        checked.map(Whole)
    }

    /// Gives an upload up.
    pub(super) async fn cancel(&self, id: &str) -> Result<(), OciError> {
        self.find(id)?;
        self.discard(id).await;
        Ok(())
    }

    /// Frees the place and the file of an upload, if it is still there.
    pub(super) async fn discard(&self, id: &str) {
        let removed = self.open.lock().remove(id);
        if let Some(session) = removed {
            let path = session.upload.lock().await.path.clone();
            let _ = fs::remove_file(path).await;
        }
    }
}

/// Forgets the upload that has rested longest of those that are `asked`; its file.
fn give_way(
    open: &mut BTreeMap<String, Session>,
    asked: impl Fn(&Session) -> bool,
    most: usize,
) -> Result<Option<PathBuf>, OciError> {
    let rests = |session: &&Session| asked(session) && session.touched.elapsed() > GIVES_WAY_AFTER;
    let longest = open
        .iter()
        .filter(|(_, session)| rests(session))
        .filter_map(|(id, session)| {
            // One that is locked is being written.
            let path = session.upload.try_lock().ok()?.path.clone();
            Some((session.touched, id.clone(), path))
        })
        .min();
    let Some((_, id, path)) = longest else {
        let message = format!("{most} uploads are under way, try again later");
        return Err(OciError::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message));
    };
    open.remove(&id);
    Ok(Some(path))
}

impl Upload {
    async fn append(&mut self, body: Body) -> Result<(), OciError> {
        if !self.is_whole {
            return Err(broken("an earlier piece broke off; start a new upload"));
        }
        self.is_whole = false;
        let io = |cause: std::io::Error| OciError::io(&cause);
        let mut file = OpenOptions::new().append(true).open(&self.path).await.map_err(io)?;
        let mut chunks = body.into_data_stream();
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
            self.room.take(chunk.len() as u64).map_err(io)?;
            self.hash.update(&chunk);
            file.write_all(&chunk).await.map_err(io)?;
        }
        file.flush().await.map_err(io)?;
        self.is_whole = true;
        Ok(())
    }

    /// Makes the file durable; its path, when it holds the bytes of the digest.
    async fn check(&self, hex: &str) -> Result<PathBuf, OciError> {
        if !self.is_whole {
            return Err(broken("an earlier piece broke off; start a new upload"));
        }
        let found = hex::encode(self.hash.clone().finalize());
        if found != hex {
            let message = format!("the bytes have the digest sha256:{found}");
            return Err(OciError::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message));
        }
        let sync = async {
            let file = File::open(&self.path).await?;
            file.sync_all().await?;
            file.metadata().await
        };
        let len = sync.await.map_err(|cause| OciError::io(&cause))?.len();
        if len != self.size {
            return Err(broken("the file on disk is not what was sent; start a new upload"));
        }
        Ok(self.path.clone())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn digest(bytes: &[u8]) -> String {
        hex::encode(Sha256::digest(bytes))
    }

    /// A body whose client is gone after `sent`.
    fn breaks_after(sent: &'static [u8]) -> Body {
        let chunks = [Ok(Bytes::from_static(sent)), Err(std::io::Error::other("gone"))];
        Body::from_stream(futures_util::stream::iter(chunks))
    }

    fn uploads(dir: &Path) -> Uploads {
        Uploads::new(dir.join("uploads"))
    }

    fn files(uploads: &Uploads) -> usize {
        std::fs::read_dir(&uploads.dir).map_or(0, Iterator::count)
    }

    #[tokio::test]
    async fn pieces_become_one_blob() {
        let folder = tempfile::tempdir().unwrap();
        let uploads = uploads(folder.path());
        uploads.begin("a", "u").await.unwrap();
        assert_eq!(uploads.append("a", None, Body::from("one")).await.unwrap(), 3);
        assert_eq!(uploads.append("a", None, Body::from("two")).await.unwrap(), 6);
        let file = uploads.finish("a", &digest(b"onetwo")).await.unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"onetwo");
        assert!(uploads.find("a").is_err());
    }

    #[tokio::test]
    async fn an_upload_that_broke_off_is_never_taken_for_whole() {
        let folder = tempfile::tempdir().unwrap();
        let uploads = uploads(folder.path());
        uploads.begin("a", "u").await.unwrap();
        assert!(uploads.append("a", None, breaks_after(b"bytes")).await.is_err());
        assert!(uploads.finish("a", &digest(b"bytes")).await.is_err());
        assert_eq!(files(&uploads), 0);
    }

    #[tokio::test]
    async fn an_upload_whose_request_was_dropped_is_never_taken_for_whole() {
        let folder = tempfile::tempdir().unwrap();
        let uploads = uploads(folder.path());
        uploads.begin("a", "u").await.unwrap();
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>("bytes")]);
        let body = Body::from_stream(first.chain(futures_util::stream::pending()));
        let dropped =
            tokio::time::timeout(Duration::from_millis(50), uploads.append("a", None, body));
        assert!(dropped.await.is_err());
        assert!(uploads.finish("a", &digest(b"bytes")).await.is_err());
        assert!(uploads.find("a").is_err());
        assert_eq!(files(&uploads), 0);
    }

    #[tokio::test]
    async fn a_file_that_lost_bytes_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let uploads = uploads(folder.path());
        uploads.begin("a", "u").await.unwrap();
        uploads.append("a", None, Body::from("bytes")).await.unwrap();
        std::fs::write(uploads.dir.join("a"), b"byt").unwrap();
        assert!(uploads.finish("a", &digest(b"bytes")).await.is_err());
    }

    #[tokio::test]
    async fn places_and_files_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let uploads = uploads(folder.path());
        for at in 0..UPLOADS_MAX {
            uploads.begin(&at.to_string(), &(at / USER_UPLOADS_MAX).to_string()).await.unwrap();
        }
        assert!(uploads.begin("more", "another").await.is_err());
        assert_eq!(files(&uploads), UPLOADS_MAX, "a refused upload left a file");
        uploads.append("0", None, breaks_after(b"x")).await.unwrap_err();
        uploads.finish("1", &digest(b"other")).await.unwrap_err();
        uploads.cancel("2").await.unwrap();
        for id in ["a", "b", "c"] {
            uploads.begin(id, "u").await.unwrap();
        }
        assert_eq!(files(&uploads), UPLOADS_MAX);
        // A process that starts anew knows none of them.
        let again = Uploads::new(uploads.dir.clone());
        assert_eq!(files(&again), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_rests_gives_its_place_away_and_one_that_is_written_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let uploads = uploads(folder.path());
        uploads.reserve("rests", "u", &uploads.dir.join("rests")).unwrap();
        uploads.reserve("written", "u", &uploads.dir.join("written")).unwrap();
        let written = uploads.find("written").unwrap();
        let _writing = written.lock().await;
        tokio::time::advance(IDLE_MAX + Duration::from_secs(1)).await;
        assert_eq!(uploads.expire(), [uploads.dir.join("rests")]);
        assert!(uploads.find("written").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_holds_the_places_of_others_by_resting() {
        let folder = tempfile::tempdir().unwrap();
        let uploads = uploads(folder.path());
        let reserve = |id: &str, user: &str| uploads.reserve(id, user, &uploads.dir.join(id));
        for at in 0..USER_UPLOADS_MAX {
            assert!(reserve(&format!("one-{at}"), "one").unwrap().is_none());
        }
        assert!(reserve("more", "one").is_err(), "they have their share");
        tokio::time::advance(GIVES_WAY_AFTER + Duration::from_secs(1)).await;
        for at in USER_UPLOADS_MAX..UPLOADS_MAX {
            let user = format!("user-{}", at / USER_UPLOADS_MAX);
            assert!(reserve(&format!("other-{at}"), &user).unwrap().is_none());
        }
        let written = uploads.find("one-0").unwrap();
        let _writing = written.lock().await;
        assert_eq!(reserve("a", "two").unwrap(), Some(uploads.dir.join("one-1")));
        assert_eq!(reserve("b", "one").unwrap(), Some(uploads.dir.join("one-10")));
        assert!(uploads.find("one-0").is_ok() && uploads.find("one-1").is_err());
    }
}
