//! Goal: what registries outside of the cluster ask for, and how they break. Method: registries on
//! loopback sockets, with and without TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::image_test::{
    COPY, CUT, Node, WASM, cut_body, digest_of, failure, manifest_of, registry,
};
use super::*;
use crate::rt::TaskGroup;

/// A certificate for 127.0.0.1 that nobody but these tests trusts, and its key.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBbTCCAROgAwIBAgIBATAKBggqhkjOPQQDAjAeMRwwGgYDVQQDDBNyZWdpc3Ry
eSB1bmRlciB0ZXN0MCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAe
MRwwGgYDVQQDDBNyZWdpc3RyeSB1bmRlciB0ZXN0MFkwEwYHKoZIzj0CAQYIKoZI
zj0DAQcDQgAE2DVO8rf6W7aXahOOzS39stkS+TEA5gQW52br+ini3+SNwBsoiTTY
dRGnEu9P7vjPXgISt7QkuFuZQlRNW4Xl+KNAMD4wDwYDVR0RBAgwBocEfwAAATAM
BgNVHRMBAf8EAjAAMB0GA1UdDgQWBBSmfnhDanmu3Q+xglZfKl5ACuKajDAKBggq
hkjOPQQDAgNIADBFAiAdF8Xa9+meJSt74yNeSRB37CSLkLavu9LdYM+M6ZyISwIh
APvuymOARIm5fLFUx+loEFXIpinhpmYKKfv4sCTpq6eo
-----END CERTIFICATE-----";
const KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgIN+LYX6VJ7gJaJ0a
E3MzQT4tgqxu74krDQmpqx/gH+OhRANCAATYNU7yt/pbtpdqE47NLf2y2RL5MQDm
BBbnZuv6KeLf5I3AGyiJNNh1EacS70/u+M9eAhK3tCS4W5lCVE1bheX4
-----END PRIVATE KEY-----";

/// Serves on a loopback socket.
pub(super) async fn listen(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    TaskGroup::new(&CancellationToken::new()).spawn_until_cancelled("registry", async move {
        axum::serve(listener, router).await.unwrap();
    });
    address
}

/// Serves on a loopback socket over TLS.
async fn listen_tls(router: Router) -> SocketAddr {
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = TaskGroup::new(&CancellationToken::new());
    let connections = tasks.clone();
    tasks.spawn_until_cancelled("registry", async move {
        loop {
            let stream = listener.accept().await.unwrap().0;
            let (acceptor, router) = (acceptor.clone(), router.clone());
            connections.spawn_until_cancelled("connection", async move {
                // A client that does not trust the certificate hangs up.
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper_util::service::TowerToHyperService::new(router);
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_transfer_that_dies_in_the_middle_goes_on_where_it_ended() {
    let ranges: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&ranges);
    let blob = move |headers: HeaderMap| async move {
        let range = headers.get(header::RANGE).map(|range| range.to_str().unwrap().to_owned());
        seen.lock().push(range.clone().unwrap_or_default());
        match range {
            None => {
                let length = [(header::CONTENT_LENGTH, WASM.len().to_string())];
                (length, cut_body(true, WASM)).into_response()
            }
            Some(range) => {
                let from: usize =
                    range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
                let content = format!("bytes {from}-{}/{}", WASM.len() - 1, WASM.len());
                let rest = Body::from(&WASM[from..]);
                (StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, content)], rest)
                    .into_response()
            }
        }
    };
    let manifest = manifest_of("application/vnd.wasm.content.layer.v1+wasm", WASM);
    let host = listen(
        Router::new()
            .route("/v2/app/manifests/latest", get(|| async { manifest }))
            .route(&format!("/v2/app/blobs/{}", digest_of(WASM)), get(blob)),
    )
    .await;
    let node = Node::new(Router::new(), COPY, "");
    let ready = node.ready(&format!("{host}/app"), PullPolicy::Always).await.unwrap();
    assert_eq!(std::fs::read(ready.compiled).unwrap(), WASM);
    assert_eq!(*ranges.lock(), ["", &format!("bytes={CUT}-")]);
    assert_eq!(node.files("images/sha256").len(), 1);
}

/// A registry that wants a token, which its token server gives to `user` with `password`.
fn guarded() -> Router {
    fn is(headers: &HeaderMap, wanted: &str) -> bool {
        headers.get(header::AUTHORIZATION).is_some_and(|value| value == wanted)
    }
    fn answer(headers: &HeaderMap, body: Body) -> Response {
        if is(headers, "Bearer good") {
            return body.into_response();
        }
        let host = headers[header::HOST].to_str().unwrap();
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"s\"");
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response()
    }
    let manifest = manifest_of("application/wasm", WASM);
    let basic = format!("Basic {}", STANDARD.encode("user:password"));
    Router::new()
        .route(
            "/v2/team/app/manifests/v1",
            get(|headers: HeaderMap| async move { answer(&headers, manifest.into()) }),
        )
        .route(
            &format!("/v2/team/app/blobs/{}", digest_of(WASM)),
            get(|headers: HeaderMap| async move { answer(&headers, WASM.into()) }),
        )
        .route(
            "/token",
            get(move |headers: HeaderMap, query: axum::extract::RawQuery| async move {
                assert_eq!(query.0.unwrap(), "service=s&scope=repository%3Ateam%2Fapp%3Apull");
                if is(&headers, &basic) {
                    json!({"token": "good"}).to_string().into_response()
                } else {
                    StatusCode::UNAUTHORIZED.into_response()
                }
            }),
        )
}

/// An API with a service account `robot` that has a pull secret for `host`.
fn api_with_secret(host: SocketAddr, password: &str) -> Router {
    let config = json!({"auths": {host.to_string(): {"username": "user", "password": password}}});
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "regcred"},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": STANDARD.encode(config.to_string())},
    });
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"},
        "imagePullSecrets": [{"name": "regcred"}],
    });
    let root = "/api/v1/namespaces/default";
    Router::new()
        .route(&format!("{root}/serviceaccounts/robot"), get(|| async move { account.to_string() }))
        .route(&format!("{root}/secrets/regcred"), get(|| async move { secret.to_string() }))
}

