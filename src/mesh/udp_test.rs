//! Goal: datagrams reach a pod by Service, by node and outside, and answers come back.
//! Method: real endpoints on loopback in one process, pods played by a script.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, Response};
use serde_json::json;

use super::mesh_harness::serve_peers;
use super::testing::{node, service, slice_of};
use super::{BoxIo, Caller, Datagrams, Local, LocalError, Mesh, MeshConfig, Routes};
use crate::net::pki::{CertificateAuthority, NodeClass};
use crate::net::testing::{authority, endpoint};
use crate::net::{Body, Peers};
use crate::rt::Rng;

/// Pods that answer each datagram with who sent it and what it was.
#[derive(Debug)]
struct Pods(SocketAddr);

#[async_trait]
impl Local for Pods {
    async fn connect(&self, _: Option<SocketAddr>, _: SocketAddr) -> io::Result<BoxIo> {
        Err(io::ErrorKind::ConnectionRefused.into())
    }

    async fn datagrams(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        mut flow: Datagrams,
    ) -> io::Result<()> {
        if to != self.0 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        while let Some(data) = flow.rx.recv().await {
            let text = format!("{from} > {to}: {}", String::from_utf8_lossy(&data));
            let _ = flow.tx.send(text.into()).await;
        }
        Ok(())
    }

    async fn http(&self, _: SocketAddr, r: Request<Body>) -> Result<Response<Body>, LocalError> {
        Err(LocalError::Refused(Box::new(r)))
    }
}

fn routes(me: &str) -> Routes {
    let ports = json!([{ "port": 53, "protocol": "UDP" }]);
    let services = [
        service("dns", json!({ "clusterIP": "10.43.0.10", "ports": ports })),
        service("web", json!({ "clusterIP": "10.43.0.9", "ports": [{ "port": 53 }] })),
    ];
    let ports = json!([{ "port": 5353, "protocol": "UDP" }]);
    let endpoints = json!([{
        "addresses": ["10.42.1.2"], "nodeName": "b", "conditions": { "ready": true },
        "targetRef": { "kind": "Pod", "name": "x" },
    }]);
    let slices = [slice_of("dns", &ports, &endpoints)];
    let nodes = [node("a", "10.42.0.0/24"), node("b", "10.42.1.0/24")];
    Routes::build(&services, &slices, &nodes, [], me)
}

fn start(ca: &CertificateAuthority, name: &str, pod: &str) -> (Mesh, crate::net::Endpoint, Peers) {
    let (endpoint, tasks) = endpoint(ca, name, NodeClass::Agent);
    let peers = Peers::new(endpoint.clone(), &tasks, Rng::seeded(5));
    let local = Arc::new(Pods(pod.parse().unwrap()));
    let mut config = MeshConfig::new(name, local, tasks.clone(), Rng::seeded(7));
    config.peers = Some(peers.clone());
    config.node_port_ip = None;
    let mesh = Mesh::new(config);
    mesh.publish(routes(name));
    serve_peers(&endpoint, &mesh, &peers, &tasks);
    (mesh, endpoint, peers)
}

/// Sends one datagram from 10.42.0.2:4000, and gives back the answer or why there is none.
async fn ask(mesh: &Mesh, to: SocketAddr, text: &'static str) -> io::Result<String> {
    let (mut near, far) = Datagrams::pair();
    near.tx.send(text.into()).await.unwrap();
    let caller = Caller { namespace: "default", uid: "u" };
    let carried = mesh.datagrams(caller, "10.42.0.2:4000".parse().unwrap(), to, far);
    let patience = Duration::from_secs(20);
    let answered = async {
        tokio::select! {
            biased;
            Some(answer) = near.rx.recv() => Ok(String::from_utf8(answer.to_vec()).unwrap()),
            ended = carried => Err(ended.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())),
        }
    };
    tokio::time::timeout(patience, answered).await.expect("in time")
}

#[tokio::test]
async fn datagrams_go_to_local_pods_to_other_nodes_and_through_services() {
    let ca = authority();
    let (a, _a, to_b) = start(&ca, "a", "10.42.0.9:7");
    let (_b, b_endpoint, _to_a) = start(&ca, "b", "10.42.1.2:5353");
    to_b.set_address("b", b_endpoint.local_addr().unwrap());
    for (to, seen) in [
        ("10.42.0.9:7", "10.42.0.9:7"),
        ("10.42.1.2:5353", "10.42.1.2:5353"),
        ("10.43.0.10:53", "10.42.1.2:5353"),
    ] {
        let answer = ask(&a, to.parse().unwrap(), "hi").await.unwrap();
        assert_eq!(answer, format!("10.42.0.2:4000 > {seen}: hi"));
    }
    let refused = async |to: &str| ask(&a, to.parse().unwrap(), "hi").await.unwrap_err().kind();
    assert_eq!(refused("10.43.0.10:54").await, io::ErrorKind::ConnectionRefused);
    assert_eq!(refused("10.43.0.9:53").await, io::ErrorKind::ConnectionRefused, "TCP only");
    assert_eq!(refused("127.0.0.1:53").await, io::ErrorKind::PermissionDenied);
    assert_eq!(refused("169.254.169.254:53").await, io::ErrorKind::PermissionDenied);
}
