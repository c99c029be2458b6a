//! Certificates of the ingress: chosen by the name that the client asks for, exchanged while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tracing::{debug, warn};

use super::table::{CertificateUse, SecretName};
use crate::mesh::Mesh;
use crate::net::{certified_key, pki, web_server_config};

/// Certificates of one chain.
const CHAIN_MAX: usize = 16;

/// A certificate with its chain, and its key: what a Secret of type `kubernetes.io/tls` holds.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificatePem {
    /// `tls.crt`.
    pub chain: Vec<u8>,
    /// `tls.key`. Secret.
    pub key: Vec<u8>,
}

impl fmt::Debug for CertificatePem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificatePem(..)")
    }
}

/// Why a Secret is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum CertificateError {
    /// The Secret must be written again.
    #[error("tls.crt holds no certificates in PEM")]
    Chain,
    /// The Secret must be written again.
    #[error("tls.key holds no private key in PEM")]
    Key,
    /// The key is of another certificate, or of a kind that is not supported.
    #[error("the key does not fit: {0}")]
    Unfit(#[from] rustls::Error),
}

/// The certificates in use. Read without a lock by every handshake.
#[derive(Default)]
pub(in crate::mesh) struct Certificates {
    ports: ArcSwap<BTreeMap<u16, PortCertificates>>,
    known: Mutex<Known>,
    /// Shown where no other fits.
    own: std::sync::OnceLock<Option<Arc<CertifiedKey>>>,
}

/// What the ports' certificates are made of.
#[derive(Default)]
struct Known {
    uses: Vec<CertificateUse>,
    pem: BTreeMap<SecretName, CertificatePem>,
    parsed: BTreeMap<SecretName, Parsed>,
}

#[derive(Clone)]
struct Parsed {
    key: Arc<CertifiedKey>,
    names: Vec<String>,
}

#[derive(Default)]
struct PortCertificates {
    named: BTreeMap<String, Arc<CertifiedKey>>,
    /// Keyed by what follows `*.`.
    wildcard: BTreeMap<String, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports: Vec<u16> = self.ports.load().keys().copied().collect();
        f.debug_struct("Certificates").field("ports", &ports).finish_non_exhaustive()
    }
}

impl Mesh {
    /// Gives the ingress the certificates of the Secrets that its routes name. Connections that run
    /// keep theirs; a Secret that holds no certificate leaves the one before in use.
    pub fn set_certificates(&self, certificates: BTreeMap<SecretName, CertificatePem>) {
        self.0.ingress.certificates.set_pem(certificates);
    }
}

impl Certificates {
    /// TLS for a port: HTTP/2 or HTTP/1.1, TLS 1.2 or 1.3.
    pub(super) fn server_config(
        self: &Arc<Self>,
        port: u16,
    ) -> Result<Arc<ServerConfig>, rustls::Error> {
        web_server_config(self.resolver(port))
    }

    /// What chooses the certificate of each handshake at a port.
    pub(super) fn resolver(self: &Arc<Self>, port: u16) -> Arc<dyn ResolvesServerCert> {
        Arc::new(Resolver { certificates: Arc::clone(self), port })
    }

    /// Which certificates are shown where from now on.
    pub(super) fn set_uses(&self, uses: &[CertificateUse]) {
        let mut known = self.known.lock();
        if known.uses != uses {
            known.uses = uses.to_vec();
            self.publish(&known);
        }
    }

    fn set_pem(&self, pem: BTreeMap<SecretName, CertificatePem>) {
        let mut known = self.known.lock();
        if known.pem == pem {
            return;
        }
        let known = &mut *known;
        known.parsed.retain(|name, _| pem.contains_key(name));
        for (name, pem) in &pem {
            if known.pem.get(name) == Some(pem) {
                continue;
            }
            match parse(pem) {
                Ok(parsed) => {
                    known.parsed.insert(name.clone(), parsed);
                }
                Err(err) => {
                    let (namespace, name) = name;
                    warn!(k8s.namespace.name = namespace, secret = name, %err, "not a certificate");
                }
            }
        }
        known.pem = pem;
        self.publish(known);
    }

    fn publish(&self, known: &Known) {
        let mut ports: BTreeMap<u16, PortCertificates> = BTreeMap::new();
        for one in &known.uses {
            let Some(parsed) = known.parsed.get(&one.secret) else { continue };
            let port = ports.entry(one.port).or_default();
            let is_for_any = one.hosts.is_empty();
            // The names of the listener or the Ingress, and those that the certificate is for, but
            // only as far as it may be shown there.
            let named: BTreeSet<&String> =
                if is_for_any { parsed.names.iter().collect() } else { one.hosts.iter().collect() };
            for name in named {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(rest) => (&mut port.wildcard, rest),
                    None => (&mut port.named, name.as_str()),
                };
                map.entry(name.to_owned()).or_insert_with(|| Arc::clone(&parsed.key));
            }
            if is_for_any {
                port.default.get_or_insert_with(|| Arc::clone(&parsed.key));
            }
        }
        debug!(ports = ports.len(), "certificates of the ingress changed");
        self.ports.store(Arc::new(ports));
    }

    fn find(&self, port: u16, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let ports = self.ports.load();
        let found = ports.get(&port).and_then(|certificates| certificates.find(name));
        found.or_else(|| self.own.get_or_init(self_signed).clone())
    }
}

impl PortCertificates {
    fn find(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let by_name = name.map(str::to_ascii_lowercase).and_then(|name| {
            if let Some(found) = self.named.get(&name) {
                return Some(found);
            }
            let mut rest = name.as_str();
            loop {
                rest = rest.split_once('.')?.1;
                if let Some(found) = self.wildcard.get(rest) {
                    return Some(found);
                }
            }
        });
        by_name.or(self.default.as_ref()).cloned()
    }
}

/// Chooses the certificate of each handshake at one port.
struct Resolver {
    certificates: Arc<Certificates>,
    port: u16,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("port", &self.port).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certificates.find(self.port, hello.server_name())
    }
}

fn parse(pem: &CertificatePem) -> Result<Parsed, CertificateError> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem.chain)
        .take(CHAIN_MAX)
        .collect::<Result<_, _>>()
        .map_err(|_| CertificateError::Chain)?;
    let first = chain.first().ok_or(CertificateError::Chain)?;
    let names = names(first);
    let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(|_| CertificateError::Key)?;
    let key = certified_key(chain, key)?;
    Ok(Parsed { key: Arc::new(key), names })
}

/// DNS names of a certificate, in lower case.
fn names(der: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names = names.value.general_names.iter().filter_map(|name| match name {
        x509_parser::extensions::GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    names.collect()
}

/// A certificate that nobody trusts, so that a handshake can be made at all.
fn self_signed() -> Option<Arc<CertifiedKey>> {
    let made = pki::self_signed("edgeorc.invalid");
    let made = made.inspect_err(|err| warn!(%err, "cannot make a certificate")).ok()?;
    let pem = CertificatePem { chain: made.cert_pem.into(), key: made.key_pem.into() };
    let parsed = parse(&pem).inspect_err(|err| warn!(%err, "cannot use a certificate")).ok()?;
    Some(parsed.key)
}
