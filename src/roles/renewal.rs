//! Renews this node's certificate long before it ends.
//!
//! A server certifies itself. An agent asks a server, over the connection that its present
//! certificate opens, so one that was off until its certificate ended has to join anew. The key stays
//! the same: the certificate is then a single file that is replaced whole.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgeorc_raft::Status as Group;
use http::header::CONTENT_TYPE;
use http::{Request, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::status::Status;
use crate::api::user::UserInfo;
use crate::net::pki::{
    self, CertificateAuthority, NODE_LIFE, NODE_USER_PREFIX, NODES_GROUP, NodeClass, NodeKey,
    SERVERS_GROUP,
};
use crate::net::{Identity, Peer};
use crate::roles::NodeError;
use crate::roles::data_dir::DataDir;
use crate::roles::identity::{NODE_CERT, NODE_KEY};
use crate::roles::roll::{Roll, RollError};
use crate::rt::WallClock;

/// Where servers renew certificates of nodes.
const PATH: &str = "/edgeorc.io/v1/node-certificate";
/// What a certificate has left of its life when it is renewed.
const LEFT: Duration = Duration::from_secs(NODE_LIFE.as_secs() / 3);
/// Pause between two looks, and between two tries.
const LOOK: Duration = Duration::from_secs(3600);
/// Deadline of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request.
const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// What a node sends.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RenewalRequest {
    /// Certificate signing request, DER in base64.
    request: String,
    addresses: Vec<IpAddr>,
}

/// What it gets.
#[derive(Debug, Serialize, Deserialize)]
struct RenewalAnswer {
    /// PEM.
    certificate: String,
}

/// Who certifies this node.
pub(super) enum Issuer {
    /// The node itself, as long as it is a member of the group: it is a server.
    Own(Arc<CertificateAuthority>, watch::Receiver<Group>),
    /// Any server.
    Server(kube::Client),
}

/// Keeps one node's certificate good.
pub(super) struct Renewal {
    pub(super) identity: Identity,
    pub(super) dir: Arc<DataDir>,
    pub(super) clock: WallClock,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) issuer: Issuer,
}

impl Renewal {
    /// Looks again and again, until `cancel`.
    pub(super) async fn run(self, cancel: CancellationToken) {
        loop {
            if is_due(self.identity.expires(), self.clock.system_time()) {
                // Waits for nothing once it has begun to write.
                let Some(renewed) = cancel.run_until_cancelled(self.renew()).await else { return };
                match renewed {
                    Ok(()) => tracing::info!("the node's certificate is renewed"),
                    Err(cause) => {
                        tracing::warn!(%cause, "the node's certificate is not renewed, trying again within the hour");
                    }
                }
            }
            if cancel.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_none() {
                return;
            }
        }
    }

    async fn renew(&self) -> Result<(), NodeError> {
        let key_pem = self.dir.read(NODE_KEY)?;
        let csr_der = NodeKey::from_pem(&key_pem).map_err(NodeError::failed)?.csr_der;
        let cert_pem = match &self.issuer {
            Issuer::Own(authority, group) => {
                let name = self.identity.node_name();
                if !is_member(group, name) {
                    return Err(NodeError::failed("this server is no member of the group"));
                }
                let issued =
                    authority.issue_node(&csr_der, name, &self.addresses, NodeClass::Server);
                issued.map_err(NodeError::failed)?
            }
            Issuer::Server(client) => self.ask(client, &csr_der).await?,
        };
        // Refuses what does not belong to this node before the old one is gone; in use last, so that
        // a full disk leaves it due.
        let authority = self.identity.ca_pem();
        let renewed = Identity::new(&cert_pem, &key_pem, authority, &self.clock);
        if renewed.map_err(NodeError::failed)?.node_name() != self.identity.node_name() {
            return Err(NodeError::failed("the server certified another node"));
        }
        self.dir.write(NODE_CERT, cert_pem.as_bytes())?;
        self.identity.replace(&cert_pem, &key_pem).map_err(NodeError::failed)
    }

    async fn ask(&self, client: &kube::Client, csr_der: &[u8]) -> Result<String, NodeError> {
        let body =
            RenewalRequest { request: STANDARD.encode(csr_der), addresses: self.addresses.clone() };
        let body = serde_json::to_vec(&body).map_err(NodeError::failed)?;
        let request = Request::post(PATH).body(body).map_err(NodeError::failed)?;
        let asking = client.request::<RenewalAnswer>(request);
        let answer = tokio::time::timeout(CALL_TIMEOUT, asking)
            .await
            .map_err(|_| NodeError::failed("no server answered in time"))?;
        Ok(answer.map_err(NodeError::failed)?.certificate)
    }
}

/// Whether a certificate that ends at `expires` is to be renewed.
fn is_due(expires: SystemTime, now: SystemTime) -> bool {
    expires.duration_since(now).map_or(true, |left| left < LEFT)
}

