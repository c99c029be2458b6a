//! How a new node gets its certificate: it proves a token, and is told what it is called.
//!
//! 1. The node connects and compares the authority in the presented chain with the hash in its
//!    token. Until that fits, it has sent nothing but the TLS handshake.
//! 2. It sends the token's id, a certificate request, and an HMAC over the TLS exporter and the
//!    request, keyed by the token's secret. Bound to this very connection, the proof is of no use
//!    to anybody in the middle; the secret itself never travels.
//! 3. The server looks the token up, checks the proof, and answers with a certificate whose
//!    subject and names it built itself, or with a reason.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ring::hmac;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use tracing::{info, warn};

use crate::net::config::NetConfig;
use crate::net::connection::{Alpn, Connection};
use crate::net::driver::Home;
use crate::net::endpoint;
use crate::net::frame::{self, FrameError, Kind};
use crate::net::identity::Peer;
use crate::net::pki::NodeClass;
use crate::net::reach::first_ok;
use crate::net::tunnel;
use crate::net::verify;
use crate::rt::{Rng, WallClock};

/// First part of every token.
const TOKEN_PREFIX: &str = "eo1";
/// Bytes of a token's secret.
const SECRET_BYTES: usize = 16;
/// Version of the bodies below.
const VERSION: u16 = 1;
/// Label of the TLS exporter.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-edgeorc-join-v1";
/// Time for the whole exchange.
const JOIN_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for one handshake; after [`NetConfig::handshake_timeout`] of it TCP is tried as well. A server that
/// many join at once is slow, and gets no faster when they all begin anew.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(6);
/// Said of a server that did not answer.
const LATE: &str = "no answer in time";
/// Pause before a wrong proof is answered, so that guessing is slow.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);

/// What a person carries from a server to a new node:
/// `eo1.<sha256 of the authority's public key>.<id>.<secret>`, all hex.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the authority's SubjectPublicKeyInfo, 64 hex digits.
    pub ca_hash: String,
    /// Names the token to the server; not secret.
    pub id: String,
    /// 128 random bits.
    secret: [u8; SECRET_BYTES],
}

impl JoinToken {
    /// A new token with a random id and secret.
    #[must_use]
    pub fn generate(ca_hash: &str, rng: &Rng) -> Self {
        let (mut id, mut secret) = ([0_u8; 4], [0_u8; SECRET_BYTES]);
        rng.fill(&mut id);
        rng.fill(&mut secret);
        Self { ca_hash: ca_hash.to_owned(), id: hex::encode(id), secret }
    }

    /// What the server keeps instead of the secret, and what keys the proof: its SHA-256.
    #[must_use]
    pub fn verifier(&self) -> TokenVerifier {
        TokenVerifier(Sha256::digest(self.secret).into())
    }
}

impl fmt::Display for JoinToken {
    /// The whole token, with its secret: for the person who asked for it, never for a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{TOKEN_PREFIX}.{}.{}.{}", self.ca_hash, self.id, hex::encode(self.secret))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The text is no token.
#[derive(Debug, thiserror::Error)]
#[error("not a join token: expected eo1.<hash>.<id>.<secret>, as printed by a server")]
pub struct TokenError;

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('.');
        let (Some(TOKEN_PREFIX), Some(ca_hash), Some(id), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError);
        };
        let is_hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let is_id = !id.is_empty() && id.len() <= 64 && is_hex(id);
        if ca_hash.len() != 64 || !is_hex(ca_hash) || !is_id {
            return Err(TokenError);
        }
        let mut bytes = [0; SECRET_BYTES];
        hex::decode_to_slice(secret, &mut bytes).map_err(|_| TokenError)?;
        Ok(Self { ca_hash: ca_hash.to_owned(), id: id.to_owned(), secret: bytes })
    }
}

/// SHA-256 of a token's secret: what servers keep. As good as the secret for joining.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenVerifier(pub [u8; 32]);

impl fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenVerifier")
    }
}

/// What a new node asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Name it would like.
    pub node: String,
    /// What it would like to be.
    pub class: NodeClass,
    /// Certificate request, DER ([`crate::net::pki::NodeKey`]).
    pub csr_der: Vec<u8>,
    /// Its addresses, for the certificate.
    pub addresses: Vec<IpAddr>,
    /// Port of its QUIC endpoint.
    pub quic_port: u16,
    /// Version of its program.
    pub version: String,
    /// Anything else the roles agree on.
    pub details: BTreeMap<String, String>,
}

/// What it gets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinGrant {
    /// The cluster's name.
    pub cluster: String,
    /// The node's certificate.
    pub cert_pem: String,
    /// The authority's certificate.
    pub ca_pem: String,
    /// The authority's key, for servers only. Secret.
    pub ca_key_pem: Option<String>,
    /// The servers and where to dial them.
    pub servers: BTreeMap<String, SocketAddr>,
    /// Anything else the roles agree on.
    pub details: BTreeMap<String, String>,
}

