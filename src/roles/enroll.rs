//! Letting nodes in: checks the token, names the node, certifies its key.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use edgeorc_raft::{Member, Replica};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::client::{is_conflict, is_not_found};
use crate::net::join::{Enroller, JoinGrant, JoinRefusal, JoinRequest, TokenVerifier};
use crate::net::pki::{self, CertificateAuthority, NodeClass};
use crate::roles::roll::Roll;
use crate::roles::token::{EXPIRATION, SECRET_PREFIX, USED_BY, VERIFIER};
use crate::rt::WallClock;

/// Servers of a cluster; nodes that come later are agents.
const SERVERS_MAX: usize = 3;
/// Detail of a request: the random id of the node's disk, in hex.
pub(super) const STORE_UUID: &str = "storeUUID";
/// Detail of a grant to a server: its Raft id.
pub(super) const RAFT_ID: &str = "raftID";

/// How long this server may take to see the member it has added.
const MEMBER_SEEN_MAX: Duration = Duration::from_secs(2);
/// Expired tokens that are removed when a node is let in.
const SWEEP_MAX: u32 = 500;
/// Pause between two such sweeps: a fleet that joins does not have all its tokens read for each node.
const SWEEP_PAUSE: Duration = Duration::from_secs(60);

/// Admits nodes on behalf of this server.
pub(super) struct Admission {
    pub(super) client: kube::Client,
    pub(super) replica: Replica,
    pub(super) authority: Arc<CertificateAuthority>,
    pub(super) clock: WallClock,
    /// When expired tokens were looked for last.
    pub(super) swept: Mutex<Option<Instant>>,
}

/// A request whose every part was checked.
struct Applicant {
    name: String,
    /// Tells the node from any other that asks under its name.
    key_hash: String,
    address: SocketAddr,
    /// Of one that can be a server.
    store_uuid: Option<[u8; 16]>,
}

fn unavailable(cause: impl ToString) -> JoinRefusal {
    JoinRefusal::Unavailable(cause.to_string())
}

fn forbidden(cause: impl ToString) -> JoinRefusal {
    JoinRefusal::Forbidden(cause.to_string())
}

impl Applicant {
    fn of(request: &JoinRequest) -> Result<Self, JoinRefusal> {
        let ip = request.addresses.first().ok_or_else(|| forbidden("the node named no address"))?;
        pki::check_not_reserved(&request.node).map_err(forbidden)?;
        let store_uuid = match request.class {
            NodeClass::Agent => None,
            NodeClass::Server => {
                let mut uuid = [0; 16];
                let sent = request.details.get(STORE_UUID).map(String::as_str).unwrap_or_default();
                hex::decode_to_slice(sent, &mut uuid)
                    .map_err(|_| forbidden("the node named no store"))?;
                Some(uuid)
            }
        };
        Ok(Self {
            name: request.node.clone(),
            key_hash: pki::request_key_hash(&request.csr_der).map_err(forbidden)?,
            address: SocketAddr::new(*ip, request.quic_port),
            store_uuid,
        })
    }

    /// What a token says that it let in.
    fn mark(&self) -> String {
        format!("{} {}", self.name, self.key_hash)
    }
}

