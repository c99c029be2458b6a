//! Deletes what the registry no longer needs: blobs that no manifest names, and, when the disk fills,
//! manifests that are nobody's.
//!
//! A blob that a manifest names and that this server lacks, because it was away when that was pushed, is
//! fetched from another one.
//!
//! Mark and sweep: the manifests are in the replicated store and the same for all servers, the blobs are
//! files of this one. A pass reads the manifests, deletes the files that none of them names, and, while
//! more has to go, the manifests that nobody gave a name and no object of the cluster names.
//!
//! # Invariants
//!
//! - What a client was told is here, or has pushed, stays for [`AGE_MIN`] without a manifest, and for
//!   [`PRESSED_AGE_MIN`] on a full disk.
//! - A manifest stays that has a tag somebody gave it, that an object names (by tag or digest, a pod's
//!   `imageID` included), that an index lists, or that was pushed within the last [`AGE_MIN`].
//! - A server that does not hear the leader deletes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api;
use crate::apiserver::context::Context;
use crate::apiserver::registry::blobs::BlobFile;
use crate::apiserver::registry::name::SHA256_HEX;
use crate::apiserver::registry::{manifests, referrers, replicas};
use crate::rt::{Disk, DiskMarks};
use crate::store::{Freshness, Page, Scope, StoreError};

/// How long a blob stays that no manifest names: its manifest may still be on its way. A manifest that
/// is nobody's stays as long.
const AGE_MIN: Duration = Duration::from_secs(24 * 3600);
/// The same for blobs while the disk is full.
const PRESSED_AGE_MIN: Duration = Duration::from_secs(3600);
/// After the start, when the others are known and can be reached.
const START_AFTER: Duration = Duration::from_secs(10);
/// Between two looks at the disk, and between two passes that nothing presses.
const LOOK_PERIOD: Duration = Duration::from_secs(300);
const PASS_PERIOD: Duration = Duration::from_secs(3600);
/// Manifests and objects that are read at once.
const MANIFESTS_PAGE: usize = 32;
const OBJECTS_PAGE: usize = 500;
/// `edgeorc deploy` gives so many of its component's digest as a tag; no person gives such a name.
const OWN_TAG_LEN_MIN: usize = 12;

/// What a pass deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Manifests without a name that nothing named.
    pub manifests: usize,
    /// Blobs on this server's disk.
    pub blobs: usize,
    /// Bytes of those.
    pub bytes: u64,
}

/// Why a pass ended early. What was deleted until then was rightly so; the next pass tries again.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The manifests or objects cannot be read, or not changed.
    #[error("the store does not answer: {0}")]
    Store(#[from] StoreError),
    /// The folder with the blobs.
    #[error("the registry's folder cannot be used: {0}")]
    Disk(#[from] std::io::Error),
}

/// A manifest with its tags.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Image {
    tags: Vec<String>,
    /// Where it is stored, by digest and by tag, and the revisions of that.
    keys: Vec<(String, u64)>,
    /// When it was pushed last.
    pushed_at: Option<SystemTime>,
    /// Digests in it, in hex: of blobs, and of the manifests that an index lists.
    names: BTreeSet<String>,
    /// The manifest that it is about, by its digest.
    subject: Option<String>,
}

/// All manifests, by repository and digest in hex.
type Images = BTreeMap<(String, String), Image>;

/// Collects until `cancel`: every hour, and when the disk is full.
pub(super) async fn run(context: &Context, marks: DiskMarks, cancel: CancellationToken) {
    let (mut rests_until, mut has_found) = (Instant::now() + START_AFTER, true);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep_until(rests_until.min(Instant::now() + LOOK_PERIOD)) => {}
        }
        context.registry.uploads.sweep().await;
        // A folder that is not there yet is no disk that is full.
        let disk = Disk::of(context.registry.blobs.folder());
        let wanted = disk.map_or(0, |disk| disk.excess(marks));
        if rests_until <= Instant::now() || (wanted > 0 && has_found) {
            match cancel.run_until_cancelled(pass(context, wanted)).await {
                None => return,
                Some(Ok(found)) => {
                    // If the disk is full of what is others', one look an hour is enough.
                    has_found = found != Collected::default() || wanted == 0;
                    rests_until = Instant::now() + PASS_PERIOD;
                }
                Some(Err(err)) => {
                    tracing::warn!(%err, "the registry cannot look for what nothing names");
                    rests_until = Instant::now() + LOOK_PERIOD;
                }
            }
        }
    }
}

/// One pass, and before it a look for what is missing, if there is room.
async fn pass(context: &Context, wanted: u64) -> Result<Collected, CollectError> {
    if wanted == 0 {
        fetch_missing(context).await?;
    }
    let collected = collect(context, wanted).await?;
    let Collected { manifests, blobs, bytes } = collected;
    if collected != Collected::default() {
        tracing::info!(manifests, blobs, bytes, "the registry deleted what nothing names");
    }
    Ok(collected)
}

