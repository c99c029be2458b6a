//! The distribution protocol, as a reader: manifests and blobs of one repository at one endpoint.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use parking_lot::Mutex;
use serde::Deserialize;

use crate::agent::image::auth::{self, Challenge};
use crate::agent::image::credentials::Credential;
use crate::agent::image::manifest;
use crate::agent::image::registries::Endpoint;
use crate::agent::image::transport::{Body, Transport};

/// How this client names itself.
pub(super) const USER_AGENT: &str = concat!("edgeorc/", env!("CARGO_PKG_VERSION"));
/// Largest manifest, in bytes.
const MANIFEST_BYTES_MAX: usize = 1024 * 1024;
/// How long a manifest may take to arrive.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a copy's manifest may take: the registry itself is still to be asked.
const COPY_TIMEOUT: Duration = Duration::from_secs(3);
/// Most hops to where a blob really is.
const REDIRECTS_MAX: usize = 5;
/// Most that is read of an error's text, in bytes.
const COMPLAINT_BYTES_MAX: usize = 16 * 1024;
/// Longest pause that a registry may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// Why a registry did not give what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum Fault {
    /// It does not have it. Ask the next endpoint.
    #[error("{0}")]
    Missing(String),
    /// It does not give it to us. Ask the next endpoint.
    #[error("{0}")]
    Denied(String),
    /// It cannot answer now. Retry, not before `retry_after`.
    #[error("{message}")]
    Unavailable {
        /// What happened.
        message: String,
        /// What the registry asked for.
        retry_after: Duration,
    },
    /// It sent something that cannot be used. Ask the next endpoint.
    #[error("{0}")]
    Refused(String),
    /// The node's disk refused. Retry when there is room.
    #[error("cannot write the image: {0}")]
    Disk(#[from] std::io::Error),
}

impl Fault {
    /// With more to say at the end of its message.
    pub(super) fn with(self, more: Option<String>) -> Self {
        let Some(more) = more else { return self };
        let longer = |message: String| format!("{message}{more}");
        match self {
            Self::Missing(message) => Self::Missing(longer(message)),
            Self::Denied(message) => Self::Denied(longer(message)),
            Self::Unavailable { message, retry_after } => {
                Self::Unavailable { message: longer(message), retry_after }
            }
            Self::Refused(message) => Self::Refused(longer(message)),
            Self::Disk(cause) => Self::Disk(cause),
        }
    }

    pub(super) fn unavailable(message: impl ToString) -> Self {
        Self::Unavailable { message: message.to_string(), retry_after: Duration::ZERO }
    }
}

/// What is asked of a registry.
#[derive(Debug, Default)]
struct Ask<'a> {
    method: Method,
    accept: Option<&'a str>,
    /// First byte that is wanted.
    offset: u64,
}

/// One repository at one endpoint, during one pull.
pub(super) struct Source {
    endpoint: Endpoint,
    transport: Arc<Transport>,
    credentials: Vec<Credential>,
    /// So many of them, the first ones, are the pod's own; the rest are the node's.
    secrets: usize,
    /// What the endpoint accepted last, and whether it came of a secret of the pod.
    authorization: Mutex<Option<(HeaderValue, bool)>>,
    is_copy: bool,
}

impl Source {
    pub(super) fn new(
        endpoint: Endpoint,
        transport: Arc<Transport>,
        credentials: Vec<Credential>,
    ) -> Self {
        let authorization = Mutex::default();
        Self { endpoint, transport, credentials, secrets: 0, authorization, is_copy: false }
    }

    /// The first `count` credentials are the pod's own.
    pub(super) fn with_secrets(self, count: usize) -> Self {
        Self { secrets: count, ..self }
    }

    /// Whether the endpoint answers because of a secret of the pod: it may not answer others.
    pub(super) fn was_opened_by_secret(&self) -> bool {
        self.authorization.lock().as_ref().is_some_and(|(_, is_secret)| *is_secret)
    }

    /// It may have a copy of an image from elsewhere: it is asked once, and soon given up.
    pub(super) fn into_copy(self) -> Self {
        Self { is_copy: true, ..self }
    }

    /// Whether it may have a copy of an image from elsewhere.
    pub(super) fn is_copy(&self) -> bool {
        self.is_copy
    }

    /// `host[:port]`, for messages.
    pub(super) fn host(&self) -> &str {
        &self.endpoint.host
    }

    /// Whether it is the cluster's own registry.
    pub(super) fn is_own(&self) -> bool {
        matches!(*self.transport, Transport::Cluster(_))
    }

