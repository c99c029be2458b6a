//! Image references, as the distribution specification and Docker write them.

use sha2::{Digest as _, Sha256};

use crate::agent::image::ImageError;

/// Host of the cluster's own registry in references.
pub(super) const OWN_REGISTRY: &str = "registry.edgeorc.local";
/// Host of Docker's registry in references.
pub(super) const DOCKER_HUB: &str = "docker.io";
/// Longest repository name, in bytes.
const REPOSITORY_BYTES_MAX: usize = 255;
/// Longest tag, in bytes.
const TAG_BYTES_MAX: usize = 128;
/// Longest name of a file under `refs/` that is written out; longer ones are hashed.
const FILE_NAME_BYTES_MAX: usize = 200;

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    /// `host[:port]`.
    pub(super) host: String,
    pub(super) repository: String,
    /// Tag or `sha256:` digest.
    pub(super) reference: String,
}

impl Reference {
    /// Reads `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`. Without a host it is the cluster's own registry;
    /// the tag defaults to `latest`; a digest outweighs a tag.
    pub(super) fn parse(image: &str) -> Result<Self, ImageError> {
        let invalid = |why: &str| {
            ImageError::Name(format!(
                "Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {why}"
            ))
        };
        let (host, rest) = match image.split_once('/') {
            Some((host, rest)) if is_host(host) => (host, rest),
            _ => (OWN_REGISTRY, image),
        };
        let (name, digest) = match rest.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (rest, None),
        };
        let (repository, tag) = match name.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (name, None),
        };
        if !is_repository(repository) {
            return Err(invalid("invalid reference format"));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid("invalid tag format"));
        }
        if digest.is_some_and(|digest| hex_of(digest).is_none()) {
            return Err(invalid("invalid checksum digest format"));
        }
        let host = if host == "index.docker.io" { DOCKER_HUB } else { host };
        let is_official = host == DOCKER_HUB && !repository.contains('/');
        let repository =
            if is_official { format!("library/{repository}") } else { repository.to_owned() };
        let reference = digest.or(tag).unwrap_or("latest").to_owned();
        Ok(Self { host: host.to_owned(), repository, reference })
    }

    /// Whether it is in the cluster's own registry.
    pub(super) fn is_own(&self) -> bool {
        self.host == OWN_REGISTRY
    }

    /// Hex of the digest, if it names one.
    pub(super) fn digest(&self) -> Option<&str> {
        hex_of(&self.reference)
    }

    /// Where `edgeorc bundle load` puts a copy: the repository in the cluster's own registry. `None`
    /// for names that no repository there can have.
    ///
    /// A port's colon is `_`, which repositories may have and `:` they may not; a `_` of the host is
    /// two, so that each host has a name of its own: an odd number of them stands before a port.
    pub(super) fn copy_repository(&self) -> Option<String> {
        let host = self.host.to_ascii_lowercase().replace('_', "__").replace(':', "_");
        let name = format!("{host}/{}", self.repository);
        is_repository(&name).then_some(name)
    }

    /// One file name per reference. `=` and `@` are in no host, repository or tag, `+` is in no
    /// repository, and `:` in no tag.
    pub(super) fn file_name(&self) -> String {
        let host = if self.is_own() { String::new() } else { format!("{}=", self.host) };
        hashed(format!("{host}{}@{}", self.repository.replace('/', "+"), self.reference))
    }

    /// The name that earlier versions gave to the file; `None` if it is the same, or another reference
    /// may have had it, too.
    pub(super) fn old_file_name(&self) -> Option<String> {
        let is_ambiguous = self.host.contains('_') || self.reference.starts_with("sha256-");
        let host = self.host.replace([':', '[', ']'], "_");
        let host = if self.is_own() { String::new() } else { format!("{host}=") };
        let reference = self.reference.replace(':', "-");
        let name = hashed(format!("{host}{}@{reference}", self.repository.replace('/', "+")));
        (!is_ambiguous && name != self.file_name()).then_some(name)
    }

    /// What whoever may pull this may pull as well: everything of the cluster's own registry, and of
    /// any other the repository alone.
    pub(super) fn scope(&self) -> String {
        if self.is_own() {
            return OWN_REGISTRY.to_owned();
        }
        format!("{}={}", self.host, self.repository.replace('/', "+"))
    }

    /// [`Self::scope`] of the reference that a file is named after; not of names that are hashed.
    pub(super) fn scope_of_file(name: &str) -> Option<String> {
        let (start, _) = name.split_once('@')?;
        Some(if start.contains('=') { start.to_owned() } else { OWN_REGISTRY.to_owned() })
    }

    /// The reference that [`Self::file_name`] was made of; `None` of names that are hashed.
    pub(super) fn of_file(name: &str) -> Option<Self> {
        let (start, reference) = name.split_once('@')?;
        let (host, repository) = start.split_once('=').unwrap_or((OWN_REGISTRY, start));
        if host.is_empty() {
            return None;
        }
        let repository = repository.replace('+', "/");
        Some(Self { host: host.to_owned(), repository, reference: reference.to_owned() })
    }

    /// `HOST/NAME`, without tag.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let separator = if self.digest().is_some() { '@' } else { ':' };
        write!(f, "{}{separator}{}", self.name(), self.reference)
    }
}

