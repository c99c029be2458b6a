//! Tokens of a pod's service account: asked of the API, kept on disk, renewed before they end.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use crate::agent::dirs::{PodDir, read_json, write_json};
use crate::agent::pod::api::PodApi;
use crate::agent::pod::env::{self, ConfigError};
use crate::agent::pod::objects::within_patience;
use crate::agent::pod::volumes::{TokenKey, volumes_of};

/// A token is renewed after this long, or when four fifths of its life are over.
const AGE_MAX: SignedDuration = SignedDuration::from_hours(24);

/// A token and its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    /// Whom it is for; guards against two audiences that make one file name.
    pub(crate) audience: String,
    pub(crate) token: String,
    pub(crate) issued_at: Timestamp,
    pub(crate) expires_at: Timestamp,
}

impl Token {
    /// When a new one is asked for.
    pub(crate) fn renew_at(&self) -> Timestamp {
        let life = self.expires_at.duration_since(self.issued_at);
        let wait = SignedDuration::from_secs(life.as_secs() / 5 * 4).min(AGE_MAX);
        self.issued_at.checked_add(wait).unwrap_or(self.issued_at)
    }
}

/// The tokens that the pod's volumes hold.
pub(crate) fn wanted(pod: &Pod) -> BTreeSet<TokenKey> {
    volumes_of(pod)
        .flat_map(|v| v.projected.iter().flat_map(|p| p.sources.iter().flatten()))
        .filter_map(|source| source.service_account_token.as_ref())
        .map(TokenKey::of)
        .collect()
}

/// The tokens of `pod`: copies while they are fresh, new ones from the API when they are not.
///
/// An old token is better than none: a pod that is back from a power cut starts without a server.
pub(crate) async fn collect(
    api: &dyn PodApi,
    pod: &Pod,
    dir: &PodDir,
    now: Timestamp,
) -> Result<BTreeMap<TokenKey, String>, ConfigError> {
    let mut tokens = BTreeMap::new();
    for key in wanted(pod) {
        let file = file(dir, &key);
        let copy: Option<Token> =
            read_json(&file).filter(|token: &Token| token.audience == key.audience);
        if let Some(fresh) = copy.as_ref().filter(|token| now < token.renew_at()) {
            tokens.insert(key, fresh.token.clone());
            continue;
        }
        match within_patience(copy.is_some(), api.token(pod, &key, now)).await {
            Ok(token) => {
                write_json(&file, &token)?;
                tokens.insert(key, token.token);
            }
            Err(err) => match copy {
                Some(old) => {
                    tokens.insert(key, old.token);
                }
                None => {
                    return Err(ConfigError::Unread {
                        kind: "serviceaccount token",
                        name: env::service_account(pod).to_owned(),
                        reason: err.to_string(),
                    });
                }
            },
        }
    }
    Ok(tokens)
}

/// When the first of the pod's tokens is to be renewed, as far as they are on disk.
pub(crate) fn next_renewal(pod: &Pod, dir: &PodDir) -> Option<Timestamp> {
    let tokens = wanted(pod).into_iter().filter_map(|key| read_json::<Token>(&file(dir, &key)));
    tokens.map(|token| token.renew_at()).min()
}

fn file(dir: &PodDir, key: &TokenKey) -> std::path::PathBuf {
    dir.object_file("token", &format!("{}-{}", key.expiration_seconds, key.audience))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_at_four_fifths_of_its_life_and_once_a_day() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let token = |life: i64| Token {
            audience: String::new(),
            token: String::new(),
            issued_at: at(1000),
            expires_at: at(1000 + life),
        };
        assert_eq!(token(3600).renew_at(), at(1000 + 2880));
        assert_eq!(token(365 * 86400).renew_at(), at(1000 + 86400));
    }
}
