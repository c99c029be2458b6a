//! Signatures of images as `cosign` writes them: a payload, what it claims, and who signed it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::api::image_policy::keys::PublicKey;

/// Media type of a layer whose content is a payload of simple signing.
pub const SIMPLE_SIGNING_LAYER: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Annotation of such a layer: the signature of the payload, in Base64.
pub const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// How the media type of a layer begins whose content is a Sigstore bundle.
pub const BUNDLE_LAYER_PREFIX: &str = "application/vnd.dev.sigstore.bundle";
/// `critical.type` of a payload that signs an image.
const SIMPLE_SIGNING_TYPE: &str = "cosign container image signature";
/// `predicateType` of a statement that signs an image; others say other things about it.
const SIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
/// What an envelope with a statement holds.
const STATEMENT_TYPE: &str = "application/vnd.in-toto+json";
/// Most signatures of one envelope.
const ENVELOPE_SIGNATURES_MAX: usize = 8;

/// How the payload is written, and what of it was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EvidenceKind {
    /// Simple signing: the payload as it stands.
    SimpleSigning,
    /// An in-toto statement in a DSSE envelope, as in Sigstore bundles.
    Statement,
}

/// One signature with what it is over. Nothing of it is trusted before it was judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    kind: EvidenceKind,
    /// JSON, byte for byte.
    payload: String,
    /// Base64.
    signature: String,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Image,
    r#type: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    docker_manifest_digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    dsse_envelope: Option<Envelope>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    subject: Vec<Subject>,
    predicate_type: String,
}

#[derive(Deserialize)]
struct Subject {
    digest: Digests,
}

#[derive(Deserialize)]
struct Digests {
    sha256: Option<String>,
}

impl Evidence {
    /// A payload of simple signing with the signature from its layer's annotation.
    ///
    /// # Errors
    ///
    /// The payload is no text.
    pub fn simple_signing(payload: &[u8], signature: &str) -> Result<Self, String> {
        let payload = std::str::from_utf8(payload).map_err(|_| "its payload is no JSON")?;
        let (payload, signature) = (payload.to_owned(), signature.trim().to_owned());
        Ok(Self { kind: EvidenceKind::SimpleSigning, payload, signature })
    }

    /// The signatures in a Sigstore bundle.
    ///
    /// # Errors
    ///
    /// It holds no statement about an image; it may hold something else.
    pub fn bundle(content: &[u8]) -> Result<Vec<Self>, String> {
        let bundle: Bundle = serde_json::from_slice(content)
            .map_err(|cause| format!("its bundle is damaged: {cause}"))?;
        let envelope = bundle.dsse_envelope.ok_or("its bundle holds no statement")?;
        if envelope.payload_type != STATEMENT_TYPE {
            return Err(format!("its bundle holds {:?}, not a statement", envelope.payload_type));
        }
        let payload = STANDARD.decode(&envelope.payload).ok();
        let payload = payload.and_then(|bytes| String::from_utf8(bytes).ok());
        let payload = payload.ok_or("its statement is no JSON")?;
        let signatures = envelope.signatures.into_iter().take(ENVELOPE_SIGNATURES_MAX);
        let one = |signature: EnvelopeSignature| Self {
            kind: EvidenceKind::Statement,
            payload: payload.clone(),
            signature: signature.sig,
        };
        Ok(signatures.map(one).collect())
    }