/// The servers' side: a node that is still part of the cluster gets a new certificate for the
/// name, the class and the key that it has.
#[derive(Clone)]
pub(super) struct Renewals {
    pub(super) authority: Arc<CertificateAuthority>,
    pub(super) roll: Roll,
    pub(super) group: watch::Receiver<Group>,
}

/// The path that nodes ask at.
pub(super) fn router(renewals: Renewals) -> Router {
    let answer = move |request: Request<Body>| async move {
        let (code, body) = match renewals.certify(request).await {
            Ok(certificate) => (StatusCode::OK, json!(RenewalAnswer { certificate })),
            Err(status) => {
                let code = StatusCode::from_u16(status.code);
                (code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), status.to_value())
            }
        };
        (code, [(CONTENT_TYPE, "application/json")], body.to_string())
    };
    Router::new().route(PATH, post(answer))
}

fn is_member(group: &watch::Receiver<Group>, name: &str) -> bool {
    group.borrow().members.values().any(|member| member.name == name)
}

fn refused(who: &str, why: &dyn std::fmt::Display) -> Status {
    let mut status = Status::forbidden_path(who, "post", PATH);
    status.message = format!("{}: {why}", status.message);
    status
}

impl Renewals {
    async fn certify(&self, request: Request<Body>) -> Result<String, Status> {
        let peer = request.extensions().get::<Arc<Peer>>().cloned();
        let user = request.extensions().get::<UserInfo>().cloned();
        let is_in = |group: &str| user.iter().any(|user| user.groups.iter().any(|g| g == group));
        let name = user.as_ref().and_then(|user| user.name.strip_prefix(NODE_USER_PREFIX));
        let Some(node) = name.filter(|_| is_in(NODES_GROUP)) else {
            let who = user.as_ref().map_or("system:anonymous", |user| &user.name);
            return Err(Status::forbidden_path(who, "post", PATH));
        };
        // The certificate that is shown, not the name that is said: nobody acts for a node here.
        let Some(peer) = peer.filter(|peer| peer.node == node) else {
            return Err(refused(node, &"it is not the node itself that asks"));
        };
        let class = if is_in(SERVERS_GROUP) { NodeClass::Server } else { NodeClass::Agent };
        let body = to_bytes(request.into_body(), REQUEST_BYTES_MAX)
            .await
            .map_err(|cause| Status::bad_request(cause.to_string()))?;
        let wanted: RenewalRequest = serde_json::from_slice(&body)
            .map_err(|cause| Status::bad_request(cause.to_string()))?;
        let csr_der = STANDARD
            .decode(&wanted.request)
            .map_err(|_| Status::bad_request("the certificate request is not base64"))?;
        let key_hash = pki::request_key_hash(&csr_der)
            .map_err(|cause| Status::bad_request(cause.to_string()))?;
        if key_hash != peer.key_hash {
            return Err(refused(node, &"a renewed certificate keeps its key"));
        }
        match class {
            NodeClass::Server if is_member(&self.group, node) => {}
            NodeClass::Server => return Err(refused(node, &"it is no member of the group")),
            NodeClass::Agent => match self.roll.check(node, &key_hash).await {
                Ok(()) => {}
                Err(RollError::Api(err)) => return Err(Status::unavailable(err.to_string())),
                Err(struck) => return Err(refused(node, &struck)),
            },
        }
        let issued = self.authority.issue_node(&csr_der, node, &wanted.addresses, class);
        issued.map_err(|cause| Status::bad_request(cause.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use k8s_openapi::api::core::v1::Node;
    use kube::Api;
    use kube::api::{DeleteParams, PostParams};

    use super::*;
    use crate::client;
    use crate::net::pki::KeyPairPem;
    use crate::roles::testing::Cluster;

    struct Setup {
        _folder: tempfile::TempDir,
        cluster: Cluster,
        renewal: Renewal,
    }

    /// The agent `a`, whose requests reach a server as `user` in `groups`, over a connection with
    /// the certificate of `a`.
    async fn agent(user: &str, groups: &[&str]) -> Setup {
        let (folder, clock) = (tempfile::tempdir().unwrap(), WallClock::system());
        let cluster = Cluster::start().await;
        let authority = Arc::clone(&cluster.authority);
        let KeyPairPem { cert_pem, key_pem } =
            authority.generate_node("a", &[], NodeClass::Agent).unwrap();
        let dir = Arc::new(DataDir::open(folder.path()).unwrap());
        dir.write(NODE_CERT, cert_pem.as_bytes()).unwrap();
        dir.write(NODE_KEY, key_pem.as_bytes()).unwrap();
        let identity = Identity::new(&cert_pem, &key_pem, authority.cert_pem(), &clock).unwrap();
        let roll = Roll::new(cluster.client.clone(), WallClock::system());
        let peer = Arc::new(identity.peer());
        roll.enter("a", &peer.key_hash).await.unwrap();
        let group = cluster.replica.status();
        let renewals = Renewals { authority, roll, group };
        let router = router(renewals).layer(axum::Extension(peer));
        let issuer = Issuer::Server(client::in_process(router, user, groups));
        let renewal = Renewal { identity, dir, clock, addresses: Vec::new(), issuer };
        Setup { _folder: folder, cluster, renewal }
    }

    fn nodes(cluster: &Cluster) -> Api<Node> {
        Api::all(cluster.client.clone())
    }

    async fn make_node(cluster: &Cluster) {
        let node = serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap();
        nodes(cluster).create(&PostParams::default(), &node).await.unwrap();
    }

    #[test]
    fn a_certificate_is_renewed_in_its_last_third() {
        let day = Duration::from_secs(24 * 3600);
        let expires = UNIX_EPOCH + 30 * day;
        assert!(!is_due(expires, UNIX_EPOCH + 19 * day));
        assert!(is_due(expires, UNIX_EPOCH + 21 * day));
        assert!(is_due(expires, UNIX_EPOCH + 31 * day));
    }

    #[tokio::test]
    async fn an_agent_gets_a_new_certificate_of_its_own_class() {
        let Setup { renewal, cluster, _folder } = agent("system:node:a", &[NODES_GROUP]).await;
        make_node(&cluster).await;
        let before = renewal.dir.read(NODE_CERT).unwrap();
        renewal.renew().await.unwrap();
        assert_ne!(renewal.dir.read(NODE_CERT).unwrap(), before);
        let peer = renewal.identity.peer();
        assert!(peer.node == "a" && !peer.is_server(), "{peer:?}");
        assert!(!is_due(renewal.identity.expires(), renewal.clock.system_time()));
    }

    #[tokio::test]
    async fn a_node_that_was_removed_gets_none() {
        let Setup { renewal, cluster, _folder } = agent("system:node:a", &[NODES_GROUP]).await;
        assert!(renewal.renew().await.is_err(), "there is no Node of this name");
        make_node(&cluster).await;
        renewal.renew().await.unwrap();
        nodes(&cluster).delete("a", &DeleteParams::default()).await.unwrap();
        let refused = renewal.renew().await.unwrap_err().to_string();
        assert!(refused.contains("deleted"), "{refused}");
    }

    #[tokio::test]
    async fn another_machine_with_the_name_takes_the_certificate_over() {
        let Setup { renewal, cluster, _folder } = agent("system:node:a", &[NODES_GROUP]).await;
        make_node(&cluster).await;
        Roll::new(cluster.client.clone(), WallClock::system())
            .enter("a", "another key")
            .await
            .unwrap();
        let refused = renewal.renew().await.unwrap_err().to_string();
        assert!(refused.contains("another node"), "{refused}");
    }

    #[tokio::test]
    async fn a_certificate_is_renewed_for_its_own_key_only() {
        let Setup { renewal, cluster, _folder } = agent("system:node:a", &[NODES_GROUP]).await;
        make_node(&cluster).await;
        let Issuer::Server(client) = &renewal.issuer else { panic!("an agent") };
        let other = NodeKey::generate().unwrap();
        let refused = renewal.ask(client, &other.csr_der).await.unwrap_err().to_string();
        assert!(refused.contains("keeps its key"), "{refused}");
    }

    #[tokio::test]
    async fn a_server_certifies_itself_while_it_is_a_member() {
        let Setup { renewal, cluster, _folder } = agent("nobody", &[]).await;
        let authority = Arc::clone(&cluster.authority);
        let of = |name: &str| {
            let member = edgeorc_raft::Member { name: name.to_owned(), ..Default::default() };
            watch::channel(Group { members: [(2, member)].into(), ..Group::default() }).1
        };
        let issuer = Issuer::Own(Arc::clone(&authority), of("b"));
        let renewal = Renewal { issuer, ..renewal };
        assert!(renewal.renew().await.is_err());
        let renewal = Renewal { issuer: Issuer::Own(authority, of("a")), ..renewal };
        renewal.renew().await.unwrap();
        assert!(renewal.identity.peer().is_server());
    }

    #[tokio::test]
    async fn nobody_else_gets_one() {
        for (user, groups) in [
            ("edgeorc-admin", &["system:masters"][..]),
            ("system:node:a", &["system:masters"][..]),
            // Who acts as another node does not get that node's certificate.
            ("system:node:b", &[NODES_GROUP][..]),
        ] {
            let Setup { renewal, cluster, _folder } = agent(user, groups).await;
            make_node(&cluster).await;
            let before = renewal.dir.read(NODE_CERT).unwrap();
            assert!(renewal.renew().await.is_err(), "{user}");
            assert_eq!(renewal.dir.read(NODE_CERT).unwrap(), before);
        }
    }
}
