//! Pushes a component to the cluster's own OCI registry.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::api::{ApiError, Session, build};
use super::args::{Global, OutputFormat, Push, PushFormat};
use super::exit::{self, Failure};
use super::progress::Progress;
use super::{deploy, output};
use crate::config::Environment;

/// Host part of the references to the cluster's own registry.
pub(super) const OWN_REGISTRY: &str = "registry.edgeorc.local";
/// Media type of a component or module (OCI Wasm artifact layout).
const LAYER_TYPE: &str = "application/wasm";
/// Media type of its configuration.
const CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
/// Media type of an image manifest.
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Tag of an image whose name has none, as for pods.
const DEFAULT_TAG: &str = "latest";
/// Characters of the digest that make the tag of a deploy: enough to tell builds apart.
const TAG_CHARS: usize = 12;

/// Characters of a tag at most, by the distribution specification.
const TAG_CHARS_MAX: usize = 128;

/// Where in the registry an image is.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    repository: String,
    tag: String,
}

/// An image that is there now.
#[derive(Debug)]
pub(super) struct Pushed {
    /// As a pod's `image` names it.
    pub(super) image: String,
    /// Digest of its manifest.
    digest: String,
}

/// `edgeorc push`.
pub(super) async fn run(
    flags: Push,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    let place = Place::parse(&flags.name)?;
    let wasm = deploy::read_component(&flags.app)?;
    let session = Session::open(global, environment).await?;
    let mut progress = Progress::start(&format!("pushing {}", flags.app.display()));
    let pushed = push_to(&session, &place, &wasm, &mut |step| progress.step(step)).await?;
    progress.finish();
    let Pushed { image, digest } = pushed;
    match flags.output {
        Some(PushFormat::Json) => {
            let document = json!({"image": image, "digest": digest, "size": wasm.len()});
            output::document(&document, OutputFormat::Json)
        }
        Some(PushFormat::Name) => output::data_line(&image),
        None => {
            output::words(&format!("digest {digest}, {} bytes", wasm.len()));
            output::data_line(&format!("{image} pushed"))
        }
    }
}

/// Pushes `wasm` as `<namespace>/<name>`, tagged with the start of its digest. Returns the image
/// reference.
pub(super) async fn push(session: &Session, name: &str, wasm: &[u8]) -> Result<String, Failure> {
    let layer = digest(wasm);
    let tag = layer.trim_start_matches("sha256:").chars().take(TAG_CHARS).collect();
    let place = Place { repository: format!("{}/{name}", session.namespace), tag };
    push_to(session, &place, wasm, &mut |_| {}).await.map(|pushed| pushed.image)
}

async fn push_to(
    session: &Session,
    place: &Place,
    wasm: &[u8],
    step: &mut dyn FnMut(&str),
) -> Result<Pushed, Failure> {
    let Place { repository, tag } = place;
    let layer = digest(wasm);
    let config = json!({
        "architecture": "wasm", "os": "wasip2", "layerDigests": [layer],
    })
    .to_string();
    let config_digest = digest(config.as_bytes());
    if blob(session, repository, &layer, wasm).await? {
        step("the component is there, pushing its manifest");
    } else {
        step("pushing its manifest");
    }
    blob(session, repository, &config_digest, config.as_bytes()).await?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": config_digest, "size": config.len()},
        "layers": [{"mediaType": LAYER_TYPE, "digest": layer, "size": wasm.len()}],
    })
    .to_string();
    let path = format!("/v2/{repository}/manifests/{tag}");
    let digest = digest(manifest.as_bytes());
    session.json_or_empty(Method::PUT, &path, MANIFEST_TYPE, manifest.into_bytes()).await?;
    Ok(Pushed { image: format!("{OWN_REGISTRY}/{repository}:{tag}"), digest })
}

