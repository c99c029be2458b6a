//! The roll of nodes: with which key each was let in, and which Node object it became.
//!
//! A certificate outlives the node it was made for. What decides whether it is renewed is this
//! roll, a Secret that no node can read: it is renewed while the Node exists that the holder of
//! this very key became. A Node that was deleted and made anew by its old machine is another one.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use tokio_util::sync::CancellationToken;

use crate::client::{Informer, is_already_exists, is_conflict, is_not_found};

/// Where the roll is.
const NAMESPACE: &str = "kube-system";
const NAME: &str = "edgeorc-node-keys";
/// Tries of a write that somebody else's comes before.
const TRIES_MAX: u32 = 8;
/// Pause after the roll could not be written.
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

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
}

impl Entry {
    fn parse(text: &ByteString) -> Option<Self> {
        let text = std::str::from_utf8(&text.0).ok()?;
        let (key_hash, uid) = match text.split_once(' ') {
            Some((key_hash, uid)) => (key_hash, Some(uid.to_owned())),
            None => (text, None),
        };
        Some(Self { key_hash: key_hash.to_owned(), uid })
    }

    fn to_text(&self) -> ByteString {
        let text = match &self.uid {
            Some(uid) => format!("{} {uid}", self.key_hash),
            None => self.key_hash.clone(),
        };
        ByteString(text.into_bytes())
    }
}

/// Reads and writes the roll.
#[derive(Clone)]
pub(super) struct Roll {
    secrets: Api<Secret>,
    nodes: Api<Node>,
}

impl Roll {
    /// `client` has all rights.
    pub(super) fn new(client: kube::Client) -> Self {
        Self { secrets: Api::namespaced(client.clone(), NAMESPACE), nodes: Api::all(client) }
    }

    /// Enters a node that is let in, in place of any that had its name before.
    pub(super) async fn enter(&self, node: &str, key_hash: &str) -> Result<(), RollError> {
        let entry = Entry { key_hash: key_hash.to_owned(), uid: None };
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

    /// Notes which Node each entered node became, until `cancel`: on the leader.
    pub(super) async fn follow(self, nodes: Informer<Node>, cancel: CancellationToken) {
        let mut changed = nodes.changed();
        let mut noted: BTreeMap<String, String> = BTreeMap::new();
        loop {
            changed.borrow_and_update();
            let uid = |node: &Node| Some((node.metadata.name.clone()?, node.metadata.uid.clone()?));
            let present: BTreeMap<_, _> =
                nodes.store.state().iter().filter_map(|node| uid(node)).collect();
            let is_news = present.iter().any(|(name, uid)| noted.get(name) != Some(uid));
            if is_news {
                match cancel.run_until_cancelled(self.note(&present)).await {
                    None => return,
                    Some(Ok(())) => noted = present,
                    Some(Err(err)) => {
                        tracing::debug!(%err, "the roll of nodes is not up to date yet");
                        if cancel.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
                            return;
                        }
                        continue;
                    }
                }
            }
            if !matches!(cancel.run_until_cancelled(changed.changed()).await, Some(Ok(()))) {
                return;
            }
        }
    }

    async fn note(&self, present: &BTreeMap<String, String>) -> Result<(), RollError> {
        let (_, entries) = self.read().await?;
        let is_open = |name: &&String| entries.get(*name).is_some_and(|entry| entry.uid.is_none());
        for name in present.keys().filter(is_open) {
            self.note_one(name).await?;
        }
        Ok(())
    }

    /// The Node is read after the entry and before it is changed: a node is entered only while
    /// there is none of its name, so an older one is not mistaken for it.
    async fn note_one(&self, name: &str) -> Result<(), RollError> {
        let (written, mut entries) = self.read().await?;
        let node = self.nodes.get_opt(name).await?;
        let uid = node.and_then(|node| node.metadata.uid);
        let Some(entry) = entries.get_mut(name).filter(|entry| entry.uid.is_none()) else {
            return Ok(());
        };
        entry.uid = uid;
        self.write(written, &entries).await?;
        Ok(())
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
        let roll = Roll::new(cluster.client.clone());
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
}
