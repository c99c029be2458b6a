//! The cluster's own OCI registry (OCI distribution specification 1.1): push and pull.
//!
//! Data in: blobs and manifests over `/v2/`, from whoever shows a certificate of the cluster or, in the
//! place of a password, the token of a service account. Data out: the same, by digest or tag.
//!
//! Blobs are files named by their digest; a pushed blob is copied to the other servers before the
//! push is answered, and fetched from one of them when it is missing here. Manifests are small and
//! live in the replicated store.
//!
//! # Invariants
//!
//! - A file under `sha256/` holds exactly the bytes its name says: it is renamed there only after
//!   its digest was checked.
//! - Every error is an OCI error document.
//! - What somebody counts on is not deleted: see [`gc`].
//! - A service account pushes only where its annotation and its namespace let it.

mod blobs;
mod gc;
mod handler;
mod manifests;
mod name;
mod push;
mod referrers;
mod replicas;
mod uploads;

use std::path::PathBuf;

pub use gc::{CollectError, Collected};
pub(super) use handler::range_start;

use axum::body::Body;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use tokio_util::sync::CancellationToken;

use crate::api::user::UserInfo;
use crate::apiserver::context::Context;
use crate::rt::DiskMarks;

/// Tells Docker's clients that this is a registry.
const VERSION_HEADER: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// Where blobs and uploads under way are kept.
#[derive(Debug)]
pub(super) struct Registry {
    blobs: blobs::Blobs,
    uploads: uploads::Uploads,
    fetches: replicas::Fetches,
}

impl Registry {
    pub(super) fn new(dir: PathBuf) -> Self {
        let uploads = uploads::Uploads::new(dir.join("uploads"));
        Self { uploads, blobs: blobs::Blobs::new(dir), fetches: replicas::Fetches::default() }
    }
}

/// Deletes what nothing names until `cancel`, and more when the disk is full.
pub(super) async fn collect_garbage(
    context: &Context,
    marks: DiskMarks,
    cancel: CancellationToken,
) {
    gc::run(context, marks, cancel).await;
}

/// One pass of the same, which is to free so many bytes.
pub(super) async fn collect_once(
    context: &Context,
    wanted: u64,
) -> Result<Collected, CollectError> {
    gc::collect(context, wanted).await
}

/// The file of a blob, fetched from another server if it is not here. `None`: no server has it.
pub(super) async fn file(context: &Context, hex: &str) -> Option<PathBuf> {
    let blobs = &context.registry.blobs;
    let is_here = async || matches!(blobs.open(hex).await, Ok(Some(_)));
    let found = is_here().await || (replicas::fetch(context, hex).await.ok()? && is_here().await);
    found.then(|| blobs.path(hex))
}

/// Answers a request below `/v2`.
pub(super) async fn handle(
    context: &Context,
    user: &UserInfo,
    request: Request<Body>,
) -> Response<Body> {
    finish(match handler::respond(context, user, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    })
}

/// What a client hears whose token is not good.
pub(super) fn unauthorized() -> Response<Body> {
    finish(name::OciError::unauthorized().into_response())
}

/// Adds what Docker looks for: the version, and how to say who one is.
fn finish(mut response: Response<Body>) -> Response<Body> {
    let is_refused = response.status() == StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    headers.insert(VERSION_HEADER, HeaderValue::from_static("registry/2.0"));
    if is_refused {
        let challenge = HeaderValue::from_static("Basic realm=\"edgeorc\"");
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}
