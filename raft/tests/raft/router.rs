//! Frames between members of one process, with faults on every directed link.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use edgeorc_raft::{Member, NodeId, Replica, Transport, TransportError};
use parking_lot::Mutex;

#[derive(Default)]
struct Links {
    replicas: BTreeMap<NodeId, Replica>,
    /// Nothing gets through from the first to the second.
    cut: BTreeSet<(NodeId, NodeId)>,
    delay: Duration,
    /// Requests served, by directed link.
    served: BTreeMap<(NodeId, NodeId), u64>,
}

/// Connects the replicas of a test.
#[derive(Clone, Default)]
pub(crate) struct Router(Arc<Mutex<Links>>);

impl Router {
    pub(crate) fn plug(&self, id: NodeId, replica: Replica) {
        self.0.lock().replicas.insert(id, replica);
    }

    pub(crate) fn unplug(&self, id: NodeId) {
        self.0.lock().replicas.remove(&id);
    }

    pub(crate) fn cut(&self, from: NodeId, to: NodeId) {
        self.0.lock().cut.insert((from, to));
    }

    /// Cuts a member off from everybody, both ways.
    pub(crate) fn isolate(&self, id: NodeId) {
        let mut links = self.0.lock();
        for other in 0..10 {
            links.cut.insert((id, other));
            links.cut.insert((other, id));
        }
    }

    pub(crate) fn heal(&self) {
        self.0.lock().cut.clear();
    }

    pub(crate) fn set_delay(&self, delay: Duration) {
        self.0.lock().delay = delay;
    }

    pub(crate) fn transport(&self, from: NodeId) -> Arc<dyn Transport> {
        Arc::new(Wire { from, links: Arc::downgrade(&self.0) })
    }
}

/// Weak: a replica in the router holds its transport.
struct Wire {
    from: NodeId,
    links: Weak<Mutex<Links>>,
}

#[async_trait]
impl Transport for Wire {
    async fn call(
        &self,
        peer: &Member,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        let unreachable = |reason: &str| TransportError::Unreachable {
            peer: peer.name.clone(),
            reason: reason.to_owned(),
        };
        let lost = |reason: &str| TransportError::Lost {
            peer: peer.name.clone(),
            reason: reason.to_owned(),
        };
        let links = self.links.upgrade().ok_or_else(|| unreachable("the test is over"))?;
        let (there, back) = ((self.from, peer.id), (peer.id, self.from));
        let (replica, delay, is_cut) = {
            let links = links.lock();
            (links.replicas.get(&peer.id).cloned(), links.delay, links.cut.contains(&there))
        };
        if is_cut {
            tokio::time::sleep(deadline.min(Duration::from_millis(100))).await;
            return Err(lost("cut"));
        }
        let Some(replica) = replica else { return Err(unreachable("not running")) };
        let answer = async {
            tokio::time::sleep(delay).await;
            let answer = replica.handle(self.from, request).await;
            tokio::time::sleep(delay).await;
            answer
        };
        let answer = tokio::time::timeout(deadline, answer).await.map_err(|_| lost("deadline"))?;
        let mut links = links.lock();
        if links.cut.contains(&back) {
            return Err(lost("cut"));
        }
        *links.served.entry(there).or_default() += 1;
        Ok(answer)
    }
}