impl Place {
    /// Reads `[registry.edgeorc.local/]NAME[:TAG]`, with the characters that the distribution
    /// specification gives names and tags.
    fn parse(name: &str) -> Result<Self, Failure> {
        let bad = |why: &str| Failure::with(exit::USAGE, format!("the name {name:?} {why}"));
        let own = format!("{OWN_REGISTRY}/");
        let rest = match name.split_once('/') {
            Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => {
                let why = "is of another registry; push there with a tool such as oras or wkg";
                name.strip_prefix(&own).ok_or_else(|| bad(why))?
            }
            _ => name,
        };
        if rest.contains('@') {
            return Err(bad("has a digest, which the registry alone gives; write NAME:TAG"));
        }
        let (repository, tag) = rest.split_once(':').unwrap_or((rest, DEFAULT_TAG));
        if repository.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(bad("has upper-case letters, which only its TAG may have"));
        }
        let is_word = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.ends_with(|c: char| c.is_ascii_alphanumeric())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let is_tag = !tag.starts_with(['.', '-'])
            && (1..=TAG_CHARS_MAX).contains(&tag.len())
            && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if !repository.split('/').all(is_word) || !is_tag {
            return Err(bad("is none of an image; write NAME:TAG, for example shop/cart:v1"));
        }
        Ok(Self { repository: repository.to_owned(), tag: tag.to_owned() })
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Uploads one blob in one piece, unless the registry has it, which is told.
async fn blob(
    session: &Session,
    repository: &str,
    digest: &str,
    bytes: &[u8],
) -> Result<bool, Failure> {
    let head = build(
        Method::HEAD,
        &format!("/v2/{repository}/blobs/{digest}"),
        LAYER_TYPE,
        "*/*",
        Vec::new(),
    )?;
    match session.send(head).await {
        Ok(_) => return Ok(true),
        Err(ApiError::Refused { code: StatusCode::NOT_FOUND, .. }) => {}
        Err(refused) => return Err(refused.into()),
    }
    let start = format!("/v2/{repository}/blobs/uploads/");
    let (_, headers, _) =
        session.send(build(Method::POST, &start, LAYER_TYPE, "*/*", Vec::new())?).await?;
    let location = headers
        .get(http::header::LOCATION)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| Failure::failed("the registry gave no place to upload to"))?;
    let separator = if location.contains('?') { '&' } else { '?' };
    let put = format!("{}{separator}digest={digest}", path_of(location));
    session
        .send(build(Method::PUT, &put, "application/octet-stream", "*/*", bytes.to_vec())?)
        .await?;
    Ok(false)
}

/// Path and query of a location that may be absolute.
fn path_of(location: &str) -> String {
    location
        .parse::<http::Uri>()
        .ok()
        .and_then(|uri| uri.path_and_query().map(ToString::to_string))
        .unwrap_or_else(|| location.to_owned())
}

impl Session {
    /// Sends bytes and parses the answer when it is JSON.
    async fn json_or_empty(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Value, ApiError> {
        let (_, _, answer) = self.send(build(method, path, content_type, "*/*", body)?).await?;
        Ok(serde_json::from_slice(&answer).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_a_pod_calls_the_image() {
        let cases = [
            ("hello", "hello", "latest"),
            ("shop/cart:v1", "shop/cart", "v1"),
            ("registry.edgeorc.local/shop/cart:v1", "shop/cart", "v1"),
            ("shop_2/cart-a.b:V1_x", "shop_2/cart-a.b", "V1_x"),
        ];
        for (name, repository, tag) in cases {
            let place = Place { repository: repository.to_owned(), tag: tag.to_owned() };
            assert_eq!(Place::parse(name).unwrap(), place, "{name}");
        }
        for (name, word) in [
            ("ghcr.io/a/b:v1", "another registry"),
            ("localhost:5000/a", "another registry"),
            ("a@sha256:00", "digest"),
            ("a b", "NAME:TAG"),
            ("a:", "NAME:TAG"),
            ("", "NAME:TAG"),
            ("a?x=1", "NAME:TAG"),
            ("a:b/c", "another registry"),
            ("a/b:c/d", "NAME:TAG"),
            ("Shop/cart:v1", "upper-case"),
            ("shop//cart", "NAME:TAG"),
            ("-cart", "NAME:TAG"),
            ("cart:-v1", "NAME:TAG"),
        ] {
            let refused = Place::parse(name).unwrap_err();
            assert_eq!(refused.code, exit::USAGE);
            assert!(refused.to_string().contains(word), "{name}: {refused}");
        }
    }
}
