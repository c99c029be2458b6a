//! Where the other nodes are: from the Raft group and from the Node objects.

use std::collections::BTreeMap;

use edgeorc_raft::Status;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::runtime::watcher;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::client::informer;
use crate::net::{Alpn, Peers};
use crate::rt::TaskGroup;

/// Annotation with a node's QUIC address, written by its agent.
const QUIC_ADDRESS: &str = "edgeorc.io/quic-address";
/// Label of servers.
const SERVER_LABEL: &str = "node-role.kubernetes.io/control-plane";

/// Tells the pool where the members of the Raft group are, until `cancel`.
pub(super) async fn follow_members(
    mut status: watch::Receiver<Status>,
    me: String,
    peers: Peers,
    cancel: CancellationToken,
) {
    loop {
        let members = status.borrow_and_update().members.clone();
        for member in members.into_values().filter(|member| member.name != me) {
            if let Ok(address) = member.address.parse() {
                peers.set_address(&member.name, address);
            }
        }
        if !matches!(cancel.run_until_cancelled(status.changed()).await, Some(Ok(()))) {
            return;
        }
    }
}

/// Tells the pool where all nodes are, and `servers` which of them are servers, until `cancel`.
pub(super) async fn follow_nodes(
    client: kube::Client,
    me: String,
    peers: Peers,
    servers: watch::Sender<Vec<String>>,
    tasks: TaskGroup,
    cancel: CancellationToken,
) {
    let nodes = informer(Api::<Node>::all(client), watcher::Config::default(), &tasks);
    let mut changed = nodes.changed();
    loop {
        changed.borrow_and_update();
        let mut found: BTreeMap<String, bool> = BTreeMap::new();
        for node in nodes.store.state() {
            let meta = &node.metadata;
            let annotation = meta.annotations.as_ref().and_then(|a| a.get(QUIC_ADDRESS));
            let (Some(name), Some(at)) = (&meta.name, annotation) else { continue };
            let is_server = meta.labels.as_ref().is_some_and(|l| l.contains_key(SERVER_LABEL));
            found.insert(name.clone(), is_server);
            if let (Ok(address), true) = (at.parse(), *name != me) {
                peers.set_address(name, address);
            }
        }
        let names: Vec<String> =
            found.into_iter().filter(|(_, is_server)| *is_server).map(|(name, _)| name).collect();
        if !names.is_empty() {
            servers.send_if_modified(|had| {
                let is_news = *had != names;
                had.clone_from(&names);
                is_news
            });
        }
        if !matches!(cancel.run_until_cancelled(changed.changed()).await, Some(Ok(()))) {
            return;
        }
    }
}

/// Keeps a connection to every other server, on which it may ask this node's agent.
pub(super) async fn keep_reachable(
    mut servers: watch::Receiver<Vec<String>>,
    me: String,
    peers: Peers,
    cancel: CancellationToken,
) {
    loop {
        for server in servers.borrow_and_update().iter().filter(|name| **name != me) {
            peers.keep(server, Alpn::Node);
        }
        if !matches!(cancel.run_until_cancelled(servers.changed()).await, Some(Ok(()))) {
            return;
        }
    }
}
