//! Names and passwords for registries: `imagePullSecrets` of the pod or its service account.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use kube::Api;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Most secrets of a pod that are read.
const SECRETS_MAX: usize = 32;
/// Deadline of one read from the API.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Names under which Docker's registry is known in credential files.
const DOCKER_HOSTS: &[&str] = &["index.docker.io", "registry-1.docker.io", "docker.io"];

/// Proof of who pulls. Never logged.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credential {
    /// A name and a password, or a token in its place.
    Basic { username: String, password: String },
    /// An OAuth2 refresh token.
    IdentityToken(String),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential(..)")
    }
}

impl Credential {
    /// From the fields that Docker's files and `registries.yaml` share.
    pub(super) fn new(
        username: &str,
        password: &str,
        auth: &str,
        identity_token: &str,
    ) -> Option<Self> {
        if !identity_token.is_empty() {
            return Some(Self::IdentityToken(identity_token.to_owned()));
        }
        if !username.is_empty() {
            let (username, password) = (username.to_owned(), password.to_owned());
            return Some(Self::Basic { username, password });
        }
        let decoded = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
        let (username, password) = decoded.split_once(':')?;
        // Docker pads some of them with zero bytes.
        let password = password.trim_end_matches('\0').to_owned();
        Some(Self::Basic { username: username.to_owned(), password })
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default, alias = "identitytoken")]
    identity_token: String,
}

/// Credentials by registry, as kubelet looks them up: the longest matching path first.
#[derive(Debug, Default)]
pub(super) struct Keyring(Vec<(String, Credential)>);

impl Keyring {
    /// Credentials of `kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg` secrets.
    pub(super) fn of(secrets: &[Secret]) -> Self {
        let mut all = Vec::new();
        for secret in secrets {
            let Some(data) = &secret.data else { continue };
            let auths = if let Some(config) = data.get(".dockerconfigjson") {
                serde_json::from_slice::<DockerConfig>(&config.0).map(|config| config.auths).ok()
            } else {
                let config = data.get(".dockercfg").map(|config| config.0.as_slice());
                serde_json::from_slice(config.unwrap_or_default()).ok()
            };
            for (place, auth) in auths.into_iter().flatten() {
                let credential = Credential::new(
                    &auth.username,
                    &auth.password,
                    &auth.auth,
                    &auth.identity_token,
                );
                all.extend(credential.map(|credential| (normal(&place), credential)));
            }
        }
        // Stable: of two for the same place the first secret comes first.
        all.sort_by_key(|(place, _)| std::cmp::Reverse(place.len()));
        Self(all)
    }

    /// What may open `repository` at `host`, the best first.
    pub(super) fn find(&self, host: &str, repository: &str) -> Vec<Credential> {
        let host = if DOCKER_HOSTS.contains(&host) { "docker.io" } else { host };
        let matching = self.0.iter().filter(|(place, _)| matches(place, host, repository));
        matching.map(|(_, credential)| credential.clone()).collect()
    }
}

/// `https://index.docker.io/v1/` and the like as `host/path`.
fn normal(place: &str) -> String {
    let rest = place.strip_prefix("https://").or_else(|| place.strip_prefix("http://"));
    let rest = rest.unwrap_or(place).trim_end_matches('/');
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = if DOCKER_HOSTS.contains(&host) { "docker.io" } else { host };
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") }
}

/// Whether credentials for `place` are meant for `repository` at `host`: the host's labels one by
/// one, each with `*` for any text; then the start of the path.
fn matches(place: &str, host: &str, repository: &str) -> bool {
    let (place_host, path) = place.split_once('/').unwrap_or((place, ""));
    let split = |host: &str| match host.rsplit_once(':') {
        Some((name, port)) => (name.to_owned(), port.to_owned()),
        None => (host.to_owned(), String::new()),
    };
    let ((place_name, place_port), (name, port)) = (split(place_host), split(host));
    let (wanted, given): (Vec<_>, Vec<_>) =
        (place_name.split('.').collect(), name.split('.').collect());
    place_port == port
        && wanted.len() == given.len()
        && wanted.iter().zip(&given).all(|(wanted, given)| is_like(wanted, given))
        && repository.starts_with(path)
}

/// Whether `text` is `pattern`, in which one `*` stands for any text.
fn is_like(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, end)) => {
            text.len() >= start.len() + end.len() && text.starts_with(start) && text.ends_with(end)
        }
    }
}

/// Reads the pull secrets of `pod`: its own, or else those of its service account. The second
/// value names those that could not be read.
pub(super) async fn read(client: &kube::Client, pod: &Pod) -> (Keyring, Vec<String>) {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let spec = pod.spec.as_ref();
    let own = spec.and_then(|spec| spec.image_pull_secrets.clone()).unwrap_or_default();
    let named = if own.is_empty() {
        let account = spec.and_then(|spec| spec.service_account_name.as_deref());
        let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
        let account = api.get_opt(account.unwrap_or("default"));
        match tokio::time::timeout(READ_TIMEOUT, account).await {
            Ok(Ok(Some(account))) => account.image_pull_secrets.unwrap_or_default(),
            _ => Vec::new(),
        }
    } else {
        own
    };
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let (mut secrets, mut missing) = (Vec::new(), Vec::new());
    for reference in named.into_iter().take(SECRETS_MAX) {
        let name = reference.name;
        match tokio::time::timeout(READ_TIMEOUT, api.get_opt(&name)).await {
            Ok(Ok(Some(secret))) => secrets.push(secret),
            _ => missing.push(name),
        }
    }
    (Keyring::of(&secrets), missing)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use serde_json::json;

    use super::*;

    fn secret(key: &str, content: &serde_json::Value) -> Secret {
        let data = [(key.to_owned(), ByteString(content.to_string().into_bytes()))];
        Secret { data: Some(data.into()), ..Secret::default() }
    }

    fn names(keyring: &Keyring, host: &str, repository: &str) -> Vec<String> {
        let name = |credential: Credential| match credential {
            Credential::Basic { username, .. } => username,
            Credential::IdentityToken(token) => token,
        };
        keyring.find(host, repository).into_iter().map(name).collect()
    }

    #[test]
    fn the_longest_place_that_matches_comes_first() {
        let keyring = Keyring::of(&[
            secret(
                ".dockerconfigjson",
                &json!({"auths": {
                    "reg.example:5000": {"username": "all", "password": "p"},
                    "https://reg.example:5000/team": {"auth": STANDARD.encode("team:p:q")},
                    "*.wild.example": {"identitytoken": "wild"},
                    "https://index.docker.io/v1/": {"username": "hub", "password": "p"},
                }}),
            ),
            secret(".dockercfg", &json!({"old.example": {"username": "old", "password": "p"}})),
            secret("other", &json!({})),
        ]);
        assert_eq!(names(&keyring, "reg.example:5000", "team/app"), ["team", "all"]);
        assert_eq!(names(&keyring, "reg.example:5000", "x"), ["all"]);
        assert_eq!(names(&keyring, "reg.example", "x"), Vec::<String>::new());
        assert_eq!(names(&keyring, "a.wild.example", "x"), ["wild"]);
        assert_eq!(names(&keyring, "a.b.wild.example", "x"), Vec::<String>::new());
        assert_eq!(names(&keyring, "registry-1.docker.io", "library/x"), ["hub"]);
        assert_eq!(names(&keyring, "old.example", "x"), ["old"]);
        let team = keyring.find("reg.example:5000", "team/app").remove(0);
        assert_eq!(team, Credential::Basic { username: "team".into(), password: "p:q".into() });
        assert_eq!(format!("{team:?}"), "Credential(..)");
    }
}
