//! Tokens of a pod's service account: asked of the API, kept, renewed before they end.
//!
//! The first one is kept on disk, for a start without the API. Those that renew it are kept in memory
//! where that is possible: a card in a small machine wears out by what is written every hour.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use crate::agent::backlog::Backlog;
use crate::agent::dirs::PodDir;
use crate::agent::pod::api::PodApi;
use crate::agent::pod::env::{self, ConfigError};
use crate::agent::pod::objects::within_patience;
use crate::agent::pod::volumes::{TokenKey, volumes_of};

/// As in the names of the copies.
const KIND: &str = "token";
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
    /// The token in an answer that came at `now`. Its life counts by this node's clock from now on: the
    /// server's may be hours off, and a length is the same everywhere.
    pub(crate) fn of(answer: TokenRequest, key: &TokenKey, now: Timestamp) -> Option<Self> {
        let life = answer.spec.and_then(|spec| spec.expiration_seconds);
        let life = SignedDuration::from_secs(life.unwrap_or(key.expiration_seconds));
        Some(Self {
            audience: key.audience.clone(),
            token: answer.status?.token?,
            issued_at: now,
            expires_at: now.checked_add(life).ok()?,
        })
    }

    /// Whether no new one is needed. One of the future was asked for while the clock was wrong: how much
    /// of its life is left nobody knows.
    fn is_fresh(&self, now: Timestamp) -> bool {
        self.issued_at <= now && now < self.renew_at()
    }

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
/// An old token is better than none: a pod that is back from a power cut starts without a server. `is_due`:
/// so much time has gone by that a new one is needed, whatever the time of day says.
pub(crate) async fn collect(
    api: &dyn PodApi,
    pod: &Pod,
    (dir, backlog): (&PodDir, &Backlog),
    now: Timestamp,
    is_due: bool,
) -> Result<BTreeMap<TokenKey, String>, ConfigError> {
    let mut tokens = BTreeMap::new();
    for key in wanted(pod) {
        let Copies { newest: copy, is_on_disk } = Copies::read(dir, &key, now);
        if let Some(fresh) = copy.as_ref().filter(|token| !is_due && token.is_fresh(now)) {
            tokens.insert(key, fresh.token.clone());
            continue;
        }
        match within_patience(copy.is_some(), api.token(pod, &key, now)).await {
            Ok(token) => {
                let name = name_of(&key);
                if !is_on_disk || dir.keep_in_memory(KIND, &name, &token).await.is_err() {
                    dir.keep_later((KIND, &name), &token, backlog)?;
                }
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

/// When the first of the pod's tokens is to be renewed, as far as they are kept.
pub(crate) fn next_renewal(pod: &Pod, dir: &PodDir, now: Timestamp) -> Option<Timestamp> {
    let tokens = wanted(pod).into_iter().filter_map(|key| Copies::read(dir, &key, now).newest);
    tokens.map(|token| token.renew_at()).min()
}

/// What is kept of a token.
struct Copies {
    newest: Option<Token>,
    is_on_disk: bool,
}

impl Copies {
    fn read(dir: &PodDir, key: &TokenKey, now: Timestamp) -> Self {
        let name = name_of(key);
        let is_it = |token: &Token| token.audience == key.audience;
        let on_disk = dir.kept::<Token>(KIND, &name).filter(is_it);
        let is_on_disk = on_disk.is_some();
        let in_memory = dir.kept_in_memory::<Token>(KIND, &name).filter(is_it);
        // One of the future is older than one of now: the clock went back meanwhile.
        let age = |token: &Token| (token.issued_at <= now, token.issued_at);
        let newest = on_disk.into_iter().chain(in_memory).max_by_key(age);
        Self { newest, is_on_disk }
    }
}

fn name_of(key: &TokenKey) -> String {
    format!("{}-{}", key.expiration_seconds, key.audience)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Secret};
    use serde_json::{Value, json};

    use super::*;
    use crate::agent::dirs::Dirs;
    use crate::agent::pod::api::Happening;
    use crate::agent::pod::api::PodApiError;

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

    #[test]
    fn the_life_of_a_token_is_counted_by_the_clock_of_the_node() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let key = TokenKey { audience: String::new(), expiration_seconds: 3600 };
        let answer = |life: Option<i64>| -> TokenRequest {
            serde_json::from_value(json!({
                "spec": {"audiences": [], "expirationSeconds": life},
                // By a clock that is hours ahead.
                "status": {"token": "t", "expirationTimestamp": "2026-01-01T00:00:00Z"},
            }))
            .unwrap()
        };
        let renewed = |life| Token::of(answer(life), &key, now).unwrap().renew_at();
        assert_eq!(renewed(Some(600)), Timestamp::from_second(1_000_480).unwrap());
        assert_eq!(renewed(None), Timestamp::from_second(1_002_880).unwrap());
    }

    /// An API that gives tokens of an hour, or does not answer.
    struct Api {
        is_up: bool,
        asked: std::sync::atomic::AtomicU32,
    }

    #[async_trait::async_trait]
    impl PodApi for Api {
        async fn patch_status(&self, base: &Pod, _: Value) -> Result<Pod, PodApiError> {
            Ok(base.clone())
        }

        async fn get(&self, base: &Pod) -> Result<Pod, PodApiError> {
            Ok(base.clone())
        }

        async fn delete(&self, _: &Pod) -> Result<(), PodApiError> {
            Ok(())
        }

        fn event(&self, _: &Pod, _: Option<&str>, _: Happening) {}

        async fn config_map(&self, _: &Pod, _: &str) -> Result<Option<ConfigMap>, PodApiError> {
            Ok(None)
        }

        async fn secret(&self, _: &Pod, _: &str) -> Result<Option<Secret>, PodApiError> {
            Ok(None)
        }

        async fn token(
            &self,
            _: &Pod,
            key: &TokenKey,
            now: Timestamp,
        ) -> Result<Token, PodApiError> {
            if !self.is_up {
                return Err(PodApiError::Unavailable("down".to_owned()));
            }
            let number = self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
            Ok(Token {
                audience: key.audience.clone(),
                token: number.to_string(),
                issued_at: now,
                expires_at: now.checked_add(SignedDuration::from_secs(3600)).unwrap(),
            })
        }
    }

    /// As a start: what is for later is written after it.
    async fn take(
        api: &Api,
        pod: &Pod,
        dir: &PodDir,
        now: Timestamp,
        is_due: bool,
    ) -> Result<BTreeMap<TokenKey, String>, ConfigError> {
        let backlog = Backlog::default();
        let tokens = collect(api, pod, (dir, &backlog), now, is_due).await;
        dir.write_down(backlog).unwrap();
        tokens
    }

    #[tokio::test]
    async fn a_renewed_token_does_not_come_to_the_disk() {
        let (root, memory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let dirs = Dirs::create(root.path().to_owned()).unwrap();
        let dir = dirs.with_memory(Some(memory.path().to_owned())).pod("u");
        dir.create().unwrap();
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "volumes": [
            {"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}}))
        .unwrap();
        let api = Api { is_up: true, asked: 0.into() };
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let key = wanted(&pod).pop_first().unwrap();
        let on_disk = || -> Token { dir.kept(KIND, &name_of(&key)).unwrap() };
        for (second, token) in [(0, "1"), (2880, "2"), (2881, "2"), (5760, "3")] {
            let tokens = take(&api, &pod, &dir, at(second), false).await.unwrap();
            assert_eq!(tokens.into_values().collect::<Vec<_>>(), [token], "{second}");
            assert_eq!(on_disk().token, "1", "{second}");
        }
        assert_eq!(next_renewal(&pod, &dir, at(5760)), Some(at(5760 + 2880)));
        for (second, token) in [(-9000, "4"), (-8999, "4")] {
            let tokens = take(&api, &pod, &dir, at(second), false).await.unwrap();
            assert_eq!(tokens.into_values().collect::<Vec<_>>(), [token], "the clock went back");
        }
        let tokens = take(&api, &pod, &dir, at(-8998), true).await.unwrap();
        assert_eq!(tokens.into_values().collect::<Vec<_>>(), ["5"], "its time has gone by");
        // After a power cut the first one is there, and the API is asked.
        std::fs::remove_dir_all(memory.path().join("pods")).unwrap();
        dir.create().unwrap();
        let tokens = take(&api, &pod, &dir, at(6000), false).await.unwrap();
        assert_eq!(tokens.into_values().collect::<Vec<_>>(), ["6"]);
    }

    #[tokio::test]
    async fn a_token_is_asked_for_once_renewed_in_time_and_kept_while_the_api_is_down() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dirs::create(root.path().to_owned()).unwrap().pod("u");
        dir.create().unwrap();
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "volumes": [
            {"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}}))
        .unwrap();
        let api = |is_up| Api { is_up, asked: 0.into() };
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let down = api(false);
        assert!(take(&down, &pod, &dir, at(0), false).await.is_err());
        let up = api(true);
        for (second, token) in [(0, "1"), (2879, "1"), (2880, "2"), (2881, "2")] {
            let tokens = take(&up, &pod, &dir, at(second), false).await.unwrap();
            assert_eq!(tokens.into_values().collect::<Vec<_>>(), [token], "{second}");
        }
        assert_eq!(next_renewal(&pod, &dir, at(2881)), Some(at(2880 + 2880)));
        let tokens = take(&up, &pod, &dir, at(2880 - 10_000), false).await.unwrap();
        assert_eq!(tokens.into_values().collect::<Vec<_>>(), ["3"], "the clock went back");
        let tokens = take(&down, &pod, &dir, at(100_000), false).await.unwrap();
        assert_eq!(tokens.into_values().collect::<Vec<_>>(), ["3"], "an old one starts the pod");
    }
}
