//! Goal: policies are obeyed wherever something is opened: by TCP, UDP and HTTP, on one node and
//! between two.
//! Method: real endpoints on loopback in one process, pods played by a script.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Node as ApiNode;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::PolicyCompiler;
use super::judge::{Way, is_denied};
use super::origin::{Caller, Origin, PodOwner, SENDER, Sender};
use super::testing::{namespace, object, pod, policy};
use crate::mesh::local::{Local, LocalError};
use crate::mesh::testing::{service, slice};
use crate::mesh::wire::{self, Carries};
use crate::mesh::{BoxIo, CallError, Datagrams, Mesh, MeshConfig, Routes};
use crate::net::http::{empty, full};
use crate::net::pki::{CertificateAuthority, NodeClass};
use crate::net::testing::{authority, endpoint};
use crate::net::{Alpn, Body, Endpoint, Peers};
use crate::rt::{Rng, TaskGroup};

const SOON: Duration = Duration::from_secs(20);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("in time")
}

/// Name, node, address. All in namespace `default`, with the uid `default/NAME`.
const PODS: [(&str, &str, &str); 4] = [
    ("client", "a", "10.42.0.2"),
    ("stranger", "a", "10.42.0.3"),
    ("near", "a", "10.42.0.9"),
    ("far", "b", "10.42.1.9"),
];

/// Pods that echo, and know whose address is whose.
#[derive(Debug)]
struct Pods(&'static str);

#[async_trait]
impl Local for Pods {
    fn owner(&self, ip: IpAddr) -> Option<PodOwner> {
        let is_it = |(_, node, at): &&(&str, &str, &str)| {
            *node == self.0 && at.parse::<IpAddr>().unwrap() == ip
        };
        let (name, _, _) = PODS.iter().find(is_it)?;
        let uid = format!("default/{name}");
        Some(PodOwner { namespace: "default".into(), uid: uid.as_str().into() })
    }

    async fn connect(&self, _: Option<SocketAddr>, to: SocketAddr) -> io::Result<BoxIo> {
        self.owner(to.ip()).ok_or(io::ErrorKind::HostUnreachable)?;
        let (here, there) = tokio::io::duplex(1024);
        // Lives as long as the other half.
        #[expect(clippy::disallowed_methods, reason = "a pod of a test needs no owner")]
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(there);
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        Ok(Box::new(here))
    }

    async fn datagrams(&self, _: SocketAddr, _: SocketAddr, mut flow: Datagrams) -> io::Result<()> {
        while let Some(data) = flow.rx.recv().await {
            let _ = flow.tx.send(data).await;
        }
        Ok(())
    }

    async fn http(&self, _: SocketAddr, r: Request<Body>) -> Result<Response<Body>, LocalError> {
        let told = r.headers().contains_key(SENDER);
        Ok(Response::new(full(if told { "told" } else { "ok" })))
    }
}

struct Node {
    mesh: Mesh,
    endpoint: Endpoint,
    peers: Peers,
}

fn routes(me: &str) -> Routes {
    let services = [
        service("near", json!({ "clusterIP": "10.43.0.1", "ports": [{ "port": 80 }] })),
        service("far", json!({ "clusterIP": "10.43.0.2", "ports": [{ "port": 80 }] })),
    ];
    let slices =
        [slice("near", 8080, &[("10.42.0.9", "a")]), slice("far", 8080, &[("10.42.1.9", "b")])];
    let node = |name: &str, cidr: &str, ip: &str| -> Arc<ApiNode> {
        object(json!({
            "metadata": { "name": name }, "spec": { "podCIDR": cidr },
            "status": { "addresses": [{ "type": "InternalIP", "address": ip }] },
        }))
    };
    let nodes = [node("a", "10.42.0.0/24", "192.0.2.1"), node("b", "10.42.1.0/24", "192.0.2.2")];
    Routes::build(&services, &slices, nodes.iter().map(AsRef::as_ref), [], me)
}

fn start(ca: &CertificateAuthority, name: &'static str) -> Node {
    let (endpoint, tasks) = endpoint(ca, name, NodeClass::Agent);
    let peers = Peers::new(endpoint.clone(), &tasks, Rng::seeded(5));
    let mut config = MeshConfig::new(name, Arc::new(Pods(name)), tasks.clone(), Rng::seeded(7));
    config.peers = Some(peers.clone());
    config.node_port_ip = None;
    let mesh = Mesh::new(config);
    mesh.publish(routes(name));
    let (accepting, serving, group): (_, _, TaskGroup) =
        (endpoint.clone(), mesh.clone(), tasks.clone());
    let pool = peers.clone();
    tasks.spawn_until_cancelled("accept", async move {
        while let Some(conn) = accepting.accept().await {
            pool.adopt(&conn);
            let serving = serving.clone();
            group.spawn_until_cancelled("peer", async move { serving.serve_peer(conn).await });
        }
    });
    Node { mesh, endpoint, peers }
}

fn cluster() -> [Node; 2] {
    let ca = authority();
    let nodes = [start(&ca, "a"), start(&ca, "b")];
    for node in &nodes {
        let addresses = ["a", "b"]
            .iter()
            .zip(&nodes)
            .map(|(name, node)| ((*name).to_owned(), node.endpoint.local_addr().unwrap()));
        node.peers.set_addresses(addresses.collect());
    }
    nodes
}

fn enforce(nodes: &[Node], policies: &[Arc<NetworkPolicy>]) {
    let pods: Vec<_> = PODS
        .iter()
        .map(|(name, node, ip)| pod("default", name, &json!({ "app": name }), node, ip))
        .collect();
    for node in nodes {
        let mut compiler = PolicyCompiler::new(node.mesh.node_name());
        let spaces = [namespace("default", &json!({}))];
        node.mesh.set_policies(compiler.update(policies, &pods, &spaces).unwrap());
    }
}

/// Only `client` may come to the servers, at port 8080 of both protocols.
fn admit_client() -> Arc<NetworkPolicy> {
    let servers = json!({ "matchExpressions": [
        { "key": "app", "operator": "In", "values": ["near", "far"] },
    ]});
    policy(
        "default",
        "servers",
        &json!({ "podSelector": servers, "ingress": [{
            "from": [{ "podSelector": { "matchLabels": { "app": "client" } } }],
            "ports": [{ "port": 8080 }, { "port": 8080, "protocol": "UDP" }],
        }]}),
    )
}

fn caller(uid: &str) -> Caller<'_> {
    Caller { namespace: "default", uid }
}

