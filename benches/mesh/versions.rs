//! HTTP/1.1, HTTP/2 and HTTP/3 at the ingress, each through TLS, by one client program: so many
//! connections, with so many requests on the way on each.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::task::JoinSet;

use crate::support::{Row, row};
use crate::{Size, middle};

/// Connections of the client.
const CONNECTIONS: usize = 4;
/// Requests on the way at once on each; HTTP/1.1 takes a connection for each instead.
const STREAMS: usize = 8;
/// Port of the ingress with TLS.
const PORT: u16 = 8443;

/// What is asked for: where, and under which name.
#[derive(Debug, Clone)]
struct Target {
    at: SocketAddr,
    host: String,
}

/// Rates and latencies of the three, the later two beside HTTP/1.1 and HTTP/2.
pub(crate) fn rows(node: &str, host: &str, size: &Size) -> Vec<Row> {
    let target = Target { at: format!("{node}:{PORT}").parse().unwrap(), host: host.to_owned() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let length = Duration::from_secs(size.seconds);
    let mut turns: [Vec<crate::Turn>; 3] = Default::default();
    for turn in 0..=size.turns {
        let (one, two, three) = runtime.block_on(async {
            (
                measure(length, CONNECTIONS * STREAMS, 1, || http1(target.clone())).await,
                measure(length, CONNECTIONS, STREAMS, || http2(target.clone())).await,
                measure(length, CONNECTIONS, STREAMS, || http3(target.clone())).await,
            )
        });
        // The first warms up.
        if turn > 0 || size.turns == 0 {
            for (turns, took) in turns.iter_mut().zip([one, two, three]) {
                turns.push(took);
            }
        }
    }
    let rate = |at: usize| middle(&turns[at], |turn| turn.rate);
    let mut rows = Vec::new();
    for (at, name) in ["HTTP/1.1", "HTTP/2", "HTTP/3"].into_iter().enumerate() {
        let label = format!("{name} with TLS at the ingress, 32 requests on the way");
        rows.push(match at {
            2 => crate::ratio(&label, rate(2), "HTTP/2", rate(1), f64::NEG_INFINITY),
            _ => row(&label, rate(at), "1/s", "", f64::INFINITY),
        });
        let p50 = middle(&turns[at], |turn| turn.p50_ms);
        let p99 = middle(&turns[at], |turn| turn.p99_ms);
        rows.push(row(&format!("{name}, p50"), p50, "ms", "", f64::INFINITY));
        rows.push(row(&format!("{name}, p99"), p99, "ms", "", f64::INFINITY));
    }
    rows
}

/// A way to ask once and read the whole answer; cheap to clone, all clones are one connection.
trait Ask: Clone + 'static {
    fn ask(&mut self) -> impl Future<Output = ()>;
}

/// Keeps `streams` requests on the way on each of `connections`, for so long.
async fn measure<A: Ask, F: Future<Output = A>>(
    length: Duration,
    connections: usize,
    streams: usize,
    connect: impl Fn() -> F,
) -> crate::Turn {
    let local = tokio::task::LocalSet::new();
    let over = Arc::new(AtomicBool::new(false));
    local
        .run_until(async {
            let mut asking = JoinSet::new();
            let began = Instant::now();
            for _ in 0..connections {
                let conn = connect().await;
                for _ in 0..streams {
                    let (mut conn, over) = (conn.clone(), Arc::clone(&over));
                    asking.spawn_local(async move {
                        let mut took = Vec::new();
                        while !over.load(Ordering::Relaxed) {
                            let sent = Instant::now();
                            conn.ask().await;
                            took.push(sent.elapsed());
                        }
                        took
                    });
                }
            }
            tokio::time::sleep(length).await;
            over.store(true, Ordering::Relaxed);
            let mut took: Vec<Duration> = asking.join_all().await.concat();
            let seconds = began.elapsed().as_secs_f64();
            took.sort_unstable();
            let at =
                |per_mille: usize| took[(took.len() - 1) * per_mille / 1000].as_secs_f64() * 1e3;
            crate::Turn { rate: took.len() as f64 / seconds, p50_ms: at(500), p99_ms: at(990) }
        })
        .await
}

type Sending<S> = std::rc::Rc<tokio::sync::Mutex<S>>;

#[derive(Clone)]
struct Http1(Sending<hyper::client::conn::http1::SendRequest<Empty<Bytes>>>, Target);

#[derive(Clone)]
struct Http2(hyper::client::conn::http2::SendRequest<Empty<Bytes>>, Target);

#[derive(Clone)]
struct Http3(h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>, Target);

async fn http1(target: Target) -> Http1 {
    let io = TokioIo::new(tls(&target, b"http/1.1").await);
    let (sender, conn) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::task::spawn_local(conn);
    Http1(std::rc::Rc::new(tokio::sync::Mutex::new(sender)), target)
}

async fn http2(target: Target) -> Http2 {
    let io = TokioIo::new(tls(&target, b"h2").await);
    let (sender, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::task::spawn_local(conn);
    Http2(sender, target)
}

async fn http3(target: Target) -> Http3 {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(client_config(b"h3")).unwrap();
    let endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let conn = endpoint.connect_with(config, target.at, &target.host).unwrap().await.unwrap();
    let (mut driver, sender) = h3::client::new(h3_quinn::Connection::new(conn)).await.unwrap();
    tokio::task::spawn_local(async move {
        let _ = std::future::poll_fn(|cx| driver.poll_close(cx)).await;
    });
    Http3(sender, target)
}

impl Ask for Http1 {
    async fn ask(&mut self) {
        let request = http::Request::get("/").header("host", &self.1.host);
        let request = request.body(Empty::new()).unwrap();
        let mut sender = self.0.lock().await;
        sender.ready().await.unwrap();
        read(sender.send_request(request).await.unwrap()).await;
    }
}

impl Ask for Http2 {
    async fn ask(&mut self) {
        let request = http::Request::get(format!("https://{}/", self.1.host));
        let request = request.body(Empty::new()).unwrap();
        self.0.ready().await.unwrap();
        read(self.0.send_request(request).await.unwrap()).await;
    }
}

impl Ask for Http3 {
    async fn ask(&mut self) {
        let request = http::Request::get(format!("https://{}/", self.1.host)).body(()).unwrap();
        let mut stream = self.0.send_request(request).await.unwrap();
        stream.finish().await.unwrap();
        assert_eq!(stream.recv_response().await.unwrap().status(), 200);
        while let Some(data) = stream.recv_data().await.unwrap() {
            assert!(data.has_remaining());
        }
    }
}

async fn read(response: http::Response<hyper::body::Incoming>) {
    assert_eq!(response.status(), 200);
    assert!(!response.into_body().collect().await.unwrap().to_bytes().is_empty());
}

async fn tls(
    target: &Target,
    alpn: &[u8],
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let stream = tokio::net::TcpStream::connect(target.at).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let name = ServerName::try_from(target.host.clone()).unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config(alpn)));
    connector.connect(name, stream).await.unwrap()
}

fn client_config(alpn: &[u8]) -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

/// The ingress shows a certificate that nobody signed.
#[derive(Debug)]
struct Trusting;

impl ServerCertVerifier for Trusting {
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
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
