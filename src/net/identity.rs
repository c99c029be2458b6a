//! Who this node is, and who a peer is: read from certificates, swappable while running.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};

use crate::net::connection::Alpn;
use crate::net::pki::{self, NODE_USER_PREFIX, NODES_GROUP, SERVERS_GROUP};
use crate::net::verify::DiallerVerifier;
use crate::rt::WallClock;

/// The other end of a connection, as its certificate names it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peer {
    /// Name of the node; empty when the peer is no node: a person, or nobody yet (join).
    pub node: String,
    /// Common name: the Kubernetes user. Empty when the peer showed no certificate.
    pub user: String,
    /// Organizations: the Kubernetes groups.
    pub groups: Vec<String>,
    /// SHA-256 of its public key (SubjectPublicKeyInfo), hex: two nodes that had one name after
    /// each other differ in it. Empty when the peer showed no certificate.
    pub key_hash: String,
}

impl Peer {
    /// Reads a certificate that TLS has verified already.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Malformed`] when it is no X.509 certificate.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, cert) = x509_parser::parse_x509_certificate(der)
            .map_err(|err| IdentityError::Malformed(err.to_string()))?;
        let subject = cert.subject();
        let user = subject.iter_common_name().next().and_then(|name| name.as_str().ok());
        let user = user.unwrap_or_default().to_owned();
        let groups: Vec<String> = subject
            .iter_organization()
            .filter_map(|organization| organization.as_str().ok())
            .map(str::to_owned)
            .collect();
        let is_node = groups.iter().any(|group| group == NODES_GROUP);
        let node = if is_node { user.strip_prefix(NODE_USER_PREFIX) } else { None };
        let key_hash = hex::encode(Sha256::digest(cert.public_key().raw));
        Ok(Self { node: node.unwrap_or_default().to_owned(), user, groups, key_hash })
    }

    /// Whether the peer showed a certificate of the cluster.
    #[must_use]
    pub fn is_authenticated(&self) -> bool {
        !self.user.is_empty()
    }

    /// Whether the peer is a node of the cluster.
    #[must_use]
    pub fn is_node(&self) -> bool {
        !self.node.is_empty()
    }

    /// Whether the peer is a server of the cluster.
    #[must_use]
    pub fn is_server(&self) -> bool {
        self.is_node() && self.groups.iter().any(|group| group == SERVERS_GROUP)
    }
}

/// Why an identity was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A certificate or key cannot be read, or they do not belong together. Give up.
    #[error("cannot read certificate or key: {0}")]
    Malformed(String),
    /// The certificate is not a node's. Give up.
    #[error("the certificate of {user} is not a node's")]
    NotANode {
        /// Its common name.
        user: String,
    },
    /// TLS refused the settings, or a certificate. Give up.
    #[error("TLS refused: {0}")]
    Tls(#[from] rustls::Error),
    /// Something was signed by a node that is no server. Do not use it.
    #[error("{user} is no server")]
    NotAServer {
        /// Common name of its certificate.
        user: String,
    },
    /// A signature does not fit what was signed. Do not use it.
    #[error("the signature does not fit")]
    Signature,
}

/// This node's certificate and key, and the authority it trusts. Cheap to clone; all clones are
/// one identity, and a renewed certificate is used by every new connection from then on.
#[derive(Debug, Clone)]
pub struct Identity(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    ca_pem: String,
    roots: Arc<RootCertStore>,
    clock: WallClock,
    keys: ArcSwap<Keys>,
}

/// The present key, with the chains it is shown with.
#[derive(Debug)]
struct Keys {
    /// Certificate alone: the peer has the authority's.
    leaf: Arc<CertifiedKey>,
    /// With the authority's certificate, for a joiner who has only its hash.
    with_authority: Arc<CertifiedKey>,
    peer: Peer,
    expires: SystemTime,
}