impl Admission {
    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), "kube-system")
    }

    /// The token's Secret, unless it has expired.
    async fn token(&self, id: &str) -> Option<Secret> {
        let secret = self.secrets().get_opt(&format!("{SECRET_PREFIX}{id}")).await.ok()??;
        (!self.is_expired(&secret)).then_some(secret)
    }

    fn is_expired(&self, token: &Secret) -> bool {
        let until = text(token, EXPIRATION).and_then(|until| until.parse::<Timestamp>().ok());
        until.is_none_or(|until| self.clock.now() >= until)
    }

    /// Lets the token be this node's from now on: it lets one node in, which may ask again for as
    /// long as the token lives, since it may have lost the answer.
    async fn claim(&self, id: &str, node: &Applicant) -> Result<(), JoinRefusal> {
        let mut secret = self.token(id).await.ok_or(JoinRefusal::Token)?;
        match text(&secret, USED_BY) {
            Some(used_by) if used_by == node.mark() => return Ok(()),
            Some(_) => return Err(JoinRefusal::Token),
            None => self.check_name(&node.name).await?,
        }
        let mark = ByteString(node.mark().into_bytes());
        secret.data.get_or_insert_default().insert(USED_BY.to_owned(), mark);
        let name = format!("{SECRET_PREFIX}{id}");
        // With the version that was read: of two nodes one is faster.
        match self.secrets().replace(&name, &PostParams::default(), &secret).await {
            Ok(_) => Ok(()),
            Err(err) if is_conflict(&err) || is_not_found(&err) => Err(JoinRefusal::Token),
            Err(err) => Err(unavailable(err)),
        }
    }

    async fn check_name(&self, name: &str) -> Result<(), JoinRefusal> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let is_member = self.members().values().any(|member| member.name == name);
        if is_member || nodes.get_opt(name).await.map_err(unavailable)?.is_some() {
            return Err(JoinRefusal::Forbidden(format!(
                "there is a node {name:?} already; choose another --node-name, or delete that node first"
            )));
        }
        Ok(())
    }

    fn members(&self) -> BTreeMap<u64, Member> {
        self.replica.status().borrow().members.clone()
    }

    /// The id under which the node's store is a member already, or one for a new member. `None`:
    /// it becomes an agent.
    async fn raft_id(&self, node: &Applicant) -> Result<Option<(u64, [u8; 16])>, JoinRefusal> {
        let Some(uuid) = node.store_uuid else { return Ok(None) };
        let members = self.members();
        if let Some(member) = members.values().find(|member| member.store_uuid == uuid) {
            return Ok(Some((member.id, uuid)));
        }
        if members.len() >= SERVERS_MAX {
            return Ok(None);
        }
        Ok(Some((self.replica.allocate_id().await.map_err(unavailable)?, uuid)))
    }

    /// Makes the node a member of the group: the last step, after all that can be refused.
    async fn add_member(
        &self,
        node: &Applicant,
        id: u64,
        store_uuid: [u8; 16],
    ) -> Result<(), JoinRefusal> {
        let (name, address) = (node.name.clone(), node.address.to_string());
        let member = Member { id, name, address, store_uuid };
        let was_member = self.members().contains_key(&id);
        let Err(cause) = self.replica.add_learner(member).await else {
            // The next request must see it; should this server be slow to, it is refused and retried.
            let mut status = self.replica.status();
            let seen = status.wait_for(|status| status.members.contains_key(&id));
            let _ = tokio::time::timeout(MEMBER_SEEN_MAX, seen).await;
            return Ok(());
        };
        // It may have been added all the same; a member that never comes would stay for ever.
        if !was_member && let Err(err) = self.replica.remove(id).await {
            tracing::warn!(raft.id = id, %err, "a member that was not let in may be left over");
        }
        Err(unavailable(cause))
    }

    /// Removes tokens that let nobody in any more.
    async fn sweep(&self) {
        {
            let mut swept = self.swept.lock();
            if swept.is_some_and(|last| last.elapsed() < SWEEP_PAUSE) {
                return;
            }
            *swept = Some(Instant::now());
        }
        let params = ListParams::default().limit(SWEEP_MAX);
        let params = params.fields("type=bootstrap.kubernetes.io/token");
        let Ok(found) = self.secrets().list(&params).await else { return };
        for secret in found.items.iter().filter(|secret| self.is_expired(secret)) {
            let name = secret.metadata.name.as_deref().unwrap_or_default();
            if name.starts_with(SECRET_PREFIX)
                && let Err(err) = self.secrets().delete(name, &DeleteParams::default()).await
            {
                tracing::debug!(%err, "an expired token was not removed");
            }
        }
    }
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(key)?;
    String::from_utf8(bytes.0.clone()).ok()
}

#[async_trait]
impl Enroller for Admission {
    async fn verifier(&self, token_id: &str) -> Option<TokenVerifier> {
        let secret = self.token(token_id).await?;
        let mut verifier = [0; 32];
        hex::decode_to_slice(text(&secret, VERIFIER)?, &mut verifier).ok()?;
        Some(TokenVerifier(verifier))
    }

