//! Goal: each name gets its certificate, and a new one without a lost connection. Method: TLS
//! clients that trust everybody and tell what they were shown.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::CertificatePem;
use super::testing::{Got, Site, gateway, got, object, soon, to};
use crate::net::http::empty;
use crate::net::{Body, http3, pki};

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
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
        Ok(HandshakeSignatureValid::assertion())
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
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519]
    }
}

async fn connect(site: &Site, name: &str, alpn: &[&str]) -> TlsStream<TcpStream> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|alpn| alpn.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(site.https).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    soon(TlsConnector::from(Arc::new(config)).connect(name, stream)).await.unwrap()
}

/// The first name in the certificate that a client is shown.
async fn shown(site: &Site, name: &str) -> String {
    let stream = connect(site, name, &[]).await;
    let chain = stream.get_ref().1.peer_certificates().unwrap();
    let (_, certificate) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    match &names.value.general_names[0] {
        x509_parser::extensions::GeneralName::DNSName(name) => (*name).to_owned(),
        other => panic!("{other:?}"),
    }
}

fn certificates(of: &[(&str, &str)]) -> BTreeMap<(String, String), CertificatePem> {
    let made = |name: &str| {
        let pair = pki::self_signed(name).unwrap();
        CertificatePem { chain: pair.cert_pem.into(), key: pair.key_pem.into() }
    };
    let named =
        |(secret, name): &(&str, &str)| (("default".to_owned(), (*secret).to_owned()), made(name));
    of.iter().map(named).collect()
}

fn listener(name: &str, host: Option<&str>, secret: &str) -> serde_json::Value {
    json!({"name": name, "port": 443, "protocol": "HTTPS", "hostname": host,
        "tls": {"certificateRefs": [{"name": secret}]}})
}

fn site_objects() -> super::HttpObjects {
    let listeners = json!([
        listener("named", Some("named.com"), "named"),
        listener("wild", Some("*.wild.com"), "wild"),
        listener("any", None, "any"),
    ]);
    gateway(&listeners, &[(&[], json!([{"backendRefs": to("a")}]))])
}

const SHOWN: &[(&str, &str)] =
    &[("named", "named.com"), ("wild", "*.wild.com"), ("any", "default.com")];

#[tokio::test]
async fn each_name_gets_its_certificate() {
    let site = Site::new(site_objects()).await;
    // Before the Secrets are known there is a certificate that nobody trusts.
    assert_eq!(shown(&site, "named.com").await, "edgeorc.invalid");
    site.mesh.set_certificates(certificates(SHOWN));
    for (name, certificate) in [
        ("named.com", "named.com"),
        ("NAMED.com", "named.com"),
        ("a.wild.com", "*.wild.com"),
        ("a.b.wild.com", "*.wild.com"),
        ("other.com", "default.com"),
        ("default.com", "default.com"),
    ] {
        assert_eq!(shown(&site, name).await, certificate, "{name}");
    }
}

#[tokio::test]
async fn an_ingress_shows_the_certificate_of_its_hosts() {
    let ingress = object(json!({"metadata": {"namespace": "default", "name": "i"}, "spec": {
        "tls": [{"hosts": ["a.com"], "secretName": "one"}, {"secretName": "two"}],
        "defaultBackend": {"service": {"name": "a", "port": {"number": 80}}}}}));
    let site =
        Site::new(super::HttpObjects { ingresses: vec![ingress], ..Default::default() }).await;
    site.mesh.set_certificates(certificates(&[("one", "x.com"), ("two", "b.com")]));
    assert_eq!(shown(&site, "a.com").await, "x.com");
    assert_eq!(shown(&site, "b.com").await, "b.com");
    assert_eq!(shown(&site, "c.com").await, "b.com");
}

async fn ask(sender: &mut hyper::client::conn::http2::SendRequest<Body>) -> Got {
    let request = Request::get("https://named.com/x").body(empty()).unwrap();
    got(soon(sender.send_request(request)).await.unwrap()).await
}