#[tokio::test]
async fn a_token_is_bought_with_the_pull_secret_of_the_service_account() {
    let host = listen(guarded()).await;
    let image = format!("{host}/team/app:v1");
    let node = Node::new(api_with_secret(host, "password"), COPY, "");
    let ready = node.ready(&image, PullPolicy::IfNotPresent).await.unwrap();
    assert!(ready.id.starts_with(&format!("{host}/team/app@sha256:")), "{}", ready.id);

    let node = Node::new(api_with_secret(host, "wrong"), COPY, "");
    let failed = failure(node.ready(&image, PullPolicy::IfNotPresent).await);
    assert_eq!(failed.reason, "ErrImagePull");
    assert!(failed.message.contains("failed to authorize"), "{failed:?}");
    assert!(!failed.message.contains("wrong"), "{failed:?}");

    // The file's credential serves where the pod has none.
    let file = format!("configs: {{\"{host}\": {{auth: {{username: user, password: password}}}}}}");
    let node = Node::new(Router::new(), COPY, &file);
    assert!(node.ready(&image, PullPolicy::IfNotPresent).await.is_ok());
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_names_stand_for_others() {
    let manifest = manifest_of("application/wasm", WASM);
    let good = listen(
        Router::new()
            .route("/v2/hub/busybox/manifests/1", get(|| async { manifest }))
            .route(&format!("/v2/hub/busybox/blobs/{}", digest_of(WASM)), get(|| async { WASM })),
    )
    .await;
    let without = listen(Router::new()).await;
    let file = format!(
        "mirrors:\n  docker.io:\n    endpoint: [\"http://{without}\", \"http://{good}\"]\n    \
         rewrite: {{\"^library/(.*)$\": \"hub/$1\"}}\n\
         images: {{short: \"docker.io/busybox:1\"}}\n"
    );
    let node = Node::new(Router::new(), COPY, &file);
    let ready = node.ready("short:any", PullPolicy::IfNotPresent).await.unwrap();
    assert!(ready.id.starts_with("docker.io/library/busybox@sha256:"), "{}", ready.id);
}

#[tokio::test]
async fn a_registry_over_tls_is_trusted_by_its_ca_or_not_at_all() {
    let host = listen_tls(registry(0, &Arc::default())).await;
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, CERTIFICATE).unwrap();
    let mirror = format!("mirrors: {{reg.test: {{endpoint: [\"https://{host}\"]}}}}\n");
    let cases = [
        (format!("ca_file: {}", ca.display()), true),
        ("insecure_skip_verify: true".to_owned(), true),
        ("insecure_skip_verify: false".to_owned(), false),
    ];
    for (tls, is_ready) in cases {
        let file = format!("{mirror}configs: {{\"{host}\": {{tls: {{{tls}}}}}}}\n");
        let mut node = Node::new(Router::new(), COPY, &file);
        let once = BackoffSettings { min: Duration::ZERO, max: Duration::ZERO };
        node.images.pull_backoffs = Backoffs::new(once);
        let ready = tokio::time::timeout(
            Duration::from_secs(2),
            node.ready("reg.test/default/app:v1", PullPolicy::IfNotPresent),
        )
        .await;
        assert_eq!(matches!(ready, Ok(Ok(_))), is_ready, "{tls}: {ready:?}");
    }
}

#[tokio::test]
async fn an_archive_with_one_component_runs() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("app.wasm"), WASM).unwrap();
    let tar = std::process::Command::new("tar")
        .args(["-cz", "-C"])
        .arg(folder.path())
        .arg("app.wasm")
        .output()
        .unwrap();
    let layer: &'static [u8] = tar.stdout.leak();
    let manifest = manifest_of("application/vnd.docker.image.rootfs.diff.tar.gzip", layer);
    let api =
        Router::new().route("/v2/default/app/manifests/v1", get(|| async { manifest })).route(
            &format!("/v2/default/app/blobs/{}", digest_of(layer)),
            get(move || async move { layer }),
        );
    let node = Node::new(api, COPY, "");
    let ready = node.ready("default/app:v1", PullPolicy::IfNotPresent).await.unwrap();
    assert_eq!(std::fs::read(&ready.compiled).unwrap(), WASM);
    let left = Path::new(&ready.compiled).file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(node.files("compiled"), [left]);
}