/// A name that is too long for a file, hashed.
fn hashed(name: String) -> String {
    if name.len() > FILE_NAME_BYTES_MAX {
        return format!("={}", hex::encode(Sha256::digest(name)));
    }
    name
}

/// The hex of a `sha256:` digest.
pub(super) fn hex_of(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    (hex.len() == 64 && hex.chars().all(is_hex)).then_some(hex)
}

/// Docker's rule for what in front of the first slash is a host.
fn is_host(text: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || "._-:[]".contains(c);
    // Behind the brackets of an IPv6 address, if there are some.
    let rest = text.rsplit(']').next().unwrap_or(text);
    let is_port = |port: &str| !port.is_empty() && port.chars().all(|c| c.is_ascii_digit());
    (text.contains(['.', ':']) || text == "localhost")
        && text.parse::<http::uri::Authority>().is_ok()
        && text.chars().all(is_good)
        && rest.split_once(':').is_none_or(|(_, port)| is_port(port))
}

/// Parts of lower-case letters and digits, joined by single separators.
fn is_repository(text: &str) -> bool {
    let is_part = |part: &str| {
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.starts_with(is_word)
            && part.ends_with(is_word)
            && part.chars().all(|c| is_word(c) || "._-".contains(c))
            && !part.contains("..")
    };
    text.len() <= REPOSITORY_BYTES_MAX && text.split('/').all(is_part)
}

fn is_tag(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= TAG_BYTES_MAX
        && text.starts_with(is_word)
        && text.chars().all(|c| is_word(c) || ".-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_name_a_host_a_repository_and_a_tag_or_digest() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        let (by_digest, by_both) = (format!("a/b@{digest}"), format!("a/b:v1@{digest}"));
        let cases = [
            ("hello", OWN_REGISTRY, "hello", "latest"),
            ("default/hello:v1", OWN_REGISTRY, "default/hello", "v1"),
            ("registry.edgeorc.local/default/hello:v1", OWN_REGISTRY, "default/hello", "v1"),
            (&by_digest, OWN_REGISTRY, "a/b", &digest),
            (&by_both, OWN_REGISTRY, "a/b", &digest),
            ("docker.io/nginx", "docker.io", "library/nginx", "latest"),
            ("index.docker.io/a/b:1", "docker.io", "a/b", "1"),
            ("localhost:5000/x", "localhost:5000", "x", "latest"),
            ("[::1]:5000/x", "[::1]:5000", "x", "latest"),
            ("ghcr.io/o/x_y-z:V1.0", "ghcr.io", "o/x_y-z", "V1.0"),
        ];
        for (image, host, repository, reference) in cases {
            let parsed = Reference::parse(image).unwrap();
            assert_eq!(
                (parsed.host.as_str(), parsed.repository.as_str(), parsed.reference.as_str()),
                (host, repository, reference),
                "{image}"
            );
        }
        for bad in [
            "",
            "a b",
            "a/../b",
            "a:",
            "A",
            "a//b",
            "/a",
            "a@sha256:00",
            "a:v1:v2",
            "x.y/",
            "a:b/x",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_reference_has_a_file_of_its_own() {
        let file = |image: &str| Reference::parse(image).unwrap().file_name();
        assert_eq!(file("default/hello:v1"), "default+hello@v1");
        assert_ne!(file("docker.io/a/b"), file("registry.edgeorc.local/docker.io/a/b"));
        for (one, other) in [
            ("a.b:1/x", "a.b-1/x"),
            ("a.b:1/x", "a.b_1/x"),
            ("a.b_:1/x", "a.b__1/x"),
            ("[::1]:1/x", "1.1_1/x"),
            (
                &format!("a.b/x@sha256:{}", "0a".repeat(32)),
                &format!("a.b/x:sha256-{}", "0a".repeat(32)),
            ),
        ] {
            assert_ne!(file(one), file(other));
            let copy = |image: &str| {
                let reference = Reference::parse(image).unwrap();
                (reference.copy_repository(), reference.reference)
            };
            assert_ne!(copy(one), copy(other));
        }
        let copy = Reference::parse("reg.example:5000/x").unwrap().copy_repository();
        assert_eq!(copy.as_deref(), Some("reg.example_5000/x"));
        let old = |image: &str| Reference::parse(image).unwrap().old_file_name();
        assert_eq!(old("a.b:1/x").as_deref(), Some("a.b_1=x@latest"));
        assert_eq!(old("a.b/x"), None, "it is the same");
        assert_eq!(old("a.b_1/x"), None, "it may be another's");
        assert!(file(&format!("{}:v1", "a".repeat(250))).len() < 100);
        for image in ["default/hello:v1", "ghcr.io/o/x:v1", "localhost:5000/x"] {
            let reference = Reference::parse(image).unwrap();
            let of_file = Reference::scope_of_file(&format!("{}.json", reference.file_name()));
            assert_eq!(of_file, Some(reference.scope()), "{image}");
        }
    }
}
