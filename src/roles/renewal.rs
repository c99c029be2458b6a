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
use http::header::CONTENT_TYPE;
use http::{Request, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::api::status::Status;
use crate::api::user::UserInfo;
use crate::net::Identity;
use crate::net::pki::{
    CertificateAuthority, NODE_LIFE, NODE_USER_PREFIX, NODES_GROUP, NodeClass, NodeKey,
    SERVERS_GROUP,
};
use crate::roles::NodeError;
use crate::roles::data_dir::DataDir;
use crate::roles::identity::{NODE_CERT, NODE_KEY};
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
    /// The node itself: it is a server.
    Own(Arc<CertificateAuthority>),
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
            Issuer::Own(authority) => authority
                .issue_node(&csr_der, self.identity.node_name(), &self.addresses, NodeClass::Server)
                .map_err(NodeError::failed)?,
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

/// The servers' side: a node gets a new certificate for the name and the class that it has.
pub(super) fn router(authority: Arc<CertificateAuthority>) -> Router {
    let answer = move |request: Request<Body>| async move {
        let (code, body) = match certify(&authority, request).await {
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

async fn certify(
    authority: &CertificateAuthority,
    request: Request<Body>,
) -> Result<String, Status> {
    let user = request.extensions().get::<UserInfo>().cloned();
    let is_in = |group: &str| user.iter().any(|user| user.groups.iter().any(|g| g == group));
    let name = user.as_ref().and_then(|user| user.name.strip_prefix(NODE_USER_PREFIX));
    let Some(node) = name.filter(|_| is_in(NODES_GROUP)) else {
        let who = user.as_ref().map_or("system:anonymous", |user| &user.name);
        return Err(Status::forbidden_path(who, "post", PATH));
    };
    let class = if is_in(SERVERS_GROUP) { NodeClass::Server } else { NodeClass::Agent };
    let body = to_bytes(request.into_body(), REQUEST_BYTES_MAX)
        .await
        .map_err(|cause| Status::bad_request(cause.to_string()))?;
    let wanted: RenewalRequest =
        serde_json::from_slice(&body).map_err(|cause| Status::bad_request(cause.to_string()))?;
    let csr_der = STANDARD
        .decode(&wanted.request)
        .map_err(|_| Status::bad_request("the certificate request is not base64"))?;
    let issued = authority.issue_node(&csr_der, node, &wanted.addresses, class);
    issued.map_err(|cause| Status::bad_request(cause.to_string()))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::client;
    use crate::net::pki::KeyPairPem;

    struct Setup {
        _folder: tempfile::TempDir,
        authority: Arc<CertificateAuthority>,
        renewal: Renewal,
    }

    /// The agent `a`, whose requests reach a server as `user` in `groups`.
    fn agent(user: &str, groups: &[&str]) -> Setup {
        let (folder, clock) = (tempfile::tempdir().unwrap(), WallClock::system());
        let authority = Arc::new(CertificateAuthority::generate("test", &clock).unwrap());
        let KeyPairPem { cert_pem, key_pem } =
            authority.generate_node("a", &[], NodeClass::Agent).unwrap();
        let dir = Arc::new(DataDir::open(folder.path()).unwrap());
        dir.write(NODE_CERT, cert_pem.as_bytes()).unwrap();
        dir.write(NODE_KEY, key_pem.as_bytes()).unwrap();
        let identity = Identity::new(&cert_pem, &key_pem, authority.cert_pem(), &clock).unwrap();
        let client = client::in_process(router(Arc::clone(&authority)), user, groups);
        let issuer = Issuer::Server(client);
        let renewal = Renewal { identity, dir, clock, addresses: Vec::new(), issuer };
        Setup { _folder: folder, authority, renewal }
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
        let Setup { renewal, _folder, .. } = agent("system:node:a", &[NODES_GROUP]);
        let before = renewal.dir.read(NODE_CERT).unwrap();
        renewal.renew().await.unwrap();
        assert_ne!(renewal.dir.read(NODE_CERT).unwrap(), before);
        let peer = renewal.identity.peer();
        assert!(peer.node == "a" && !peer.is_server(), "{peer:?}");
        assert!(!is_due(renewal.identity.expires(), renewal.clock.system_time()));
    }

    #[tokio::test]
    async fn a_server_certifies_itself() {
        let Setup { authority, renewal, _folder } = agent("nobody", &[]);
        let renewal = Renewal { issuer: Issuer::Own(authority), ..renewal };
        renewal.renew().await.unwrap();
        assert!(renewal.identity.peer().is_server());
    }

    #[tokio::test]
    async fn nobody_else_gets_one_and_a_stranger_s_is_not_taken() {
        for (user, groups) in [
            ("edgeorc-admin", &["system:masters"][..]),
            ("system:node:a", &["system:masters"][..]),
            // A certificate of node b is made, for b; this node does not take it.
            ("system:node:b", &[NODES_GROUP][..]),
        ] {
            let Setup { renewal, _folder, .. } = agent(user, groups);
            let before = renewal.dir.read(NODE_CERT).unwrap();
            assert!(renewal.renew().await.is_err(), "{user}");
            assert_eq!(renewal.dir.read(NODE_CERT).unwrap(), before);
        }
    }
}
