//! Join tokens as Kubernetes' bootstrap tokens: a Secret in `kube-system`.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::net::join::JoinToken;
use crate::net::pki;
use crate::rt::{Rng, WallClock};

/// Name of the Secret of a token, before its id.
pub(super) const SECRET_PREFIX: &str = "bootstrap-token-";
/// Key of the secret's hash: the server never keeps the secret itself.
pub(super) const VERIFIER: &str = "token-verifier";
/// Key of the moment the token ends.
pub(super) const EXPIRATION: &str = "expiration";

/// A fresh token, and the Secret that lets servers know it.
#[derive(Debug)]
pub struct NewToken {
    /// For the person who starts the new node.
    pub token: String,
    /// `metadata.name` of the Secret.
    pub secret_name: String,
    /// `stringData` of the Secret.
    pub secret_data: BTreeMap<String, String>,
}

/// Key of the node that the token let in: its name and the hash of its key. Only that node may use
/// the token again, when it lost the answer.
pub(super) const USED_BY: &str = "used-by";

/// Makes a token for the cluster whose CA certificate is `ca_pem`, good for `ttl`.
///
/// # Errors
///
/// [`pki::PkiError`] when `ca_pem` is no certificate.
pub fn new_join_token(ca_pem: &str, ttl: Duration) -> Result<NewToken, pki::PkiError> {
    let token = JoinToken::generate(&pki::public_key_hash(ca_pem)?, &Rng::from_os());
    let now = WallClock::system().now();
    let ttl = SignedDuration::try_from(ttl).unwrap_or(SignedDuration::ZERO);
    let until = now.checked_add(ttl).unwrap_or(Timestamp::MAX);
    let until = Timestamp::from_second(until.as_second()).unwrap_or(until);
    let data = [
        ("token-id", token.id.clone()),
        (VERIFIER, hex::encode(token.verifier().0)),
        (EXPIRATION, until.to_string()),
        ("usage-bootstrap-authentication", "true".to_owned()),
        ("auth-extra-groups", "system:bootstrappers:edgeorc".to_owned()),
    ];
    Ok(NewToken {
        secret_name: format!("{SECRET_PREFIX}{}", token.id),
        secret_data: data.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        token: token.to_string(),
    })
}
