//! `registries.yaml`: mirrors, credentials and certificates of registries, in the format of k3s,
//! and names of images that stand for others.

use std::collections::BTreeMap;
use std::path::PathBuf;

use regex::Regex;
use serde::Deserialize;

use crate::agent::image::credentials::Credential;
use crate::agent::image::proxy::Proxy;
use crate::agent::image::reference::{DOCKER_HUB, Reference};

/// Where Docker's registry really is.
const DOCKER_ENDPOINT: &str = "https://registry-1.docker.io";
/// Value of `proxy` for registries that are reached without one.
const NO_PROXY: &str = "none";
/// Key of the mirrors and settings for registries that have none of their own.
const ANY: &str = "*";

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    mirrors: Option<BTreeMap<String, Option<MirrorEntry>>>,
    configs: Option<BTreeMap<String, Option<ConfigEntry>>>,
    images: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct MirrorEntry {
    endpoint: Option<Vec<String>>,
    rewrite: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigEntry {
    auth: Option<AuthEntry>,
    tls: Option<Tls>,
    proxy: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AuthEntry {
    username: String,
    password: String,
    auth: String,
    #[serde(alias = "identityToken")]
    identity_token: String,
}

impl std::fmt::Debug for AuthEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuthEntry(..)")
    }
}

/// Certificates for one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tls {
    /// PEM of the authorities that are trusted besides the system's.
    pub(super) ca_file: Option<PathBuf>,
    /// PEM of the client's certificate; with `key_file`.
    pub(super) cert_file: Option<PathBuf>,
    /// PEM of its key.
    pub(super) key_file: Option<PathBuf>,
    /// Any certificate will do.
    pub(super) insecure_skip_verify: bool,
}

/// One place an image may come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// URL up to and with `/v2`.
    pub(super) base: String,
    /// `host[:port]` of the URL.
    pub(super) host: String,
    /// Name of the repository there.
    pub(super) repository: String,
}

/// What the file says, checked.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    mirrors: BTreeMap<String, Mirror>,
    configs: BTreeMap<String, Config>,
    images: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct Mirror {
    endpoints: Vec<(String, String)>,
    rewrites: Vec<(Regex, String)>,
}

#[derive(Debug, Default)]
struct Config {
    credential: Option<Credential>,
    tls: Tls,
    /// `Some(None)`: reached without, whatever the environment says.
    proxy: Option<Option<Proxy>>,
}

/// A complaint about the file without what stands in it: pods' statuses repeat it, and it has passwords.
fn without_values(complaint: &str) -> String {
    match (complaint.find('"'), complaint.rfind('"')) {
        (Some(from), Some(to)) if from < to => {
            let (head, rest) = complaint.split_at(from);
            let (_, tail) = rest.split_at(to + 1 - from);
            format!("{head}a value{tail}")
        }
        _ => complaint.to_owned(),
    }
}

