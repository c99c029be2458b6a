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
    pub(super) fn copy_repository(&self) -> Option<String> {
        let name =
            format!("{}/{}", self.host.to_ascii_lowercase().replace(':', "_"), self.repository);
        is_repository(&name).then_some(name)
    }

    /// One file name per reference. `=` and `@` are in no host, repository or tag.
    pub(super) fn file_name(&self) -> String {
        let name = format!("{}@{}", self.file_name_start(), self.reference.replace(':', "-"));
        if name.len() > FILE_NAME_BYTES_MAX {
            return format!("={}", hex::encode(Sha256::digest(name)));
        }
        name
    }

    /// What whoever may pull this may pull as well: everything of the cluster's own registry, and of
    /// any other the repository alone.
    pub(super) fn scope(&self) -> String {
        if self.is_own() { OWN_REGISTRY.to_owned() } else { self.file_name_start() }
    }

    /// [`Self::scope`] of the reference that a file is named after; not of names that are hashed.
    pub(super) fn scope_of_file(name: &str) -> Option<String> {
        let (start, _) = name.split_once('@')?;
        Some(if start.contains('=') { start.to_owned() } else { OWN_REGISTRY.to_owned() })
    }

    fn file_name_start(&self) -> String {
        let host = if self.is_own() {
            String::new()
        } else {
            format!("{}=", self.host.replace([':', '[', ']'], "_"))
        };
        format!("{host}{}", self.repository.replace('/', "+"))
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

/// The hex of a `sha256:` digest.
pub(super) fn hex_of(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    (hex.len() == 64 && hex.chars().all(is_hex)).then_some(hex)
}

/// Docker's rule for what in front of the first slash is a host.
fn is_host(text: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || "._-:[]".contains(c);
    (text.contains(['.', ':']) || text == "localhost")
        && text.parse::<http::uri::Authority>().is_ok()
        && text.chars().all(is_good)
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
        for bad in ["", "a b", "a/../b", "a:", "A", "a//b", "/a", "a@sha256:00", "a:v1:v2", "x.y/"]
        {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_reference_has_a_file_of_its_own() {
        let file = |image: &str| Reference::parse(image).unwrap().file_name();
        assert_eq!(file("default/hello:v1"), "default+hello@v1");
        assert_ne!(file("docker.io/a/b"), file("registry.edgeorc.local/docker.io/a/b"));
        assert_ne!(file("a.b:1/x"), file("a.b-1/x"));
        assert!(file(&format!("{}:v1", "a".repeat(250))).len() < 100);
        for image in ["default/hello:v1", "ghcr.io/o/x:v1", "localhost:5000/x"] {
            let reference = Reference::parse(image).unwrap();
            let of_file = Reference::scope_of_file(&format!("{}.json", reference.file_name()));
            assert_eq!(of_file, Some(reference.scope()), "{image}");
        }
    }
}
