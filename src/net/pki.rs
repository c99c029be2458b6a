//! The cluster's certificate authority: makes itself, signs nodes, servers and people.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::CertificateSigningRequestDer;
use sha2::{Digest as _, Sha256};

use crate::rt::WallClock;

/// Prefix of a node's common name; the rest is the node's name.
pub const NODE_USER_PREFIX: &str = "system:node:";
/// Organization of every node's certificate.
pub const NODES_GROUP: &str = "system:nodes";
/// Second organization of a server's certificate.
pub const SERVERS_GROUP: &str = "edgeorc:servers";

/// Life of the authority's certificate: ten years.
pub const CA_LIFE: Duration = Duration::from_secs(10 * 365 * DAY_SECONDS);
/// Life of a node's certificate: 30 days; renew at two thirds.
pub const NODE_LIFE: Duration = Duration::from_secs(30 * DAY_SECONDS);
/// Life of a person's certificate: one year.
pub const CLIENT_LIFE: Duration = Duration::from_secs(365 * DAY_SECONDS);
/// DNS names of the API server, beside the node's own.
const API_NAMES: &[&str] =
    &["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
/// Names with a meaning of their own, and everything below them.
const RESERVED_NAMES: &[&str] = &["localhost", "kubernetes"];
/// Organizations that a client certificate can hold.
pub const ORGANIZATIONS_MAX: usize = 2;
/// Addresses that a node certificate can hold.
pub const ADDRESSES_MAX: usize = 32;

const DAY_SECONDS: u64 = 24 * 60 * 60;
/// Clocks of small machines are off; a certificate is good from a little before it was made.
const BACKDATED: Duration = Duration::from_secs(60 * 60);
/// Object identifier of the organization attribute.
const OID_ORGANIZATION: [u64; 4] = [2, 5, 4, 10];

/// Why a certificate was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// The name cannot stand in a certificate. Give up.
    #[error("{name} is no valid node or cluster name")]
    Name {
        /// As given.
        name: String,
    },
    /// The name means something else to clients of the API. Choose another.
    #[error("the name {name} is reserved; choose another --node-name")]
    Reserved {
        /// As given.
        name: String,
    },
    /// More organizations or addresses than a certificate takes. Give up.
    #[error("{got} {what} are more than the {max} a certificate takes")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many were given.
        got: usize,
        /// How many fit.
        max: usize,
    },
    /// The text is not the PEM or DER it should be, or a request is not signed by its own key. Give up.
    #[error("cannot read the {what}: {reason}")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The signature could not be made. Retry later; the system is out of something.
    #[error("cannot sign: {0}")]
    Sign(String),
}

/// A certificate with its private key, both PEM.
#[derive(Clone)]
pub struct KeyPairPem {
    /// Certificate.
    pub cert_pem: String,
    /// Private key, PKCS #8. Secret.
    pub key_pem: String,
}

impl std::fmt::Debug for KeyPairPem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPairPem").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

/// What a node may be.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum NodeClass {
    /// Runs pods.
    Agent,
    /// Runs pods, and serves the API and the store.
    Server,
}

/// A fresh private key of a node, and the request to certify it.
#[derive(Clone)]
pub struct NodeKey {
    /// Private key, PKCS #8 PEM. Never leaves the node.
    pub key_pem: String,
    /// Certificate signing request, DER. Carries the public key and proves that its key exists.
    pub csr_der: Vec<u8>,
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeKey").finish_non_exhaustive()
    }
}

impl NodeKey {
    /// Makes a P-256 key and a request for it.
    ///
    /// # Errors
    ///
    /// [`PkiError::Sign`].
    pub fn generate() -> Result<Self, PkiError> {
        Self::for_key(&KeyPair::generate().map_err(sign_error)?)
    }

    /// A request for a key that exists already: renewal.
    ///
    /// # Errors
    ///
    /// [`PkiError::Malformed`] when `key_pem` is no key.
    pub fn from_pem(key_pem: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key_pem).map_err(malformed("private key"))?;
        Self::for_key(&key)
    }

    fn for_key(key: &KeyPair) -> Result<Self, PkiError> {
        // The server builds subject and names itself, so the request says nothing but the key.
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(key).map_err(sign_error)?;
        Ok(Self { key_pem: key.serialize_pem(), csr_der: csr.der().to_vec() })
    }
}

