//! Signs images as `cosign sign --key` does, for tests of those who verify.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::Evidence;
use super::evidence::pre_auth;

/// What stands before the point of a P-256 key in its SubjectPublicKeyInfo.
const P256_INFO: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Hex of a SHA-256.
pub fn digest_of(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A key pair as `cosign generate-key-pair` makes it.
#[derive(Debug)]
pub struct Signer(EcdsaKeyPair);

impl Signer {
    /// A new key.
    #[expect(clippy::new_without_default, reason = "each is another key")]
    pub fn new() -> Self {
        let rng = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &rng).unwrap();
        Self(EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &rng).unwrap())
    }

    /// `cosign.pub`.
    pub fn public_pem(&self) -> String {
        let info = [&P256_INFO, self.0.public_key().as_ref()].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(info))
    }

    /// A payload that signs `sha256:<hex>`, and its signature in Base64.
    pub fn payload(&self, hex: &str) -> (String, String) {
        let payload = json!({"critical": {
            "identity": {"docker-reference": "any"},
            "image": {"docker-manifest-digest": format!("sha256:{hex}")},
            "type": "cosign container image signature",
        }, "optional": null})
        .to_string();
        let signature = self.raw(payload.as_bytes());
        (payload, signature)
    }

    /// A Sigstore bundle with a statement that signs it.
    pub fn bundle(&self, hex: &str) -> String {
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {"sha256": hex}}],
            "predicateType": "https://sigstore.dev/cosign/sign/v1",
            "predicate": {},
        })
        .to_string();
        let signature = self.raw(pre_auth(&statement).as_bytes());
        json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": "any"}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": STANDARD.encode(&statement),
                "payloadType": "application/vnd.in-toto+json",
                "signatures": [{"sig": signature}],
            },
        })
        .to_string()
    }

    /// Evidence of the first form.
    pub fn sign(&self, hex: &str) -> Evidence {
        let (payload, signature) = self.payload(hex);
        Evidence::simple_signing(payload.as_bytes(), &signature).unwrap()
    }

    /// Evidence of the second.
    pub fn sign_bundle(&self, hex: &str) -> Evidence {
        Evidence::bundle(self.bundle(hex).as_bytes()).unwrap().remove(0)
    }

    fn raw(&self, message: &[u8]) -> String {
        STANDARD.encode(self.0.sign(&SystemRandom::new(), message).unwrap())
    }
}
