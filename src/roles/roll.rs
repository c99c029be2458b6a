//! The roll of nodes: with which key each was let in, and which Node object it became.
//!
//! A certificate outlives the node it was made for. What decides whether it is renewed is this
//! roll, Secrets that no node can read: it is renewed while the Node exists that the holder of
//! this very key became. A Node that was deleted and made anew by its old machine is another one.
//!
//! Each node has a Secret of its own: nodes that join at the same time write nothing together, and what
//! a join costs does not grow with the cluster.
//!
//! An entry goes once it vouches for nobody: its Node was deleted, or there never was one and the
//! certificate has ended.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use tokio_util::sync::CancellationToken;

use crate::client::{Informer, is_already_exists, is_conflict, is_not_found};
use crate::net::pki::NODE_LIFE;
use crate::rt::WallClock;

/// Where the roll is.
const NAMESPACE: &str = "kube-system";
/// What the Secrets' names begin with; the node's name follows.
const NAME_PREFIX: &str = "edgeorc-node-key.";
/// By which they are found.
const SECRET_TYPE: &str = "edgeorc.io/node-key";
/// Their fields: [`Entry`].
const KEY_HASH: &str = "key-hash";
const NODE_UID: &str = "node-uid";
const UNTIL: &str = "until";
/// Tries of a write that somebody else's comes before: two requests of one node may meet.
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
    until: i64,
}

impl Entry {
    /// `None` if it does not say whose it is.
    fn read(secret: &Secret) -> Option<(String, Self)> {
        let node = secret.metadata.name.as_deref()?.strip_prefix(NAME_PREFIX)?.to_owned();
        let text =
            |field: &str| String::from_utf8(secret.data.as_ref()?.get(field)?.0.clone()).ok();
        let until = text(UNTIL).and_then(|until| until.parse().ok()).unwrap_or(i64::MAX);
        Some((node, Self { key_hash: text(KEY_HASH)?, uid: text(NODE_UID), until }))
    }

    fn data(&self) -> BTreeMap<String, ByteString> {
        let uid = self.uid.iter().map(|uid| (NODE_UID, uid.clone()));
        let all = [(KEY_HASH, self.key_hash.clone()), (UNTIL, self.until.to_string())];
        let all = all.into_iter().chain(uid);
        all.map(|(field, text)| (field.to_owned(), ByteString(text.into_bytes()))).collect()
    }

