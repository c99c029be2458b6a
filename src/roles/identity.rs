//! Who this node is: from its disk, from a join, or as the first of a new cluster.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::config::{Join, NodeSettings};
use crate::net::Identity;
use crate::net::join::{self, JoinRequest, JoinToken};
use crate::net::pki::{self, CertificateAuthority, NodeClass, NodeKey};
use crate::roles::data_dir::{DataDir, NodeState};
use crate::roles::enroll::{RAFT_ID, STORE_UUID};
use crate::roles::{NodeError, api_service};
use crate::rt::{Rng, WallClock};

/// Files below the data directory.
const CA_CERT: &str = "pki/ca.crt";
const CA_KEY: &str = "pki/ca.key";
pub(super) const NODE_CERT: &str = "pki/node.crt";
pub(super) const NODE_KEY: &str = "pki/node.key";
/// Hex digits of a disk's id.
const STORE_UUID_DIGITS: usize = 32;
/// Raft id of the first node.
pub(super) const FIRST_RAFT_ID: u64 = 1;

/// Everything that makes this node a part of its cluster.
pub(super) struct Membership {
    pub(super) state: NodeState,
    pub(super) identity: Identity,
    /// Servers certify other nodes.
    pub(super) authority: Option<Arc<CertificateAuthority>>,
    /// This start made the cluster.
    pub(super) is_new_cluster: bool,
}

impl Membership {
    /// Takes up the identity on disk; makes or obtains one at the first start.
    pub(super) async fn establish(
        dir: &DataDir,
        settings: &NodeSettings,
        clock: &WallClock,
        rng: &Rng,
    ) -> Result<Self, NodeError> {
        if let Some(state) = dir.state()? {
            if settings.join.is_some() {
                tracing::info!("this node belongs to a cluster already, not joining again");
            }
            return Self::load(dir, state, clock, false);
        }
        let (state, is_new) = match &settings.join {
            Some(to) => (obtain(dir, settings, to, clock).await?, false),
            None => (found(dir, settings, clock, rng)?, true),
        };
        // Written last: with it, everything else is there.
        dir.save_state(&state)?;
        Self::load(dir, state, clock, is_new)
    }

    fn load(
        dir: &DataDir,
        state: NodeState,
        clock: &WallClock,
        is_new_cluster: bool,
    ) -> Result<Self, NodeError> {
        let ca_pem = dir.read(CA_CERT)?;
        let (cert, key) = (dir.read(NODE_CERT)?, dir.read(NODE_KEY)?);
        let identity = Identity::new(&cert, &key, &ca_pem, clock).map_err(NodeError::failed)?;
        let authority = match state.raft_id {
            None => None,
            Some(_) => {
                let authority = CertificateAuthority::from_pem(&ca_pem, &dir.read(CA_KEY)?, clock);
                Some(Arc::new(authority.map_err(NodeError::failed)?))
            }
        };
        Ok(Self { state, identity, authority, is_new_cluster })
    }

    /// Where the servers known last are.
    pub(super) fn servers(&self) -> BTreeMap<String, SocketAddr> {
        let servers = self.state.servers.iter();
        servers.filter_map(|(name, at)| Some((name.clone(), at.parse().ok()?))).collect()
    }
}

