//! One verb's session with the API server.

use std::path::PathBuf;

use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::Value;

use super::args::Global;
use super::exit::{self, Failure};
use crate::client;
use crate::config::Environment;

/// Largest answer read into memory, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Accepts a server-side table.
pub(super) const ACCEPT_TABLE: &str =
    "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
/// Accepts plain objects.
pub(super) const ACCEPT_JSON: &str = "application/json";

/// A connection with its namespace.
#[derive(Clone)]
pub(super) struct Session {
    /// The client itself.
    pub(super) client: kube::Client,
    /// Namespace of namespaced objects.
    pub(super) namespace: String,
}

/// An answer that is not 2xx, or none at all.
#[derive(Debug)]
pub(super) enum ApiError {
    /// The server said no: code and `Status` (or text).
    Refused {
        /// HTTP status code.
        code: StatusCode,
        /// `reason` of the Status.
        reason: String,
        /// `message` of the Status.
        message: String,
    },
    /// No answer.
    Unreachable(String),
}

impl ApiError {
    /// Whether the object is not there.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == StatusCode::NOT_FOUND)
    }

    /// Whether trying again soon may help: no answer, or the server is starting or without leader.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Refused { code, .. } => code.is_server_error() || code.as_u16() == 429,
            Self::Unreachable(_) => true,
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::Refused { code, reason, message } => {
                let exit =
                    if code == StatusCode::UNAUTHORIZED { exit::UNREACHABLE } else { exit::FAILED };
                Self::with(exit, format!("the server answered {reason}: {message}"))
            }
            ApiError::Unreachable(cause) => Self::with(
                exit::UNREACHABLE,
                format!(
                    "cannot reach the API server: {cause}; is the node running, and is this its kubeconfig?"
                ),
            ),
        }
    }
}

impl Session {
    /// Finds the kubeconfig and makes a client; sends nothing yet.
    pub(super) async fn open(global: &Global, environment: &Environment) -> Result<Self, Failure> {
        let source = kubeconfig_source(global, environment).ok_or_else(|| {
            Failure::with(
                exit::UNREACHABLE,
                "no kubeconfig found: start a node with `edgeorc up` or `edgeorc node start`, or name a file with --kubeconfig",
            )
        })?;
        let connected = client::from_kubeconfig(source.as_deref(), global.context.as_deref())
            .await
            .map_err(|cause| Failure::with(exit::UNREACHABLE, chain(&cause)))?;
        let namespace = global.namespace.clone().unwrap_or(connected.namespace);
        Ok(Self { client: connected.client, namespace })
    }

    /// Sends a request and reads the whole answer as text.
    pub(super) async fn send(
        &self,
        request: Request<Body>,
    ) -> Result<(StatusCode, http::HeaderMap, Vec<u8>), ApiError> {
        let unreachable = |cause: &dyn std::error::Error| ApiError::Unreachable(chain(cause));
        let answer = self.client.send(request).await.map_err(|cause| unreachable(&cause))?;
        let (head, body) = answer.into_parts();
        let bytes = http_body_util::Limited::new(body, ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|cause| ApiError::Unreachable(cause.to_string()))?
            .to_bytes();
        if head.status.is_success() {
            return Ok((head.status, head.headers, bytes.to_vec()));
        }
        let status: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let text = |key: &str| status.get(key).and_then(Value::as_str).map(str::to_owned);
        Err(ApiError::Refused {
            code: head.status,
            reason: text("reason").unwrap_or_else(|| head.status.to_string()),
            message: text("message")
                .unwrap_or_else(|| String::from_utf8_lossy(&bytes).into_owned()),
        })
    }

    /// Sends a JSON request (`body` may be absent) and parses the JSON answer.
    pub(super) async fn json(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> Result<Value, ApiError> {
        let bytes = body.map(Value::to_string).unwrap_or_default().into_bytes();
        let request = build(method, path, content_type, ACCEPT_JSON, bytes)?;
        let (_, _, answer) = self.send(request).await?;
        parse(&answer)
    }

    /// Reads `path`, negotiating with `accept`.
    pub(super) async fn get(&self, path: &str, accept: &str) -> Result<Value, ApiError> {
        let (_, _, answer) =
            self.send(build(Method::GET, path, ACCEPT_JSON, accept, Vec::new())?).await?;
        parse(&answer)
    }

    /// Creates `object`, or merges it into the one that is there.
    pub(super) async fn create_or_merge(
        &self,
        collection: &str,
        object: &Value,
    ) -> Result<Value, ApiError> {
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let one = format!("{collection}/{name}?fieldManager=edgeorc-deploy");
        match self.json(Method::PATCH, &one, "application/merge-patch+json", Some(object)).await {
            Err(refused) if refused.is_not_found() => {
                let all = format!("{collection}?fieldManager=edgeorc-deploy");
                self.json(Method::POST, &all, ACCEPT_JSON, Some(object)).await
            }
            answered => answered,
        }
    }
}

/// A request; a path the user made unprintable is refused here.
pub(super) fn build(
    method: Method,
    path: &str,
    content_type: &str,
    accept: &str,
    body: Vec<u8>,
) -> Result<Request<Body>, ApiError> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, content_type)
        .header(http::header::ACCEPT, accept)
        .body(Body::from(body))
        .map_err(|cause| ApiError::Unreachable(format!("{path:?} is no valid path: {cause}")))
}

fn parse(answer: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(answer)
        .map_err(|cause| ApiError::Unreachable(format!("the answer is not JSON: {cause}")))
}

/// An error with all its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// `--kubeconfig`, `$KUBECONFIG`, the admin kubeconfig of this machine's node, `~/.kube/config`.
///
/// `Some(None)`: `$KUBECONFIG` lists several files, which the loader merges as kubectl does.
fn kubeconfig_source(global: &Global, environment: &Environment) -> Option<Option<PathBuf>> {
    if global.kubeconfig.is_some() {
        return Some(global.kubeconfig.clone());
    }
    if let Some(listed) = &environment.kubeconfig {
        let is_list = listed.as_os_str().as_encoded_bytes().contains(&b':');
        return Some((!is_list).then(|| listed.clone()));
    }
    let own = super::kubeconfig::path_in(&environment.default_data_dir());
    let home = environment.home.as_ref().map(|home| home.join(".kube/config"));
    [Some(own), home].into_iter().flatten().find(|path| path.exists()).map(Some)
}
