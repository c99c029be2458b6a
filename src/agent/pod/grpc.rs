//! The gRPC health checking protocol, as far as a probe needs it.
//!
//! Source: grpc/doc/health-checking.md, and PROTOCOL-HTTP2.md for the framing.

use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::agent::pod::probe::PodNetwork;

/// Path of `grpc.health.v1.Health/Check`.
const METHOD: &str = "/grpc.health.v1.Health/Check";
/// Longest answer that is read; a right one has 7 bytes.
const ANSWER_BYTES_MAX: usize = 1024;
/// Longest service name, in bytes.
const SERVICE_BYTES_MAX: usize = 255;
/// Protobuf key of the only field of request and response: number 1, length-delimited or varint.
const SERVICE_KEY: u8 = 0x0a;
const STATUS_KEY: u8 = 0x08;
const SERVING: u8 = 1;

/// Asks `to` for the health of `service`; `Ok` is SERVING.
pub(super) async fn check(
    network: &dyn PodNetwork,
    to: SocketAddr,
    service: &str,
) -> Result<(), String> {
    let stream = network.connect(to).await.map_err(|err| format!("dial {to}: {err}"))?;
    let broken = |err: hyper::Error| format!("health rpc failed: {err}");
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(broken)?;
    let request = http::Request::post(format!("http://{to}{METHOD}"))
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .body(Full::new(request(service)?))
        .map_err(|err| err.to_string())?;
    let call = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let early = response.headers().get("grpc-status").cloned();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let body = body.collect().await.map_err(|err| format!("health rpc failed: {err}"))?;
        let late = body.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
        match late.or(early) {
            Some(status) if status != "0" => {
                Err(format!("health rpc failed: grpc-status {status:?}"))
            }
            _ => verdict(&body.to_bytes()),
        }
    };
    tokio::select! {
        done = call => done,
        // Drives the call; it only ends first when the connection breaks.
        ended = connection => Err(match ended {
            Ok(()) => "health rpc failed: connection closed".to_owned(),
            Err(err) => broken(err),
        }),
    }
}

/// A frame with a `HealthCheckRequest`.
fn request(service: &str) -> Result<Bytes, String> {
    let length = u8::try_from(service.len()).map_err(|_| {
        format!("the probe's service name is longer than {SERVICE_BYTES_MAX} bytes")
    })?;
    let mut message = BytesMut::new();
    if length > 0 {
        message.put_u8(SERVICE_KEY);
        // A varint: seven bits a byte.
        if length < 0x80 {
            message.put_u8(length);
        } else {
            message.put_slice(&[length, 1]);
        }
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(0));
    frame.extend_from_slice(&message);
    Ok(frame.freeze())
}

/// What a frame with a `HealthCheckResponse` says.
fn verdict(frame: &[u8]) -> Result<(), String> {
    match frame {
        [0, 0, 0, 0, 2, STATUS_KEY, SERVING] => Ok(()),
        [0, 0, 0, 0, 2, STATUS_KEY, status] => {
            let name = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
            let name = name.get(usize::from(*status)).copied().unwrap_or("UNKNOWN");
            Err(format!("service unhealthy (responded with \"{name}\")"))
        }
        // Zero, the default of the field, is left out by encoders.
        [0, 0, 0, 0, 0] => Err("service unhealthy (responded with \"UNKNOWN\")".to_owned()),
        _ => Err("health rpc failed: not a HealthCheckResponse".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use async_trait::async_trait;
    use edgeorc_runtime::{Body, BoxIo};
    use hyper::server::conn::http2::Builder;
    use hyper::service::service_fn;
    use parking_lot::Mutex;

    use super::*;

    /// A gRPC server that answers with one frame and one status.
    struct Server {
        answer: (&'static [u8], &'static str),
        asked: Mutex<Vec<u8>>,
    }

    #[async_trait]
    impl PodNetwork for std::sync::Arc<Server> {
        async fn connect(&self, _: SocketAddr) -> std::io::Result<BoxIo> {
            let (client, served) = tokio::io::duplex(64 * 1024);
            let this = Self::clone(self);
            let serve = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let this = Self::clone(&this);
                async move {
                    assert_eq!(request.uri().path(), METHOD);
                    assert_eq!(request.headers()["content-type"], "application/grpc");
                    *this.asked.lock() = request.collect().await.unwrap().to_bytes().to_vec();
                    let (frame, status) = this.answer;
                    let trailers = http::HeaderMap::from_iter([(
                        http::HeaderName::from_static("grpc-status"),
                        http::HeaderValue::from_static(status),
                    )]);
                    let body = Full::new(Bytes::from_static(frame))
                        .with_trailers(std::future::ready(Some(Ok(trailers))));
                    Ok::<_, Infallible>(http::Response::new(body))
                }
            });
            let tasks = crate::rt::TaskGroup::new(&tokio_util::sync::CancellationToken::new());
            tasks.spawn_until_cancelled("server", async move {
                let _ = Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(served), serve)
                    .await;
            });
            Ok(Box::new(client))
        }

        async fn http(
            &self,
            _: SocketAddr,
            _: http::Request<Body>,
        ) -> Result<http::Response<Body>, String> {
            Err("not here".to_owned())
        }
    }

    async fn ask(
        answer: (&'static [u8], &'static str),
        service: &str,
    ) -> (Result<(), String>, Vec<u8>) {
        let server = std::sync::Arc::new(Server { answer, asked: Mutex::default() });
        let result = check(&server, "10.0.0.1:80".parse().unwrap(), service).await;
        let asked = std::mem::take(&mut *server.asked.lock());
        (result, asked)
    }

    #[tokio::test]
    async fn only_serving_is_healthy() {
        let (healthy, asked) = ask((&[0, 0, 0, 0, 2, 8, 1], "0"), "").await;
        assert_eq!((healthy, asked), (Ok(()), vec![0, 0, 0, 0, 0]));
        let (healthy, asked) = ask((&[0, 0, 0, 0, 2, 8, 1], "0"), "db").await;
        assert_eq!((healthy, asked), (Ok(()), vec![0, 0, 0, 0, 4, 10, 2, b'd', b'b']));
        for (answer, why) in [
            ((&[0_u8, 0, 0, 0, 2, 8, 2] as &'static [u8], "0"), "NOT_SERVING"),
            ((&[0, 0, 0, 0, 0], "0"), "UNKNOWN"),
            ((&[], "12"), "grpc-status \"12\""),
            ((b"garbage", "0"), "not a HealthCheckResponse"),
        ] {
            let (healthy, _) = ask(answer, "").await;
            assert!(healthy.clone().unwrap_err().contains(why), "{healthy:?}");
        }
        let (long, _) = ask((&[], "0"), &"x".repeat(300)).await;
        assert!(long.unwrap_err().contains("longer than 255"));
        let (fits, asked) = ask((&[0, 0, 0, 0, 2, 8, 1], "0"), &"x".repeat(200)).await;
        assert_eq!(fits, Ok(()));
        assert_eq!(asked[..8], [0, 0, 0, 0, 203, 10, 200, 1]);
    }
}
