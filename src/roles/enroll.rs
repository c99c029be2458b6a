//! Letting nodes in: checks the token, names the node, certifies its key.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use edgeorc_raft::{Member, Replica};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::Api;
use kube::api::{DeleteParams, Preconditions};

use crate::net::join::{Enroller, JoinGrant, JoinRefusal, JoinRequest, TokenVerifier};
use crate::net::pki::{CertificateAuthority, NodeClass};
use crate::roles::token::{EXPIRATION, SECRET_PREFIX, VERIFIER};
use crate::rt::WallClock;

/// Servers of a cluster; nodes that come later are agents.
const SERVERS_MAX: usize = 3;
/// Detail of a request: the random id of the node's disk, in hex.
pub(super) const STORE_UUID: &str = "storeUUID";
/// Detail of a grant to a server: its Raft id.
pub(super) const RAFT_ID: &str = "raftID";

/// Admits nodes on behalf of this server.
pub(super) struct Admission {
    pub(super) client: kube::Client,
    pub(super) replica: Replica,
    pub(super) authority: Arc<CertificateAuthority>,
    pub(super) clock: WallClock,
}

fn unavailable(cause: impl ToString) -> JoinRefusal {
    JoinRefusal::Unavailable(cause.to_string())
}

impl Admission {
    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), "kube-system")
    }

    /// The token's Secret, unless it has expired.
    async fn token(&self, id: &str) -> Option<Secret> {
        let secret = self.secrets().get_opt(&format!("{SECRET_PREFIX}{id}")).await.ok()??;
        let until: Timestamp = text(&secret, EXPIRATION)?.parse().ok()?;
        (self.clock.now() < until).then_some(secret)
    }

    /// Takes the token out of the cluster: it lets one node in. `false`: another node was faster.
    async fn use_up(&self, id: &str) -> Result<bool, JoinRefusal> {
        let Some(secret) = self.token(id).await else { return Ok(false) };
        let preconditions =
            Preconditions { uid: secret.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams::default().preconditions(preconditions);
        match self.secrets().delete(&format!("{SECRET_PREFIX}{id}"), &params).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
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

    /// Makes the node a member of the Raft group. `None`: there are servers enough.
    async fn become_server(
        &self,
        request: &JoinRequest,
        address: SocketAddr,
    ) -> Result<Option<u64>, JoinRefusal> {
        if request.class != NodeClass::Server || self.members().len() >= SERVERS_MAX {
            return Ok(None);
        }
        let mut store_uuid = [0; 16];
        let sent = request.details.get(STORE_UUID).map(String::as_str).unwrap_or_default();
        hex::decode_to_slice(sent, &mut store_uuid)
            .map_err(|_| JoinRefusal::Forbidden("the node named no store".to_owned()))?;
        let id = self.replica.allocate_id().await.map_err(unavailable)?;
        let name = request.node.clone();
        let member = Member { id, name, address: address.to_string(), store_uuid };
        self.replica.add_learner(member).await.map_err(unavailable)?;
        Ok(Some(id))
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

    async fn enroll(&self, token_id: &str, request: JoinRequest) -> Result<JoinGrant, JoinRefusal> {
        self.check_name(&request.node).await?;
        let ip = *request
            .addresses
            .first()
            .ok_or_else(|| JoinRefusal::Forbidden("the node named no address".to_owned()))?;
        if !self.use_up(token_id).await? {
            return Err(JoinRefusal::Token);
        }
        let address = SocketAddr::new(ip, request.quic_port);
        let raft_id = self.become_server(&request, address).await?;
        let class = if raft_id.is_some() { NodeClass::Server } else { NodeClass::Agent };
        let cert_pem = self
            .authority
            .issue_node(&request.csr_der, &request.node, &request.addresses, class)
            .map_err(|cause| JoinRefusal::Forbidden(cause.to_string()))?;
        let servers = self.members().into_values().filter(|member| member.name != request.node);
        tracing::info!(k8s.node.name = request.node, node.class = ?class, "node admitted");
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
