//! The ports of a node on loopback, with pods that say who they are.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

use super::local::{Local, LocalError};
use super::routes::{Routes, ServiceRoute};
use super::testing::{node, service, slice_of};
use super::{BoxIo, Datagrams, Mesh, MeshConfig};
use crate::net::Body;
use crate::rt::{Rng, TaskGroup};

const SOON: Duration = Duration::from_secs(10);
const WEB: (&str, &str) = ("default", "web");

/// Pods that tell their address, at any port.
#[derive(Debug)]
struct Pods(TaskGroup);

#[async_trait]
impl Local for Pods {
    async fn connect(&self, _: Option<SocketAddr>, to: SocketAddr) -> std::io::Result<BoxIo> {
        let (near, mut far) = tokio::io::duplex(64);
        self.0.spawn_until_cancelled("pod", async move {
            let _ = far.write_all(to.ip().to_string().as_bytes()).await;
        });
        Ok(Box::new(near))
    }

    async fn datagrams(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        mut flow: Datagrams,
    ) -> std::io::Result<()> {
        assert_eq!(from.ip().to_string(), "192.0.0.8", "this machine's loopback is not the pod's");
        while let Some(data) = flow.rx.recv().await {
            let said = format!("{}:{}", to.ip(), String::from_utf8_lossy(&data));
            let _ = flow.tx.send(said.into()).await;
        }
        Ok(())
    }

    async fn http(
        &self,
        _: SocketAddr,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, LocalError> {
        Err(LocalError::Refused(Box::new(request)))
    }
}

struct Fixture {
    mesh: Mesh,
    tasks: TaskGroup,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

impl Fixture {
    fn start() -> Self {
        let tasks = TaskGroup::new(&CancellationToken::new());
        let pods = Arc::new(Pods(tasks.clone()));
        let mut config = MeshConfig::new("a", pods, tasks.clone(), Rng::seeded(1));
        config.node_port_ip = Some([127, 0, 0, 1].into());
        Self { mesh: Mesh::new(config), tasks }
    }

    /// Publishes the Service `web` with these endpoints of this node; `change` sets what a client
    /// could not: port 0, which the host chooses.
    fn publish(&self, spec: Value, ips: &[&str], change: impl FnOnce(&mut ServiceRoute)) {
        let web = service(WEB.1, spec);
        let endpoints: Vec<Value> = ips
            .iter()
            .map(|ip| json!({ "addresses": [ip], "conditions": { "ready": true } }))
            .collect();
        let ports = json!([
            { "port": 8080, "protocol": "TCP" }, { "name": "u", "port": 53, "protocol": "UDP" },
        ]);
        let slices = [slice_of(WEB.1, &ports, &json!(endpoints))];
        let nodes = [node("a", "10.42.0.0/24")];
        let mut routes = Routes::build([&web], &slices, &nodes, [], "a");
        change(routes.services.get_mut(&(WEB.0.to_owned(), WEB.1.to_owned())).unwrap());
        self.mesh.publish(routes);
    }