impl Settings {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        // An empty file is a wish for the defaults, too.
        let file: Option<File> = serde_saphyr::from_str(text)
            .map_err(|cause| without_values(&cause.without_snippet().to_string()))?;
        let file = file.unwrap_or_default();
        let mut settings = Self::default();
        for (host, entry) in file.mirrors.into_iter().flatten() {
            settings.mirrors.insert(host, mirror(entry.unwrap_or_default())?);
        }
        for (host, entry) in file.configs.into_iter().flatten() {
            let entry = entry.unwrap_or_default();
            let auth = entry.auth.unwrap_or_default();
            let credential =
                Credential::new(&auth.username, &auth.password, &auth.auth, &auth.identity_token);
            let tls = entry.tls.unwrap_or_default();
            if tls.cert_file.is_some() != tls.key_file.is_some() {
                return Err(format!("configs.{host}.tls: cert_file and key_file go together"));
            }
            let proxy = match entry.proxy.as_deref() {
                None => None,
                Some(NO_PROXY) => Some(None),
                Some(url) => {
                    let proxy = Proxy::parse(url).ok_or_else(|| {
                        format!("configs.{host}.proxy: it must be http://HOST:PORT or {NO_PROXY}")
                    });
                    Some(Some(proxy?))
                }
            };
            settings.configs.insert(host, Config { credential, tls, proxy });
        }
        for (name, image) in file.images.into_iter().flatten() {
            Reference::parse(&image).map_err(|cause| format!("images.{name}: {cause}"))?;
            settings.images.insert(familiar(&name).to_owned(), image);
        }
        Ok(settings)
    }

    /// The image that stands for `image`: the entry for its exact name, or for its name without
    /// tag and digest; `image` itself if there is none.
    pub(super) fn stand_in<'a>(&'a self, image: &'a str) -> &'a str {
        if self.images.is_empty() {
            return image;
        }
        let exact = familiar(image);
        let name = exact.split_once('@').map_or(exact, |(name, _)| name);
        let bare = match name.rsplit_once(':') {
            Some((bare, tag)) if !tag.contains('/') => bare,
            _ => name,
        };
        let found = [exact, name, bare].into_iter().find_map(|name| self.images.get(name));
        found.map_or(image, String::as_str)
    }

    /// Where to ask for an image: the mirrors in order, then the registry itself.
    pub(super) fn endpoints(&self, reference: &Reference) -> Vec<Endpoint> {
        let repository = &reference.repository;
        let mut all = Vec::new();
        if let Some(mirror) = self.mirrors.get(&reference.host).or_else(|| self.mirrors.get(ANY)) {
            let rewritten = mirror.rewrites.iter().find(|(from, _)| from.is_match(repository));
            let there = match rewritten {
                Some((from, to)) => from.replace(repository, to.as_str()).into_owned(),
                None => repository.clone(),
            };
            all.extend(mirror.endpoints.iter().map(|(base, host)| Endpoint {
                base: base.clone(),
                host: host.clone(),
                repository: there.clone(),
            }));
        }
        let own = if reference.host == DOCKER_HUB {
            endpoint(DOCKER_ENDPOINT)
        } else {
            let scheme = if is_loopback(&reference.host) { "http" } else { "https" };
            endpoint(&format!("{scheme}://{}", reference.host))
        };
        if let Ok((base, host)) = own
            && all.iter().all(|endpoint| endpoint.base != base)
        {
            all.push(Endpoint { base, host, repository: repository.clone() });
        }
        all
    }

    /// The credential the file has for a host.
    pub(super) fn credential(&self, host: &str) -> Option<Credential> {
        self.config(host).and_then(|config| config.credential.clone())
    }

    /// The certificates the file has for a host.
    pub(super) fn tls(&self, host: &str) -> Tls {
        self.config(host).map(|config| config.tls.clone()).unwrap_or_default()
    }

    /// What the file says of the proxy on the way to a host; `Some(None)`: there is to be none.
    pub(super) fn proxy(&self, host: &str) -> Option<Option<Proxy>> {
        self.config(host).and_then(|config| config.proxy.clone())
    }

    fn config(&self, host: &str) -> Option<&Config> {
        let alias = (host == "registry-1.docker.io").then_some(DOCKER_HUB);
        let names = [Some(host), alias, Some(ANY)];
        names.into_iter().flatten().find_map(|name| self.configs.get(name))
    }
}

/// `docker.io/library/busybox` and `docker.io/busybox` as people write them: `busybox`.
fn familiar(image: &str) -> &str {
    let rest = image.strip_prefix("docker.io/").or_else(|| image.strip_prefix("index.docker.io/"));
    rest.map_or(image, |rest| rest.strip_prefix("library/").unwrap_or(rest))
}

fn mirror(entry: MirrorEntry) -> Result<Mirror, String> {
    let mut mirror = Mirror::default();
    for url in entry.endpoint.into_iter().flatten() {
        mirror.endpoints.push(endpoint(&url)?);
    }
    for (from, to) in entry.rewrite.into_iter().flatten() {
        let from = Regex::new(&from).map_err(|cause| format!("rewrite {from:?}: {cause}"))?;
        mirror.rewrites.push((from, to));
    }
    Ok(mirror)
}

/// The base and the host of a mirror's URL. A path that has `v2` in it is taken as it stands.
fn endpoint(url: &str) -> Result<(String, String), String> {
    let bad = || format!("endpoint {url:?} is no URL such as https://registry.example:5000");
    let full = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    let uri: http::Uri = full.parse().map_err(|_| bad())?;
    let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"));
    let scheme = scheme.ok_or_else(bad)?;
    let host = uri.authority().filter(|host| !host.as_str().contains('@')).ok_or_else(bad)?;
    let path = uri.path().trim_end_matches('/');
    let has_version = path.split('/').any(|part| part == "v2");
    let version = if has_version { "" } else { "/v2" };
    Ok((format!("{scheme}://{host}{path}{version}"), host.to_string()))
}

