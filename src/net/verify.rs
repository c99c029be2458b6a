//! How a dialler checks who answers: by chain and name in the certificate, never by host name.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use sha2::{Digest as _, Sha256};

use crate::net::connection::Alpn;
use crate::net::identity::{ClockTime, Identity, IdentityError, Peer, provider};
use crate::rt::WallClock;

/// What the certificate of the listener must show.
#[derive(Debug)]
enum Trust {
    /// Signed by our authority; the node's name, if one is expected.
    Cluster { roots: Arc<RootCertStore>, node: Option<String> },
    /// Signed by the authority whose public key has this SHA-256 (hex), which the listener sends.
    Pinned { hash: String },
}

#[derive(Debug)]
struct NodeVerifier {
    trust: Trust,
    must_be_server: bool,
    provider: Arc<CryptoProvider>,
}

/// TLS of an outbound connection of ours to a node of the cluster.
pub(super) fn client_config(
    identity: &Identity,
    node: Option<&str>,
    alpn: Alpn,
) -> Result<ClientConfig, IdentityError> {
    let provider = provider();
    let verifier = NodeVerifier {
        trust: Trust::Cluster { roots: identity.roots(), node: node.map(str::to_owned) },
        must_be_server: alpn.listener_must_be_server(),
        provider: Arc::clone(&provider),
    };
    let mut config = ClientConfig::builder_with_details(provider, identity.time())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(identity.clone()));
    finish(&mut config, alpn);
    Ok(config)
}

/// TLS of a joiner's tunnel: it offers both protocols, so that the server shows its authority.
pub(super) fn join_tunnel_config(
    ca_hash: &str,
    clock: &WallClock,
) -> Result<ClientConfig, IdentityError> {
    let mut config = join_config(ca_hash, clock)?;
    config.alpn_protocols.insert(0, Alpn::Tunnel.as_bytes().to_vec());
    Ok(config)
}

/// TLS of a joiner: no certificate of its own, and only the hash of the authority's key.
pub(super) fn join_config(ca_hash: &str, clock: &WallClock) -> Result<ClientConfig, IdentityError> {
    let provider = provider();
    let verifier = NodeVerifier {
        trust: Trust::Pinned { hash: ca_hash.to_owned() },
        must_be_server: true,
        provider: Arc::clone(&provider),
    };
    let time = Arc::new(ClockTime(clock.clone()));
    let mut config = ClientConfig::builder_with_details(provider, time)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    finish(&mut config, Alpn::Join);
    Ok(config)
}

fn finish(config: &mut ClientConfig, alpn: Alpn) {
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
    // The name of the host says nothing here; not sending it tells an observer less.
    config.enable_sni = false;
}

impl NodeVerifier {
    /// The authority in the presented chain whose key has the pinned hash.
    fn pinned_roots(hash: &str, chain: &[CertificateDer<'_>]) -> Result<RootCertStore, Error> {
        for cert in chain {
            let Ok((_, parsed)) = x509_parser::parse_x509_certificate(cert) else { continue };
            if hex::encode(Sha256::digest(parsed.public_key().raw)) != hash {
                continue;
            }
            let mut roots = RootCertStore::empty();
            roots.add(cert.clone().into_owned())?;
            return Ok(roots);
        }
        Err(Error::General("its CA is not the one whose hash is in the token".to_owned()))
    }
}

/// The time at which a certificate is judged: `now`, or when it was issued if that is yet to come. Its
/// signature proves that this time has come, so it is the clock here that is hours behind, which would
/// cut the node off from all whose certificates are new. When a certificate ends is judged as ever.
fn not_before_issue(cert: &CertificateDer<'_>, now: UnixTime) -> UnixTime {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(cert) else { return now };
    let issued = u64::try_from(parsed.validity().not_before.timestamp()).unwrap_or(0);
    now.max(UnixTime::since_unix_epoch(Duration::from_secs(issued)))
}

/// Who may dial: nobody in particular, or whoever shows a certificate of the cluster.
#[derive(Debug)]
pub(super) struct DiallerVerifier(Arc<dyn ClientCertVerifier>);

impl DiallerVerifier {
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<Self>, IdentityError> {
        let strict = WebPkiClientVerifier::builder_with_provider(roots, provider)
            .allow_unauthenticated()
            .build()
            .map_err(|err| IdentityError::Malformed(err.to_string()))?;
        Ok(Arc::new(Self(strict)))
    }
}

impl ClientCertVerifier for DiallerVerifier {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let now = not_before_issue(end_entity, now);
        self.0.verify_client_cert(end_entity, intermediates, now)
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let now = not_before_issue(end_entity, now);
        let cert = ParsedCertificate::try_from(end_entity)?;
        let expected = match &self.trust {
            Trust::Cluster { roots, node } => {
                verify_server_cert_signed_by_trust_anchor(&cert, roots, &[], now, algorithms)?;
                node.as_deref()
            }
            Trust::Pinned { hash } => {
                let roots = Self::pinned_roots(hash, intermediates)?;
                verify_server_cert_signed_by_trust_anchor(&cert, &roots, &[], now, algorithms)?;
                None
            }
        };
        let peer = Peer::from_certificate(end_entity)
            .map_err(|_| Error::from(CertificateError::BadEncoding))?;
        let is_right_class = if self.must_be_server { peer.is_server() } else { peer.is_node() };
        let is_right_name = expected.is_none_or(|name| name == peer.node);
        if !is_right_class || !is_right_name {
            return Err(CertificateError::NotValidForName.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
