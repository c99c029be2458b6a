//! A group of members in one process.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use edgeorc_raft::{Config, Member, NodeId, Replica, Role, Txn, TxnOutcome};
use tempfile::TempDir;

use crate::router::Router;

pub(crate) fn member(id: NodeId) -> Member {
    Member {
        id,
        name: format!("n{id}"),
        address: format!("n{id}:6443"),
        store_uuid: [u8::try_from(id).unwrap(); 16],
    }
}

pub(crate) fn put(key: &str, value: &str) -> Txn {
    Txn { puts: vec![(key.into(), value.into())], ..Txn::default() }
}

/// Waits for something that must come true soon.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let started = tokio::time::Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) struct Cluster {
    pub(crate) router: Router,
    pub(crate) dirs: BTreeMap<NodeId, TempDir>,
    pub(crate) replicas: BTreeMap<NodeId, Replica>,
    pub(crate) tune: fn(&mut Config),
}

impl Cluster {
    pub(crate) fn new(tune: fn(&mut Config)) -> Self {
        Self { router: Router::default(), dirs: BTreeMap::new(), replicas: BTreeMap::new(), tune }
    }

    /// Three voters, 1 to 3.
    pub(crate) async fn of_three(tune: fn(&mut Config)) -> Self {
        let mut cluster = Self::new(tune);
        cluster.start(1).await.bootstrap().await.unwrap();
        for id in [2, 3] {
            cluster.start(id).await;
            cluster[1].add_learner(member(id)).await.unwrap();
        }
        cluster[1].set_voters(vec![1, 2, 3]).await.unwrap();
        cluster
    }

    pub(crate) fn config(&self, id: NodeId) -> Config {
        let mut config = Config::new(self.dirs[&id].path(), member(id));
        (self.tune)(&mut config);
        config
    }

    pub(crate) async fn start(&mut self, id: NodeId) -> Replica {
        self.dirs.entry(id).or_insert_with(|| tempfile::tempdir().unwrap());
        let replica = Replica::open(self.config(id), self.router.transport(id)).await.unwrap();
        self.router.plug(id, replica.clone());
        self.replicas.insert(id, replica.clone());
        replica
    }

    pub(crate) async fn stop(&mut self, id: NodeId) {
        self.router.unplug(id);
        self.replicas.remove(&id).unwrap().shutdown().await;
    }

    /// A leader that others than `except` follow.
    pub(crate) async fn leader(&self, except: Option<NodeId>) -> NodeId {
        eventually("a leader", || async {
            self.replicas.iter().find_map(|(id, replica)| {
                let status = replica.status();
                let leads = status.borrow().role == Role::Leader && status.borrow().has_quorum;
                (leads && Some(*id) != except).then_some(*id)
            })
        })
        .await
    }

    pub(crate) async fn follower(&self) -> NodeId {
        let leader = self.leader(None).await;
        *self.replicas.keys().find(|id| **id != leader).unwrap()
    }

    pub(crate) async fn put(&self, id: NodeId, key: &str, value: &str) -> u64 {
        match self[id].txn(put(key, value)).await.unwrap() {
            TxnOutcome::Committed(revision) => revision,
            refused @ TxnOutcome::Refused { .. } => panic!("{refused:?}"),
        }
    }

    /// Waits until every member shows the same at the same revision.
    pub(crate) async fn converge(&self, revision: u64) {
        for (id, replica) in &self.replicas {
            eventually(&format!("member {id} at revision {revision}"), || async {
                (replica.revision() >= revision).then_some(())
            })
            .await;
        }
        let pages: Vec<_> = self
            .replicas
            .values()
            .map(|replica| replica.range(b"", b"", 0, Some(revision)).unwrap())
            .collect();
        assert!(pages.windows(2).all(|pair| pair[0] == pair[1]), "members differ");
    }

    pub(crate) async fn stop_all(&mut self) {
        for id in self.replicas.keys().copied().collect::<Vec<_>>() {
            self.stop(id).await;
        }
    }
}

impl std::ops::Index<NodeId> for Cluster {
    type Output = Replica;

    fn index(&self, id: NodeId) -> &Replica {
        &self.replicas[&id]
    }
}
