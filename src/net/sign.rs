//! Signing with a node's key, and checking that a server signed: for what outlives a connection.

use rustls::SignatureScheme;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;

use crate::net::identity::{Identity, IdentityError, Peer, provider};

/// A signature, and the certificate of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// DER.
    pub certificate: Vec<u8>,
    /// ECDSA with P-256 and SHA-256, ASN.1.
    pub signature: Vec<u8>,
}

impl Identity {
    /// Signs with this node's present key. `message` must begin with at least 64 bytes that say what
    /// it is: the same key signs TLS handshakes, which must not be taken for it.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Tls`].
    pub fn sign(&self, message: &[u8]) -> Result<Signed, IdentityError> {
        let certified = self.leaf();
        let missing = |what: &str| IdentityError::Malformed(format!("this node has no {what}"));
        let certificate = certified.cert.first().ok_or_else(|| missing("certificate"))?.to_vec();
        let signer = certified.key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]);
        let signature = signer.ok_or_else(|| missing("P-256 key"))?.sign(message)?;
        Ok(Signed { certificate, signature })
    }

    /// Checks that a server of this cluster signed `message`, with a certificate that is valid now.
    ///
    /// # Errors
    ///
    /// [`IdentityError::Tls`] when the cluster's authority did not sign the certificate,
    /// [`IdentityError::NotAServer`], [`IdentityError::Signature`].
    pub fn verify_server(
        &self,
        message: &[u8],
        certificate: &[u8],
        signature: &[u8],
    ) -> Result<Peer, IdentityError> {
        let der = CertificateDer::from(certificate);
        let parsed = ParsedCertificate::try_from(&der)?;
        let now = self
            .time()
            .current_time()
            .unwrap_or_else(|| UnixTime::since_unix_epoch(std::time::Duration::ZERO));
        let algorithms = provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots(), &[], now, algorithms)?;
        let peer = Peer::from_certificate(certificate)?;
        if !peer.is_server() {
            return Err(IdentityError::NotAServer { user: peer.user });
        }
        let (_, x509) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|err| IdentityError::Malformed(err.to_string()))?;
        let key = ring::signature::UnparsedPublicKey::new(
            &ring::signature::ECDSA_P256_SHA256_ASN1,
            &x509.public_key().subject_public_key.data,
        );
        key.verify(message, signature).map_err(|_| IdentityError::Signature)?;
        Ok(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::pki::NodeClass;
    use crate::net::testing::{authority, identity};
    use crate::rt::WallClock;

    #[test]
    fn only_a_servers_signature_of_the_very_message_is_accepted() {
        let ca = authority();
        let reader = identity(&ca, "reader", NodeClass::Agent);
        let server = identity(&ca, "server", NodeClass::Server);
        let good = server.sign(b"message").unwrap();
        let check = |message: &[u8], signed: &Signed| {
            reader.verify_server(message, &signed.certificate, &signed.signature)
        };
        assert_eq!(check(b"message", &good).unwrap().node, "server");
        assert!(matches!(check(b"massage", &good), Err(IdentityError::Signature)));

        let by_agent = identity(&ca, "agent", NodeClass::Agent).sign(b"message").unwrap();
        assert!(matches!(check(b"message", &by_agent), Err(IdentityError::NotAServer { .. })));
        // An agent that shows the certificate of a server.
        let borrowed = Signed { signature: by_agent.signature, ..good.clone() };
        assert!(matches!(check(b"message", &borrowed), Err(IdentityError::Signature)));

        let stranger = identity(&authority(), "server", NodeClass::Server);
        let foreign = stranger.sign(b"message").unwrap();
        assert!(matches!(check(b"message", &foreign), Err(IdentityError::Tls(_))));
        for cut in [0, 1, good.certificate.len() - 1] {
            let torn = Signed { certificate: good.certificate[..cut].to_vec(), ..good.clone() };
            assert!(check(b"message", &torn).is_err(), "{cut}");
        }
        let torn = Signed { signature: good.signature[1..].to_vec(), ..good };
        assert!(matches!(check(b"message", &torn), Err(IdentityError::Signature)));
    }

    #[test]
    fn a_certificate_that_has_ended_vouches_for_nothing() {
        let ca = authority();
        let signed = identity(&ca, "server", NodeClass::Server).sign(b"message").unwrap();
        let keys = ca.generate_node("reader", &[], NodeClass::Agent).unwrap();
        let later = WallClock::manual(4_000_000_000);
        let reader = Identity::new(&keys.cert_pem, &keys.key_pem, ca.cert_pem(), &later).unwrap();
        let checked = reader.verify_server(b"message", &signed.certificate, &signed.signature);
        assert!(matches!(checked, Err(IdentityError::Tls(_))), "{checked:?}");
    }
}
