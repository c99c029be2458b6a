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
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::image_test::{
    COPY, CUT, Node, WASM, cut_body, digest_of, failure, manifest_of, registry,
};
use super::*;
use crate::config::Proxies;
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

/// Goal: what an image's config says is here with it, also without the registry. Method: a registry whose
/// config is what its manifest names, or not.
#[tokio::test]
async fn a_config_is_kept_with_the_image_and_checked() {
    const CONFIG: &str = r#"{"config": {"Env": ["MODE=fast"], "Entrypoint": ["/app.wasm"]}}"#;
    let manifest = |config: &str| {
        let mut manifest: serde_json::Value =
            serde_json::from_str(&manifest_of("application/wasm", WASM)).unwrap();
        manifest["config"] = json!({"mediaType": config::TYPES[0],
            "digest": digest_of(config.as_bytes()), "size": config.len()});
        manifest.to_string()
    };
    let (good, bad) = (manifest(CONFIG), manifest("something else"));
    let host = listen(
        Router::new()
            .route("/v2/app/manifests/v1", get(|| async { good }))
            .route("/v2/bad/manifests/v1", get(|| async { bad }))
            .route("/v2/{name}/blobs/{digest}", get(|path| async { blob_or_config(path, CONFIG) })),
    )
    .await;
    let node = Node::new(Router::new(), COPY, "");
    let image = format!("{host}/app:v1");
    let pulled = node.ready(&image, PullPolicy::Always).await.unwrap().config;
    assert_eq!(pulled.env, ["MODE=fast"]);
    assert_eq!(pulled.entrypoint, ["/app.wasm"]);
    let known = node.ready(&image, PullPolicy::Never).await.unwrap().config;
    assert_eq!(known, pulled);
    let refused = failure(node.ready(&format!("{host}/bad:v1"), PullPolicy::Always).await);
    assert!(refused.message.contains("for the image's config sha256:"), "{refused:?}");
}

fn blob_or_config(
    axum::extract::Path((_, digest)): axum::extract::Path<(String, String)>,
    config: &'static str,
) -> Vec<u8> {
    if digest == digest_of(WASM) { WASM.to_vec() } else { config.as_bytes().to_vec() }
}

/// Goal: a registry that stands still in its answers keeps no other waiting, nor its own other images
/// for ever. Method: more pulls from it than it has places, and paused time.
#[tokio::test(start_paused = true)]
async fn a_registry_that_stalls_gives_its_places_up_and_holds_no_other_registrys() {
    let manifest = manifest_of("application/wasm", WASM);
    let stalls = || async {
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>(&WASM[..CUT])]);
        let rest = futures_util::stream::pending();
        Body::from_stream(futures_util::StreamExt::chain(first, rest))
    };
    // Each app has a layer of its own, so that none waits for another's.
    let mut stalled = Router::new();
    for at in 0..5 {
        let digest = format!("sha256:{}", at.to_string().repeat(64));
        let manifest = manifest.replace(&digest_of(WASM), &digest);
        stalled = stalled
            .route(&format!("/v2/app{at}/manifests/v1"), get(|| async { manifest }))
            .route(&format!("/v2/app{at}/blobs/{digest}"), get(stalls));
    }
    stalled = stalled
        .route("/v2/good/manifests/v1", get(|| async { manifest }))
        .route(&format!("/v2/good/blobs/{}", digest_of(WASM)), get(|| async { WASM }));
    let host = listen(stalled).await;
    let node = Node::new(registry(0, &Arc::default()), COPY, "");
    let images: Vec<_> = (0..5).map(|at| format!("{host}/app{at}:v1")).collect();
    let good = format!("{host}/good:v1");
    let pull = |image| node.pull(image);
    let slow = futures_util::future::join_all(images.iter().map(|image| pull(image)));
    let others = async {
        // By now the places of that registry are taken.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let before = Instant::now();
        pull("default/app:v1").await.unwrap();
        let own = before.elapsed();
        let before = Instant::now();
        pull(&good).await.unwrap();
        (own, before.elapsed())
    };
    let (slow, (own, same)) = tokio::join!(slow, others);
    assert!(own < Duration::from_secs(1), "the cluster's own registry waited {own:?}");
    assert!(same < Duration::from_secs(90), "an image of the same registry waited {same:?}");
    for stalled in slow {
        let failed = stalled.unwrap_err().to_string();
        assert!(failed.contains("no progress"), "{failed}");
    }
}

