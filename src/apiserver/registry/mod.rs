//! The cluster's own OCI registry (OCI distribution specification 1.1): push and pull.
//!
//! Data in: blobs and manifests over `/v2/`. Data out: the same, by digest or tag.
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

mod blobs;
mod handler;
mod name;
mod uploads;

use std::path::PathBuf;

pub(super) use handler::range_start;

use axum::body::Body;
use http::{Request, Response};

use crate::api::user::UserInfo;
use crate::apiserver::context::Context;

/// Where blobs and uploads under way are kept.
#[derive(Debug)]
pub(super) struct Registry {
    blobs: blobs::Blobs,
    uploads: uploads::Uploads,
}

impl Registry {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { uploads: uploads::Uploads::new(dir.join("uploads")), blobs: blobs::Blobs::new(dir) }
    }
}

/// The file of a blob, fetched from another server if it is not here. `None`: no server has it.
pub(super) async fn file(context: &Context, hex: &str) -> Option<PathBuf> {
    let blobs = &context.registry.blobs;
    let is_here = async || matches!(blobs.open(hex).await, Ok(Some(_)));
    let found = is_here().await || (handler::fetch(context, hex).await.ok()? && is_here().await);
    found.then(|| blobs.path(hex))
}

/// Answers a request below `/v2`.
pub(super) async fn handle(
    context: &Context,
    user: &UserInfo,
    request: Request<Body>,
) -> Response<Body> {
    match handler::respond(context, user, request).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}