    /// The manifest that a tag or digest names.
    pub(super) async fn manifest(&self, reference: &str) -> Result<Bytes, Fault> {
        self.document(&format!("manifests/{reference}")).await
    }

    /// The index of what refers to `sha256:<hex>`. Registries of version 1.0 do not have it.
    pub(super) async fn referrers(&self, hex: &str) -> Result<Bytes, Fault> {
        self.document(&format!("referrers/sha256:{hex}")).await
    }

    /// The config of an image, which is a small blob.
    pub(super) async fn config(&self, hex: &str) -> Result<Bytes, Fault> {
        self.document(&format!("blobs/sha256:{hex}")).await
    }

    async fn document(&self, path: &str) -> Result<Bytes, Fault> {
        let limit = if self.is_copy { COPY_TIMEOUT } else { MANIFEST_TIMEOUT };
        let read = async {
            let ask = Ask { accept: Some(manifest::ACCEPT), ..Ask::default() };
            let answer = self.get(path, &ask).await?;
            let content = Limited::new(answer.into_body(), MANIFEST_BYTES_MAX).collect().await;
            Ok(content.map_err(Fault::unavailable)?.to_bytes())
        };
        match tokio::time::timeout(limit, read).await {
            Ok(content) => content,
            Err(_) => Err(Fault::unavailable("the manifest did not arrive in time")),
        }
    }

    /// The bytes of a blob from `offset` on; the second value is where they really start.
    pub(super) async fn blob(&self, hex: &str, offset: u64) -> Result<(Body, u64), Fault> {
        let path = format!("blobs/sha256:{hex}");
        let mut answer = match self.get(&path, &Ask { offset, ..Ask::default() }).await {
            // The file here has bytes that the blob has not.
            Ok(answer) if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE => {
                self.get(&path, &Ask::default()).await?
            }
            answer => answer?,
        };
        let mut start = 0;
        if answer.status() == StatusCode::PARTIAL_CONTENT {
            match range_start(answer.headers()) {
                Some(from) if from == offset => start = from,
                _ => answer = self.get(&path, &Ask::default()).await?,
            }
        }
        Ok((answer.into_body(), start))
    }

    /// Whether the registry would give a blob to whoever pulls here. Not a byte of it is sent.
    pub(super) async fn holds(&self, hex: &str) -> bool {
        let ask = Ask { method: Method::HEAD, ..Ask::default() };
        match self.get(&format!("blobs/sha256:{hex}"), &ask).await {
            Ok(_) => true,
            Err(fault) => {
                tracing::debug!(%fault, registry = self.host(), "the registry does not say that it has a blob");
                false
            }
        }
    }

    async fn get(&self, path: &str, ask: &Ask<'_>) -> Result<Response<Body>, Fault> {
        let url = format!("{}/{}/{path}", self.endpoint.base, self.endpoint.repository);
        let mut tried = 0;
        loop {
            let (answer, is_own) = self.follow(&url, ask).await?;
            let challenge = match answer.status() {
                // A host that was redirected to has no claim on the endpoint's credentials.
                StatusCode::UNAUTHORIZED if is_own => Challenge::read(answer.headers()),
                status if status.is_success() => return Ok(answer),
                StatusCode::RANGE_NOT_SATISFIABLE if ask.offset > 0 => return Ok(answer),
                // It names the place of what was asked after.
                status if status.is_redirection() && ask.method == Method::HEAD => {
                    return Ok(answer);
                }
                _ => None,
            };
            let Some(challenge) = challenge else { return Err(fault(answer).await) };
            self.authorize(&challenge, &mut tried).await?;
        }
    }

    /// Answers a challenge with the next credential that is good for anything; with none, if
    /// there are none.
    async fn authorize(&self, challenge: &Challenge, tried: &mut usize) -> Result<(), Fault> {
        let is_tls = self.endpoint.base.starts_with("https:");
        let denied = "pull access denied, repository does not exist or may require authorization";
        let mut last = Fault::Denied(denied.to_owned());
        while *tried < self.credentials.len().max(1) {
            let credential = self.credentials.get(*tried);
            let is_secret = *tried < self.secrets;
            *tried += 1;
            let repository = &self.endpoint.repository;
            match auth::answer(&self.transport, challenge, credential, repository, is_tls).await {
                Ok(authorization) => {
                    *self.authorization.lock() = Some((authorization, is_secret));
                    return Ok(());
                }
                Err(fault @ Fault::Denied(_)) => last = fault,
                Err(fault) => return Err(fault),
            }
        }
        Err(last)
    }