impl fmt::Debug for JoinGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinGrant")
            .field("cluster", &self.cluster)
            .field("servers", &self.servers)
            .finish_non_exhaustive()
    }
}

/// Why a node was not let in; goes to the person who started it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum JoinRefusal {
    /// Unknown or expired token, one that let another node in, or a wrong secret: not told apart. Get another token.
    #[error("the token is not valid: unknown, expired, already used, or mistyped")]
    Token,
    /// The token does not cover what was asked, or the name is taken. Ask for something else.
    #[error("{0}")]
    Forbidden(String),
    /// The server cannot decide now. Retry.
    #[error("the server cannot admit nodes now: {0}")]
    Unavailable(String),
}

/// Why a node did not get its certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// Nobody answered there, or not a server of the cluster whose hash is in the token. Nothing
    /// secret was sent. Check address and token.
    #[error("cannot reach a server of this cluster at {address}: {reason}")]
    Connect {
        /// Where it was tried.
        address: SocketAddr,
        /// What went wrong.
        reason: String,
    },
    /// The exchange broke. Retry with the same token and the same key: should the server have let
    /// this node in, it says so again.
    #[error("the server at {address} did not answer: {reason}")]
    Exchange {
        /// Where it was tried.
        address: SocketAddr,
        /// What went wrong.
        reason: String,
    },
    /// The server said no.
    #[error("the server refused the node: {0}")]
    Refused(#[from] JoinRefusal),
}

/// Decides who may join; implemented by the server role over the store.
#[async_trait]
pub trait Enroller: Send + Sync + 'static {
    /// What is kept of a token that is known and not expired.
    async fn verifier(&self, token_id: &str) -> Option<TokenVerifier>;

    /// Admits a node that has proved the token `token_id`. From then on the token is of use to that
    /// node alone, which may ask again: an answer can get lost.
    ///
    /// # Errors
    ///
    /// See [`JoinRefusal`]; the node gets it word for word.
    async fn enroll(&self, token_id: &str, request: JoinRequest) -> Result<JoinGrant, JoinRefusal>;
}

#[derive(Serialize, Deserialize)]
struct Proven {
    token_id: String,
    /// [`JoinRequest`], encoded: the proof covers these very bytes.
    request: Vec<u8>,
    proof: Vec<u8>,
}

type Answer = Result<JoinGrant, JoinRefusal>;

/// Asks the server at `address` for a certificate.
///
/// # Errors
///
/// See [`JoinError`].
pub async fn request(
    address: SocketAddr,
    token: &JoinToken,
    request: &JoinRequest,
    clock: &WallClock,
) -> Result<JoinGrant, JoinError> {
    let exchange = async {
        let (quic, conn) = connect(address, token, clock).await?;
        let answer = exchange(&conn, token, request)
            .await
            .map_err(|err| JoinError::Exchange { address, reason: err.to_string() });
        conn.close("done");
        quic.wait_idle().await;
        Ok(answer??)
    };
    tokio::time::timeout(JOIN_TIMEOUT, exchange)
        .await
        .unwrap_or_else(|_| Err(JoinError::Exchange { address, reason: LATE.to_owned() }))
}

/// Over UDP, or through a tunnel where UDP does not get through.
async fn connect(
    address: SocketAddr,
    token: &JoinToken,
    clock: &WallClock,
) -> Result<(quinn::Endpoint, Connection), JoinError> {
    let failed = |reason: String| JoinError::Connect { address, reason };
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let (quic, fabric) = endpoint::open(any, "", None, Arc::new(quinn::TokioRuntime))
        .map_err(|err| failed(err.to_string()))?;
    let config = NetConfig::default();
    let handshake = async |at: SocketAddr| {
        let tls = verify::join_config(&token.ca_hash, clock);
        let transport = endpoint::transport(&config, Some(config.keep_alive))?;
        let client = endpoint::client(tls, transport)?;
        let connecting =
            quic.connect_with(client, at, "edgeorc.invalid").map_err(|err| err.to_string())?;
        tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting)
            .await
            .map_err(|_| LATE.to_owned())?
            .map_err(|err| err.to_string())
    };
    let through_tcp = async |direct: String| {
        tracing::debug!(%address, err = direct, "no answer over UDP, trying TCP");
        let tls =
            verify::join_tunnel_config(&token.ca_hash, clock).map_err(|err| err.to_string())?;
        let way = tunnel::join(&fabric, address, tls).await.map_err(|_| direct)?;
        handshake(way).await
    };
    let conn = {
        let mut direct = std::pin::pin!(handshake(address));
        match tokio::time::timeout(config.handshake_timeout, &mut direct).await {
            Ok(Ok(conn)) => Ok(conn),
            Ok(Err(err)) => through_tcp(err).await,
            Err(_) => first_ok(direct, std::pin::pin!(through_tcp(LATE.to_owned()))).await,
        }
    };
    let conn = conn.map_err(failed)?;
    let (nobody, home) = (Peer::default(), Home::default());
    let opened = (true, Alpn::Join.patience(&nobody));
    Ok((quic, Connection::new(conn, nobody, Alpn::Join, opened, &config, home)))
}