/// Addresses in the node's certificate, should it become a server's.
pub(super) fn certified_addresses(settings: &NodeSettings) -> Vec<IpAddr> {
    let mut addresses = vec![settings.advertise_address];
    let of_api = api_service::address(&settings.service_cidrs);
    for ip in [settings.bind_address, IpAddr::V4(Ipv4Addr::LOCALHOST), of_api] {
        if !ip.is_unspecified() && !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    addresses
}

fn store_uuid(rng: &Rng) -> String {
    let mut bytes = [0; 16];
    rng.fill(&mut bytes);
    hex::encode(bytes)
}

/// Makes a new cluster with this node as its first.
fn found(
    dir: &DataDir,
    settings: &NodeSettings,
    clock: &WallClock,
    rng: &Rng,
) -> Result<NodeState, NodeError> {
    let cluster = rng.uuid().to_string();
    let authority = CertificateAuthority::generate(&cluster, clock).map_err(NodeError::failed)?;
    let node = authority
        .generate_node(&settings.node_name, &certified_addresses(settings), NodeClass::Server)
        .map_err(NodeError::failed)?;
    dir.write(CA_KEY, authority.key_pem().as_bytes())?;
    dir.write(CA_CERT, authority.cert_pem().as_bytes())?;
    dir.write(NODE_KEY, node.key_pem.as_bytes())?;
    dir.write(NODE_CERT, node.cert_pem.as_bytes())?;
    tracing::info!(cluster, "made a new cluster");
    Ok(NodeState::new(cluster, settings.node_name.clone(), Some(FIRST_RAFT_ID), store_uuid(rng)))
}

/// Joins the cluster of a server.
async fn obtain(
    dir: &DataDir,
    settings: &NodeSettings,
    to: &Join,
    clock: &WallClock,
) -> Result<NodeState, NodeError> {
    let refused = |cause: &dyn std::fmt::Display| NodeError::Join(cause.to_string());
    let token: JoinToken = to.token.trim().parse().map_err(|_| {
        refused(&"the token is damaged: it must be the whole line that `edgeorc node token create` prints")
    })?;
    let address = resolve(&to.server).await?;
    let key = key_to_join_with(dir)?;
    let store_uuid = store_uuid_of(&key)?;
    let request = JoinRequest {
        node: settings.node_name.clone(),
        class: NodeClass::Server,
        csr_der: key.csr_der,
        addresses: certified_addresses(settings),
        quic_port: settings.api_port,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        details: [(STORE_UUID.to_owned(), store_uuid.clone())].into(),
    };
    tracing::info!(server = %address, "joining");
    let joining = join::request(address, &token, &request, clock);
    let grant = tokio::time::timeout(settings.timing.join_deadline, joining)
        .await
        .map_err(|_| refused(&format!("no answer from {address} in time")))?
        .map_err(|cause| refused(&cause))?;
    dir.write(CA_CERT, grant.ca_pem.as_bytes())?;
    if let Some(key) = &grant.ca_key_pem {
        dir.write(CA_KEY, key.as_bytes())?;
    }
    dir.write(NODE_CERT, grant.cert_pem.as_bytes())?;
    let raft_id = grant.details.get(RAFT_ID).and_then(|id| id.parse().ok());
    let name = settings.node_name.clone();
    let mut state = NodeState::new(grant.cluster, name, raft_id, store_uuid);
    let servers = grant.servers.into_iter();
    state.servers = servers.map(|(name, at)| (name, at.to_string())).collect();
    Ok(state)
}

/// The key of this node, on disk before anybody hears of it: a node that lost the answer asks again
/// as the same one, and the token lets it in once more.
fn key_to_join_with(dir: &DataDir) -> Result<NodeKey, NodeError> {
    if let Ok(kept) = dir.read(NODE_KEY)
        && let Ok(key) = NodeKey::from_pem(&kept)
    {
        return Ok(key);
    }
    let key = NodeKey::generate().map_err(NodeError::failed)?;
    dir.write(NODE_KEY, key.key_pem.as_bytes())?;
    Ok(key)
}

/// The id of this disk, in hex: as random as the key, which is on no other, and the same at every
/// try to join.
fn store_uuid_of(key: &NodeKey) -> Result<String, NodeError> {
    let mut hash = pki::request_key_hash(&key.csr_der).map_err(NodeError::failed)?;
    hash.truncate(STORE_UUID_DIGITS);
    Ok(hash)
}

/// The first address of `host:port`.
async fn resolve(server: &str) -> Result<SocketAddr, NodeError> {
    let failed =
        |cause: String| NodeError::Join(format!("cannot find the server {server}: {cause}"));
    let mut found = tokio::net::lookup_host(server).await.map_err(|err| failed(err.to_string()))?;
    found.next().ok_or_else(|| failed("the name has no address".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_try_to_join_is_made_as_the_same_node() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::open(folder.path()).unwrap();
        let first = key_to_join_with(&dir).unwrap();
        let again = key_to_join_with(&dir).unwrap();
        assert_eq!(first.key_pem, again.key_pem);
        let uuid = store_uuid_of(&first).unwrap();
        assert_eq!(uuid, store_uuid_of(&again).unwrap());
        assert_eq!(uuid.len(), STORE_UUID_DIGITS);
        dir.write(NODE_KEY, b"torn").unwrap();
        assert_ne!(key_to_join_with(&dir).unwrap().key_pem, first.key_pem);
    }
}
