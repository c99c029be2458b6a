//! Where the other nodes are: from the Raft group and from the Node objects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use edgeorc_raft::Status;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::node_place::{QUIC_ADDRESS, SERVER};
use crate::client::{Change, Informer};
use crate::net::{Alpn, Peers};
use crate::roles::data_dir::{DataDir, NodeState};

/// Pause between two passes over all nodes: what comes in it is one pass.
const REST: Duration = Duration::from_millis(200);
/// Changes of the servers within this time are one write: the disk may be an SD card.
const SETTLE: Duration = Duration::from_secs(5);

/// Servers by name, and where they are.
pub(super) type Servers = BTreeMap<String, SocketAddr>;

/// Tells the pool of connections where everybody is, and who has left.
pub(super) struct Directory {
    /// This node, which is not dialled.
    pub(super) me: String,
    pub(super) peers: Peers,
    pub(super) nodes: Informer<Node>,
    /// What this server knows of the Raft group; an agent knows nothing.
    pub(super) group: Option<watch::Receiver<Status>>,
    /// Names of the servers, for those who ask them.
    pub(super) servers: watch::Sender<Vec<String>>,
    /// The other servers, to be remembered.
    pub(super) known: watch::Sender<Servers>,
}

/// Everybody there is.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    /// Nodes and members of the group, whether or not their address is known.
    present: BTreeSet<String>,
    addresses: BTreeMap<String, SocketAddr>,
    servers: BTreeSet<String>,
}

/// What of a Node is looked at here.
fn facts(node: &Node) -> (Option<String>, bool) {
    let annotations = node.metadata.annotations.as_ref();
    let labels = node.metadata.labels.as_ref();
    let at = annotations.and_then(|annotations| annotations.get(QUIC_ADDRESS)).cloned();
    (at, labels.is_some_and(|labels| labels.contains_key(SERVER)))
}

impl Seen {
    fn of(group: Option<&Status>, nodes: &[Arc<Node>]) -> Self {
        let mut seen = Self::default();
        for member in group.into_iter().flat_map(|status| status.members.values()) {
            seen.present.insert(member.name.clone());
            if let Ok(address) = member.address.parse() {
                seen.addresses.insert(member.name.clone(), address);
            }
        }
        for node in nodes {
            let meta = &node.metadata;
            let Some(name) = &meta.name else { continue };
            seen.present.insert(name.clone());
            let (Some(at), is_server) = facts(node) else { continue };
            if is_server {
                seen.servers.insert(name.clone());
            }
            if let Ok(address) = at.parse() {
                seen.addresses.insert(name.clone(), address);
            }
        }
        seen
    }
}

