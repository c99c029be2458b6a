//! The roll of nodes: with which key each was let in, and which Node object it became.
//!
//! A certificate outlives the node it was made for. What decides whether it is renewed is this
//! roll, a Secret that no node can read: it is renewed while the Node exists that the holder of
//! this very key became. A Node that was deleted and made anew by its old machine is another one.
//!
//! An entry goes once it vouches for nobody: its Node was deleted, or there never was one and the
//! certificate has ended.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use tokio_util::sync::CancellationToken;

use crate::client::{Informer, is_already_exists, is_conflict, is_not_found};
use crate::net::pki::NODE_LIFE;
use crate::rt::WallClock;

/// Where the roll is.
const NAMESPACE: &str = "kube-system";
const NAME: &str = "edgeorc-node-keys";
/// Tries of a write that somebody else's comes before.
const TRIES_MAX: u32 = 8;
/// Nodes that come within this time are noted together.
const SETTLE: Duration = Duration::from_secs(1);
/// Pause after the roll could not be written.
const RETRY: Duration = Duration::from_secs(1);
/// Pause between looks for certificates that have ended.
const SWEEP: Duration = Duration::from_secs(6 * 3600);

/// Why the roll does not vouch for a node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum RollError {
    /// The node is not part of the cluster any more. Give up; it has to join anew.
    #[error("{0}")]
    Struck(&'static str),
    /// The roll could not be read or written. Retry.
    #[error("cannot use the roll of nodes: {0}")]
    Api(#[from] kube::Error),
}

/// What is known of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// [`crate::net::Peer::key_hash`].
    key_hash: String,
    /// Uid of its Node, once that is there.
    uid: Option<String>,
    /// Until then: when its first certificate ends, in seconds of Unix time.
    until: Option<i64>,
}

impl Entry {
    /// `KEY`, `KEY UID`, or `KEY - UNTIL`.
    fn parse(text: &ByteString) -> Option<Self> {
        let mut words = std::str::from_utf8(&text.0).ok()?.split(' ');
        let key_hash = words.next()?.to_owned();
        let uid = words.next().filter(|uid| *uid != "-").map(str::to_owned);
        let until = words.next().and_then(|until| until.parse().ok());
        Some(Self { key_hash, uid, until })
    }

    fn to_text(&self) -> ByteString {
        let text = match (&self.uid, self.until) {
            (Some(uid), _) => format!("{} {uid}", self.key_hash),
            (None, Some(until)) => format!("{} - {until}", self.key_hash),
            (None, None) => self.key_hash.clone(),
        };
        ByteString(text.into_bytes())
    }

    /// Whether it vouches for nobody any more, if `uid` is that of the Node of its name.
    fn is_over(&self, uid: Option<&String>, now: i64) -> bool {
        match &self.uid {
            Some(own) => Some(own) != uid,
            None => uid.is_none() && self.until.is_some_and(|until| until <= now),
        }
    }
}

/// Reads and writes the roll.
#[derive(Clone)]
pub(super) struct Roll {
    secrets: Api<Secret>,
    nodes: Api<Node>,
    clock: WallClock,
}

impl Roll {
    /// `client` has all rights.
    pub(super) fn new(client: kube::Client, clock: WallClock) -> Self {
        let secrets = Api::namespaced(client.clone(), NAMESPACE);
        Self { secrets, nodes: Api::all(client), clock }
    }

    /// When a certificate that is made now has ended.
    fn life_from_now(&self) -> i64 {
        let life = i64::try_from(NODE_LIFE.as_secs()).unwrap_or(i64::MAX);
        self.clock.now().as_second().saturating_add(life)
    }

    /// Enters a node that is let in, in place of any that had its name before.
    pub(super) async fn enter(&self, node: &str, key_hash: &str) -> Result<(), RollError> {
        let until = Some(self.life_from_now());
        let entry = Entry { key_hash: key_hash.to_owned(), uid: None, until };
        self.change(|entries| {
            let is_same = entries.get(node).is_some_and(|had| had.key_hash == entry.key_hash);
            (!is_same).then(|| entries.insert(node.to_owned(), entry.clone())).is_some()
        })
        .await
    }

    /// Whether the holder of the key is `node`, and still part of the cluster.
    pub(super) async fn check(&self, node: &str, key_hash: &str) -> Result<(), RollError> {
        let entry = self.read().await?.1.remove(node);
        let entry = entry.ok_or(RollError::Struck("the cluster does not know this node"))?;
        if entry.key_hash != key_hash {
            return Err(RollError::Struck("another node has its name by now"));
        }
        let node = self.nodes.get_opt(node).await?;
        let uid = node.and_then(|node| node.metadata.uid);
        let uid = uid.ok_or(RollError::Struck("its Node was deleted"))?;
        if entry.uid.is_some_and(|known| known != uid) {
            return Err(RollError::Struck("its Node was deleted, and made anew without a join"));
        }
        Ok(())
    }