#[tokio::test]
async fn a_certificate_is_exchanged_while_connections_go_on() {
    let site = Site::new(site_objects()).await;
    site.mesh.set_certificates(certificates(SHOWN));
    let stream = connect(&site, "named.com", &["h2", "http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, conn) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    site.tasks.spawn_until_cancelled("client", async move {
        let _ = conn.await;
    });
    let answer = ask(&mut sender).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.body.contains("x-forwarded-proto: https\n"), "{}", answer.body);

    let mut renewed = certificates(&[("named", "renewed.com"), SHOWN[1], SHOWN[2]]);
    site.mesh.set_certificates(renewed.clone());
    assert_eq!(shown(&site, "named.com").await, "renewed.com");
    assert_eq!(ask(&mut sender).await.status, StatusCode::OK);

    // A Secret that was broken by hand leaves the certificate that was good.
    let named = ("default".to_owned(), "named".to_owned());
    renewed.get_mut(&named).unwrap().key = b"nonsense".to_vec();
    site.mesh.set_certificates(renewed.clone());
    assert_eq!(shown(&site, "named.com").await, "renewed.com");
    // One that is gone does not.
    renewed.remove(&named);
    site.mesh.set_certificates(renewed);
    assert_eq!(shown(&site, "named.com").await, "default.com");
    assert_eq!(ask(&mut sender).await.status, StatusCode::OK);
}

#[tokio::test]
async fn what_is_no_tls_is_refused_and_harms_nobody() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let site = Site::new(site_objects()).await;
    for bytes in [&b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 0, 1]] {
        let mut stream = TcpStream::connect(site.https).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = soon(stream.read_to_end(&mut answer)).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
    assert_eq!(shown(&site, "named.com").await, "edgeorc.invalid");
}

#[tokio::test]
async fn http_3_is_offered_and_served_with_the_same_routes() {
    let site = Site::new(site_objects()).await;
    site.mesh.set_certificates(certificates(SHOWN));
    let listener = site.mesh.bind_http3("127.0.0.1:0".parse().unwrap()).unwrap();
    let at = listener.local_addr().unwrap();
    let serving = site.mesh.clone();
    site.tasks.spawn_until_cancelled("http3", async move {
        serving.serve_ingress_http3(listener).await;
    });
    for _ in 0..3 {
        let request = Request::post("https://named.com/x").body(bytes::Bytes::from("body"));
        let asking = http3::testing::ask(at, "named.com", Arc::new(Anybody), request.unwrap());
        let answer = soon(asking).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let alt_svc = answer.headers()["alt-svc"].to_str().unwrap();
        assert_eq!(alt_svc, format!("h3=\":{}\"; ma=86400", at.port()));
        let text = String::from_utf8(answer.into_body().to_vec()).unwrap();
        assert!(text.contains("host: named.com\n") && text.ends_with("\nbody"), "{text}");
        assert!(text.contains("x-forwarded-proto: https\n"), "{text}");
    }
    let request = Request::get("https://named.com/x").header("host", "other");
    let request = request.body(bytes::Bytes::new()).unwrap();
    let refused = http3::testing::ask(at, "named.com", Arc::new(Anybody), request);
    assert!(soon(refused).await.map_or(true, |answer| answer.status() == StatusCode::BAD_REQUEST));
}

#[tokio::test]
async fn datagrams_that_are_no_http_3_harm_nobody() {
    let site = Site::new(site_objects()).await;
    site.mesh.set_certificates(certificates(SHOWN));
    let listener = site.mesh.bind_http3("127.0.0.1:0".parse().unwrap()).unwrap();
    let at = listener.local_addr().unwrap();
    let serving = site.mesh.clone();
    site.tasks.spawn_until_cancelled("http3", async move {
        serving.serve_ingress_http3(listener).await;
    });
    crate::net::flood_test::garbage(at).await;
    let request = Request::get("https://named.com/x").body(bytes::Bytes::new()).unwrap();
    let asking = http3::testing::ask(at, "named.com", Arc::new(Anybody), request);
    assert_eq!(soon(asking).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_request_by_http_3_ends_before_its_node_does() {
    let site = Site::new(site_objects()).await;
    site.mesh.set_certificates(certificates(SHOWN));
    let listener = site.mesh.bind_http3("127.0.0.1:0".parse().unwrap()).unwrap();
    let at = listener.local_addr().unwrap();
    let serving = site.mesh.clone();
    site.tasks.spawn("http3", |_| async move { serving.serve_ingress_http3(listener).await });
    let request = Request::get("https://named.com/big").body(bytes::Bytes::new()).unwrap();
    let asking = http3::testing::ask(at, "named.com", Arc::new(Anybody), request);
    let ending = async {
        site.echo.wait_for(1).await;
        site.tasks.token().cancel();
    };
    let (answer, ()) = soon(async { tokio::join!(asking, ending) }).await;
    assert_eq!(answer.unwrap().body().len(), super::testing::BIG_BYTES);
}
