//! Finds the signatures that `cosign` left beside an image: under the tag `sha256-<digest>.sig`, or
//! as Sigstore bundles among the image's referrers.

use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::agent::image::distribution::{Fault, Source};
use crate::agent::image::fetch::CHUNK_TIMEOUT;
use crate::agent::image::reference::hex_of;
use crate::api::image_policy::{
    BUNDLE_LAYER_PREFIX, Evidence, Policy, Refusal, SIGNATURE_ANNOTATION, SIMPLE_SIGNING_LAYER,
};

/// Most signatures of one form that are looked at.
const SIGNATURES_MAX: usize = 16;
/// Layers of one manifest that are looked at.
const LAYERS_MAX: usize = 64;
/// Largest payload or bundle, in bytes.
const PAYLOAD_BYTES_MAX: usize = 256 * 1024;
/// What referrers call themselves that may be signatures; one form of `cosign` gives the type of its
/// configuration.
const ARTIFACT_TYPES: &[&str] = &[
    BUNDLE_LAYER_PREFIX,
    "application/vnd.dev.cosign.artifact.sig",
    "application/vnd.oci.empty.v1+json",
];

/// How signatures are tied to an image.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// By a tag made of the digest.
    Tag,
    /// By their `subject`, in the registry's list.
    Referrers,
    /// In a list under a tag, which stands for the registry's. A registry that makes lists itself may
    /// hold this one beside them: `edgeorc bundle load` brings it.
    ReferrersTag,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Referrer>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    digest: String,
    artifact_type: Option<String>,
}

/// The first signature of the image `name`, digest `sha256:<hex>`, that satisfies the policy.
///
/// # Errors
///
/// Why there is none, for people.
pub(super) async fn find(
    sources: &[Source],
    name: &str,
    hex: &str,
    policy: &Policy,
) -> Result<Evidence, String> {
    if let Err(refusal @ Refusal::NoKey(_)) = policy.judge(name, hex, &[]) {
        return Err(refusal.to_string());
    }
    let (mut seen, mut faults) = (Vec::new(), Vec::new());
    for source in sources {
        for form in [Form::Tag, Form::Referrers, Form::ReferrersTag] {
            match collect(source, form, hex).await {
                Ok(found) => {
                    if let Ok((good, key)) = policy.judge(name, hex, &found) {
                        tracing::debug!(
                            image.name = name,
                            image.digest = hex,
                            key,
                            "image is signed"
                        );
                        return Ok(good.clone());
                    }
                    seen.extend(found);
                }
                Err(Fault::Missing(_)) => {}
                Err(fault) => faults.push(format!("{}: {fault}", source.host())),
            }
        }
    }
    let why = policy.judge(name, hex, &seen).err().map_or_else(String::new, |why| why.to_string());
    if faults.is_empty() {
        return Err(why);
    }
    faults.dedup();
    Err(format!("{why}; signatures could not be looked for everywhere: {}", faults.join("; ")))
}

async fn collect(source: &Source, form: Form, hex: &str) -> Result<Vec<Evidence>, Fault> {
    let mut found = Vec::new();
    match form {
        Form::Tag => {
            let content = source.manifest(&format!("sha256-{hex}.sig")).await?;
            of_manifest(source, &content, &mut found).await?;
        }
        Form::Referrers => {
            let content = match source.referrers(hex).await {
                // Registries without lists say so in many ways.
                Err(Fault::Refused(why) | Fault::Denied(why)) => return Err(Fault::Missing(why)),
                content => content?,
            };
            of_index(source, &content, &mut found).await?;
        }
        Form::ReferrersTag => {
            let content = source.manifest(&format!("sha256-{hex}")).await?;
            of_index(source, &content, &mut found).await?;
        }
    }
    Ok(found)
}

