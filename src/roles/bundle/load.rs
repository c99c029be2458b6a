//! From an archive into the cluster's own registry, where nodes find what they name by its own name.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;

use crate::agent::copy_place;
use crate::roles::bundle::archive::Archive;
use crate::roles::bundle::{
    BLOB_BYTES_MAX, BundleError, DEPTH_MAX, Descriptor, Manifest, NAME_ANNOTATION, TAG_ANNOTATION,
    Tell, hex_of,
};

/// Bytes of a blob that are sent at a time.
const PIECE_BYTES: u64 = 2 * 1024 * 1024;
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// Header with the digest of a manifest.
const DIGEST_HEADER: &str = "docker-content-digest";
/// Most that is read of an answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Most images of one archive.
const IMAGES_MAX: usize = 10_000;

/// What is loaded.
#[derive(Debug, Clone)]
pub struct LoadPlan {
    /// The archive.
    pub file: PathBuf,
    /// `HOST/REPOSITORY` of images of which the archive has only a tag.
    pub name: Option<String>,
}

/// What was loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Name and digest of each image.
    pub images: Vec<(String, String)>,
    /// Manifests with signatures.
    pub signatures: usize,
    /// Blobs that were sent.
    pub sent: usize,
    /// Blobs that were there before.
    pub present: usize,
    /// Bytes that were sent.
    pub bytes: u64,
}

/// An entry of the index with its name.
struct Named {
    image: String,
    repository: String,
    reference: String,
    entry: Descriptor,
}

impl Named {
    /// Whether it is a tag that signatures have.
    fn is_signature(&self) -> bool {
        let hex = self.reference.strip_prefix("sha256-");
        let hex = hex.map(|rest| rest.strip_suffix(".sig").unwrap_or(rest));
        hex.is_some_and(|hex| hex_of(&format!("sha256:{hex}")).is_some())
    }
}

/// Loads an archive. What is in the registry is not sent again, so that a load that broke off goes on
/// where it ended.
///
/// # Errors
///
/// See [`BundleError`]; what was loaded so far stays.
pub async fn load(
    plan: &LoadPlan,
    client: &kube::Client,
    tell: Tell<'_>,
) -> Result<Loaded, BundleError> {
    let file = plan.file.clone();
    let opened = tokio::task::spawn_blocking(move || Archive::open(&file)).await;
    let archive = opened.map_err(|cause| BundleError::Archive {
        path: plan.file.display().to_string(),
        why: cause.to_string(),
    })??;
    let mut named = names(&archive, plan.name.as_deref())?;
    // Signatures first: an image is never there without them.
    named.sort_by_key(|one| !one.is_signature());
    let mut load = Load { archive, client, loaded: Loaded::default(), sent: BTreeSet::new() };
    for one in &named {
        if !one.is_signature() {
            tell(&format!("loading {}", one.image));
        }
        let repository = &one.repository;
        load.manifest(one, &one.entry, Some(&one.reference), 0).await?;
        if one.is_signature() {
            load.loaded.signatures += 1;
        } else {
            tracing::debug!(image.name = one.image, repository, "image loaded");
            load.loaded.images.push((one.image.clone(), one.entry.digest.clone()));
        }
    }
    Ok(load.loaded)
}

/// The entries of the index, with the places of their copies.
fn names(archive: &Archive, base: Option<&str>) -> Result<Vec<Named>, BundleError> {
    let index = Manifest::parse(archive.index());
    let entries = index.map_err(|why| archive.bad(&format!("index.json: {why}")))?.manifests;
    let entries = entries.unwrap_or_default();
    if entries.is_empty() || entries.len() > IMAGES_MAX {
        let count = entries.len();
        return Err(archive.bad(&format!("its index names {count} images, not 1 to {IMAGES_MAX}")));
    }
    let mut all = Vec::new();
    for entry in entries {
        let full = entry.annotation(NAME_ANNOTATION);
        let tag = entry.annotation(TAG_ANNOTATION);
        let image = match (full, tag) {
            (Some(full), _) => full.to_owned(),
            (None, Some(full)) if full.contains('/') => full.to_owned(),
            (None, tag) => {
                let Some(base) = base else {
                    return Err(archive.bad(&format!(
                        "the image {} has no full name in it, only {:?}: say with --name what it is called, for example --name ghcr.io/org/app",
                        entry.digest,
                        tag.unwrap_or_default()
                    )));
                };
                format!("{base}:{}", tag.unwrap_or("latest"))
            }
        };
        let place = copy_place(&image).map_err(|why| archive.bad(&why))?;
        let (repository, reference) = (place.repository, place.reference);
        all.push(Named { image, repository, reference, entry });
    }
    Ok(all)
}

/// A load under way.
struct Load<'a> {
    archive: Archive,
    client: &'a kube::Client,
    loaded: Loaded,
    /// Manifests without a tag that were sent, with their repository: an index may name one often.
    sent: BTreeSet<(String, String)>,
}

