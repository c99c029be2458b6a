//! The blobs of this node's images, for the agents of other nodes.
//!
//! `HEAD /blobs/sha256:<hex>` is a question and an announcement: who asks wants the blob. `GET` gives
//! it, from a byte on if asked to, to a few at a time and no faster than a small machine can bear.

use std::io::SeekFrom;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::routing::get;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use parking_lot::Mutex;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use crate::agent::image::Images;
use crate::agent::image::reference::hex_of;
use crate::agent::image::swarm::{Phase, Pulled};
use crate::rt::TaskGroup;

/// Nodes that are given a blob at a time; others are told to come again.
const SERVES_MAX: usize = 4;
/// Bytes a second that all of them get together: what a Raspberry Pi can spare.
const BYTES_PER_SECOND_MAX: u64 = 16 * 1024 * 1024;
/// Bytes read and sent at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks that wait for a reader.
const CHUNKS_MAX: usize = 2;
/// A reader that takes no chunk for so long loses its place.
const READER_TIMEOUT: Duration = Duration::from_secs(10);

/// Says in an answer what the node is doing about a blob that it lacks.
pub(super) const PHASE_HEADER: &str = "edgeorc-blob-phase";
/// Value of it: the node is receiving the blob.
pub(super) const FETCHING: &str = "fetching";
/// Value of it: the node asks others.
const ASKING: &str = "asking";
/// Says how many bytes the node has received.
pub(super) const RECEIVED_HEADER: &str = "edgeorc-blob-received";

/// Names in a request the repository that the blob is wanted out of, which has said that it would give
/// it to whoever asks.
pub(super) const REPOSITORY_HEADER: &str = "edgeorc-repository";

/// Path of a blob.
pub(super) fn path(hex: &str) -> String {
    format!("/blobs/sha256:{hex}")
}

/// Who asks, by its certificate: the name of a node. Whoever accepts the connection puts it into
/// every request.
#[derive(Debug, Clone)]
pub struct AskingNode(pub String);

/// Blobs for other nodes. Exists before the images, which open it; until then it is empty.
#[derive(Clone, Default)]
pub(crate) struct BlobShelf(Arc<OnceLock<Shelf>>);

impl std::fmt::Debug for BlobShelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobShelf").finish_non_exhaustive()
    }
}

struct Shelf {
    images: Arc<Images>,
    me: String,
    tasks: TaskGroup,
    places: Arc<Semaphore>,
    rate: Arc<Rate>,
}

impl BlobShelf {
    /// Gives what `images` have; `me` is this node. Only the first call counts.
    pub(crate) fn open(&self, images: Arc<Images>, me: String, tasks: TaskGroup) {
        let _ = self.0.set(Shelf {
            images,
            me,
            tasks,
            places: Arc::new(Semaphore::new(SERVES_MAX)),
            rate: Arc::new(Rate::new(BYTES_PER_SECOND_MAX)),
        });
    }

    /// Its paths.
    pub(crate) fn router(&self) -> Router {
        Router::new().route("/blobs/{digest}", get(give).head(tell)).with_state(self.clone())
    }

    fn find(&self, digest: &str, headers: &HeaderMap) -> Option<(&Shelf, Pulled)> {
        let repository = headers.get(REPOSITORY_HEADER)?.to_str().ok()?;
        Some((self.0.get()?, (hex_of(digest)?.to_owned(), repository.to_owned())))
    }
}

impl Shelf {
    /// The file of a blob that may be given away, and its size.
    async fn file(&self, blob: &Pulled) -> Option<(File, u64)> {
        if !self.images.swarm.is_ours(blob) {
            return None;
        }
        let file = File::open(self.images.blob(&blob.0)).await.ok()?;
        let size = file.metadata().await.ok()?.len();
        Some((file, size))
    }
}