impl Directory {
    /// Follows both sources until `cancel`.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let met = Arc::new(Mutex::new(BTreeSet::new()));
        let mut nodes_changed = self.follow_nodes(&met);
        let nodes = self.nodes.clone();
        let mut listed = std::pin::pin!(nodes.ready());
        let mut is_listed = false;
        let mut before: BTreeSet<String> = self.servers.borrow().iter().cloned().collect();
        loop {
            nodes_changed.borrow_and_update();
            let status = self.group.as_mut().map(|group| group.borrow_and_update().clone());
            // First: who is met after a look at all nodes is not missing from it.
            before.append(&mut met.lock());
            let seen = Seen::of(status.as_ref(), &self.nodes.store.state());
            self.tell(&seen);
            let mut present = seen.present;
            // The way to the API stays open while nobody can say which servers there are.
            present.extend(self.servers.borrow().iter().cloned());
            if self.nodes.store.is_ready() {
                for gone in before.difference(&present) {
                    tracing::info!(peer = gone, "node left the cluster");
                    self.peers.drop_peer(gone);
                }
                before = present;
            } else {
                before.extend(present);
            }
            let group_changed = async {
                match &mut self.group {
                    Some(group) => group.changed().await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            let goes_on = tokio::select! {
                () = cancel.cancelled() => false,
                listed = &mut listed, if !is_listed => {
                    is_listed = true;
                    listed
                }
                changed = nodes_changed.changed() => changed.is_ok(),
                changed = group_changed => changed,
            };
            if !goes_on || cancel.run_until_cancelled(tokio::time::sleep(REST)).await.is_none() {
                return;
            }
        }
    }

    /// Tells the pool where each node is as soon as that is known, and notes in `met` whom. Counts what
    /// needs a pass over all of them: nodes that go, servers that come or change. In a fleet that starts
    /// a pass for each node would be most of what its nodes do.
    fn follow_nodes(&self, met: &Arc<Mutex<BTreeSet<String>>>) -> watch::Receiver<u64> {
        let (news, changed) = watch::channel(0_u64);
        let (me, peers, met) = (self.me.clone(), self.peers.clone(), Arc::clone(met));
        self.nodes.subscribe(Box::new(move |change| {
            let is_news = match change {
                Change::Applied { old, new } => {
                    let (had, has) = (old.map(|old| facts(old)), facts(new));
                    let name = new.metadata.name.as_ref().filter(|name| **name != me);
                    let at = has.0.as_ref().and_then(|at| at.parse().ok());
                    if let (Some(name), Some(at)) = (name, at) {
                        peers.set_address(name, at);
                        met.lock().insert(name.clone());
                    }
                    let was_server = had.as_ref().is_some_and(|(_, is_server)| *is_server);
                    (was_server || has.1) && had.as_ref() != Some(&has)
                }
                Change::Removed(_) => true,
            };
            if is_news {
                news.send_modify(|count| *count = count.wrapping_add(1));
            }
            news.receiver_count() > 0
        }));
        changed
    }

    fn tell(&self, seen: &Seen) {
        // Where agents are was told as soon as it was known; what is seen here may be older.
        let is_agent =
            |name: &str| !seen.servers.contains(name) && self.nodes.store.named("", name).is_some();
        for (name, address) in &seen.addresses {
            if *name != self.me && !is_agent(name) {
                self.peers.set_address(name, *address);
            }
        }
        if seen.servers.is_empty() {
            return;
        }
        set(&self.servers, seen.servers.iter().cloned().collect());
        let all = seen.servers.iter();
        self.peers.set_servers(
            all.filter_map(|name| Some((name.clone(), *seen.addresses.get(name)?))).collect(),
        );
        let others = seen.servers.iter().filter(|name| **name != self.me);
        let others: Servers =
            others.filter_map(|name| Some((name.clone(), *seen.addresses.get(name)?))).collect();
        if !others.is_empty() {
            set(&self.known, others);
        }
    }
}

fn set<T: PartialEq>(channel: &watch::Sender<T>, value: T) {
    channel.send_if_modified(|had| {
        let is_news = *had != value;
        *had = value;
        is_news
    });
}

/// Keeps the servers on disk as they are, until `cancel`: a node that starts must find one of them,
/// though all those it joined with may be gone by then.
pub(super) async fn remember(
    dir: Arc<DataDir>,
    mut state: NodeState,
    mut known: watch::Receiver<Servers>,
    cancel: CancellationToken,
) {
    loop {
        let changed = cancel.run_until_cancelled(known.changed()).await;
        if matches!(changed, Some(Ok(()))) {
            let _ = cancel.run_until_cancelled(tokio::time::sleep(SETTLE)).await;
        }
        let servers = known.borrow_and_update().clone();
        let servers: Vec<_> =
            servers.into_iter().map(|(name, at)| (name, at.to_string())).collect();
        if !servers.is_empty() && servers != state.servers {
            let had = std::mem::replace(&mut state.servers, servers);
            if let Err(err) = dir.save_state(&state) {
                tracing::warn!(%err, "cannot remember the servers");
                state.servers = had;
            }
        }
        if cancel.is_cancelled() || !matches!(changed, Some(Ok(()))) {
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

#[cfg(test)]
mod tests {
    use edgeorc_raft::Member;
    use kube::Api;
    use kube::api::{DeleteParams, PostParams};
    use kube::runtime::watcher;
    use serde_json::json;

    use super::*;
    use crate::client::informer;
    use crate::net::pki::NodeClass;
    use crate::net::testing::{authority, endpoint};
    use crate::roles::testing::Cluster;
    use crate::rt::Rng;

    const SOON: Duration = Duration::from_secs(10);

    fn node(name: &str, at: Option<SocketAddr>, is_server: bool) -> Node {
        let annotations = at.map(|at| json!({QUIC_ADDRESS: at.to_string()}));
        let labels = is_server.then(|| json!({SERVER: ""}));
        let node = json!({
            "metadata": {"name": name, "annotations": annotations, "labels": labels},
        });
        serde_json::from_value(node).unwrap()
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn everybody_is_seen_once_wherever_they_are_named() {
        let member = Member { name: "s".into(), address: at(1).to_string(), ..Member::default() };
        let group = Status { members: [(1, member)].into(), ..Status::default() };
        let nodes = [node("s", Some(at(2)), true), node("a", Some(at(3)), false)];
        let nodes: Vec<_> =
            nodes.into_iter().chain([node("b", None, false)]).map(Arc::new).collect();
        let seen = Seen::of(Some(&group), &nodes);
        assert_eq!(seen.present, ["a", "b", "s"].map(str::to_owned).into());
        assert_eq!(seen.addresses, [("a".to_owned(), at(3)), ("s".to_owned(), at(2))].into());
        assert_eq!(seen.servers, ["s".to_owned()].into());
    }

    /// Goal: a node whose Node object is deleted is no longer dialled. Method: a real store, and
    /// a peer on loopback.
    #[tokio::test]
    async fn a_node_that_leaves_is_dropped() {
        let cluster = Cluster::start().await;
        let ca = authority();
        let (mine, tasks) = endpoint(&ca, "one", NodeClass::Server);
        let (other, _of_other) = endpoint(&ca, "two", NodeClass::Agent);
        let peers = Peers::new(mine, &tasks, Rng::seeded(1));
        let api = Api::<Node>::all(cluster.client.clone());
        let directory = Directory {
            me: "one".to_owned(),
            peers: peers.clone(),
            nodes: informer(api.clone(), watcher::Config::default(), &tasks),
            group: Some(cluster.replica.status()),
            servers: watch::Sender::new(Vec::new()),
            known: watch::Sender::new(Servers::new()),
        };
        tasks.spawn("directory", |cancel| directory.run(cancel));
        let two = node("two", other.local_addr(), false);
        api.create(&PostParams::default(), &two).await.unwrap();
        let until = |is_up: bool| {
            let peers = peers.clone();
            tokio::time::timeout(SOON, async move {
                while peers.get("two", Alpn::Mesh).await.is_ok() != is_up {
                    tokio::task::yield_now().await;
                }
            })
        };
        until(true).await.unwrap();
        let accepted = tokio::time::timeout(SOON, other.accept()).await.unwrap().unwrap();
        api.delete("two", &DeleteParams::default()).await.unwrap();
        tokio::time::timeout(SOON, accepted.closed()).await.unwrap();
        until(false).await.unwrap();
        let refused = peers.get("two", Alpn::Mesh).await.unwrap_err();
        assert!(matches!(refused, crate::net::ConnectError::NoAddress { .. }), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_servers_are_remembered_when_they_change_and_not_at_every_change() {
        let folder = tempfile::tempdir().unwrap();
        let dir = Arc::new(DataDir::open(folder.path()).unwrap());
        let state = NodeState::new("c".into(), "a".into(), None, "00".into());
        dir.save_state(&state).unwrap();
        let (sender, known) = watch::channel(Servers::new());
        let tasks = crate::rt::TaskGroup::new(&CancellationToken::new());
        let keeper = Arc::clone(&dir);
        tasks.spawn("remember", |cancel| remember(keeper, state, known, cancel));
        let servers = |dir: &DataDir| dir.state().unwrap().unwrap().servers;
        for port in 1..=3 {
            sender.send_replace([("s".to_owned(), at(port))].into());
            tokio::time::sleep(SETTLE / 4).await;
            assert!(servers(&dir).is_empty(), "written at once");
        }
        tokio::time::sleep(SETTLE).await;
        assert_eq!(servers(&dir), [("s".to_owned(), at(3).to_string())]);
        // What is not written yet is when the node stops.
        sender.send_replace([("t".to_owned(), at(4))].into());
        tokio::task::yield_now().await;
        tasks.shutdown(Duration::from_secs(1)).await;
        assert_eq!(servers(&dir), [("t".to_owned(), at(4).to_string())]);
    }
}
