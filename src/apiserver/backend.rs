//! The way to a server in a pod, by the pod or by a Service: an endpoint, a connection, TLS.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};
use tokio_util::sync::PollSender;

use crate::api;
use crate::api::json::{int_at, items_at, text_at};
use crate::apiserver::context::Context;
use crate::apiserver::streaming::{self, Target};
use crate::store::{Freshness, Key, Page, Scope};

/// How long a connection may take, TLS included.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Messages that wait on the way to a pod.
const TO_POD_MAX: usize = 16;
/// Endpoints that are tried.
const TRIES_MAX: usize = 3;

/// A connection.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Where a server is.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// A pod, reached through its node.
    Pod { target: Target, port: u16 },
    /// An address outside.
    Address(String, u16),
}

/// Whom a server has to be, and the name that it is asked for.
pub(super) type Tls = (Arc<ClientConfig>, String);

/// Sends `request` to one of the places; another one is tried while no connection comes about.
pub(super) async fn ask(
    context: &Context,
    places: &[Place],
    tls: Option<&Tls>,
    request: Request<Body>,
) -> Result<Response<Body>, String> {
    let mut failure = "there is no endpoint".to_owned();
    let start = usize::try_from(context.rng.below(places.len().max(1) as u64)).unwrap_or(0);
    for place in places.iter().cycle().skip(start).take(places.len().min(TRIES_MAX)) {
        match tokio::time::timeout(CONNECT_MAX, connect(context, place, tls)).await {
            Ok(Ok(io)) => return send(context, io, request).await,
            Ok(Err(cause)) => failure = cause,
            Err(_) => failure = "no connection within 5 s".to_owned(),
        }
    }
    Err(failure)
}

async fn send(
    context: &Context,
    io: Box<dyn Io>,
    request: Request<Body>,
) -> Result<Response<Body>, String> {
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(io)).await;
    let (mut sender, connection) = shaken.map_err(|err| err.to_string())?;
    // It ends with the answer's body.
    context.sessions.spawn("backend-connection", |cancel| async move {
        let _ = cancel.run_until_cancelled(connection).await;
    });
    let answer = sender.send_request(request).await.map_err(|err| err.to_string())?;
    Ok(answer.map(Body::new))
}

async fn connect(
    context: &Context,
    place: &Place,
    tls: Option<&Tls>,
) -> Result<Box<dyn Io>, String> {
    let io: Box<dyn Io> = match place {
        Place::Pod { target, port } => {
            let (to_pod, from_here) = tokio::sync::mpsc::channel::<Bytes>(TO_POD_MAX);
            let path = target.port_path(*port);
            let body = streaming::exchange(context, target, &path, from_here).await?;
            let read = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
            let sink = futures_util::SinkExt::sink_map_err(PollSender::new(to_pod), |_| {
                io::Error::from(io::ErrorKind::BrokenPipe)
            });
            Box::new(tokio::io::join(read, SinkWriter::new(CopyToBytes::new(sink))))
        }
        Place::Address(address, port) => {
            let tcp = TcpStream::connect((address.as_str(), *port)).await;
            Box::new(tcp.map_err(|err| format!("{address}:{port}: {err}"))?)
        }
    };
    let Some((config, host)) = tls else { return Ok(io) };
    let connector = TlsConnector::from(Arc::clone(config));
    let name = ServerName::try_from(host.clone()).map_err(|err| err.to_string())?;
    let secured = connector.connect(name, io).await;
    Ok(Box::new(secured.map_err(|err| format!("TLS with {host}: {err}"))?))
}

