//! Carries requests to registries: to the cluster's own over the API's connection, to others over
//! HTTP and HTTPS of this machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::sync::Mutex;

use crate::agent::image::proxy::{Connector, Proxy, Rules};
use crate::agent::image::registries::{Settings, Tls};

/// Time to reach a registry.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time until the head of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an idle connection is kept for the next request of the same pull.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a body or an answer did not arrive. Retry.
///
/// A type of its own: with a boxed error in its place the compiler cannot prove that futures which
/// hold a body are `Send`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Broken(String);

impl Broken {
    pub(super) fn new(cause: impl ToString) -> Self {
        Self(cause.to_string())
    }
}

/// Why no client could be made.
type Cause = Box<dyn std::error::Error + Send + Sync>;
/// The body of an answer.
pub(super) type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Broken>;
type Outgoing = Client<HttpsConnector<Connector>, Full<Bytes>>;

/// The way to registries, for one pull.
pub(super) enum Transport {
    /// To the cluster's own registry; URLs are paths.
    Cluster(kube::Client),
    /// To any other.
    Outside(Outside),
}

/// Clients by host: each has its own trust.
pub(super) struct Outside {
    settings: Arc<Settings>,
    proxies: Arc<Rules>,
    clients: Mutex<BTreeMap<String, Way>>,
}

/// The client for one host, and what a proxy that reads its requests wants to see in them.
#[derive(Clone)]
struct Way {
    client: Outgoing,
    proxy_authorization: Option<HeaderValue>,
}

impl Outside {
    pub(super) fn new(settings: Arc<Settings>, proxies: Arc<Rules>) -> Self {
        Self { settings, proxies, clients: Mutex::default() }
    }

    async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Body>, Broken> {
        let way = self.way(request.uri()).await.map_err(Broken::new)?;
        if let Some(authorization) = way.proxy_authorization {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, authorization);
        }
        let answer = way.client.request(request).await.map_err(|cause| innermost(&cause))?;
        Ok(answer.map(|body| body.map_err(|cause| innermost(&cause)).boxed_unsync()))
    }

    async fn way(&self, uri: &http::Uri) -> Result<Way, Cause> {
        let host = uri.authority().map(ToString::to_string).unwrap_or_default();
        let mut clients = self.clients.lock().await;
        if let Some(way) = clients.get(&host) {
            return Ok(way.clone());
        }
        let is_tls = uri.scheme_str() == Some("https");
        let tls = self.settings.tls(&host);
        let proxy = self.settings.proxy(&host).unwrap_or_else(|| self.proxies.find(uri));
        let proxy_authorization = proxy.as_ref().filter(|_| !is_tls).and_then(Proxy::authorization);
        // Reading the system's certificates takes milliseconds of CPU and disk.
        let config = tokio::task::spawn_blocking(move || client_config(is_tls, &tls)).await??;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Connector::new(connector, proxy));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build(connector);
        let way = Way { client, proxy_authorization };
        clients.insert(host, way.clone());
        Ok(way)
    }
}

impl Transport {
    /// Sends a request and waits for the head of the answer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the connection.
    pub(super) fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> BoxFuture<'_, Result<Response<Body>, Broken>> {
        let answer = match self {
            Self::Cluster(client) => through_cluster(client.clone(), request).boxed(),
            Self::Outside(outside) => outside.send(request).boxed(),
        };
        async move {
            match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
                Ok(answer) => answer,
                Err(_) => Err(Broken::new("the registry does not answer")),
            }
        }
        .boxed()
    }
}

async fn through_cluster(
    client: kube::Client,
    request: Request<Full<Bytes>>,
) -> Result<Response<Body>, Broken> {
    // Whoever only reads sends no bodies.
    let request = request.map(|_| kube::client::Body::empty());
    let answer = client.send(request).await.map_err(Broken::new)?;
    Ok(answer.map(|body| body.map_err(Broken::new).boxed_unsync()))
}

/// The last cause of a chain: "connection refused" says more than "client error (Connect)".
fn innermost(error: &dyn std::error::Error) -> Broken {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Broken::new(cause)
}

fn client_config(is_tls: bool, tls: &Tls) -> Result<ClientConfig, Cause> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    if is_tls && !tls.insecure_skip_verify {
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if let Some(path) = &tls.ca_file {
            for certificate in certificates(path)? {
                roots.add(certificate)?;
            }
        }
        if roots.is_empty() {
            return Err("this machine has no CA certificates: install the package ca-certificates, or name a ca_file in registries.yaml".into());
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let config = if tls.insecure_skip_verify {
        config.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider)))
    } else {
        config.with_root_certificates(roots)
    };
    match (&tls.cert_file, &tls.key_file) {
        (Some(certificate), Some(key)) => {
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|cause| format!("cannot use the key {}: {cause}", key.display()))?;
            Ok(config.with_client_auth_cert(certificates(certificate)?, key)?)
        }
        _ => Ok(config.with_no_client_auth()),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Cause> {
    let failed = |cause: String| format!("cannot use the certificate {}: {cause}", path.display());
    let file = File::open(path).map_err(|cause| failed(cause.to_string()))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_reader_iter(BufReader::new(file)).collect();
    Ok(all.map_err(|cause| failed(cause.to_string()))?)
}

/// Trusts any certificate, because `insecure_skip_verify` says so.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
