//! Goal: bad input is refused, bounded, and told once. Method: bytes as an attacker writes them, on
//! real connections; what is refused must reach no pod, and the ingress must serve others after it.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::testing::{BIG_BYTES, Site, rules, soon, to};
use crate::net::BodyError;

async fn site() -> Site {
    Site::new(rules(json!([{"backendRefs": to("a")}]))).await
}

/// A site that takes bodies of 1 KiB.
async fn site_of_small_bodies() -> Site {
    let site = Site::new(super::testing::gateway(&json!([]), &[])).await;
    let ingress = super::testing::object(json!({
        "metadata": {"namespace": "default", "name": "i",
            "annotations": {"edgeorc.io/max-body-size": "1Ki"}},
        "spec": {"defaultBackend": {"service": {"name": "a", "port": {"number": 80}}}}}));
    site.publish(super::HttpObjects { ingresses: vec![ingress], ..Default::default() });
    site
}

/// The ingress serves others, and no pod has seen anything of it.
async fn is_well(site: &Site) {
    assert_eq!(*site.echo.seen.lock(), Vec::<String>::new());
    assert_eq!(site.get("h", "/").await.pod(), "a");
    site.echo.seen.lock().clear();
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let site = site().await;
    let huge = "x".repeat(100_000);
    let many = "a: b\r\n".repeat(200);
    for (what, bytes) in [
        ("no http", "\u{0}\u{1}\u{2}\r\n\r\n".to_owned()),
        ("bad version", "GET / HTTP/9.9\r\nhost: h\r\n\r\n".to_owned()),
        ("bad name", "GET / HTTP/1.1\r\nhost: h\r\na b: c\r\n\r\n".to_owned()),
        ("space before colon", "GET / HTTP/1.1\r\nhost : h\r\n\r\n".to_owned()),
        ("folded", "GET / HTTP/1.1\r\nhost: h\r\n x: y\r\n\r\n".to_owned()),
        ("large head", format!("GET / HTTP/1.1\r\nhost: h\r\na: {huge}\r\n\r\n")),
        ("large path", format!("GET /{huge} HTTP/1.1\r\nhost: h\r\n\r\n")),
        ("many fields", format!("GET / HTTP/1.1\r\nhost: h\r\n{many}\r\n")),
    ] {
        let answer = site.raw(bytes.as_bytes()).await;
        let code = answer.get(9..12).unwrap_or("");
        assert!(answer.is_empty() || code.starts_with('4'), "{what}: {answer}");
        is_well(&site).await;
    }
}

