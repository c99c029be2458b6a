//! Blobs between servers: each that is pushed is copied to all, and one that is missing is fetched.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use futures_util::StreamExt as _;
use http::{Method, Request, StatusCode, header};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::io::ReaderStream;

use crate::api::user::UserInfo;
use crate::apiserver::context::Context;
use crate::apiserver::forward;
use crate::apiserver::registry::handler::{Answer, not_allowed, with_headers};
use crate::apiserver::registry::name::{self, OciError};

/// Repository under which servers exchange blobs; no client can name it.
pub(super) const REPLICA: &str = "_replica";
/// How long another server may take to answer, before its body.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);
/// A server that takes fewer bytes of a blob than this in the time below is not waited for: whoever
/// pushed waits, too. It fetches the blob when somebody asks it.
const PROGRESS_BYTES_MIN: u64 = 16 * 1024;
/// How long somebody waits who asks for a blob that another server has: most are here by then, and
/// clients do not wait much longer.
const FETCH_WAIT_MAX: Duration = Duration::from_secs(5);
/// Also the time for its answer once it has all.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Puts the rest of an upload behind what is here of it, checks the whole and keeps it.
pub(super) async fn keep(
    context: &Context,
    id: &str,
    hex: &str,
    body: Body,
) -> Result<(), OciError> {
    let registry = &context.registry;
    registry.uploads.append(id, None, body).await?;
    let file = registry.uploads.finish(id, hex).await?;
    registry.blobs.adopt(file, hex).await.map_err(|cause| OciError::io(&cause))
}

/// Copies a blob to every other server that takes it: one of them may be all that is left later.
pub(super) async fn replicate(context: &Context, digest: &str) -> Result<(), OciError> {
    let hex = name::digest(digest)?;
    let servers = context.store.other_servers(&context.node_name);
    let copies = servers.iter().map(|server| async move {
        let copied = copy(context, server, digest, hex).await;
        if let Err(reason) = copied {
            tracing::warn!(
                peer = server,
                blob.digest = digest,
                reason,
                "a server did not take a blob"
            );
        }
    });
    futures_util::future::join_all(copies).await;
    Ok(())
}

/// Sends a blob to one server, for as long as it makes progress.
async fn copy(
    context: &Context,
    server: &str,
    digest: &str,
    hex: &str,
) -> Result<(), &'static str> {
    let opened = context.registry.blobs.open(hex).await;
    let Ok(Some((file, _))) = opened else { return Err("it cannot be read here") };
    let taken = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&taken);
    let counted = ReaderStream::new(file).inspect(move |piece| {
        let bytes = piece.as_ref().map_or(0, |piece| piece.len() as u64);
        counter.fetch_add(bytes, Ordering::Relaxed);
    });
    let mut request = forward::get(&format!("/v2/{REPLICA}/blobs/{digest}"));
    *request.method_mut() = Method::PUT;
    *request.body_mut() = Body::from_stream(counted);
    let sent = context.forward.server(server, request);
    match while_moving(sent, &taken).await {
        None => Err("it makes no progress"),
        Some(Ok(answer)) if forward::is_ok(&answer) => Ok(()),
        Some(Ok(_)) => Err("it refused"),
        Some(Err(_)) => Err("it cannot be reached"),
    }
}

/// Waits for `work`, which counts what it moves in `moved`. `None`: it moves no more.
async fn while_moving<T>(work: impl Future<Output = T>, moved: &AtomicU64) -> Option<T> {
    let mut work = std::pin::pin!(work);
    let mut had = 0;
    loop {
        if let Ok(done) = tokio::time::timeout(STALL_TIMEOUT, &mut work).await {
            return Some(done);
        }
        let has = moved.load(Ordering::Relaxed);
        if has < had + PROGRESS_BYTES_MIN {
            return None;
        }
        had = has;
    }
}

/// The size of a blob that this server has, or now fetches, and keeps for whoever asks; `None`: nobody
/// has it.
pub(super) async fn hold(context: &Context, hex: &str) -> Result<Option<u64>, OciError> {
    let blobs = &context.registry.blobs;
    let io = |cause: std::io::Error| OciError::io(&cause);
    let mut found = blobs.hold(hex, context.clock.system_time()).await.map_err(io)?;
    if found.is_none() && fetch(context, hex).await? {
        found = blobs.hold(hex, context.clock.system_time()).await.map_err(io)?;
    }
    Ok(found.map(|blob| blob.bytes))
}

/// Fetches under way, by digest in hex; each says in the end whether the blob is here.
#[derive(Debug, Default)]
pub(super) struct Fetches(Mutex<BTreeMap<String, Fetching>>);

type Fetching = watch::Receiver<Option<bool>>;

