//! The way to the collector: one HTTP/1.1 connection, kept between batches, with TLS or without.
//!
//! No task belongs to it: whoever posts drives it.

use std::future::Future;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::{Scheme, Uri};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::TracingSettings;

/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Why nothing was answered. Try again later.
pub(super) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What a collector answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// After which time it wants to be asked again.
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Bytes,
}

/// One collector.
pub(super) struct Collector {
    endpoint: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
    timeout: Duration,
    certificate: Option<PathBuf>,
    tls: Option<TlsConnector>,
    open: Option<Open>,
}

/// A connection that can be used again.
struct Open {
    sender: SendRequest<Full<Bytes>>,
    driver: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Collector {
    pub(super) fn new(settings: TracingSettings) -> Self {
        let TracingSettings { endpoint, headers, timeout, certificate, .. } = settings;
        Self { endpoint, headers, timeout, certificate, tls: None, open: None }
    }

    /// Posts protobuf and waits for the answer, each try no longer than the settings allow.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the connection; the collector may have taken the body.
    pub(super) async fn post(&mut self, body: Bytes) -> Result<Answer, Cause> {
        let limit = self.timeout;
        let posting = self.exchange(body);
        tokio::time::timeout(limit, posting).await.map_err(|_| "no answer in time")?
    }

    async fn exchange(&mut self, body: Bytes) -> Result<Answer, Cause> {
        if let Some(open) = self.open.take() {
            // It may have been closed since it was used last.
            if let Ok(answer) = self.send_on(open, body.clone()).await {
                return Ok(answer);
            }
        }
        let open = self.connect().await?;
        self.send_on(open, body).await
    }

    async fn send_on(&mut self, open: Open, body: Bytes) -> Result<Answer, Cause> {
        let Open { mut sender, mut driver } = open;
        let request = self.request(body)?;
        let mut exchange = pin!(async {
            sender.ready().await?;
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
            Ok::<_, Cause>((head, body, sender))
        });
        let (done, is_open) = tokio::select! {
            biased;
            done = &mut exchange => (done, true),
            // All that came is with the exchange already.
            () = &mut driver => (exchange.await, false),
        };
        let (head, body, sender) = done?;
        if is_open {
            self.open = Some(Open { sender, driver });
        }
        let retry_after = seconds(&head.headers);
        Ok(Answer { status: head.status, retry_after, body })
    }

    fn request(&self, body: Bytes) -> Result<Request<Full<Bytes>>, Cause> {
        let path = self.endpoint.path_and_query().map_or("/", |path| path.as_str());
        let host = self.endpoint.authority().map_or("", |authority| authority.as_str());
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        let mut request = Request::post(path)
            .header(header::HOST, host)
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::USER_AGENT, concat!("edgeorc/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))?;
        for (name, value) in &self.headers {
            request.headers_mut().insert(name.clone(), value.clone());
        }
        Ok(request)
    }

    async fn connect(&mut self) -> Result<Open, Cause> {
        let is_tls = self.endpoint.scheme() == Some(&Scheme::HTTPS);
        let host = self.endpoint.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = self.endpoint.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let stream = TcpStream::connect((host.as_str(), port)).await?;
        stream.set_nodelay(true)?;
        if !is_tls {
            return open(stream).await;
        }
        let tls = match &self.tls {
            Some(tls) => tls.clone(),
            None => {
                let certificate = self.certificate.clone();
                // Reading the system's certificates takes milliseconds of CPU and disk.
                let made = tokio::task::spawn_blocking(move || connector(certificate)).await??;
                self.tls.insert(made).clone()
            }
        };
        open(tls.connect(ServerName::try_from(host)?, stream).await?).await
    }
}

async fn open(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Open, Cause> {
    let (sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    let driver = Box::pin(async move {
        // How it ends is told by the exchange.
        let _ = connection.await;
    });
    Ok(Open { sender, driver })
}

fn connector(certificate: Option<PathBuf>) -> Result<TlsConnector, Cause> {
    let mut roots = RootCertStore::empty();
    match certificate {
        Some(path) => {
            for certificate in CertificateDer::pem_file_iter(path)? {
                roots.add(certificate?)?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err("no CA certificate is known: install the package ca-certificates, or set OTEL_EXPORTER_OTLP_CERTIFICATE".into());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// `Retry-After` in seconds; dates are not looked at.
fn seconds(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}