/// One pass that is to free `wanted` bytes beyond what no manifest names.
///
/// # Errors
///
/// [`CollectError`].
pub(super) async fn collect(context: &Context, wanted: u64) -> Result<Collected, CollectError> {
    let age_min = if wanted > 0 { PRESSED_AGE_MIN } else { AGE_MIN };
    let mut collected = Collected::default();
    loop {
        let images = read(context).await?;
        sweep(context, &images, age_min, &mut collected).await?;
        if collected.bytes >= wanted {
            return Ok(collected);
        }
        let named = named_by_objects(context).await?;
        let files = context.registry.blobs.files().await?;
        let now = context.clock.system_time();
        let oldest = nobodys(&images, &named, &files, now);
        let victims = enough(&images, oldest, &files, wanted - collected.bytes);
        if victims.is_empty() {
            return Ok(collected);
        }
        for (repository, hex) in victims {
            let Some(image) = images.get(&(repository.clone(), hex.clone())) else { continue };
            let referrer = image.subject.as_deref().map(|s| referrers::key(&repository, s, &hex));
            let others: Vec<String> = referrer.into_iter().collect();
            // One that was pushed again meanwhile is somebody's.
            if context.store.raw_delete_unchanged(&image.keys, &others).await? {
                collected.manifests += 1;
            }
        }
    }
}

/// Fetches the blobs that other servers have and this one should.
async fn fetch_missing(context: &Context) -> Result<(), CollectError> {
    let (images, files) = (read(context).await?, context.registry.blobs.files().await?);
    let manifests: BTreeSet<&String> = images.keys().map(|(_, hex)| hex).collect();
    let named: BTreeSet<&String> = images.values().flat_map(|image| &image.names).collect();
    for hex in named.difference(&manifests).filter(|hex| !files.contains_key(**hex)) {
        // It may be elsewhere by intent: a layer with `urls`.
        if replicas::fetch_whole(context, hex).await {
            tracing::info!(blob.digest = hex, "a missing blob was fetched");
        }
    }
    Ok(())
}

/// Reads all manifests.
async fn read(context: &Context) -> Result<Images, StoreError> {
    let mut images = Images::new();
    let mut after = String::new();
    loop {
        let page = context.store.raw_entries(manifests::MANIFESTS, &after, MANIFESTS_PAGE).await?;
        let Some((end, ..)) = page.last() else { return Ok(images) };
        after.clone_from(end);
        for (key, value, revision) in page {
            let damaged = || StoreError::Damaged(format!("{key} is no manifest"));
            let place = key.strip_prefix(manifests::MANIFESTS).and_then(|at| at.rsplit_once('/'));
            let (repository, reference) = place.ok_or_else(damaged)?;
            let kept = manifests::parse(&value).ok_or_else(damaged)?;
            let hex = kept.digest.strip_prefix("sha256:").ok_or_else(damaged)?;
            let image = images.entry((repository.to_owned(), hex.to_owned())).or_default();
            if reference != kept.digest {
                image.tags.push(reference.to_owned());
            }
            let seconds = Duration::from_secs(u64::try_from(kept.pushed_at).unwrap_or(0));
            image.pushed_at = image.pushed_at.max(SystemTime::UNIX_EPOCH.checked_add(seconds));
            fill(image, &kept.content);
            image.keys.push((key, revision));
        }
    }
}

/// Notes what a manifest names.
fn fill(image: &mut Image, content: &[u8]) {
    image.names = hexes(&String::from_utf8_lossy(content), SHA256_HEX).map(str::to_owned).collect();
    let parsed: Value = serde_json::from_slice(content).unwrap_or_default();
    let subject = parsed.pointer("/subject/digest").and_then(Value::as_str);
    let subject = subject.and_then(|digest| digest.strip_prefix("sha256:"));
    // Without the API of referrers, the subject is in the tag: `sha256-<hex>`, with an ending or not.
    let tagged = image.tags.iter().find_map(|tag| subject_of_tag(tag));
    image.subject = subject.or(tagged).map(str::to_owned);
    if let Some(subject) = &image.subject {
        image.names.remove(subject);
    }
}

fn subject_of_tag(tag: &str) -> Option<&str> {
    tag.strip_prefix("sha256-")?.get(..SHA256_HEX)
}

/// Words of at least so many hexadecimal digits.
fn hexes(text: &str, len_min: usize) -> impl Iterator<Item = &str> {
    let is_hex = |word: &&str| word.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter(move |word| word.len() >= len_min).filter(is_hex)
}

/// Deletes the files of blobs that no manifest names.
async fn sweep(
    context: &Context,
    images: &Images,
    age_min: Duration,
    collected: &mut Collected,
) -> Result<(), CollectError> {
    let named: BTreeSet<&String> = images.values().flat_map(|image| &image.names).collect();
    let Some(before) = context.clock.system_time().checked_sub(age_min) else { return Ok(()) };
    let found = context.registry.blobs.files().await?;
    let stale = found.iter().filter(|(hex, file)| !named.contains(hex) && file.held < before);
    for (hex, file) in stale {
        if context.registry.blobs.delete_unless_held(hex, before).await? {
            collected.blobs += 1;
            collected.bytes = collected.bytes.saturating_add(file.bytes);
        }
    }
    Ok(())
}