    /// Every step may be done again: a node that lost the answer gets the same place.
    async fn enroll(&self, token_id: &str, request: JoinRequest) -> Result<JoinGrant, JoinRefusal> {
        let node = Applicant::of(&request)?;
        // The name and the request are good for a certificate, or the token is not touched.
        let issue = |class| {
            let ips = &request.addresses;
            self.authority.issue_node(&request.csr_der, &node.name, ips, class).map_err(forbidden)
        };
        issue(request.class)?;
        self.claim(token_id, &node).await?;
        let raft_id = self.raft_id(&node).await?;
        let class = if raft_id.is_some() { NodeClass::Server } else { NodeClass::Agent };
        let cert_pem = issue(class)?;
        let roll = Roll::new(self.client.clone(), self.clock.clone());
        roll.enter(&node.name, &node.key_hash).await.map_err(unavailable)?;
        if let Some((id, store_uuid)) = raft_id {
            self.add_member(&node, id, store_uuid).await?;
        }
        self.sweep().await;
        let servers = self.members().into_values().filter(|member| member.name != node.name);
        tracing::info!(k8s.node.name = node.name, node.class = ?class, "node admitted");
        let raft_id = raft_id.map(|(id, _)| id);
        Ok(JoinGrant {
            cluster: self.authority.cluster().to_owned(),
            cert_pem,
            ca_pem: self.authority.cert_pem().to_owned(),
            ca_key_pem: raft_id.map(|_| self.authority.key_pem().to_owned()),
            servers: servers.filter_map(|m| Some((m.name, m.address.parse().ok()?))).collect(),
            details: raft_id.into_iter().map(|id| (RAFT_ID.to_owned(), id.to_string())).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::join::JoinToken;
    use crate::net::pki::NodeKey;
    use crate::roles::testing::Cluster;
    use crate::roles::token::new_join_token;

    struct Door {
        cluster: Cluster,
        admission: Admission,
    }

    async fn door() -> Door {
        let cluster = Cluster::start().await;
        let admission = Admission {
            client: cluster.client.clone(),
            replica: cluster.replica.clone(),
            authority: Arc::clone(&cluster.authority),
            clock: cluster.clock.clone(),
            swept: Mutex::default(),
        };
        Door { cluster, admission }
    }

    impl Door {
        /// The id of a fresh token.
        async fn token(&self, ttl: Duration) -> String {
            let made = new_join_token(self.cluster.authority.cert_pem(), ttl).unwrap();
            let secret = serde_json::from_value(serde_json::json!({
                "metadata": {"name": made.secret_name},
                "type": "bootstrap.kubernetes.io/token",
                "stringData": made.secret_data,
            }));
            let secrets = self.admission.secrets();
            secrets.create(&PostParams::default(), &secret.unwrap()).await.unwrap();
            made.token.parse::<JoinToken>().unwrap().id
        }

        fn members(&self) -> usize {
            self.admission.members().len()
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    fn request(name: &str, key: &NodeKey, store_uuid: &str) -> JoinRequest {
        JoinRequest {
            node: name.to_owned(),
            class: NodeClass::Server,
            csr_der: key.csr_der.clone(),
            addresses: vec!["127.0.0.1".parse().unwrap()],
            quic_port: 6443,
            version: String::new(),
            details: [(STORE_UUID.to_owned(), store_uuid.to_owned())].into(),
        }
    }

    #[tokio::test]
    async fn a_request_that_is_refused_costs_neither_the_token_nor_a_place_in_the_group() {
        let door = door().await;
        let (id, key) = (door.token(HOUR).await, NodeKey::generate().unwrap());
        let mut broken = request("two", &key, &"02".repeat(16));
        broken.csr_der.pop();
        let no_address = JoinRequest { addresses: Vec::new(), ..request("two", &key, "") };
        for bad in [
            request("two", &key, "no uuid"),
            request("localhost", &key, &"02".repeat(16)),
            request("Not/A/Name", &key, &"02".repeat(16)),
            request("one", &key, &"02".repeat(16)),
            broken,
            no_address,
        ] {
            let refused = door.admission.enroll(&id, bad.clone()).await;
            assert!(matches!(refused, Err(JoinRefusal::Forbidden(_))), "{bad:?}: {refused:?}");
        }
        assert_eq!(door.members(), 1);
        let good = request("two", &key, &"02".repeat(16));
        let grant = door.admission.enroll(&id, good).await.unwrap();
        assert!(grant.details.contains_key(RAFT_ID));
        assert_eq!(door.members(), 2);
    }

    #[tokio::test]
    async fn nodes_that_join_at_the_same_time_are_all_let_in() {
        let door = door().await;
        let mut joins = Vec::new();
        for at in 0..24 {
            let (id, key) = (door.token(HOUR).await, NodeKey::generate().unwrap());
            let asked = JoinRequest {
                class: NodeClass::Agent,
                ..request(&format!("agent-{at}"), &key, "")
            };
            joins.push((id, asked));
        }
        let admission = &door.admission;
        let joining = joins
            .into_iter()
            .map(|(id, asked)| async move { admission.enroll(&id, asked).await.map(drop) });
        for joined in futures_util::future::join_all(joining).await {
            joined.unwrap();
        }
    }

    #[tokio::test]
    async fn the_node_that_lost_the_answer_asks_again_and_nobody_else_with_its_token() {
        let door = door().await;
        let (id, key) = (door.token(HOUR).await, NodeKey::generate().unwrap());
        let asked = request("two", &key, &"02".repeat(16));
        let first = door.admission.enroll(&id, asked.clone()).await.unwrap();
        let again = door.admission.enroll(&id, asked.clone()).await.unwrap();
        assert_eq!(first.details, again.details, "another Raft id");
        assert_eq!(door.members(), 2);
        let other_key = NodeKey::generate().unwrap();
        for other in
            [request("two", &other_key, &"02".repeat(16)), request("three", &key, &"02".repeat(16))]
        {
            let refused = door.admission.enroll(&id, other).await;
            assert_eq!(refused.unwrap_err(), JoinRefusal::Token);
        }
    }

    #[tokio::test]
    async fn expired_tokens_let_nobody_in_and_are_removed() {
        let door = door().await;
        let (old, id) = (door.token(Duration::ZERO).await, door.token(HOUR).await);
        let key = NodeKey::generate().unwrap();
        assert!(door.admission.verifier(&old).await.is_none());
        let asked = request("two", &key, &"02".repeat(16));
        assert!(door.admission.enroll(&old, asked.clone()).await.is_err());
        door.admission.enroll(&id, asked).await.unwrap();
        let secrets = door.admission.secrets();
        assert!(secrets.get_opt(&format!("{SECRET_PREFIX}{old}")).await.unwrap().is_none());
        assert!(door.admission.verifier(&id).await.is_some());
    }
}