async fn tcp(mesh: &Mesh, uid: &str, to: &str) -> io::Result<BoxIo> {
    let from = "10.42.0.250:40000".parse().unwrap();
    soon(mesh.connect_from(caller(uid), from, to.parse().unwrap())).await
}

async fn says(io: &mut BoxIo) -> bool {
    io.write_all(b"hi").await.unwrap();
    let mut answer = [0; 2];
    soon(io.read_exact(&mut answer)).await.is_ok()
}

async fn ask_http(mesh: &Mesh, uid: &str, uri: &str) -> Result<String, CallError> {
    let request = Request::get(uri).body(empty()).unwrap();
    let response = soon(mesh.http_from(caller(uid), request)).await?;
    let body = soon(response.into_body().collect()).await.unwrap().to_bytes();
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

async fn udp(mesh: &Mesh, uid: &str, from: &str, to: &str) -> io::Result<()> {
    let (mut near, far) = Datagrams::pair();
    near.tx.send("hi".into()).await.unwrap();
    let from = SocketAddr::new(from.parse().unwrap(), 4000);
    let carried = mesh.datagrams(caller(uid), from, to.parse().unwrap(), far);
    soon(async {
        tokio::select! {
            biased;
            Some(_) = near.rx.recv() => Ok(()),
            ended = carried => ended.and(Err(io::ErrorKind::UnexpectedEof.into())),
        }
    })
    .await
}

const SERVERS: [(&str, &str, &str); 2] =
    [("near", "10.42.0.9:8080", "10.43.0.1:80"), ("far", "10.42.1.9:8080", "10.43.0.2:80")];

#[tokio::test]
async fn connections_of_every_kind_are_judged_on_one_node_and_between_two() {
    let nodes = cluster();
    let [a, b] = &nodes;
    enforce(&nodes, &[admit_client()]);
    for (name, pod, service) in SERVERS {
        for to in [pod, service] {
            assert!(says(&mut tcp(&a.mesh, "default/client", to).await.unwrap()).await, "{to}");
            let refused = tcp(&a.mesh, "default/stranger", to).await.err().unwrap();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{to}");
            assert!(is_denied(&refused), "{to}");
        }
        for uri in [format!("http://{pod}/"), format!("http://{name}/")] {
            assert_eq!(ask_http(&a.mesh, "default/client", &uri).await.unwrap(), "ok", "{uri}");
            // On the same kept stream as the one before.
            let denied = ask_http(&a.mesh, "default/stranger", &uri).await;
            assert!(matches!(denied, Err(CallError::Denied)), "{uri}: {denied:?}");
            assert_eq!(ask_http(&a.mesh, "default/client", &uri).await.unwrap(), "ok", "{uri}");
        }
        udp(&a.mesh, "default/client", "10.42.0.2", pod).await.unwrap();
        let refused = udp(&a.mesh, "default/stranger", "10.42.0.3", pod).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{pod}");
        // Another port is not of the rule.
        let other = pod.replace("8080", "8081");
        assert!(is_denied(&tcp(&a.mesh, "default/client", &other).await.err().unwrap()));
    }
    // Each is counted where it was decided.
    assert!(a.mesh.metrics().policy_denials.count(Way::Ingress) >= 6);
    assert!(b.mesh.metrics().policy_denials.count(Way::Ingress) >= 6);
    // No endpoint is held to be bad for it.
    assert!(says(&mut tcp(&a.mesh, "default/client", "10.43.0.2:80").await.unwrap()).await);
    // A pod reaches itself, whatever its policies say.
    assert!(tcp(&b.mesh, "default/far", "10.43.0.2:80").await.is_ok());
    assert!(tcp(&a.mesh, "default/near", "10.42.0.9:9").await.is_ok());
}

#[tokio::test]
async fn egress_is_judged_after_balancing_on_the_node_of_the_pod_that_asks() {
    let nodes = cluster();
    let [a, b] = &nodes;
    let only_far = policy(
        "default",
        "client",
        &json!({
            "podSelector": { "matchLabels": { "app": "client" } }, "policyTypes": ["Egress"],
            "egress": [{ "to": [{ "podSelector": { "matchLabels": { "app": "far" } } }] }],
        }),
    );
    enforce(&nodes, &[only_far]);
    // By a Service's address, which no rule names.
    assert!(says(&mut tcp(&a.mesh, "default/client", "10.43.0.2:80").await.unwrap()).await);
    assert_eq!(ask_http(&a.mesh, "default/client", "http://far/").await.unwrap(), "ok");
    udp(&a.mesh, "default/client", "10.42.0.2", "10.42.1.9:8080").await.unwrap();
    for to in ["10.42.0.9:8080", "10.43.0.1:80", "192.0.2.77:80"] {
        assert!(is_denied(&tcp(&a.mesh, "default/client", to).await.err().unwrap()), "{to}");
    }
    for uri in ["http://near/", "http://192.0.2.77/"] {
        let denied = ask_http(&a.mesh, "default/client", uri).await;
        assert!(matches!(denied, Err(CallError::Denied)), "{uri}");
    }
    udp(&a.mesh, "default/client", "10.42.0.2", "10.42.0.9:8080").await.unwrap_err();
    // Names are the node's to find: they are found whatever the policies say.
    assert_eq!(a.mesh.resolve("default", "near").await, ["10.43.0.1".parse::<IpAddr>().unwrap()]);
    assert!(says(&mut tcp(&a.mesh, "default/stranger", "10.42.0.9:8080").await.unwrap()).await);
    assert!(a.mesh.metrics().policy_denials.count(Way::Egress) >= 6);
    assert_eq!(b.mesh.metrics().policy_denials.count(Way::Ingress), 0);
}

#[tokio::test]
async fn what_is_open_stays_and_what_is_new_is_judged_by_the_new_policies() {
    let nodes = cluster();
    let [a, _] = &nodes;
    for (_, pod, _) in SERVERS {
        enforce(&nodes, &[]);
        let mut open = tcp(&a.mesh, "default/stranger", pod).await.unwrap();
        assert!(says(&mut open).await);
        enforce(&nodes, &[admit_client()]);
        assert!(says(&mut open).await, "{pod}");
        assert!(tcp(&a.mesh, "default/stranger", pod).await.is_err(), "{pod}");
        enforce(&nodes, &[]);
        assert!(tcp(&a.mesh, "default/stranger", pod).await.is_ok(), "{pod}");
    }
}

#[tokio::test]
async fn a_node_cannot_send_in_the_name_of_pods_that_are_not_its_own() {
    let nodes = cluster();
    let [a, b] = &nodes;
    let same_app = policy(
        "default",
        "far",
        &json!({
            "podSelector": { "matchLabels": { "app": "far" } },
            "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "far" } } }] }],
        }),
    );
    enforce(&nodes, &[same_app, admit_client()]);
    let to: SocketAddr = "10.42.1.9:8080".parse().unwrap();
    let peer = a.peers.handle("b", Alpn::Mesh);
    let conn = soon(wire::connection(&peer)).await.unwrap();
    let open = async |sender: Sender| {
        soon(wire::open(&conn, Carries::Tcp { from: None }, to, sender)).await
    };
    let client = || Sender::Pod("default/client".to_owned());
    open(client()).await.unwrap();
    for lie in [
        // A pod of the other node, one that is not there, and addresses of pods.
        Sender::Pod("default/far-2".to_owned()),
        Sender::Pod("default/nobody".to_owned()),
        Sender::Client("10.42.0.2".parse().unwrap()),
        Sender::Untold,
        Sender::Node,
    ] {
        let denied = open(lie.clone()).await.err().unwrap();
        assert!(is_denied(&denied), "{lie:?}: {denied}");
    }
    // Datagrams with a source of another node are not taken at all.
    let from = "10.42.1.9:1".parse().unwrap();
    let mut stream = soon(wire::open(&conn, Carries::Udp { from }, to, client())).await.unwrap();
    stream.write_all(&[0, 2, b'h', b'i']).await.unwrap();
    assert!(soon(stream.read_u16()).await.is_err());
    assert!(b.mesh.metrics().policy_denials.count(Way::Ingress) >= 5);
}

#[tokio::test]
async fn the_ingress_is_its_node_and_a_client_of_a_node_port_is_itself() {
    let nodes = cluster();
    let [a, _] = &nodes;
    let blocks = |cidrs: &[&str]| {
        let peers: Vec<_> =
            cidrs.iter().map(|cidr| json!({ "ipBlock": { "cidr": cidr } })).collect();
        policy("default", "blocks", &json!({ "ingress": [{ "from": peers }] }))
    };
    let open = async |origin: Origin<'_>, to: &str| {
        let table = a.mesh.0.table.load_full();
        let backend = table.single(to.parse().unwrap(), |node| a.mesh.peer(node));
        soon(a.mesh.connect_backend(&backend, origin, None)).await.is_ok()
    };
    let outside = Origin::client("198.51.100.7".parse().unwrap());
    for (_, pod, _) in SERVERS {
        enforce(&nodes, &[blocks(&["192.0.2.1/32"])]);
        assert!(open(Origin::Node, pod).await, "{pod}: node a is allowed");
        assert!(!open(outside, pod).await, "{pod}");
        enforce(&nodes, &[blocks(&["198.51.100.0/24"])]);
        assert!(open(outside, pod).await, "{pod}");
        assert!(!open(Origin::Node, pod).await, "{pod}: its own node's ingress as well");
    }
}

#[tokio::test]
async fn a_connection_of_a_new_pod_waits_until_the_table_knows_it() {
    let nodes = cluster();
    let [a, _] = &nodes;
    enforce(&nodes, &[admit_client()]);
    let fresh = [pod("default", "fresh", &json!({ "app": "client" }), "a", "10.42.0.77")];
    let pods = fresh.into_iter().chain(
        PODS.iter().map(|(name, node, ip)| pod("default", name, &json!({ "app": name }), node, ip)),
    );
    let mut pods: Vec<_> = pods.collect();
    pods.sort_by_key(|pod| pod.metadata.name.clone());
    let mut compiler = PolicyCompiler::new("a");
    let table = compiler.update(&[admit_client()], &pods, &[]).unwrap();
    let learn = async {
        // The connection is under way by then.
        tokio::task::yield_now().await;
        a.mesh.set_policies(table);
    };
    let (connected, ()) = tokio::join!(tcp(&a.mesh, "default/fresh", "10.42.0.9:8080"), learn);
    assert!(says(&mut connected.unwrap()).await);
}
