//! What an image's config says of its process: entry point, arguments, variables (OCI image
//! specification 1.1, `config.md`).

use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest as _, Sha256};

use crate::agent::image::distribution::Fault;
use crate::agent::image::manifest::Blob;

/// Media types of configs that say it; an artifact's say other things.
pub(super) const TYPES: &[&str] =
    &["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// Most bytes of all words together: they are kept with the reference, and given to each process.
const WORDS_BYTES_MAX: usize = 64 * 1024;

/// What a process is started with unless the pod says something else. Empty of an artifact.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct ImageConfig {
    /// `command` of a container takes its place.
    #[serde(deserialize_with = "or_default")]
    pub(crate) entrypoint: Vec<String>,
    /// `args` take its place.
    #[serde(deserialize_with = "or_default")]
    pub(crate) cmd: Vec<String>,
    /// `NAME=value`.
    #[serde(deserialize_with = "or_default")]
    pub(crate) env: Vec<String>,
    /// `workingDir` takes its place.
    #[serde(deserialize_with = "or_default")]
    pub(crate) working_dir: String,
}

/// What is not set may be left out or null.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Debug, Deserialize)]
struct Document {
    config: Option<ImageConfig>,
}

/// Reads the document that `blob` names.
pub(super) fn read(blob: &Blob, content: &[u8]) -> Result<ImageConfig, Fault> {
    let found = hex::encode(Sha256::digest(content));
    if found != blob.hex {
        let why = format!("it sent sha256:{found} for the image's config sha256:{}", blob.hex);
        return Err(Fault::Refused(why));
    }
    let document: Document = serde_json::from_slice(content)
        .map_err(|cause| Fault::Refused(format!("the image's config is damaged: {cause}")))?;
    let config = document.config.unwrap_or_default();
    let words = config.entrypoint.iter().chain(&config.cmd).chain(&config.env);
    let bytes = words.map(String::len).sum::<usize>().saturating_add(config.working_dir.len());
    if bytes > WORDS_BYTES_MAX {
        let why = format!("the image's config has more than {WORDS_BYTES_MAX} bytes of words");
        return Err(Fault::Refused(why));
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<ImageConfig, Fault> {
        let hex = hex::encode(Sha256::digest(text));
        read(&Blob { hex, size: None }, text.as_bytes())
    }

    #[test]
    fn what_is_not_set_is_left_out_or_null() {
        let set = read_text(
            r#"{"architecture": "wasm", "os": "wasip1", "config": {"Env": ["A=b=c", "PATH=/bin"],
                "Entrypoint": ["/app.wasm", "-v"], "Cmd": ["serve"], "WorkingDir": "/data"}}"#,
        );
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let all = ImageConfig {
            entrypoint: words(&["/app.wasm", "-v"]),
            cmd: words(&["serve"]),
            env: words(&["A=b=c", "PATH=/bin"]),
            working_dir: "/data".to_owned(),
        };
        assert_eq!(set.unwrap(), all);
        for text in [
            r#"{"architecture": "wasm", "os": "wasip1"}"#,
            r#"{"config": null}"#,
            r#"{"config": {"Env": null, "Entrypoint": null, "Cmd": null, "WorkingDir": ""}}"#,
        ] {
            assert_eq!(read_text(text).unwrap(), ImageConfig::default(), "{text}");
        }
    }

    #[test]
    fn other_bytes_and_too_many_are_refused() {
        let other = Blob { hex: "0".repeat(64), size: None };
        assert!(matches!(read(&other, b"{}"), Err(Fault::Refused(_))));
        assert!(matches!(read_text("no JSON"), Err(Fault::Refused(_))));
        let long = format!(r#"{{"config": {{"Env": ["A={}"]}}}}"#, "x".repeat(WORDS_BYTES_MAX));
        assert!(matches!(read_text(&long), Err(Fault::Refused(_))));
    }
}