    fn tcp(&self) -> SocketAddr {
        self.mesh.open_node_ports()[&0]
    }
}

async fn said(at: SocketAddr) -> String {
    let asking = async {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let mut text = String::new();
        // One that is sent away may be told so with a reset.
        let _ = stream.read_to_string(&mut text).await;
        text
    };
    tokio::time::timeout(SOON, asking).await.unwrap()
}

async fn probe(at: SocketAddr) -> (String, Value) {
    let asking = async {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    let text = tokio::time::timeout(SOON, asking).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), serde_json::from_str(body).unwrap())
}

#[tokio::test]
async fn a_client_with_affinity_comes_to_the_same_pod_and_others_to_all() {
    let node = Fixture::start();
    let ips = ["10.42.0.2", "10.42.0.3", "10.42.0.4", "10.42.0.5"];
    let spec = |affinity: &str| json!({ "sessionAffinity": affinity, "ports": [{ "port": 80 }] });
    let to_any = |web: &mut ServiceRoute| web.ports[0].node_port = Some(0);
    node.publish(spec("ClientIP"), &ips, to_any);
    let first = said(node.tcp()).await;
    assert!(ips.contains(&first.as_str()), "{first}");
    for _ in 0..20 {
        assert_eq!(said(node.tcp()).await, first);
    }
    // The table changes, the client stays.
    let rest: Vec<_> = ips.iter().copied().filter(|ip| *ip == first || *ip != ips[0]).collect();
    node.publish(spec("ClientIP"), &rest, to_any);
    assert_eq!(said(node.tcp()).await, first);
    node.publish(spec("None"), &ips, to_any);
    let mut met = BTreeSet::new();
    for _ in 0..60 {
        met.insert(said(node.tcp()).await);
    }
    assert!(met.len() > 1, "{met:?}");
}

#[tokio::test]
async fn a_load_balancers_port_admits_its_source_ranges_only() {
    let node = Fixture::start();
    let spec = |range: &str| json!({ "type": "LoadBalancer", "loadBalancerSourceRanges": [range], "ports": [{ "port": 80 }] });
    let any_port = |web: &mut ServiceRoute| web.ports[0].port = 0;
    node.publish(spec("127.0.0.0/8"), &["10.42.0.2"], any_port);
    assert_eq!(said(node.tcp()).await, "10.42.0.2");
    node.publish(spec("192.0.2.0/24"), &["10.42.0.2"], any_port);
    assert_eq!(said(node.tcp()).await, "");
}

#[tokio::test]
async fn a_node_tells_load_balancers_whether_it_has_endpoints() {
    let node = Fixture::start();
    let spec = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30100, "ports": [] });
    let any_port = |web: &mut ServiceRoute| web.health_port = Some(0);
    node.publish(spec.clone(), &["10.42.0.2", "10.42.0.3"], any_port);
    let (head, body) = probe(node.tcp()).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("x-load-balancing-endpoint-weight: 2"), "{head}");
    let service = json!({ "namespace": "default", "name": "web" });
    assert_eq!(
        body,
        json!({ "service": service, "localEndpoints": 2, "serviceProxyHealthy": true })
    );
    node.publish(spec, &[], any_port);
    let (head, body) = probe(node.tcp()).await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(body["localEndpoints"], 0);
}

#[tokio::test]
async fn datagrams_of_a_client_go_to_one_pod_until_that_is_gone() {
    let node = Fixture::start();
    let spec = json!({ "ports": [{ "name": "u", "port": 53, "protocol": "UDP" }] });
    let to_any = |web: &mut ServiceRoute| web.ports[0].node_port = Some(0);
    let ips = ["10.42.0.2", "10.42.0.3", "10.42.0.4"];
    node.publish(spec.clone(), &ips, to_any);
    let at = node.mesh.open_udp_node_ports()[&0];
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(at).await.unwrap();
    let ask = async |text: &str| {
        let mut buffer = [0; 128];
        client.send(text.as_bytes()).await.unwrap();
        let size = tokio::time::timeout(SOON, client.recv(&mut buffer)).await.unwrap().unwrap();
        String::from_utf8_lossy(&buffer[..size]).into_owned()
    };
    let first = ask("a").await;
    let pod = first.strip_suffix(":a").unwrap().to_owned();
    for _ in 0..10 {
        assert_eq!(ask("b").await, format!("{pod}:b"));
    }
    let others: Vec<_> = ips.iter().copied().filter(|ip| *ip != pod).collect();
    node.publish(spec, &others, to_any);
    // The datagram that finds its pod gone is lost, as on any network; the next begins anew.
    client.send(b"lost").await.unwrap();
    let moved = loop {
        let mut buffer = [0; 128];
        client.send(b"c").await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_millis(200), client.recv(&mut buffer));
        if let Ok(Ok(size)) = waiting.await {
            break String::from_utf8_lossy(&buffer[..size]).into_owned();
        }
    };
    let (now, _) = moved.rsplit_once(':').unwrap();
    assert!(others.contains(&now), "{moved}");
}