    /// Notes which Node each entered node became, and drops what vouches for nobody, until `cancel`:
    /// on the leader.
    pub(super) async fn follow(self, nodes: Informer<Node>, cancel: CancellationToken) {
        let mut changed = nodes.changed_in(|node| node.metadata.uid.clone());
        let mut noted: Option<BTreeMap<String, String>> = None;
        if cancel.run_until_cancelled(nodes.ready()).await != Some(true) {
            return;
        }
        loop {
            changed.borrow_and_update();
            let uid = |node: &Node| Some((node.metadata.name.clone()?, node.metadata.uid.clone()?));
            let present: BTreeMap<_, _> =
                nodes.store.state().iter().filter_map(|node| uid(node)).collect();
            let mut pause = SWEEP;
            if noted.as_ref() != Some(&present) {
                match cancel.run_until_cancelled(self.note(&present)).await {
                    None => return,
                    Some(Ok(())) => noted = Some(present),
                    Some(Err(err)) => {
                        tracing::debug!(%err, "the roll of nodes is not up to date yet");
                        pause = RETRY;
                    }
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                more = changed.changed(), if pause == SWEEP => {
                    if more.is_err() {
                        return;
                    }
                    let _ = cancel.run_until_cancelled(tokio::time::sleep(SETTLE)).await;
                }
                () = tokio::time::sleep(pause) => noted = None,
            }
        }
    }

    async fn note(&self, present: &BTreeMap<String, String>) -> Result<(), RollError> {
        let entries = self.note_uids(present).await?;
        let now = self.clock.now().as_second();
        let is_over = |(name, entry): &(&String, &Entry)| entry.is_over(present.get(*name), now);
        let mut over = BTreeMap::new();
        for (name, entry) in entries.iter().filter(is_over) {
            // The informer may be behind.
            let node = self.nodes.get_opt(name).await?;
            if entry.is_over(node.and_then(|node| node.metadata.uid).as_ref(), now) {
                over.insert(name.clone(), entry.clone());
            }
        }
        let until = self.life_from_now();
        self.change(|entries| {
            let before = entries.clone();
            // Whoever was entered again meanwhile has another entry.
            entries.retain(|name, entry| over.get(name) != Some(entry));
            for entry in entries.values_mut().filter(|entry| entry.uid.is_none()) {
                entry.until.get_or_insert(until);
            }
            *entries != before
        })
        .await
    }

    /// Notes the Nodes that entered nodes became, all in one write: the roll is as long as the cluster
    /// has nodes. Gives the entries as they are then.
    ///
    /// Each Node is read after its entry and before that is changed: a node is entered only while
    /// there is none of its name, so an older one is not mistaken for it.
    async fn note_uids(
        &self,
        present: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, Entry>, RollError> {
        let (written, mut entries) = self.read().await?;
        let open = entries
            .iter_mut()
            .filter(|(name, entry)| entry.uid.is_none() && present.contains_key(name.as_str()));
        let mut is_changed = false;
        for (name, entry) in open {
            let node = self.nodes.get_opt(name).await?;
            entry.uid = node.and_then(|node| node.metadata.uid);
            is_changed |= entry.uid.is_some();
        }
        if is_changed {
            self.write(written, &entries).await?;
        }
        Ok(entries)
    }

    /// Changes the entries; `change` says whether there is anything to write.
    async fn change(
        &self,
        mut change: impl FnMut(&mut BTreeMap<String, Entry>) -> bool,
    ) -> Result<(), RollError> {
        let mut tries = 0;
        loop {
            let (written, mut entries) = self.read().await?;
            if !change(&mut entries) {
                return Ok(());
            }
            tries += 1;
            match self.write(written, &entries).await {
                Ok(()) => return Ok(()),
                Err(err) if tries < TRIES_MAX && is_overtaken(&err) => {}
                Err(err) => return Err(err.into()),
            }
        }
    }

    async fn read(&self) -> kube::Result<(Option<Secret>, BTreeMap<String, Entry>)> {
        let written = match self.secrets.get_opt(NAME).await {
            Err(err) if is_not_found(&err) => None,
            other => other?,
        };
        let data = written.iter().flat_map(|secret| secret.data.iter().flatten());
        let entries = data.filter_map(|(node, text)| Some((node.clone(), Entry::parse(text)?)));
        let entries = entries.collect();
        Ok((written, entries))
    }

    /// Replaces what was read, if nobody else has since.
    async fn write(
        &self,
        written: Option<Secret>,
        entries: &BTreeMap<String, Entry>,
    ) -> kube::Result<()> {
        let data = entries.iter().map(|(node, entry)| (node.clone(), entry.to_text())).collect();
        let params = PostParams::default();
        match written {
            Some(mut secret) => {
                secret.data = Some(data);
                self.secrets.replace(NAME, &params, &secret).await?;
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(NAME.to_owned()),
                    namespace: Some(NAMESPACE.to_owned()),
                    ..ObjectMeta::default()
                };
                let secret = Secret { metadata, data: Some(data), ..Secret::default() };
                self.secrets.create(&params, &secret).await?;
            }
        }
        Ok(())
    }
}

fn is_overtaken(err: &kube::Error) -> bool {
    is_conflict(err) || is_already_exists(err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::testing::Cluster;

    async fn make_node(cluster: &Cluster, name: &str) -> String {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let node = Node { metadata, ..Node::default() };
        let nodes: Api<Node> = Api::all(cluster.client.clone());
        nodes.create(&PostParams::default(), &node).await.unwrap().metadata.uid.unwrap()
    }

    async fn delete_node(cluster: &Cluster, name: &str) {
        let nodes: Api<Node> = Api::all(cluster.client.clone());
        nodes.delete(name, &kube::api::DeleteParams::default()).await.unwrap();
    }

    #[tokio::test]
    async fn a_node_is_vouched_for_while_its_node_object_and_its_key_are_the_same() {
        let cluster = Cluster::start().await;
        let roll = Roll::new(cluster.client.clone(), WallClock::system());
        assert!(roll.check("a", "key").await.is_err(), "never entered");
        roll.enter("a", "key").await.unwrap();
        roll.enter("b", "other").await.unwrap();
        assert!(roll.check("a", "key").await.is_err(), "without a Node");
        let uid = make_node(&cluster, "a").await;
        roll.check("a", "key").await.unwrap();
        assert!(matches!(roll.check("a", "other").await, Err(RollError::Struck(_))));

        roll.note(&[("a".to_owned(), uid)].into()).await.unwrap();
        roll.check("a", "key").await.unwrap();
        delete_node(&cluster, "a").await;
        assert!(matches!(roll.check("a", "key").await, Err(RollError::Struck(_))));
        // Its agent still runs and registers again: that does not bring it back.
        make_node(&cluster, "a").await;
        assert!(matches!(roll.check("a", "key").await, Err(RollError::Struck(_))));
        // Another join does, with another key.
        roll.enter("a", "next").await.unwrap();
        roll.check("a", "next").await.unwrap();
        assert!(matches!(roll.check("a", "key").await, Err(RollError::Struck(_))));
    }

    #[tokio::test]
    async fn what_vouches_for_nobody_is_dropped() {
        let cluster = Cluster::start().await;
        let clock = WallClock::manual(1_000_000_000);
        let roll = Roll::new(cluster.client.clone(), clock.clone());
        for name in ["gone", "stays", "never", "other"] {
            roll.enter(name, "key").await.unwrap();
        }
        let gone = make_node(&cluster, "gone").await;
        let stays = make_node(&cluster, "stays").await;
        let mut present = BTreeMap::from([("gone".into(), gone), ("stays".into(), stays)]);
        roll.note(&present).await.unwrap();
        let names = async || roll.read().await.unwrap().1.into_keys().collect::<Vec<_>>();
        assert_eq!(names().await, ["gone", "never", "other", "stays"]);
        delete_node(&cluster, "gone").await;
        // What the API says counts, not what is remembered of it.
        let stays = present.remove("stays").unwrap();
        roll.note(&present).await.unwrap();
        assert_eq!(names().await, ["gone", "never", "other", "stays"]);
        let present = BTreeMap::from([("stays".to_owned(), stays)]);
        roll.note(&present).await.unwrap();
        assert_eq!(names().await, ["never", "other", "stays"]);
        assert!(matches!(roll.check("gone", "key").await, Err(RollError::Struck(_))));
        let life = i64::try_from(NODE_LIFE.as_secs()).unwrap();
        clock.set(1_000_000_000 + life - 60);
        roll.enter("other", "next").await.unwrap();
        roll.note(&present).await.unwrap();
        assert_eq!(names().await, ["never", "other", "stays"]);
        clock.set(1_000_000_000 + life);
        roll.note(&present).await.unwrap();
        assert_eq!(names().await, ["other", "stays"]);
    }

    #[test]
    fn an_entry_is_read_in_all_forms_it_was_written_in() {
        for text in ["key", "key uid", "key - 12"] {
            let entry = Entry::parse(&ByteString(text.as_bytes().to_vec())).unwrap();
            assert_eq!(entry.to_text().0, text.as_bytes());
            assert_eq!(entry.key_hash, "key");
            assert_eq!(entry.uid.is_some(), text == "key uid");
        }
    }
}