async fn tell(
    State(shelf): State<BlobShelf>,
    Extension(AskingNode(asker)): Extension<AskingNode>,
    Path(digest): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let Some((shelf, blob)) = shelf.find(&digest, &headers) else {
        return empty(StatusCode::NOT_FOUND);
    };
    // In this order: a blob that arrives between the two looks is found by the second.
    if let Some(phase) = shelf.images.swarm.asked(&blob, &asker, &shelf.me) {
        let mut answer = empty(StatusCode::ACCEPTED);
        let (word, received) = match phase {
            Phase::Asking => (ASKING, 0),
            Phase::Fetching(received) => (FETCHING, received),
        };
        let headers = answer.headers_mut();
        headers.insert(HeaderName::from_static(PHASE_HEADER), HeaderValue::from_static(word));
        headers.insert(HeaderName::from_static(RECEIVED_HEADER), HeaderValue::from(received));
        return answer;
    }
    let is_free = shelf.places.available_permits() > 0;
    match shelf.file(&blob).await {
        Some(_) if is_free => empty(StatusCode::OK),
        Some(_) => empty(StatusCode::TOO_MANY_REQUESTS),
        None => empty(StatusCode::NOT_FOUND),
    }
}

async fn give(
    State(shelf): State<BlobShelf>,
    Path(digest): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let Some((shelf, blob)) = shelf.find(&digest, &headers) else {
        return empty(StatusCode::NOT_FOUND);
    };
    let Some((mut file, size)) = shelf.file(&blob).await else {
        return empty(StatusCode::NOT_FOUND);
    };
    let Ok(place) = Arc::clone(&shelf.places).try_acquire_owned() else {
        return empty(StatusCode::TOO_MANY_REQUESTS);
    };
    let start = wanted_start(&headers).filter(|start| *start < size).unwrap_or(0);
    if file.seek(SeekFrom::Start(start)).await.is_err() {
        return empty(StatusCode::NOT_FOUND);
    }
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    let (rate, images) = (Arc::clone(&shelf.rate), Arc::clone(&shelf.images));
    let left = size - start;
    shelf.tasks.spawn_until_cancelled("blob-serve", async move {
        let given = pump(file, left, &rate, &sender, place).await;
        images.compiler.metrics().given(given);
    });
    let body = futures_util::stream::unfold(receiver, |mut receiver| async move {
        Some((receiver.recv().await?, receiver))
    });
    let mut answer = Response::new(Body::from_stream(body));
    answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(left));
    if start > 0 {
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        let range = HeaderValue::from_str(&format!("bytes {start}-{}/{size}", size - 1));
        if let Ok(range) = range {
            answer.headers_mut().insert(header::CONTENT_RANGE, range);
        }
    }
    answer
}

/// Reads and sends until the end, or until the reader is gone or too slow; the bytes sent. The body
/// that is cut off breaks the exchange, so that nobody takes it for whole.
async fn pump(
    mut file: File,
    mut left: u64,
    rate: &Rate,
    sender: &mpsc::Sender<std::io::Result<Bytes>>,
    _place: OwnedSemaphorePermit,
) -> u64 {
    let mut given = 0;
    let mut buffer = vec![0; CHUNK_BYTES];
    while left > 0 {
        let Ok(count @ 1..) = file.read(&mut buffer).await else { return given };
        let count = count.min(usize::try_from(left).unwrap_or(usize::MAX));
        let Some(read) = buffer.get(..count) else { return given };
        rate.take(count as u64).await;
        let sent = sender.send(Ok(Bytes::copy_from_slice(read)));
        if !matches!(tokio::time::timeout(READER_TIMEOUT, sent).await, Ok(Ok(()))) {
            return given;
        }
        given += count as u64;
        left -= count as u64;
    }
    given
}

/// First byte of `Range: bytes=N-`.
fn wanted_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

fn empty(code: StatusCode) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = code;
    answer
}

/// Lets so many bytes pass in a second, in the order in which they are asked for.
#[derive(Debug)]
struct Rate {
    bytes_per_second: u64,
    /// When the next ones may pass.
    next: Mutex<Instant>,
}

impl Rate {
    fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, next: Mutex::new(Instant::now()) }
    }

    async fn take(&self, bytes: u64) {
        let micros = bytes.saturating_mul(1_000_000) / self.bytes_per_second.max(1);
        let at = {
            let mut next = self.next.lock();
            let at = (*next).max(Instant::now());
            *next = at + Duration::from_micros(micros);
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_together_get_no_more_than_the_rate() {
        let rate = Rate::new(1000);
        let started = Instant::now();
        let take = async || {
            for _ in 0..10 {
                rate.take(100).await;
            }
        };
        tokio::join!(take(), take(), take());
        assert_eq!(started.elapsed().as_millis(), 2900);
    }
}