/// All words of hexadecimal digits in the objects of the cluster that could be a digest or a tag of
/// `edgeorc deploy`.
async fn named_by_objects(context: &Context) -> Result<BTreeSet<String>, StoreError> {
    let mut words = BTreeSet::new();
    // A Node lists what it has on its disk, used or not.
    let kept = api::resources().iter().filter(|one| one.has_verb("list") && one.kind != "Node");
    for scope in kept.map(|resource| Scope::new(resource, None)).filter(|s| !s.is_volatile()) {
        let mut after = None;
        loop {
            let page = Page { limit: OBJECTS_PAGE, after, at: None, counts_remaining: false };
            let listed = context.store.list(&scope, &page, Freshness::Latest).await?;
            listed.items.iter().for_each(|item| note_words(&item.object, &mut words));
            after = listed.last_key;
            if after.is_none() || listed.remaining == 0 {
                break;
            }
        }
    }
    Ok(words)
}

fn note_words(value: &Value, words: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => words.extend(hexes(text, OWN_TAG_LEN_MIN).map(str::to_owned)),
        Value::Array(items) => items.iter().for_each(|item| note_words(item, words)),
        Value::Object(fields) => fields.values().for_each(|field| note_words(field, words)),
        _ => {}
    }
}

/// The manifests that are nobody's, the longest unused first.
fn nobodys(
    images: &Images,
    named: &BTreeSet<String>,
    files: &BTreeMap<String, BlobFile>,
    now: SystemTime,
) -> Vec<(String, String)> {
    let mut listed = BTreeSet::new();
    for ((repository, _), image) in images {
        listed.extend(image.names.iter().map(|hex| (repository.clone(), hex.clone())));
    }
    let mut free: Vec<_> = images
        .iter()
        .filter(|(place, image)| {
            let (repository, hex) = *place;
            let is_about_one_that_stays = image
                .subject
                .as_ref()
                .is_some_and(|subject| images.contains_key(&(repository.clone(), subject.clone())));
            !named.contains(hex)
                && !listed.contains(*place)
                && !is_about_one_that_stays
                && image.tags.iter().all(|tag| is_nobodys_tag(tag, image, named))
        })
        .filter_map(|(place, image)| Some((held(images, &place.0, image, files)?, place.clone())))
        .filter(|(held, _)| now.duration_since(*held).is_ok_and(|age| age >= AGE_MIN))
        .collect();
    free.sort();
    free.into_iter().map(|(_, place)| place).collect()
}

/// When an image was pushed last, or somebody counted on a blob of it, or of those that an index lists.
/// `None`: this server has none, and nothing is won.
fn held(
    images: &Images,
    repository: &str,
    image: &Image,
    files: &BTreeMap<String, BlobFile>,
) -> Option<SystemTime> {
    let listed =
        image.names.iter().filter_map(|hex| images.get(&(repository.to_owned(), hex.clone())));
    let names = image.names.iter().chain(listed.flat_map(|image| &image.names));
    let held = names.filter_map(|hex| Some(files.get(hex)?.held)).max()?;
    // Whoever pushed it again may have done so at another server.
    Some(image.pushed_at.map_or(held, |pushed| held.max(pushed)))
}

/// Whether a tag is the start of the component's digest that no object names, or a signature's.
fn is_nobodys_tag(tag: &str, image: &Image, named: &BTreeSet<String>) -> bool {
    let is_own = tag.len() >= OWN_TAG_LEN_MIN && image.names.iter().any(|hex| hex.starts_with(tag));
    (is_own && !named.contains(tag)) || subject_of_tag(tag).is_some()
}

/// The first of `oldest` whose blobs that no other manifest names make up `wanted` bytes.
fn enough(
    images: &Images,
    oldest: Vec<(String, String)>,
    files: &BTreeMap<String, BlobFile>,
    wanted: u64,
) -> Vec<(String, String)> {
    let mut users: BTreeMap<&String, usize> = BTreeMap::new();
    for hex in images.values().flat_map(|image| &image.names) {
        *users.entry(hex).or_default() += 1;
    }
    let mut freed = 0_u64;
    let mut victims = Vec::new();
    for place in oldest {
        if freed >= wanted {
            break;
        }
        for hex in images.get(&place).into_iter().flat_map(|image| &image.names) {
            let left = users.entry(hex).or_default();
            *left = left.saturating_sub(1);
            if *left == 0 {
                freed = freed.saturating_add(files.get(hex).map_or(0, |file| file.bytes));
            }
        }
        victims.push(place);
    }
    victims
}