impl Identity {
    /// From PEM texts: the node's certificate, its key, and the authority's certificate.
    ///
    /// # Errors
    ///
    /// See [`IdentityError`].
    pub fn new(
        cert_pem: &str,
        key_pem: &str,
        ca_pem: &str,
        clock: &WallClock,
    ) -> Result<Self, IdentityError> {
        let keys = Keys::read(cert_pem, key_pem, ca_pem)?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate(ca_pem)?)?;
        Ok(Self(Arc::new(Inner {
            name: keys.peer.node.clone(),
            ca_pem: ca_pem.to_owned(),
            roots: Arc::new(roots),
            clock: clock.clone(),
            keys: ArcSwap::from_pointee(keys),
        })))
    }

    /// Uses a renewed certificate for every connection from now on.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Malformed`] also when it names another node.
    pub fn replace(&self, cert_pem: &str, key_pem: &str) -> Result<(), IdentityError> {
        let keys = Keys::read(cert_pem, key_pem, &self.0.ca_pem)?;
        if keys.peer.node != self.0.name {
            return Err(IdentityError::Malformed(format!(
                "the certificate is of node {}, this is {}",
                keys.peer.node, self.0.name
            )));
        }
        self.0.keys.store(Arc::new(keys));
        Ok(())
    }

    /// This node's name.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.0.name
    }

    /// This node as its peers see it.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.0.keys.load().peer.clone()
    }

    /// When the present certificate ends.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.0.keys.load().expires
    }

    /// The authority's certificate.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.0.ca_pem
    }

    /// TLS for the HTTPS port: this node's certificate; a client may show one of the cluster's
    /// (see [`Peer::from_certificate`]); HTTP/2 or HTTP/1.1.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Tls`].
    pub fn https_server_config(&self) -> Result<Arc<ServerConfig>, IdentityError> {
        let versions: &[_] = &[&rustls::version::TLS13, &rustls::version::TLS12];
        let mut config = self.server_config(versions)?;
        config.alpn_protocols =
            vec![b"h2".to_vec(), b"http/1.1".to_vec(), Alpn::Tunnel.as_bytes().to_vec()];
        Ok(Arc::new(config))
    }

    /// TLS for inbound QUIC connections of every ALPN.
    pub(super) fn quic_server_config(&self) -> Result<ServerConfig, IdentityError> {
        let mut config = self.server_config(&[&rustls::version::TLS13])?;
        config.alpn_protocols = Alpn::ALL.iter().map(|alpn| alpn.as_bytes().to_vec()).collect();
        Ok(config)
    }

    fn server_config(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Result<ServerConfig, IdentityError> {
        let provider = provider();
        let clients = DiallerVerifier::new(Arc::clone(&self.0.roots), Arc::clone(&provider))?;
        let mut config = ServerConfig::builder_with_details(provider, self.time())
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(self.clone()));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// The present certificate with its key.
    pub(super) fn leaf(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.keys.load().leaf)
    }

    pub(super) fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.0.roots)
    }

    pub(super) fn time(&self) -> Arc<dyn TimeProvider> {
        Arc::new(ClockTime(self.0.clock.clone()))
    }
}

impl Keys {
    fn read(cert_pem: &str, key_pem: &str, ca_pem: &str) -> Result<Self, IdentityError> {
        let leaf = certificate(cert_pem)?;
        let peer = Peer::from_certificate(&leaf)?;
        let expires = not_after(&leaf)?;
        if !peer.is_node() {
            return Err(IdentityError::NotANode { user: peer.user });
        }
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|err| IdentityError::Malformed(err.to_string()))?;
        let alone = CertifiedKey::from_der(vec![leaf.clone()], key, &provider())?;
        let chain = vec![leaf, certificate(ca_pem)?];
        let with_authority = CertifiedKey::new(chain, Arc::clone(&alone.key));
        let leaf = Arc::new(alone);
        Ok(Self { leaf, with_authority: Arc::new(with_authority), peer, expires })
    }
}

impl rustls::server::ResolvesServerCert for Identity {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let keys = self.0.keys.load();
        let is_join = hello
            .alpn()
            .is_some_and(|mut protocols| protocols.any(|name| name == Alpn::Join.as_bytes()));
        Some(Arc::clone(if is_join { &keys.with_authority } else { &keys.leaf }))
    }
}

impl rustls::client::ResolvesClientCert for Identity {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.keys.load().leaf))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Our own clock for certificate lifetimes, so that tests and clock floors reach them.
#[derive(Debug)]
pub(super) struct ClockTime(pub(super) WallClock);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        let since = self.0.system_time().duration_since(UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}

/// The one provider of cryptography, named explicitly: nothing depends on a process-wide default.
/// TLS for clients that are anybody: no certificate is asked of them, and `resolver` chooses the one
/// that they are shown. HTTP/2 or HTTP/1.1, TLS 1.2 or 1.3.
///
/// # Errors
///
/// [`rustls::Error`] never in practice: the provider has suites of both versions.
pub fn web_server_config(
    resolver: Arc<dyn rustls::server::ResolvesServerCert>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let versions: &[_] = &[&rustls::version::TLS13, &rustls::version::TLS12];
    let builder =
        ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions)?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A certificate chain with its key, as TLS uses them.
///
/// # Errors
///
/// When the key is of another certificate, or of a kind that is not supported.
pub fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, rustls::Error> {
    CertifiedKey::from_der(chain, key, &provider())
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn not_after(der: &[u8]) -> Result<SystemTime, IdentityError> {
    let (_, cert) = x509_parser::parse_x509_certificate(der)
        .map_err(|err| IdentityError::Malformed(err.to_string()))?;
    let seconds = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
    Ok(UNIX_EPOCH + Duration::from_secs(seconds))
}

fn certificate(pem: &str) -> Result<CertificateDer<'static>, IdentityError> {
    let der = pki::pem_to_der(pem).map_err(|err| IdentityError::Malformed(err.to_string()))?;
    Ok(der.into())
}
