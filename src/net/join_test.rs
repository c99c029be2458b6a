//! Goal: a node joins with its token and nothing else gets in.
//! Method: real endpoints on loopback in one process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::join::{
    Enroller, JoinError, JoinGrant, JoinRefusal, JoinRequest, JoinToken, TokenVerifier,
};
use super::pki::{CertificateAuthority, NodeClass, NodeKey};
use super::testing::{LOOPBACK, authority, endpoint};
use super::*;
use crate::rt::{Rng, TaskGroup, WallClock};

const SOON: Duration = Duration::from_secs(10);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("in time")
}

fn address(endpoint: &Endpoint) -> SocketAddr {
    endpoint.local_addr().unwrap()
}

#[derive(Default)]
struct Door {
    tokens: Mutex<BTreeMap<String, TokenVerifier>>,
    seen: Mutex<Vec<String>>,
    ca: Option<CertificateAuthority>,
}

#[async_trait]
impl Enroller for Door {
    async fn verifier(&self, token_id: &str) -> Option<TokenVerifier> {
        self.seen.lock().push(token_id.to_owned());
        self.tokens.lock().get(token_id).cloned()
    }

    async fn enroll(&self, token_id: &str, request: JoinRequest) -> Result<JoinGrant, JoinRefusal> {
        self.tokens.lock().remove(token_id);
        let ca = self.ca.as_ref().unwrap();
        let cert_pem = ca
            .issue_node(&request.csr_der, &request.node, &request.addresses, request.class)
            .map_err(|err| JoinRefusal::Forbidden(err.to_string()))?;
        Ok(JoinGrant {
            cluster: ca.cluster().to_owned(),
            cert_pem,
            ca_pem: ca.cert_pem().to_owned(),
            ca_key_pem: None,
            servers: BTreeMap::new(),
            details: request.details,
        })
    }
}

fn join_request(key: &NodeKey) -> JoinRequest {
    JoinRequest {
        node: "new".to_owned(),
        class: NodeClass::Agent,
        csr_der: key.csr_der.clone(),
        addresses: vec!["127.0.0.1".parse().unwrap()],
        quic_port: 6443,
        version: "0.1.0".to_owned(),
        details: BTreeMap::new(),
    }
}

/// A server that lets nodes in, and a token for it.
fn door() -> (Endpoint, TaskGroup, Arc<Door>, JoinToken) {
    let ca = authority();
    let (server, tasks) = endpoint(&ca, "server", NodeClass::Server);
    let token = JoinToken::generate(ca.hash(), &Rng::seeded(9));
    let door = Arc::new(Door { ca: Some(ca), ..Door::default() });
    door.tokens.lock().insert(token.id.clone(), token.verifier());
    let (accepting, enroller) = (server.clone(), Arc::clone(&door));
    tasks.spawn_until_cancelled("join", async move {
        while let Some(conn) = accepting.accept().await {
            join::serve(conn, enroller.clone()).await;
        }
    });
    (server, tasks, door, token)
}

#[tokio::test]
async fn a_node_joins_with_its_token_and_gets_a_certificate_that_works() {
    let (server, _tasks, _door, token) = door();
    let text = token.to_string();
    let token: JoinToken = text.parse().unwrap();
    let key = NodeKey::generate().unwrap();
    let clock = WallClock::system();
    let grant =
        soon(join::request(address(&server), &token, &join_request(&key), &clock)).await.unwrap();
    let id = Identity::new(&grant.cert_pem, &key.key_pem, &grant.ca_pem, &clock).unwrap();
    assert_eq!(id.node_name(), "new");
    let tasks = TaskGroup::new(&tokio_util::sync::CancellationToken::new());
    let node = Endpoint::bind(LOOPBACK, id, NetConfig::default(), &tasks).unwrap();
    soon(node.connect(address(&server), Some("server"), Alpn::Api)).await.unwrap();

    let again = soon(join::request(address(&server), &token, &join_request(&key), &clock)).await;
    assert!(matches!(again, Err(JoinError::Refused(JoinRefusal::Token))), "{again:?}");
}

#[tokio::test]
async fn a_wrong_hash_ends_before_anything_is_sent_and_a_wrong_secret_is_refused() {
    let (server, _tasks, door, token) = door();
    let key = NodeKey::generate().unwrap();
    let clock = WallClock::system();
    let mut other = token.clone();
    authority().hash().clone_into(&mut other.ca_hash);
    let refused = soon(join::request(address(&server), &other, &join_request(&key), &clock)).await;
    assert!(matches!(refused, Err(JoinError::Connect { .. })), "{refused:?}");
    assert!(door.seen.lock().is_empty());

    let mut text = token.to_string();
    let last = text.pop().unwrap();
    text.push(if last == '0' { '1' } else { '0' });
    let guess: JoinToken = text.parse().unwrap();
    let refused = soon(join::request(address(&server), &guess, &join_request(&key), &clock)).await;
    assert!(matches!(refused, Err(JoinError::Refused(JoinRefusal::Token))), "{refused:?}");
    assert!(door.tokens.lock().contains_key(&token.id));
}

#[tokio::test]
async fn a_worker_of_the_cluster_cannot_pose_as_a_join_server() {
    let ca = authority();
    let (worker, _tasks) = endpoint(&ca, "worker", NodeClass::Agent);
    let token = JoinToken::generate(ca.hash(), &Rng::seeded(3));
    let key = NodeKey::generate().unwrap();
    let clock = WallClock::system();
    let refused = soon(join::request(address(&worker), &token, &join_request(&key), &clock)).await;
    assert!(matches!(refused, Err(JoinError::Connect { .. })), "{refused:?}");
}

#[test]
fn only_whole_tokens_are_tokens() {
    let token = JoinToken::generate(&"ab".repeat(32), &Rng::seeded(1));
    let text = token.to_string();
    assert_eq!(text.parse::<JoinToken>().unwrap(), token);
    assert_eq!(format!(" {text}\n").parse::<JoinToken>().unwrap(), token);
    assert!(!format!("{token:?}").contains(&text[text.len() - 32..]));
    for bad in ["", "eo1", &text[1..], &text[..text.len() - 1], &format!("{text}.x")] {
        assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
    }
}