/// Registries on this machine speak plain HTTP unless a mirror says otherwise, as for Docker.
fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host().trim_matches(['[', ']']);
    let is_loopback = name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    name == "localhost" || is_loopback
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = r#"
mirrors:
  docker.io:
    endpoint:
      - "https://mirror.example:5000"
      - "http://second.example/v2/hub"
    rewrite:
      "^library/(.*)": "base/$1"
  "*":
    endpoint: [last.example]
  quiet.example:
configs:
  "mirror.example:5000":
    auth: {username: u, password: p}
    tls: {ca_file: /etc/ca.pem}
  docker.io:
    auth: {auth: "aHViOnA="}
images:
  busybox: registry.edgeorc.local/busybox:latest
  docker.io/library/nginx:1.27: httpd:v1
"#;

    fn bases(settings: &Settings, image: &str) -> Vec<String> {
        let reference = Reference::parse(image).unwrap();
        let all = settings.endpoints(&reference).into_iter();
        all.map(|endpoint| format!("{} {}", endpoint.base, endpoint.repository)).collect()
    }

    #[test]
    fn mirrors_are_asked_in_order_and_the_registry_itself_last() {
        let settings = Settings::parse(EXAMPLE).unwrap();
        assert_eq!(
            bases(&settings, "docker.io/busybox"),
            [
                "https://mirror.example:5000/v2 base/busybox",
                "http://second.example/v2/hub base/busybox",
                "https://registry-1.docker.io/v2 library/busybox",
            ]
        );
        assert_eq!(
            bases(&settings, "ghcr.io/a/b"),
            ["https://last.example/v2 a/b", "https://ghcr.io/v2 a/b"]
        );
        assert_eq!(bases(&settings, "quiet.example/a"), ["https://quiet.example/v2 a"]);
        let none = Settings::default();
        assert_eq!(bases(&none, "127.0.0.1:5000/a"), ["http://127.0.0.1:5000/v2 a"]);
        assert_eq!(bases(&none, "localhost/a"), ["http://localhost/v2 a"]);
    }

    #[test]
    fn credentials_and_certificates_belong_to_one_host() {
        let settings = Settings::parse(EXAMPLE).unwrap();
        let basic = |username: &str| Credential::Basic {
            username: username.to_owned(),
            password: "p".to_owned(),
        };
        assert_eq!(settings.credential("mirror.example:5000"), Some(basic("u")));
        assert_eq!(settings.credential("registry-1.docker.io"), Some(basic("hub")));
        assert_eq!(settings.credential("mirror.example"), None);
        assert_eq!(settings.tls("mirror.example:5000").ca_file, Some("/etc/ca.pem".into()));
    }

    #[test]
    fn an_image_may_stand_for_another() {
        let settings = Settings::parse(EXAMPLE).unwrap();
        let busybox = "registry.edgeorc.local/busybox:latest";
        for image in ["busybox", "busybox:1.36", "docker.io/library/busybox", "docker.io/busybox:x"]
        {
            assert_eq!(settings.stand_in(image), busybox, "{image}");
        }
        assert_eq!(settings.stand_in("nginx:1.27"), "httpd:v1");
        for image in ["nginx", "nginx:1.28", "ghcr.io/busybox", "registry:5000/busybox"] {
            assert_eq!(settings.stand_in(image), image);
        }
    }

    #[test]
    fn a_mistake_is_named() {
        for (text, word) in [
            ("mirors: {}", "mirors"),
            ("mirrors: {a: {endpoint: ['ftp://x']}}", "ftp"),
            ("mirrors: {a: {rewrite: {'(': x}}}", "rewrite"),
            ("configs: {a: {tls: {cert_file: x}}}", "key_file"),
            ("configs: {a: {proxy: 'socks5://b:1'}}", "configs.a.proxy"),
            ("images: {a: 'B C'}", "images.a"),
        ] {
            let refused = Settings::parse(text).unwrap_err();
            assert!(refused.contains(word), "{text}: {refused}");
        }
    }

    #[test]
    fn a_complaint_names_the_place_and_nothing_that_stands_there() {
        for (text, said) in [
            (
                "configs:\n  a.example:\n    auth:\n      username: robot\n      pasword: s3cret\n",
                "pasword",
            ),
            ("configs:\n  a.example:\n    auth: s3cret\n", "line 3"),
            ("configs:\n  a.example:\n    auth:\n      password: s3cret\n    tsl: {}\n", "tsl"),
        ] {
            let complaint = Settings::parse(text).unwrap_err();
            assert!(!complaint.contains("s3cret"), "{complaint}");
            assert!(complaint.contains(said) && complaint.contains("line"), "{complaint}");
        }
    }
}