    /// Sends one request and follows redirects. Only the endpoint's own host sees the credential;
    /// whether it was that one that answered comes with the answer.
    async fn follow(&self, url: &str, ask: &Ask<'_>) -> Result<(Response<Body>, bool), Fault> {
        let Ask { method, accept, offset } = ask;
        let mut uri: Uri = url.parse().map_err(|_| Fault::Refused(format!("{url:?} is no URL")))?;
        let own = uri.authority().cloned();
        for _ in 0..=REDIRECTS_MAX {
            let mut request = Request::builder()
                .method(method)
                .uri(uri.clone())
                .header(header::USER_AGENT, USER_AGENT);
            if let Some(accept) = accept {
                request = request.header(header::ACCEPT, *accept);
            }
            if *offset > 0 {
                request = request.header(header::RANGE, format!("bytes={offset}-"));
            }
            let authorization = self.authorization.lock().clone();
            if let Some((authorization, _)) =
                authorization.filter(|_| uri.authority() == own.as_ref())
            {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            let request = request
                .body(Full::new(Bytes::new()))
                .map_err(|cause| Fault::Refused(cause.to_string()))?;
            let answer = self.transport.send(request).await.map_err(Fault::unavailable)?;
            let is_elsewhere = matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !is_elsewhere || *method == Method::HEAD {
                let is_own = uri.authority() == own.as_ref();
                return Ok((answer, is_own));
            }
            uri = redirected(&uri, answer.headers())
                .ok_or_else(|| Fault::Refused("it redirects to nowhere safe".to_owned()))?;
        }
        Err(Fault::Refused(format!("it redirects more than {REDIRECTS_MAX} times")))
    }
}

/// Where an answer points to. Never from HTTPS to HTTP.
fn redirected(from: &Uri, headers: &HeaderMap) -> Option<Uri> {
    let location = headers.get(header::LOCATION)?.to_str().ok()?;
    let to: Uri = location.parse().ok()?;
    if to.authority().is_none() {
        let mut parts = from.clone().into_parts();
        parts.path_and_query = Some(to.path_and_query()?.clone());
        return Uri::from_parts(parts).ok();
    }
    let is_safe = match to.scheme_str()? {
        "https" => true,
        "http" => from.scheme_str() == Some("http"),
        _ => false,
    };
    is_safe.then_some(to)
}

/// First byte of `Content-Range: bytes 5-9/10`.
pub(super) fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

#[derive(Deserialize)]
struct Complaints {
    errors: Vec<Complaint>,
}

#[derive(Deserialize)]
struct Complaint {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// What an answer that is no success says.
async fn fault(answer: Response<Body>) -> Fault {
    let status = answer.status();
    let seconds = answer.headers().get(header::RETRY_AFTER);
    let seconds = seconds.and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
    let body = Limited::new(answer.into_body(), COMPLAINT_BYTES_MAX).collect();
    let content = match tokio::time::timeout(MANIFEST_TIMEOUT, body).await {
        Ok(Ok(content)) => content.to_bytes(),
        _ => Bytes::new(),
    };
    let said = serde_json::from_slice::<Complaints>(&content).ok();
    let said = said.and_then(|complaints| complaints.errors.into_iter().next());
    let said = said.map_or(String::new(), |first| {
        let text = if first.message.is_empty() { first.code } else { first.message };
        format!(": {text}")
    });
    match status.as_u16() {
        404 => Fault::Missing(format!("not found{said}")),
        401 | 403 => Fault::Denied(format!("{status}{said}")),
        408 | 425 | 429 | 500.. => Fault::Unavailable {
            message: format!("unexpected status {status}{said}"),
            retry_after: Duration::from_secs(seconds).min(RETRY_AFTER_MAX),
        },
        _ => Fault::Refused(format!("unexpected status {status}{said}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn a_redirect_never_leaves_https() {
        let from: Uri = "https://a.example/v2/x".parse().unwrap();
        let to = |location| redirected(&from, &headers(header::LOCATION, location));
        assert_eq!(to("/y?z=1").unwrap(), "https://a.example/y?z=1");
        assert_eq!(to("https://cdn.example/y").unwrap(), "https://cdn.example/y");
        assert_eq!(to("http://cdn.example/y"), None);
        assert_eq!(to("file://x/y"), None);
    }

    #[test]
    fn the_start_of_a_range_is_read() {
        let start = |value| range_start(&headers(header::CONTENT_RANGE, value));
        assert_eq!(start("bytes 5-9/10"), Some(5));
        assert_eq!(start("bytes */10"), None);
    }
}