    /// Whether it vouches for nobody any more, if `uid` is that of the Node of its name.
    fn is_over(&self, uid: Option<&String>, now: i64) -> bool {
        match &self.uid {
            Some(own) => Some(own) != uid,
            None => uid.is_none() && self.until <= now,
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
        let until = self.life_from_now();
        let entry = Entry { key_hash: key_hash.to_owned(), uid: None, until };
        let mut tries = 0;
        loop {
            let written = self.secrets.get_opt(&name(node)).await?;
            let had = written.as_ref().and_then(Entry::read);
            if had.is_some_and(|(_, had)| had.key_hash == key_hash) {
                return Ok(());
            }
            tries += 1;
            match self.write(node, written, &entry).await {
                Err(err) if tries < TRIES_MAX && is_overtaken(&err) => {}
                other => return Ok(other?),
            }
        }
    }

    /// Whether the holder of the key is `node`, and still part of the cluster.
    pub(super) async fn check(&self, node: &str, key_hash: &str) -> Result<(), RollError> {
        let entry = self.secrets.get_opt(&name(node)).await?.as_ref().and_then(Entry::read);
        let (_, entry) = entry.ok_or(RollError::Struck("the cluster does not know this node"))?;
        if entry.key_hash != key_hash {
            return Err(RollError::Struck("another node has its name by now"));
        }
        let uid = self.uid_of(node).await?.ok_or(RollError::Struck("its Node was deleted"))?;
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

    /// Brings the entries up to date. One that cannot be does not keep the others from it.
    async fn note(&self, present: &BTreeMap<String, String>) -> Result<(), RollError> {
        let now = self.clock.now().as_second();
        let mut failed = None;
        for secret in self.all().await? {
            let Some((node, entry)) = Entry::read(&secret) else { continue };
            let is_open = entry.uid.is_none() && present.contains_key(&node);
            let outcome = if is_open {
                self.note_uid(&node, secret, entry).await
            } else if entry.is_over(present.get(&node), now) {
                self.drop_if_over(&node, secret, &entry, now).await
            } else {
                Ok(())
            };
            failed = failed.or(outcome.err());
        }
        failed.map_or(Ok(()), |err| Err(err.into()))
    }

    /// Notes the Node that an entered node became.
    ///
    /// It is read after the entry and before that is changed: a node is entered only while there is none
    /// of its name, so an older one is not mistaken for it.
    async fn note_uid(&self, node: &str, secret: Secret, mut entry: Entry) -> kube::Result<()> {
        entry.uid = self.uid_of(node).await?;
        match entry.uid {
            Some(_) => self.write(node, Some(secret), &entry).await,
            None => Ok(()),
        }
    }

    async fn drop_if_over(
        &self,
        node: &str,
        secret: Secret,
        entry: &Entry,
        now: i64,
    ) -> kube::Result<()> {
        // The informer may be behind.
        if !entry.is_over(self.uid_of(node).await?.as_ref(), now) {
            return Ok(());
        }
        // Whoever was entered again meanwhile has another entry.
        let preconditions = Preconditions {
            uid: secret.metadata.uid,
            resource_version: secret.metadata.resource_version,
        };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match self.secrets.delete(&name(node), &params).await {
            Err(err) if !is_not_found(&err) => Err(err),
            _ => Ok(()),
        }
    }

    async fn uid_of(&self, node: &str) -> kube::Result<Option<String>> {
        Ok(self.nodes.get_opt(node).await?.and_then(|node| node.metadata.uid))
    }

    async fn all(&self) -> kube::Result<Vec<Secret>> {
        let params = ListParams::default().fields(&format!("type={SECRET_TYPE}"));
        Ok(self.secrets.list(&params).await?.items)
    }

    /// Replaces what was read, if nobody else has since.
    async fn write(&self, node: &str, written: Option<Secret>, entry: &Entry) -> kube::Result<()> {
        let (params, data) = (PostParams::default(), Some(entry.data()));
        match written {
            Some(mut secret) => {
                secret.data = data;
                self.secrets.replace(&name(node), &params, &secret).await?;
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(name(node)),
                    namespace: Some(NAMESPACE.to_owned()),
                    ..ObjectMeta::default()
                };
                let type_ = Some(SECRET_TYPE.to_owned());
                let secret = Secret { metadata, data, type_, ..Secret::default() };
                self.secrets.create(&params, &secret).await?;
            }
        }
        Ok(())
    }
}

/// Name of the Secret of a node.
fn name(node: &str) -> String {
    format!("{NAME_PREFIX}{node}")
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
        nodes.delete(name, &DeleteParams::default()).await.unwrap();
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
        let names = async || {
            let all = roll.all().await.unwrap();
            all.iter().map(|secret| Entry::read(secret).unwrap().0).collect::<Vec<_>>()
        };
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

    /// As many servers may let nodes in as there are.
    #[tokio::test]
    async fn nodes_that_are_entered_at_the_same_time_do_not_overtake_each_other() {
        let cluster = Cluster::start().await;
        let roll = Roll::new(cluster.client.clone(), WallClock::system());
        let nodes: Vec<String> = (0..64).map(|at| format!("node-{at}")).collect();
        let entering = nodes.iter().map(|node| roll.enter(node, "key"));
        for entered in futures_util::future::join_all(entering).await {
            entered.unwrap();
        }
        assert_eq!(roll.all().await.unwrap().len(), nodes.len());
    }

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        for uid in [None, Some("uid".to_owned())] {
            let entry = Entry { key_hash: "key".to_owned(), uid, until: 12 };
            let metadata = ObjectMeta { name: Some(name("a.b")), ..ObjectMeta::default() };
            let secret = Secret { metadata, data: Some(entry.data()), ..Secret::default() };
            assert_eq!(Entry::read(&secret), Some(("a.b".to_owned(), entry)));
        }
    }
}