    /// Whether the payload claims to sign the image `sha256:<hex>`; if not, what it claims.
    pub(super) fn check_claim(&self, hex: &str) -> Result<(), String> {
        let digest = format!("sha256:{hex}");
        let damaged = |cause: serde_json::Error| format!("its payload is damaged: {cause}");
        let signed: Vec<String> = match self.kind {
            EvidenceKind::SimpleSigning => {
                let payload: Payload = serde_json::from_str(&self.payload).map_err(damaged)?;
                if payload.critical.r#type != SIMPLE_SIGNING_TYPE {
                    return Err(format!("its payload is of type {:?}", payload.critical.r#type));
                }
                vec![payload.critical.image.docker_manifest_digest]
            }
            EvidenceKind::Statement => {
                let statement: Statement = serde_json::from_str(&self.payload).map_err(damaged)?;
                if statement.predicate_type != SIGN_PREDICATE {
                    return Err(format!("its statement is of type {:?}", statement.predicate_type));
                }
                let all = statement.subject.into_iter().filter_map(|subject| subject.digest.sha256);
                all.map(|hex| format!("sha256:{hex}")).collect()
            }
        };
        if signed.contains(&digest) {
            return Ok(());
        }
        let signed: String = signed.join(", ").chars().take(200).collect();
        Err(format!("it signs {signed:?}, and the image is {digest}"))
    }

    /// Whether `key` made the signature.
    pub(super) fn is_signed_by(&self, key: &PublicKey) -> bool {
        let Ok(signature) = STANDARD.decode(&self.signature) else { return false };
        match self.kind {
            EvidenceKind::SimpleSigning => key.verifies(self.payload.as_bytes(), &signature),
            EvidenceKind::Statement => key.verifies(pre_auth(&self.payload).as_bytes(), &signature),
        }
    }
}

/// What is signed of an envelope: DSSE's pre-authentication encoding.
pub(super) fn pre_auth(payload: &str) -> String {
    format!("DSSEv1 {} {STATEMENT_TYPE} {} {payload}", STATEMENT_TYPE.len(), payload.len())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::image_policy::testing::digest_of;

    fn payload(digest: &str, kind: &str) -> Evidence {
        let payload = json!({"critical": {
            "identity": {"docker-reference": ""},
            "image": {"docker-manifest-digest": digest},
            "type": kind,
        }, "optional": null});
        Evidence::simple_signing(payload.to_string().as_bytes(), "AAAA").unwrap()
    }

    #[test]
    fn a_payload_counts_for_its_own_digest_and_as_an_images_signature_only() {
        let hex = digest_of(b"x");
        let digest = format!("sha256:{hex}");
        assert_eq!(payload(&digest, SIMPLE_SIGNING_TYPE).check_claim(&hex), Ok(()));
        assert!(payload(&digest, "atomic container signature").check_claim(&hex).is_err());
        let other = format!("sha256:{}", digest_of(b"y"));
        let wrong = payload(&other, SIMPLE_SIGNING_TYPE).check_claim(&hex).unwrap_err();
        assert!(wrong.contains(&other), "{wrong}");
        assert!(
            payload(&hex, SIMPLE_SIGNING_TYPE).check_claim(&hex).is_err(),
            "a digest names its algorithm"
        );
        for text in ["", "{}", "[]", "null", r#"{"critical":{"image":{},"type":""}}"#] {
            let evidence = Evidence::simple_signing(text.as_bytes(), "").unwrap();
            assert!(evidence.check_claim(&hex).unwrap_err().contains("damaged"), "{text}");
        }
        let twice = format!(
            r#"{{"critical":{{"type":"{SIMPLE_SIGNING_TYPE}","image":{{"docker-manifest-digest":"{other}","docker-manifest-digest":"{digest}"}}}}}}"#
        );
        let twice = Evidence::simple_signing(twice.as_bytes(), "").unwrap();
        assert!(twice.check_claim(&hex).unwrap_err().contains("duplicate"));
        assert!(Evidence::simple_signing(&[0xff], "").is_err());
    }

    fn bundle(payload_type: &str, statement: &Value) -> Result<Vec<Evidence>, String> {
        let content = json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": "x"}},
            "dsseEnvelope": {
                "payload": STANDARD.encode(statement.to_string()),
                "payloadType": payload_type,
                "signatures": [{"sig": "AAAA", "keyid": ""}],
            },
        });
        Evidence::bundle(content.to_string().as_bytes())
    }

    #[test]
    fn a_statement_counts_only_when_it_signs() {
        let hex = digest_of(b"x");
        let statement = |predicate: &str| {
            json!({"_type": "https://in-toto.io/Statement/v1", "predicateType": predicate,
                "subject": [{"digest": {"sha512": "00"}}, {"name": "", "digest": {"sha256": hex}}], "predicate": {}})
        };
        let signed = bundle(STATEMENT_TYPE, &statement(SIGN_PREDICATE)).unwrap();
        assert_eq!(signed[0].check_claim(&hex), Ok(()));
        assert!(signed[0].check_claim(&digest_of(b"y")).is_err());
        // The same key may have signed what somebody found out about the image.
        let found = bundle(STATEMENT_TYPE, &statement("https://slsa.dev/provenance/v1")).unwrap();
        assert!(found[0].check_claim(&hex).unwrap_err().contains("slsa"));
        assert!(bundle("application/json", &statement(SIGN_PREDICATE)).is_err());
        for text in [
            "",
            "{}",
            "[]",
            r#"{"messageSignature":{}}"#,
            r#"{"dsseEnvelope":{"payload":"!","payloadType":"application/vnd.in-toto+json","signatures":[]}}"#,
        ] {
            assert!(Evidence::bundle(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn the_encoding_that_is_signed_is_the_standards() {
        assert_eq!(pre_auth("{}"), "DSSEv1 28 application/vnd.in-toto+json 2 {}");
    }
}