/// A proxy that lets through what it likes: `CONNECT` to any name ends at `to`; plain requests are
/// answered by `router`. What it was asked is noted.
async fn proxy(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tasks = TaskGroup::new(&CancellationToken::new());
    let (connections, noted) = (tasks.clone(), Arc::clone(&asked));
    tasks.spawn_until_cancelled("proxy", async move {
        loop {
            let mut client = listener.accept().await.unwrap().0;
            let noted = Arc::clone(&noted);
            connections.spawn_until_cancelled("connection", async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let line = head.lines().next().unwrap().to_owned();
                let is_known =
                    head.contains("Basic dXNlcjpwYXNz") || head.contains("basic dXNlcjpwYXNz");
                let is_tunnel = line.starts_with("CONNECT ");
                noted.lock().push(line);
                if !is_known {
                    let denied =
                        "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n";
                    client.write_all(denied.as_bytes()).await.unwrap();
                    return;
                }
                let mut server = tokio::net::TcpStream::connect(to).await.unwrap();
                if is_tunnel {
                    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                } else {
                    // As a registry would be asked without it.
                    let (method, rest) = head.split_once(" http://reg.test").unwrap();
                    server.write_all(format!("{method} {rest}").as_bytes()).await.unwrap();
                }
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address, asked)
}

#[tokio::test]
async fn registries_are_reached_through_the_proxy_that_the_environment_or_the_file_names() {
    let over_tls = listen_tls(registry(0, &Arc::default())).await;
    let plain = listen(registry(0, &Arc::default())).await;
    let image = "reg.test/default/app:v1";
    let trust = "configs: {reg.test: {tls: {insecure_skip_verify: true}}}";
    let mirror = "mirrors: {reg.test: {endpoint: [\"http://reg.test\"]}}";
    for (to, file, first) in [
        (over_tls, trust.to_owned(), "CONNECT reg.test:443 HTTP/1.1"),
        (plain, mirror.to_owned(), "GET http://reg.test/v2/default/app/manifests/v1 HTTP/1.1"),
    ] {
        let (proxy, asked) = proxy(to).await;
        let url = format!("http://user:pass@{proxy}");
        let of_environment = Proxies { all: url.clone(), ..Proxies::default() };
        let mut node = Node::new(Router::new(), COPY, &file);
        node.through(&of_environment);
        node.ready(image, PullPolicy::IfNotPresent).await.unwrap();
        assert_eq!(asked.lock()[0], first);

        // The file has the last word: another proxy, or none.
        asked.lock().clear();
        let named = file.replace("{tls:", &format!("{{proxy: \"{url}\", tls:"));
        let named = if named == file {
            format!("{file}\nconfigs: {{reg.test: {{proxy: \"{url}\"}}}}")
        } else {
            named
        };
        let elsewhere = Proxies { all: "http://127.0.0.1:1".to_owned(), ..Proxies::default() };
        let mut node = Node::new(Router::new(), COPY, &named);
        node.through(&elsewhere);
        node.ready(image, PullPolicy::IfNotPresent).await.unwrap();
        assert_eq!(asked.lock()[0], first);

        let node = Node::new(Router::new(), COPY, &named.replace(&url, "none"));
        let settings = node.images.registries.settings();
        assert!(matches!(settings.proxy("reg.test"), Some(None)), "{named}");

        // A proxy that wants a password that nobody has.
        let mut node = Node::new(Router::new(), COPY, &file);
        node.through(&Proxies { all: format!("http://{proxy}"), ..Proxies::default() });
        let pull = node.ready(image, PullPolicy::IfNotPresent);
        let failed = failure(pull.await);
        assert!(failed.message.contains("proxy") || failed.message.contains("407"), "{failed:?}");
        assert!(!failed.message.contains("pass@"), "{failed:?}");
    }
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
    let mut router = Router::new();
    for namespace in ["default", "friend"] {
        let root = format!("/api/v1/namespaces/{namespace}");
        let (account, secret) = (account.to_string(), secret.to_string());
        router = router
            .route(&format!("{root}/serviceaccounts/robot"), get(|| async { account }))
            .route(&format!("{root}/secrets/regcred"), get(|| async { secret }));
    }
    router
}

#[tokio::test]
async fn what_a_pull_secret_opened_is_open_to_namespaces_whose_secrets_open_it_and_to_no_others() {
    let host = listen(guarded()).await;
    let image = format!("{host}/team/app:v1");
    let mut node = Node::new(api_with_secret(host, "password"), COPY, "");
    node.ready(&image, PullPolicy::IfNotPresent).await.unwrap();
    node.is_of("stranger", "u2");
    let failed = failure(node.ready(&image, PullPolicy::IfNotPresent).await);
    assert_eq!(failed.reason, "ErrImagePull", "{failed:?}");
    let failed = failure(node.ready(&image, PullPolicy::Never).await);
    assert_eq!(failed.reason, "ErrImageNeverPull");
    assert!(failed.message.contains("no pull secret of the pod's namespace"), "{failed:?}");
    node.is_of("friend", "u3");
    let failed = failure(node.ready(&image, PullPolicy::Never).await);
    assert_eq!(failed.reason, "ErrImageNeverPull");
    node.ready(&image, PullPolicy::IfNotPresent).await.unwrap();
    // From now on without the registry, for both.
    for (namespace, uid) in [("friend", "u4"), ("default", "u5")] {
        node.is_of(namespace, uid);
        node.ready(&image, PullPolicy::Never).await.unwrap();
    }
    // The node's own credential is for all pods of the node.
    let file = format!("configs: {{\"{host}\": {{auth: {{username: user, password: password}}}}}}");
    let mut node = Node::new(Router::new(), COPY, &file);
    node.ready(&image, PullPolicy::IfNotPresent).await.unwrap();
    node.is_of("stranger", "u2");
    node.ready(&image, PullPolicy::Never).await.unwrap();
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
        node.images_mut().pull_backoffs = Backoffs::new(once);
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
