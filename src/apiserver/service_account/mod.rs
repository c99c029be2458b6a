//! Service accounts: the identity of pods towards the API.
//!
//! Data in: `serviceaccounts/token` requests, bearer tokens, new pods. Data out: signed tokens
//! (JWT, ES256), users, pods with their account and its token as a volume.
//!
//! # Invariants
//!
//! - The signing key is made once per cluster, lives in the log beside the objects, is in no object
//!   and is answered to no request.
//! - A token is good while its account, and the pod it is bound to, are the same objects (by uid).
//! - A node gets tokens for the pods that run on it and for no others.

mod admit;
mod authenticate;
mod discovery;
mod signer;
mod token;

pub(super) use admit::admit;
pub(super) use authenticate::authenticate;
pub(super) use discovery::discover;
pub(super) use signer::Signers;
pub(super) use token::request_token;

use serde_json::Value;

use crate::api;
use crate::api::user::UserInfo;
use crate::apiserver::context::ContextInner;
use crate::apiserver::error::ApiError;
use crate::store::{Freshness, Key};

/// Who signs: the issuer in tokens, and the audience of the API itself.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Where in a token Kubernetes' own claims are.
const CLAIMS: &str = "kubernetes.io";
/// Prefix of an account's user name: `system:serviceaccount:<namespace>:<name>`.
const USER_PREFIX: &str = "system:serviceaccount:";

/// Whether `user` is a service account of `namespace` whose `annotation` is `"true"`.
///
/// # Errors
///
/// When the store does not answer.
pub(super) async fn is_annotated(
    context: &ContextInner,
    user: &UserInfo,
    namespace: &str,
    annotation: &str,
) -> Result<bool, ApiError> {
    let account = user.name.strip_prefix(USER_PREFIX).and_then(|name| name.split_once(':'));
    let Some((_, name)) = account.filter(|(own, _)| *own == namespace) else { return Ok(false) };
    let found = find(context, "serviceaccounts", Some(namespace), name).await?;
    let annotations = found.as_ref().and_then(|object| object.pointer("/metadata/annotations"));
    Ok(annotations.and_then(|all| all.get(annotation)).is_some_and(|value| value == "true"))
}

/// Reads an object of the core group; the local copy is enough when it has it.
pub(super) async fn find(
    context: &ContextInner,
    plural: &str,
    namespace: Option<&str>,
    name: &str,
) -> Result<Option<Value>, ApiError> {
    let Some(resource) = api::find("", "v1", plural) else { return Ok(None) };
    let key = Key::new(resource, namespace, name);
    for freshness in [Freshness::Any, Freshness::Latest] {
        let found = context.store.get(&key, freshness).await;
        if let Some(stored) = found.map_err(|error| ApiError::store(error, &key))? {
            return Ok(Some(stored.object));
        }
    }
    Ok(None)
}