/// Signs the cluster's certificates. Only servers have it.
pub struct CertificateAuthority {
    cluster: String,
    cert_pem: String,
    key_pem: String,
    hash: String,
    issuer: Issuer<'static, KeyPair>,
    clock: WallClock,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("cluster", &self.cluster)
            .field("hash", &self.hash)
            .finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// Makes the authority of a new cluster: a P-256 key and a certificate for ten years.
    ///
    /// # Errors
    ///
    /// [`PkiError::Name`] when `cluster` cannot stand in a certificate.
    pub fn generate(cluster: &str, clock: &WallClock) -> Result<Self, PkiError> {
        check_name(cluster)?;
        let key = KeyPair::generate().map_err(sign_error)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // The cluster's name rides in the subject so that the authority can be rebuilt from PEM.
        params.distinguished_name.push(DnType::OrganizationName, cluster);
        params.distinguished_name.push(DnType::CommonName, "edgeorc-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        set_life(&mut params, clock, CA_LIFE);
        params.serial_number = Some(random_serial()?);
        let cert = params.self_signed(&key).map_err(sign_error)?;
        Self::from_pem(&cert.pem(), &key.serialize_pem(), clock)
    }

    /// The authority whose certificate and key were stored.
    ///
    /// # Errors
    ///
    /// [`PkiError::Malformed`] when either text is no PEM of its kind, or they do not belong together.
    pub fn from_pem(cert_pem: &str, key_pem: &str, clock: &WallClock) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key_pem).map_err(malformed("authority's key"))?;
        let der = pem_to_der(cert_pem)?;
        let (cluster, spki) = read_authority(&der)?;
        if spki != key.subject_public_key_info() {
            return Err(PkiError::Malformed {
                what: "authority's certificate",
                reason: "it belongs to another key".to_owned(),
            });
        }
        let issuer = Issuer::from_ca_cert_der(&der.into(), key)
            .map_err(malformed("authority's certificate"))?;
        Ok(Self {
            cluster,
            cert_pem: cert_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            hash: hex::encode(Sha256::digest(&spki)),
            issuer,
            clock: clock.clone(),
        })
    }

    /// The cluster's name.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The authority's certificate. Public.
    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The authority's private key. Secret.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// SHA-256 of the authority's public key (SubjectPublicKeyInfo), hex: the pin in join tokens.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Certifies the key in `csr_der` as node `name`. Everything but the key is built here; what
    /// the request says of subject or names is ignored. PEM.
    ///
    /// # Errors
    ///
    /// See [`PkiError`].
    pub fn issue_node(
        &self,
        csr_der: &[u8],
        name: &str,
        ips: &[IpAddr],
        class: NodeClass,
    ) -> Result<String, PkiError> {
        let csr =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
                .map_err(malformed("certificate request"))?;
        self.sign_node(&csr.public_key, name, ips, class)
    }

    /// Makes a key and certifies it as node `name`: for the first node, and for tests.
    ///
    /// # Errors
    ///
    /// See [`PkiError`].
    pub fn generate_node(
        &self,
        name: &str,
        ips: &[IpAddr],
        class: NodeClass,
    ) -> Result<KeyPairPem, PkiError> {
        let key = KeyPair::generate().map_err(sign_error)?;
        let cert_pem = self.sign_node(&key, name, ips, class)?;
        Ok(KeyPairPem { cert_pem, key_pem: key.serialize_pem() })
    }

    /// A certificate for a person or a program, for kubeconfig files: good for one year.
    ///
    /// # Errors
    ///
    /// [`PkiError::TooMany`] for more than [`ORGANIZATIONS_MAX`] groups.
    pub fn issue_client(
        &self,
        common_name: &str,
        organizations: &[impl AsRef<str>],
    ) -> Result<KeyPairPem, PkiError> {
        let key = KeyPair::generate().map_err(sign_error)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(common_name, organizations)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        set_life(&mut params, &self.clock, CLIENT_LIFE);
        Ok(KeyPairPem { cert_pem: self.sign(params, &key)?, key_pem: key.serialize_pem() })
    }

    fn sign_node(
        &self,
        key: &impl PublicKeyData,
        name: &str,
        ips: &[IpAddr],
        class: NodeClass,
    ) -> Result<String, PkiError> {
        check_name(name)?;
        if class == NodeClass::Agent {
            check_not_reserved(name)?;
        }
        if ips.len() > ADDRESSES_MAX {
            return Err(PkiError::TooMany {
                what: "addresses",
                got: ips.len(),
                max: ADDRESSES_MAX,
            });
        }
        let groups: &[&str] = match class {
            NodeClass::Agent => &[NODES_GROUP],
            NodeClass::Server => &[NODES_GROUP, SERVERS_GROUP],
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&format!("{NODE_USER_PREFIX}{name}"), groups)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let uri = format!("spiffe://{}/node/{name}", self.cluster);
        params.subject_alt_names.push(SanType::URI(
            uri.as_str().try_into().map_err(|_| PkiError::Name { name: name.to_owned() })?,
        ));
        // Peers know a node by the name above. HTTPS clients go by DNS names and addresses, and only
        // servers have HTTPS: an agent must not be able to pass for one, so it has neither.
        if class == NodeClass::Server {
            for dns in [name].iter().chain(API_NAMES).copied() {
                params.subject_alt_names.push(SanType::DnsName(
                    dns.try_into().map_err(|_| PkiError::Name { name: name.to_owned() })?,
                ));
            }
            params.subject_alt_names.extend(ips.iter().copied().map(SanType::IpAddress));
        }
        set_life(&mut params, &self.clock, NODE_LIFE);
        self.sign(params, key)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<String, PkiError> {
        params.serial_number = Some(random_serial()?);
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(key, &self.issuer).map_err(sign_error)?;
        Ok(cert.pem())
    }
}