/// The ready endpoints of a Service's port, and that port as the Service has it; null if it leads outside and
/// has no such port.
pub(super) async fn places(
    context: &Context,
    (namespace, name): (&str, &str),
    wanted: &str,
) -> Result<(Vec<Place>, Value), String> {
    let broken = |_| "the store does not answer".to_owned();
    let services = api::find("", "v1", "services").ok_or("there are no Services")?;
    let key = Key::new(services, Some(namespace), name);
    let service = context.store.get(&key, Freshness::Any).await.map_err(broken)?;
    let service = service.ok_or_else(|| format!("service {namespace}/{name} not found"))?.object;
    let number: Option<u16> = wanted.parse().ok();
    let ports = items_at(&service, "/spec/ports");
    let is_wanted = |port: &&Value| match number {
        Some(number) => int_at(port, "/port") == Some(i64::from(number)),
        None => text_at(port, "/name") == wanted || (wanted.is_empty() && ports.len() == 1),
    };
    let port = ports.iter().find(is_wanted);
    if text_at(&service, "/spec/type") == "ExternalName" {
        let outside = text_at(&service, "/spec/externalName").to_owned();
        let number = number.ok_or("it leads outside, and its port has to be a number")?;
        return Ok((vec![Place::Address(outside, number)], port.cloned().unwrap_or_default()));
    }
    let port = port.ok_or_else(|| format!("service {namespace}/{name} has no port {wanted}"))?;
    let slices = api::find("discovery.k8s.io", "v1", "endpointslices");
    let slices = slices.ok_or("there are no EndpointSlices")?;
    let scope = Scope::new(slices, Some(namespace));
    let listed = context.store.list(&scope, &Page::default(), Freshness::Any).await;
    let listed = listed.map_err(broken)?;
    let mut places = Vec::new();
    for slice in listed.items.iter().map(|stored| &stored.object) {
        let label = slice.pointer("/metadata/labels/kubernetes.io~1service-name");
        if label.and_then(Value::as_str) == Some(name) {
            places.extend(of_slice(slice, text_at(port, "/name"), namespace));
        }
    }
    Ok((places, port.clone()))
}

/// The ready endpoints of a slice.
fn of_slice(slice: &Value, port_name: &str, namespace: &str) -> Vec<Place> {
    let ports = items_at(slice, "/ports").iter();
    let mut ports = ports.filter(|port| text_at(port, "/name") == port_name);
    let port = ports.find_map(|port| u16::try_from(int_at(port, "/port")?).ok());
    let Some(port) = port else { return Vec::new() };
    let is_ready = |endpoint: &&Value| {
        endpoint.pointer("/conditions/ready").and_then(Value::as_bool) != Some(false)
    };
    let endpoints = items_at(slice, "/endpoints").iter().filter(is_ready);
    let places = endpoints.filter_map(|endpoint| {
        let (node, pod) = (text_at(endpoint, "/nodeName"), text_at(endpoint, "/targetRef/name"));
        if text_at(endpoint, "/targetRef/kind") == "Pod" && !node.is_empty() {
            let target = Target {
                namespace: namespace.to_owned(),
                pod: pod.to_owned(),
                uid: text_at(endpoint, "/targetRef/uid").to_owned(),
                node: node.to_owned(),
                container: String::new(),
            };
            return Some(Place::Pod { target, port });
        }
        let address = items_at(endpoint, "/addresses").first()?.as_str()?;
        Some(Place::Address(address.to_owned(), port))
    });
    places.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ready_endpoints_are_pods_of_nodes_or_addresses_outside() {
        let slice = json!({"ports": [{"name": "web", "port": 8080}], "endpoints": [
            {"addresses": ["10.42.0.5"], "nodeName": "one", "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "name": "p", "uid": "u"}},
            {"addresses": ["10.42.0.6"], "nodeName": "one", "conditions": {"ready": false},
                "targetRef": {"kind": "Pod", "name": "q"}},
            {"addresses": ["192.0.2.7"]},
        ]});
        let found = of_slice(&slice, "web", "n");
        assert!(
            matches!(&found[..], [Place::Pod { target, port: 8080 }, Place::Address(address, 8080)]
                if target.pod == "p" && target.node == "one" && address == "192.0.2.7"),
            "{found:?}"
        );
        assert!(of_slice(&slice, "other", "n").is_empty());
    }
}