async fn exchange(
    conn: &Connection,
    token: &JoinToken,
    request: &JoinRequest,
) -> Result<Answer, FrameError> {
    let request = frame::to_body(request)?;
    let proof = proof(conn, &token.id, &request, &token.verifier())?;
    let message = Proven { token_id: token.id.clone(), request, proof };
    let mut stream = conn.open_bi().await.map_err(std::io::Error::other)?;
    let body = frame::to_body(&message)?;
    frame::write_frame(&mut stream, Kind::JOIN_REQUEST, VERSION, &body).await?;
    stream.shutdown().await?;
    let answer = frame::read_frame(&mut stream, &[Kind::JOIN_RESPONSE]).await?;
    frame::from_body(&answer.body)
}

/// Answers one join exchange on a connection of [`Alpn::Join`]; returns when it is over.
pub async fn serve(conn: Connection, enroller: Arc<dyn Enroller>) {
    let address = conn.remote_address();
    match tokio::time::timeout(JOIN_TIMEOUT, answer(&conn, &*enroller)).await {
        Ok(Ok(())) => {
            // The node closes once it has read the answer.
            let _ = tokio::time::timeout(JOIN_TIMEOUT, conn.closed()).await;
        }
        Ok(Err(err)) => warn!(peer.address = %address, %err, "join exchange failed"),
        Err(_) => warn!(peer.address = %address, "join exchange took too long"),
    }
    conn.close("done");
}

async fn answer(conn: &Connection, enroller: &dyn Enroller) -> Result<(), FrameError> {
    let mut stream = conn.accept_bi().await.map_err(std::io::Error::other)?;
    let frame = frame::read_frame(&mut stream, &[Kind::JOIN_REQUEST]).await?;
    let message: Proven = frame::from_body(&frame.body)?;
    let answer: Answer = match check(conn, enroller, &message).await {
        Ok(()) => {
            let request: JoinRequest = frame::from_body(&message.request)?;
            let node = request.node.clone();
            let answer = enroller.enroll(&message.token_id, request).await;
            match &answer {
                Ok(_) => info!(k8s.node.name = %node, "node joined"),
                Err(err) => info!(k8s.node.name = %node, %err, "node refused"),
            }
            answer
        }
        Err(refusal) => {
            info!(peer.address = %conn.remote_address(), "join with a wrong token");
            tokio::time::sleep(REFUSAL_PAUSE).await;
            Err(refusal)
        }
    };
    let body = frame::to_body(&answer)?;
    frame::write_frame(&mut stream, Kind::JOIN_RESPONSE, VERSION, &body).await?;
    stream.shutdown().await?;
    Ok(())
}

async fn check(
    conn: &Connection,
    enroller: &dyn Enroller,
    message: &Proven,
) -> Result<(), JoinRefusal> {
    let verifier = enroller.verifier(&message.token_id).await.ok_or(JoinRefusal::Token)?;
    let (key, bound) = proof_input(conn, &message.token_id, &message.request, &verifier)
        .map_err(|_| JoinRefusal::Token)?;
    hmac::verify(&key, &bound, &message.proof).map_err(|_| JoinRefusal::Token)
}

fn proof(
    conn: &Connection,
    token_id: &str,
    request: &[u8],
    verifier: &TokenVerifier,
) -> Result<Vec<u8>, FrameError> {
    let (key, bound) = proof_input(conn, token_id, request, verifier)?;
    Ok(hmac::sign(&key, &bound).as_ref().to_vec())
}

/// The key of the proof, and what it covers: this connection and these bytes.
fn proof_input(
    conn: &Connection,
    token_id: &str,
    request: &[u8],
    verifier: &TokenVerifier,
) -> Result<(hmac::Key, Vec<u8>), FrameError> {
    let exported = conn
        .export_key(EXPORTER_LABEL, token_id.as_bytes())
        .ok_or_else(|| std::io::Error::other("the connection has no exporter"))?;
    let mut bound = exported.to_vec();
    bound.extend_from_slice(&Sha256::digest(request));
    Ok((hmac::Key::new(hmac::HMAC_SHA256, &verifier.0), bound))
}