/// Fetches a blob from another server. `false`: nobody has it. What takes long goes on without whoever asked,
/// who is told to come again.
pub(super) async fn fetch(context: &Context, hex: &str) -> Result<bool, OciError> {
    let whole = tokio::time::timeout(FETCH_WAIT_MAX, fetch_whole(context, hex));
    whole.await.map_err(|_| {
        let text = "the blob is on its way from another server, try again";
        OciError::new(StatusCode::SERVICE_UNAVAILABLE, "UNKNOWN", text)
    })
}

/// The same, however long it takes.
pub(super) async fn fetch_whole(context: &Context, hex: &str) -> bool {
    let mut fetching = join(context, hex);
    // Without an end, this server stops.
    fetching.wait_for(Option::is_some).await.is_ok_and(|found| *found == Some(true))
}

/// Joins the fetch of a blob, or begins it: it outlives those who ask.
fn join(context: &Context, hex: &str) -> Fetching {
    let mut fetches = context.registry.fetches.0.lock();
    if let Some(fetching) = fetches.get(hex).filter(|one| one.has_changed().is_ok()) {
        return fetching.clone();
    }
    let (tell, fetching) = watch::channel(None);
    fetches.insert(hex.to_owned(), fetching.clone());
    drop(fetches);
    let (own, hex) = (Context::clone(context), hex.to_owned());
    context.sessions.spawn_until_cancelled("registry-fetch", async move {
        let found = fetch_now(&own, &hex).await;
        own.registry.fetches.0.lock().remove(&hex);
        tell.send_replace(Some(found));
    });
    fetching
}

async fn fetch_now(context: &Context, hex: &str) -> bool {
    for server in context.store.other_servers(&context.node_name) {
        let request = forward::get(&format!("/v2/{REPLICA}/blobs/sha256:{hex}"));
        let asked = context.forward.server(&server, request);
        let Ok(Ok(answer)) = tokio::time::timeout(ANSWER_TIMEOUT, asked).await else { continue };
        if !forward::is_ok(&answer) {
            continue;
        }
        let id = context.rng.uuid().to_string();
        let kept = async {
            context.registry.uploads.begin(&id, REPLICA).await?;
            keep(context, &id, hex, answer.into_body()).await
        };
        match kept.await {
            Ok(()) => return true,
            Err(err) => tracing::warn!(peer = server, ?err, "a blob of a server cannot be kept"),
        }
    }
    false
}

/// What servers ask of each other: a blob as it is here, or to take one.
pub(super) async fn respond(
    context: &Context,
    user: &UserInfo,
    digest: &str,
    request: Request<Body>,
) -> Answer {
    if !user.groups.iter().any(|group| group == "edgeorc:servers") {
        return Err(OciError::new(StatusCode::FORBIDDEN, "DENIED", "this endpoint is for servers"));
    }
    let hex = name::digest(digest)?;
    let io = |cause: std::io::Error| OciError::io(&cause);
    let blobs = &context.registry.blobs;
    if request.method() == Method::PUT {
        blobs.hold(hex, context.clock.system_time()).await.map_err(io)?;
    }
    let found = blobs.open(hex).await.map_err(io)?;
    match (request.method().clone(), found) {
        (Method::GET, Some((file, size))) => {
            let headers = [(header::CONTENT_LENGTH, size.to_string())];
            Ok(with_headers(StatusCode::OK, &headers, Body::from_stream(ReaderStream::new(file))))
        }
        (Method::GET, None) => Err(OciError::not_found("BLOB_UNKNOWN", digest)),
        (Method::PUT, Some(_)) => Ok(with_headers(StatusCode::CREATED, &[], Body::empty())),
        (Method::PUT, None) => {
            let id = context.rng.uuid().to_string();
            context.registry.uploads.begin(&id, REPLICA).await?;
            keep(context, &id, hex, request.into_body()).await?;
            Ok(with_headers(StatusCode::CREATED, &[], Body::empty()))
        }
        _ => Err(not_allowed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_copy_may_be_slow_and_may_not_stand_still() {
        let moved = AtomicU64::new(0);
        let slow = async {
            for _ in 0..10 {
                tokio::time::sleep(STALL_TIMEOUT / 2).await;
                moved.fetch_add(PROGRESS_BYTES_MIN, Ordering::Relaxed);
            }
            "done"
        };
        assert_eq!(while_moving(slow, &moved).await, Some("done"));
        let started = tokio::time::Instant::now();
        let stalls = async {
            moved.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<()>().await;
        };
        moved.store(0, Ordering::Relaxed);
        assert_eq!(while_moving(stalls, &moved).await, None);
        assert_eq!(started.elapsed(), STALL_TIMEOUT);
    }
}