/// A certificate for `name` that nobody vouches for, with a new key.
///
/// # Errors
///
/// [`PkiError::Name`] when `name` cannot stand in a certificate, [`PkiError::Sign`].
pub fn self_signed(name: &str) -> Result<KeyPairPem, PkiError> {
    let key = KeyPair::generate().map_err(sign_error)?;
    let params = CertificateParams::new(vec![name.to_owned()])
        .map_err(|_| PkiError::Name { name: name.to_owned() })?;
    let cert = params.self_signed(&key).map_err(sign_error)?;
    Ok(KeyPairPem { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

/// SHA-256 of the public key of a certificate, hex: what a join token pins.
///
/// # Errors
///
/// [`PkiError::Malformed`] when `cert_pem` is no certificate.
pub fn public_key_hash(cert_pem: &str) -> Result<String, PkiError> {
    let (_, spki) = read_authority(&pem_to_der(cert_pem)?)?;
    Ok(hex::encode(Sha256::digest(&spki)))
}

/// SHA-256 of the public key that a certificate request is for, hex: compare it with
/// [`crate::net::Peer::key_hash`].
///
/// # Errors
///
/// [`PkiError::Malformed`] when `csr_der` is no request, or not signed by its own key.
pub fn request_key_hash(csr_der: &[u8]) -> Result<String, PkiError> {
    let csr =
        CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
            .map_err(malformed("certificate request"))?;
    Ok(hex::encode(Sha256::digest(csr.public_key.subject_public_key_info())))
}

/// Refuses a name that clients of the API take for the API server's, such as `localhost`.
///
/// # Errors
///
/// [`PkiError::Reserved`].
pub fn check_not_reserved(name: &str) -> Result<(), PkiError> {
    let first = name.split('.').next().unwrap_or_default();
    if RESERVED_NAMES.contains(&first) || name.parse::<IpAddr>().is_ok() {
        return Err(PkiError::Reserved { name: name.to_owned() });
    }
    Ok(())
}

pub(super) fn pem_to_der(cert_pem: &str) -> Result<Vec<u8>, PkiError> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let der = CertificateDer::from_pem_slice(cert_pem.as_bytes())
        .map_err(|err| PkiError::Malformed { what: "certificate", reason: err.to_string() })?;
    Ok(der.to_vec())
}

/// The cluster's name and the public key of an authority's certificate.
fn read_authority(der: &[u8]) -> Result<(String, Vec<u8>), PkiError> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|err| {
        PkiError::Malformed { what: "authority's certificate", reason: err.to_string() }
    })?;
    let cluster = cert
        .subject()
        .iter_organization()
        .next()
        .and_then(|organization| organization.as_str().ok())
        .unwrap_or_default();
    Ok((cluster.to_owned(), cert.public_key().raw.to_vec()))
}

fn subject(
    common_name: &str,
    organizations: &[impl AsRef<str>],
) -> Result<DistinguishedName, PkiError> {
    if organizations.len() > ORGANIZATIONS_MAX {
        return Err(PkiError::TooMany {
            what: "organizations",
            got: organizations.len(),
            max: ORGANIZATIONS_MAX,
        });
    }
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    // The library keeps one value per attribute type; the same attribute by its number is another
    // type to it, which makes room for the second organization.
    let types = [DnType::OrganizationName, DnType::CustomDnType(OID_ORGANIZATION.to_vec())];
    for (kind, organization) in types.into_iter().zip(organizations) {
        name.push(kind, organization.as_ref());
    }
    Ok(name)
}

fn set_life(params: &mut CertificateParams, clock: &WallClock, life: Duration) {
    let now = clock.system_time();
    params.not_before = now.checked_sub(BACKDATED).unwrap_or(std::time::UNIX_EPOCH).into();
    params.not_after = (now + life).into();
}

fn random_serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0_u8; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| PkiError::Sign("the system has no randomness".to_owned()))?;
    // A serial number is a positive integer that does not start with zero bits.
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

/// Node and cluster names are RFC 1123 subdomains: they stand in URIs and DNS names.
fn check_name(name: &str) -> Result<(), PkiError> {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= 253 && name.split('.').all(is_label) {
        return Ok(());
    }
    Err(PkiError::Name { name: name.to_owned() })
}

fn malformed(what: &'static str) -> impl Fn(rcgen::Error) -> PkiError {
    move |err| PkiError::Malformed { what, reason: err.to_string() }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape map_err wants")]
fn sign_error(err: rcgen::Error) -> PkiError {
    PkiError::Sign(err.to_string())
}
