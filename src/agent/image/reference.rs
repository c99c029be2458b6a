//! Image references.

use crate::agent::image::ImageError;

/// Host of the cluster's own registry in references.
const OWN_REGISTRY: &str = "registry.edgeorc.local";

/// An image in the cluster's own registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) repository: String,
    /// Tag or `sha256:` digest.
    pub(super) reference: String,
}

impl Reference {
    /// Reads `[registry.edgeorc.local/]NAME[:TAG|@DIGEST]`; the tag defaults to `latest`.
    pub(super) fn parse(image: &str) -> Result<Self, ImageError> {
        let invalid = |why: &str| ImageError::Name(format!("image {image:?}: {why}"));
        let rest = image.strip_prefix(OWN_REGISTRY).and_then(|r| r.strip_prefix('/'));
        let rest = match (rest, image.split_once('/')) {
            (Some(rest), _) => rest,
            (None, Some((host, _))) if host.contains(['.', ':']) || host == "localhost" => {
                return Err(invalid(
                    "images of other registries are not supported yet; push it to the cluster with `edgeorc deploy`",
                ));
            }
            (None, _) => image,
        };
        let (repository, reference) = match rest.split_once('@') {
            Some((name, digest)) => (name.split(':').next().unwrap_or(name), digest),
            None => match rest.rsplit_once(':') {
                Some((name, tag)) if !tag.contains('/') => (name, tag),
                _ => (rest, "latest"),
            },
        };
        let is_good = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        if repository.is_empty() || !repository.chars().all(is_good) || repository.contains("..") {
            return Err(invalid("couldn't parse image name"));
        }
        let is_good = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
        if reference.is_empty() || !reference.chars().all(is_good) {
            return Err(invalid("couldn't parse the tag or digest"));
        }
        Ok(Self { repository: repository.to_owned(), reference: reference.to_owned() })
    }

    /// One file name per reference.
    pub(super) fn file_name(&self) -> String {
        format!("{}@{}", self.repository.replace('/', "+"), self.reference.replace(':', "-"))
    }

    pub(super) fn repository_with_host(&self) -> String {
        format!("{OWN_REGISTRY}/{}", self.repository)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_name_a_repository_and_a_tag_or_digest() {
        let cases = [
            ("hello", "hello", "latest"),
            ("default/hello:v1", "default/hello", "v1"),
            ("registry.edgeorc.local/default/hello:v1", "default/hello", "v1"),
            ("a/b@sha256:00", "a/b", "sha256:00"),
            ("a/b:v1@sha256:00", "a/b", "sha256:00"),
        ];
        for (image, repository, reference) in cases {
            let parsed = Reference::parse(image).unwrap();
            assert_eq!(
                (parsed.repository.as_str(), parsed.reference.as_str()),
                (repository, reference),
                "{image}"
            );
        }
        for bad in ["", "docker.io/library/nginx", "a b", "a/../b", "a:", "localhost/x"] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }
}
