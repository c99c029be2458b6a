//! The cluster's signing key, and JSON Web Tokens made with it (RFC 7519, ES256).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;

use crate::api::status::Status;
use crate::apiserver::error::ApiError;
use crate::store::Store;

/// Where the key is kept: beside the objects in the log, so that every server has it.
const KEY: &str = "/secrets/service-account-signing-key";
/// Longest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// Why a token is not good. The client is told that it is not, and nothing else.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum TokenError {
    /// It is no JWT of the form that this cluster makes. Give up.
    #[error("the token is malformed")]
    Malformed,
    /// Its signature is not the cluster's. Give up.
    #[error("the token's signature is not this cluster's")]
    Signature,
}

/// The key, read or made when it is first needed.
#[derive(Debug, Default)]
pub(in crate::apiserver) struct Signers(OnceCell<Arc<Signer>>);

impl Signers {
    /// The cluster's signer.
    ///
    /// # Errors
    ///
    /// A 503 while the log takes no reads or writes.
    pub(super) async fn get(&self, store: &Store) -> Result<Arc<Signer>, ApiError> {
        self.0.get_or_try_init(|| load(store)).await.cloned()
    }
}

async fn load(store: &Store) -> Result<Arc<Signer>, ApiError> {
    let broken = || ApiError::from(Status::internal("the cluster's signing key is not readable"));
    // Of two servers that make a key at once, one writes it, and both read that one.
    for _ in 0..2 {
        if let Some(stored) = store.raw_get(KEY).await? {
            return Signer::from_pkcs8(&stored).map(Arc::new).ok_or_else(broken);
        }
        let fresh = Signer::generate().ok_or_else(broken)?;
        if store.raw_create(KEY, fresh).await? {
            tracing::info!("made the cluster's key for service account tokens");
        }
    }
    Err(broken())
}

/// Signs tokens and checks them.
pub(super) struct Signer {
    key: EcdsaKeyPair,
    /// Names the key in tokens: the SHA-256 of its public half.
    id: String,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Signer {
    /// A new key, PKCS #8. Secret.
    pub(super) fn generate() -> Option<Vec<u8>> {
        let made =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        made.ok().map(|document| document.as_ref().to_vec())
    }

    pub(super) fn from_pkcs8(bytes: &[u8]) -> Option<Self> {
        let random = SystemRandom::new();
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, bytes, &random).ok()?;
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(key.public_key().as_ref()));
        Some(Self { key, id })
    }

    /// The public half, as a JSON Web Key (RFC 7517).
    pub(super) fn public_jwk(&self) -> Value {
        // An uncompressed point: a mark, then the two coordinates.
        let point = self.key.public_key().as_ref().get(1..).unwrap_or_default();
        let (x, y) = point.split_at(point.len() / 2);
        json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.id,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        })
    }

    /// A token with these claims; `None` when the system gives no randomness.
    pub(super) fn sign(&self, claims: &Value) -> Option<String> {
        let header = json!({"alg": "ES256", "kid": self.id});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let mut token = format!("{}.{}", part(&header), part(claims));
        let signature = self.key.sign(&SystemRandom::new(), token.as_bytes()).ok()?;
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Some(token)
    }

    /// The claims of a token that this key has signed. Says nothing about its life or audience.
    pub(super) fn verify(&self, token: &str) -> Result<Value, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
        let json = |bytes: Vec<u8>| -> Result<Value, TokenError> {
            serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)
        };
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        // The algorithm is ours to choose, not the token's: `none` and HMAC are no signatures.
        let header = json(decode(header)?)?;
        if header.get("alg").and_then(Value::as_str) != Some("ES256") {
            return Err(TokenError::Signature);
        }
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key());
        public.verify(signed.as_bytes(), &decode(signature)?).map_err(|_| TokenError::Signature)?;
        json(decode(claims)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer() -> Signer {
        Signer::from_pkcs8(&Signer::generate().unwrap()).unwrap()
    }

    #[test]
    fn the_public_key_alone_checks_a_token() {
        let signer = signer();
        let token = signer.sign(&json!({"sub": "a"})).unwrap();
        let jwk = signer.public_jwk();
        let part = |key: &str| URL_SAFE_NO_PAD.decode(jwk[key].as_str().unwrap()).unwrap();
        let point = [vec![4], part("x"), part("y")].concat();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
        assert!(public.verify(signed.as_bytes(), &signature).is_ok());
    }

    #[test]
    fn what_was_signed_is_read_and_nothing_else() {
        let (ours, theirs) = (signer(), signer());
        let claims = json!({"sub": "system:serviceaccount:a:b"});
        let token = ours.sign(&claims).unwrap();
        assert_eq!(ours.verify(&token), Ok(claims));
        assert_eq!(theirs.verify(&token), Err(TokenError::Signature));
        let (rest, signature) = token.rsplit_once('.').unwrap();
        let (header, _) = rest.split_once('.').unwrap();
        let forged = URL_SAFE_NO_PAD.encode(r#"{"sub":"system:serviceaccount:kube-system:root"}"#);
        assert_eq!(
            ours.verify(&format!("{header}.{forged}.{signature}")),
            Err(TokenError::Signature)
        );
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        assert_eq!(ours.verify(&format!("{none}.{forged}.")), Err(TokenError::Signature));
        for bad in ["", "a", "a.b", "a.b.c", &"x".repeat(TOKEN_BYTES_MAX + 1)] {
            assert!(ours.verify(bad).is_err());
        }
    }
}