/// Adds the signatures that a list of referrers names.
async fn of_index(source: &Source, content: &[u8], found: &mut Vec<Evidence>) -> Result<(), Fault> {
    let index: Index = parse(content)?;
    let is_signature = |referrer: &&Referrer| {
        let kind = referrer.artifact_type.as_deref();
        kind.is_none_or(|kind| ARTIFACT_TYPES.iter().any(|known| kind.starts_with(known)))
    };
    for referrer in index.manifests.iter().filter(is_signature).take(SIGNATURES_MAX) {
        left_out(of_referrer(source, referrer, found).await)?;
    }
    Ok(())
}

async fn of_referrer(
    source: &Source,
    referrer: &Referrer,
    found: &mut Vec<Evidence>,
) -> Result<(), Fault> {
    let hex = checked(&referrer.digest)?;
    let content = source.manifest(&referrer.digest).await?;
    check_digest(&content, hex)?;
    of_manifest(source, &content, found).await
}

/// What is missing or damaged does not hide what stands beside it; a registry that does not answer does.
fn left_out<T>(read: Result<T, Fault>) -> Result<Option<T>, Fault> {
    match read {
        Err(fault @ (Fault::Missing(_) | Fault::Refused(_))) => {
            tracing::debug!(%fault, "an entry that is no signature");
            Ok(None)
        }
        read => read.map(Some),
    }
}

/// Adds the signatures of one manifest. What cannot be read as one is left out: others may stand
/// beside it.
async fn of_manifest(
    source: &Source,
    content: &[u8],
    found: &mut Vec<Evidence>,
) -> Result<(), Fault> {
    let manifest: Manifest = parse(content)?;
    for layer in manifest.layers.into_iter().take(LAYERS_MAX) {
        if found.len() >= SIGNATURES_MAX {
            break;
        }
        let is_simple = layer.media_type == SIMPLE_SIGNING_LAYER;
        let is_bundle = layer.media_type.starts_with(BUNDLE_LAYER_PREFIX);
        if !(is_simple || is_bundle) || layer.size > PAYLOAD_BYTES_MAX as u64 {
            tracing::debug!(media_type = layer.media_type, "a layer that is no signature");
            continue;
        }
        let payload = async { small_blob(source, checked(&layer.digest)?).await };
        let Some(payload) = left_out(payload.await)? else { continue };
        let read = if is_simple {
            let signature = layer.annotations.get(SIGNATURE_ANNOTATION);
            let signature = signature.ok_or_else(|| "it has no signature".to_owned());
            signature
                .and_then(|signature| Evidence::simple_signing(&payload, signature))
                .map(|one| vec![one])
        } else {
            Evidence::bundle(&payload)
        };
        match read {
            Ok(more) => found.extend(more),
            Err(why) => tracing::debug!(why, "a signature that cannot be read"),
        }
    }
    Ok(())
}

async fn small_blob(source: &Source, hex: &str) -> Result<bytes::Bytes, Fault> {
    let (body, _) = source.blob(hex, 0).await?;
    let body = Limited::new(body, PAYLOAD_BYTES_MAX).collect();
    let content = tokio::time::timeout(CHUNK_TIMEOUT, body)
        .await
        .map_err(|_| Fault::unavailable("the registry stopped sending"))?
        .map_err(Fault::unavailable)?
        .to_bytes();
    check_digest(&content, hex)?;
    Ok(content)
}

fn parse<'a, T: Deserialize<'a>>(content: &'a [u8]) -> Result<T, Fault> {
    serde_json::from_slice(content)
        .map_err(|cause| Fault::Refused(format!("its signature manifest is damaged: {cause}")))
}

fn checked(digest: &str) -> Result<&str, Fault> {
    let why = || Fault::Refused(format!("its signature manifest names the digest {digest:?}"));
    hex_of(digest).ok_or_else(why)
}

fn check_digest(content: &[u8], hex: &str) -> Result<(), Fault> {
    if hex::encode(Sha256::digest(content)) == hex {
        return Ok(());
    }
    Err(Fault::Refused("it sent other bytes than the digest names".to_owned()))
}