impl Load<'_> {
    /// Sends a manifest after all it names. What an index names and the archive lacks is for other
    /// platforms.
    async fn manifest(
        &mut self,
        of: &Named,
        entry: &Descriptor,
        tag: Option<&str>,
        depth: usize,
    ) -> Result<(), BundleError> {
        let hex = entry.hex().map_err(|why| self.archive.bad(&why))?.to_owned();
        if tag.is_none() && !self.sent.insert((of.repository.clone(), hex.clone())) {
            return Ok(());
        }
        let Some(content) = self.archive.manifest(&hex).await? else {
            if depth > 0 {
                return Ok(());
            }
            return Err(self.archive.bad(&format!("the manifest {} is missing", entry.digest)));
        };
        let manifest = Manifest::parse(&content).map_err(|why| self.archive.bad(&why))?;
        for child in manifest.manifests.iter().flatten() {
            if depth >= DEPTH_MAX {
                return Err(self.archive.bad("there are indexes of indexes of indexes"));
            }
            Box::pin(self.manifest(of, child, None, depth + 1)).await?;
        }
        for blob in manifest.config.iter().chain(&manifest.layers) {
            self.blob(of, blob).await?;
        }
        let reference = tag.unwrap_or(&entry.digest);
        let path = format!("/v2/{}/manifests/{reference}", of.repository);
        let (code, headers, _) = self.send(Method::HEAD, &path, "", Vec::new()).await?;
        let is_there = headers.get(DIGEST_HEADER).is_some_and(|known| known == &entry.digest);
        if code.is_success() && is_there {
            return Ok(());
        }
        let media = manifest.media_type().to_owned();
        let answer = self.send(Method::PUT, &path, &media, content).await?;
        expect(&of.image, answer, "take its manifest").map(drop)
    }

    async fn blob(&mut self, of: &Named, blob: &Descriptor) -> Result<(), BundleError> {
        let hex = blob.hex().map_err(|why| self.archive.bad(&why))?;
        let path = format!("/v2/{}/blobs/{}", of.repository, blob.digest);
        let (code, ..) = self.send(Method::HEAD, &path, "", Vec::new()).await?;
        if code.is_success() {
            self.loaded.present += 1;
            return Ok(());
        }
        let Some(size) = self.archive.size(hex) else {
            return Err(self
                .archive
                .bad(&format!("the blob {} of {} is missing", blob.digest, of.image)));
        };
        if size > BLOB_BYTES_MAX {
            return Err(self.archive.bad(&format!(
                "the blob {} has {size} bytes, the cluster's registry takes at most {BLOB_BYTES_MAX}",
                blob.digest
            )));
        }
        let start = format!("/v2/{}/blobs/uploads/", of.repository);
        let answer = self.send(Method::POST, &start, "", Vec::new()).await?;
        let headers = expect(&of.image, answer, "begin an upload")?;
        let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
        let location = location.and_then(|at| at.parse::<http::Uri>().ok());
        let location = location.and_then(|at| at.path_and_query().map(ToString::to_string));
        let location = location.ok_or_else(|| BundleError::Image {
            image: of.image.clone(),
            why: "the registry gave no place to upload to".to_owned(),
        })?;
        let mut at = 0;
        while at < size {
            let piece = self.archive.piece(hex, at, PIECE_BYTES).await?;
            at += piece.len() as u64;
            let answer =
                self.send(Method::PATCH, &location, "application/octet-stream", piece).await?;
            expect(&of.image, answer, "take a blob")?;
        }
        let separator = if location.contains('?') { '&' } else { '?' };
        let put = format!("{location}{separator}digest={}", blob.digest);
        let answer = self.send(Method::PUT, &put, "", Vec::new()).await?;
        expect(&of.image, answer, "keep a blob")?;
        self.loaded.sent += 1;
        self.loaded.bytes += size;
        Ok(())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        media: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, HeaderMap, bytes::Bytes), BundleError> {
        let unreachable =
            |cause: &dyn std::fmt::Display| BundleError::Unreachable(cause.to_string());
        let mut request = Request::builder().method(method).uri(path);
        if !media.is_empty() {
            request = request.header(header::CONTENT_TYPE, media);
        }
        let request =
            request.body(kube::client::Body::from(body)).map_err(|cause| unreachable(&cause))?;
        let exchange = async {
            let answer = self.client.send(request).await.map_err(|cause| unreachable(&cause))?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|cause| unreachable(&cause))?.to_bytes();
            Ok((head.status, head.headers, body))
        };
        match tokio::time::timeout(REQUEST_TIMEOUT, exchange).await {
            Ok(answered) => answered,
            Err(_) => Err(BundleError::Unreachable("it does not answer".to_owned())),
        }
    }
}

/// The headers of a success; of anything else, what the registry says.
fn expect(
    image: &str,
    (code, headers, body): (StatusCode, HeaderMap, bytes::Bytes),
    what: &str,
) -> Result<HeaderMap, BundleError> {
    if code.is_success() {
        return Ok(headers);
    }
    let said: Value = serde_json::from_slice(&body).unwrap_or_default();
    let said = said.pointer("/errors/0/message").or_else(|| said.get("message"));
    let said = said.and_then(Value::as_str).unwrap_or_default();
    if code == StatusCode::INSUFFICIENT_STORAGE {
        return Err(BundleError::NoRoom { image: image.to_owned() });
    }
    let why = format!("the cluster's registry does not {what}: {code} {said}");
    if code.is_server_error() || code == StatusCode::TOO_MANY_REQUESTS {
        return Err(BundleError::Unreachable(format!("{code} {said}")));
    }
    Err(BundleError::Image { image: image.to_owned(), why })
}