#[tokio::test]
async fn what_two_readers_could_read_differently_is_refused() {
    let site = site().await;
    let post = "POST / HTTP/1.1\r\nhost: h\r\n";
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n";
    for (what, bytes) in [
        ("two lengths", format!("{post}content-length: 1\r\ncontent-length: 2\r\n\r\nab")),
        ("a length with a sign", format!("{post}content-length: +2\r\n\r\nab")),
        ("chunks not last", format!("{post}transfer-encoding: chunked, gzip\r\n\r\n{smuggled}")),
        ("odd chunks", format!("{post}transfer-encoding: xchunked\r\n\r\n{smuggled}")),
        ("bad chunk", format!("{post}transfer-encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n")),
        ("no host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("empty host", "GET / HTTP/1.1\r\nhost:\r\n\r\n".to_owned()),
        ("two hosts", "GET / HTTP/1.1\r\nhost: h\r\nhost: other\r\n\r\n".to_owned()),
        ("absolute and other", "GET http://h/ HTTP/1.1\r\nhost: other\r\n\r\n".to_owned()),
        ("user in host", "GET / HTTP/1.1\r\nhost: h@other\r\n\r\n".to_owned()),
    ] {
        let answer = site.raw(bytes.as_bytes()).await;
        // One answer that refuses, or a connection that ends; never a second one.
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{what}: {answer}");
        assert!(!answer.contains(" 200 "), "{what}: {answer}");
        assert!(!site.echo.seen.lock().iter().any(|one| one.contains("smuggled")), "{what}");
        // A body that turns out bad later may have had its head delivered.
        site.echo.seen.lock().clear();
        is_well(&site).await;
    }
    // Chunks go before a length (RFC 9112, 6.3), which is not passed on; the connection ends there.
    let both = format!("{post}content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n{smuggled}");
    let answer = site.raw(both.as_bytes()).await;
    assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{answer}");
    let seen = std::mem::take(&mut *site.echo.seen.lock());
    assert!(
        !seen.iter().any(|one| one.contains("smuggled") || one.contains("content-length")),
        "{seen:?}"
    );
    is_well(&site).await;
}

#[tokio::test]
async fn chunks_before_a_length_hide_no_second_request() {
    let site = site().await;
    let bytes = "POST /first HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\
        content-length: 6\r\n\r\n0\r\n\r\nGET /second HTTP/1.1\r\nhost: h\r\n\r\n";
    let answer = site.raw(bytes.as_bytes()).await;
    // Whatever becomes of it, the pod is told of one length only.
    assert!(!(answer.contains("transfer-encoding:") && answer.contains("content-length: 6")));
}

#[tokio::test]
async fn connect_is_refused() {
    let site = site().await;
    let answer = site.raw(b"CONNECT h:80 HTTP/1.1\r\nhost: h:80\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    is_well(&site).await;
}

/// Goal: a client's bad body is the client's fault, wherever it shows. Method: it turns out bad while a pod reads it,
/// which then breaks off, answers while it reads, or says 500; more often than an endpoint may fail.
#[tokio::test]
async fn a_body_that_turns_out_bad_is_refused_and_no_endpoints_fault() {
    let site = site_of_small_bodies().await;
    let large = format!("1000\r\n{}\r\n0\r\n\r\n", "x".repeat(0x1000));
    for path in ["/strict", "/stream", "/"] {
        let head = format!("POST {path} HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n");
        for (body, code) in [("zz\r\n", "400"), ("fffffffffffffffff\r\n", "400"), (&large, "413")] {
            for _ in 0..4 {
                let answer = site.raw(format!("{head}{body}").as_bytes()).await;
                assert!(
                    answer.starts_with(&format!("HTTP/1.1 {code} ")),
                    "{path} {body}: {answer}"
                );
            }
        }
    }
    let text = site.metrics();
    assert!(
        text.contains(r#"edgeorc_mesh_ingress_refused_total{reason="malformed"} 24"#),
        "{text}"
    );
    assert!(
        text.contains(r#"edgeorc_mesh_ingress_refused_total{reason="too-large"} 12"#),
        "{text}"
    );
    assert!(text.contains("edgeorc_mesh_ejections_spared_total 0"), "{text}");
    // Whole bodies pass, in both ways of answering.
    for path in ["/stream", "/strict"] {
        let whole = format!(
            "POST {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\
             transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        );
        let answer = site.raw(whole.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("hello"), "{answer}");
    }
}

/// Goal: an answer that begins before its request is whole is not held back for long. Method: a client sends a piece
/// and waits for it to come back before it sends the next.
#[tokio::test]
async fn a_client_and_a_pod_may_talk_in_turns() {
    let site = site().await;
    let mut stream = TcpStream::connect(site.http).await.unwrap();
    let head = "POST /stream HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut seen, mut buffer) = (String::new(), [0; 1024]);
    for word in ["", "one", "two"] {
        if !word.is_empty() {
            stream.write_all(format!("3\r\n{word}\r\n").as_bytes()).await.unwrap();
        }
        let wanted = if word.is_empty() { "\r\n\r\n" } else { word };
        while !seen.contains(wanted) {
            let size = soon(stream.read(&mut buffer)).await.unwrap();
            assert!(size > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..size]));
        }
    }
    assert!(seen.starts_with("HTTP/1.1 200 "), "{seen}");
}

#[tokio::test]
async fn a_coding_that_is_not_known_is_refused() {
    let site = site().await;
    let post = "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: gzip, chunked\r\n\r\n";
    let answer = site.raw(format!("{post}2\r\nab\r\n0\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 501 "), "{answer}");
    is_well(&site).await;
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_413_also_when_its_length_is_not_told() {
    let site = site_of_small_bodies().await;
    let stream = |chunks: usize| {
        let frame = || Ok::<_, BodyError>(Frame::data(Bytes::from(vec![b'x'; 512])));
        let frames = futures_util::stream::iter((0..chunks).map(move |_| frame()));
        let body = StreamBody::new(frames).boxed_unsync();
        Request::post("/").header("host", "h").body(body).unwrap()
    };
    assert_eq!(site.ask(stream(2)).await.status, StatusCode::OK);
    assert_eq!(site.ask(stream(200)).await.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_its_body_too_slowly_is_cut_off() {
    let site = site().await;
    let mut stream = TcpStream::connect(site.http).await.unwrap();
    let head = b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\nx";
    stream.write_all(head).await.unwrap();
    let mut answer = Vec::new();
    // Paused time moves on when nothing else does.
    let ended = stream.read_to_end(&mut answer).await;
    let text = String::from_utf8_lossy(&answer);
    assert!(ended.is_err() || !text.contains(" 200 "), "{text}");
}

/// Frames of HTTP/2 by hand: length, type, flags, stream.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;

/// Writes until the other end has had enough; whether it ended the connection.
async fn flood(site: &Site, mut next: impl FnMut(u32) -> Vec<u8>) -> bool {
    let stream = TcpStream::connect(site.http).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let reading = async {
        let mut answer = Vec::new();
        let _ = read.read_to_end(&mut answer).await;
    };
    let writing = async {
        write.write_all(PREFACE).await.unwrap();
        write.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        for at in 0..20_000_u32 {
            if write.write_all(&next(at)).await.is_err() {
                return;
            }
            if at % 64 == 0 {
                tokio::task::yield_now().await;
            }
        }
        std::future::pending::<()>().await;
    };
    let ended = async {
        tokio::select! {
            () = reading => {}
            () = writing => {}
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.is_ok()
}

/// `GET / h` in HPACK, without an index.
fn request_block() -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x84, 0x41, 0x01];
    block.extend(b"h");
    block
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let site = Site::new(rules(json!([{"backendRefs": to("slow")}]))).await;
    let block = request_block();
    let ended = flood(&site, |at| {
        let stream = at * 2 + 1;
        let mut bytes = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block);
        bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        bytes
    })
    .await;
    assert!(ended, "a client opened and reset 20,000 streams");
    assert!(site.echo.seen.lock().len() < 20_000);
}

#[tokio::test]
async fn a_flood_of_continuations_ends_the_connection() {
    let site = site().await;
    let block = request_block();
    // One field after the other, and never an end.
    let field = [&[0x00, 0x01, b'a', 0x7f, 0x81, 0x07][..], &[b'x'; 1024]].concat();
    let ended = flood(&site, |at| {
        if at == 0 {
            frame(HEADERS, END_STREAM, 1, &block)
        } else {
            frame(CONTINUATION, 0, 1, &field)
        }
    })
    .await;
    assert!(ended, "a client sent 20,000 frames of one header");
    is_well(&site).await;
}

#[tokio::test]
async fn a_flood_of_settings_keeps_nothing() {
    let site = site().await;
    flood(&site, |at| if at < 5000 { frame(SETTINGS, 0, 0, &[]) } else { Vec::new() }).await;
    is_well(&site).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_held_back_and_then_cut_off() {
    let site = site().await;
    let mut stream = TcpStream::connect(site.http).await.unwrap();
    stream.write_all(b"GET /big HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    site.echo.wait_for(1).await;
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(200)).await;
    tokio::time::resume();
    let mut answer = Vec::new();
    let ended = soon(stream.read_to_end(&mut answer)).await;
    assert!(ended.is_err() || answer.len() < BIG_BYTES, "{}", answer.len());
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    let mut registry = prometheus_client::registry::Registry::default();
    site.mesh.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let line = r#"edgeorc_mesh_ingress_refused_total{reason="not-read"} 1"#;
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn a_stream_of_http_2_that_is_never_read_is_reset_and_its_connection_goes_on() {
    let site = site().await;
    let io = hyper_util::rt::TokioIo::new(TcpStream::connect(site.http).await.unwrap());
    let (mut sender, conn) = hyper::client::conn::http2::handshake::<_, _, crate::net::Body>(
        hyper_util::rt::TokioExecutor::new(),
        io,
    )
    .await
    .unwrap();
    site.tasks.spawn_until_cancelled("client", async move {
        let _ = conn.await;
    });
    let get = |path: &str| {
        Request::get(format!("http://h{path}")).body(crate::net::http::empty()).unwrap()
    };
    let big = soon(sender.send_request(get("/big"))).await.unwrap();
    assert_eq!(big.status(), 200);
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(61)).await;
    tokio::time::resume();
    let mut registry = prometheus_client::registry::Registry::default();
    site.mesh.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let line = r#"edgeorc_mesh_ingress_refused_total{reason="not-read"} 1"#;
    assert!(text.contains(line), "{text}");
    let small = soon(sender.send_request(get("/"))).await.unwrap();
    assert_eq!(small.status(), 200);
    let broken = soon(big.into_body().collect()).await;
    assert!(broken.is_err());
}
