//! Deletes images that no pod of this node uses, the longest unused first, when the disk fills.
//!
//! As kubelet's: above the high mark it deletes until the disk is below the low one, and nothing
//! that was used within the minimum age. When an image was used last is kept in memory; it goes to
//! the disk when a pod lets go of its images, not when it takes them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use k8s_openapi::api::core::v1::Node;
use kube::api::ObjectMeta;
use tokio_util::sync::CancellationToken;

use crate::agent::dirs::{Dirs, read_json, remove_folder, write_json};
use crate::agent::image::compile::{COMPILED, compiled_name};
use crate::agent::image::known::{Content, Resolved};
use crate::agent::image::part::PART;
use crate::agent::image::reference::Reference;
use crate::agent::image::signed::SIGNATURES;
use crate::agent::image::volume::{TEMPORARY, tree_bytes};
use crate::agent::image::{Images, ReadyVolume};
use crate::client::{EventType, Regarding};
use crate::rt::{Disk, DiskMarks};

/// File with the times of last use.
const USED_FILE: &str = "used.json";
/// A layer whose fetching nobody went on with for so long will not be gone on with.
const PART_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Any other temporary file that is so old belongs to a process that is gone.
const TEMPORARY_AGE_MAX: Duration = Duration::from_secs(3600);
/// Code of other engines is kept so long, for a return to the version that made it.
const OTHER_ENGINE_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Letters of a digest in hex.
const HEX_LEN: usize = 64;

/// When unused images are deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageGcSettings {
    /// Above which use of the disk, and down to which.
    pub marks: DiskMarks,
    /// An image that was fetched or used within this time stays. Default 2 min.
    pub minimum_age: Duration,
    /// Pause between two looks at the disk. Default 5 min.
    pub period: Duration,
}

impl Default for ImageGcSettings {
    fn default() -> Self {
        Self {
            marks: DiskMarks::default(),
            minimum_age: Duration::from_secs(120),
            period: Duration::from_secs(300),
        }
    }
}

/// Who uses which layer, and when others were used last (Unix seconds).
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pods: BTreeMap<String, BTreeSet<String>>,
    last_used: BTreeMap<String, i64>,
}

impl Ledger {
    /// With the times that an earlier life of this agent wrote.
    pub(super) fn read(dirs: &Dirs) -> Self {
        let last_used = read_json(&dirs.images().join(USED_FILE)).unwrap_or_default();
        Self { pods: BTreeMap::new(), last_used }
    }

    /// A pod begins to use a layer.
    pub(super) fn begin(&mut self, uid: &str, layer: &str) {
        self.pods.entry(uid.to_owned()).or_default().insert(layer.to_owned());
    }

    /// Whether this pod is known to use the layer.
    pub(super) fn uses(&self, uid: &str, layer: &str) -> bool {
        self.pods.get(uid).is_some_and(|layers| layers.contains(layer))
    }

    fn is_used(&self, layer: &str) -> bool {
        self.pods.values().any(|layers| layers.contains(layer))
    }

    /// Forgets pods that are gone, and notes the end of their use. Whether anything changed.
    fn forget_gone(&mut self, is_here: impl Fn(&str) -> bool, now: i64) -> bool {
        let mut let_go = BTreeSet::new();
        self.pods.retain(|uid, layers| {
            let stays = is_here(uid);
            if !stays {
                let_go.append(layers);
            }
            stays
        });
        for layer in &let_go {
            self.last_used.insert(layer.clone(), now);
        }
        !let_go.is_empty()
    }
}

/// A layer on the disk, with all that is made of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Kept {
    bytes: u64,
    /// Unix seconds: when it was fetched or used last.
    last_used: i64,
}

/// The layers to delete, the longest unused first, until `excess` is reached.
fn victims(kept: &BTreeMap<String, Kept>, excess: u64, not_after: i64) -> Vec<String> {
    let mut old: Vec<_> = kept.iter().filter(|(_, kept)| kept.last_used <= not_after).collect();
    old.sort_by_key(|(_, kept)| kept.last_used);
    let mut sum = 0_u64;
    let wanted = old.into_iter().take_while(|(_, kept)| {
        let is_wanted = sum < excess;
        sum = sum.saturating_add(kept.bytes);
        is_wanted
    });
    wanted.map(|(hex, _)| hex.clone()).collect()
}

/// What a pass did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Collected {
    pub(super) wanted_bytes: u64,
    pub(super) freed_bytes: u64,
    pub(super) images: u32,
}

impl Images {
    /// Looks at the disk until `cancel`: at once, then periodically, and when a pull found it full.
    pub(crate) async fn collect_garbage(self: Arc<Self>, node: String, cancel: CancellationToken) {
        loop {
            let images = Arc::clone(&self);
            let pass = tokio::task::spawn_blocking(move || {
                let disk = Disk::of(&images.dirs.images())?;
                images.pass(disk)
            });
            match pass.await {
                Ok(Ok(collected)) => self.tell_collected(&node, &collected),
                Ok(Err(err)) => tracing::warn!(%err, "cannot look for unused images"),
                Err(err) => tracing::warn!(%err, "looking for unused images failed"),
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(self.gc.period) => {}
                () = self.is_full.notified() => {}
            }
        }
    }

    fn tell_collected(&self, node: &str, collected: &Collected) {
        let Collected { wanted_bytes, freed_bytes, images } = *collected;
        if images > 0 {
            tracing::info!(images, bytes = freed_bytes, "unused images deleted");
        }
        if freed_bytes < wanted_bytes {
            tracing::warn!(wanted_bytes, freed_bytes, "the disk is full of what is in use");
            let name = Some(node.to_owned());
            let metadata = ObjectMeta { uid: name.clone(), name, ..ObjectMeta::default() };
            let regarding = Regarding::of(&Node { metadata, ..Node::default() });
            let message = format!(
                "Failed to garbage collect required amount of images. Attempted to free {wanted_bytes} bytes, but only found {freed_bytes} bytes eligible to free."
            );
            self.events.record(regarding, EventType::Warning, "FreeDiskSpaceFailed", message);
        }
    }

    /// Deletes all images that no pod uses, but for those of the minimum age; gives the bytes that
    /// this freed. For a node that is short of disk, whatever the marks say.
    pub(crate) async fn reclaim(self: &Arc<Self>) -> u64 {
        let images = Arc::clone(self);
        match tokio::task::spawn_blocking(move || images.free(u64::MAX)).await {
            Ok(Ok(collected)) => collected.freed_bytes,
            Ok(Err(err)) => {
                tracing::warn!(%err, "cannot look for unused images");
                0
            }
            Err(_) => 0,
        }
    }

    /// One look: forgets pods that are gone, removes what is stale, and frees what the disk needs.
    pub(super) fn pass(&self, disk: Disk) -> std::io::Result<Collected> {
        self.free(disk.excess(self.gc.marks))
    }

    /// As [`Self::pass`], with so many bytes to free.
    fn free(&self, wanted_bytes: u64) -> std::io::Result<Collected> {
        let now = self.clock.now().as_second();
        let pods: BTreeSet<String> =
            self.dirs.all_pods()?.into_iter().map(|(uid, _)| uid).collect();
        let last_used = {
            let mut ledger = self.ledger.lock();
            let has_changed = ledger.forget_gone(|uid| pods.contains(uid), now);
            has_changed.then(|| ledger.last_used.clone())
        };
        if let Some(last_used) = last_used {
            write_json(&self.dirs.images().join(USED_FILE), &last_used)?;
        }
        // On a full disk, what nobody goes on with now goes first.
        let part_age_max = if wanted_bytes > 0 { self.gc.minimum_age } else { PART_AGE_MAX };
        self.sweep(now, part_age_max);
        let mut collected = Collected { wanted_bytes, ..Collected::default() };
        if wanted_bytes == 0 {
            return Ok(collected);
        }
        let used = self.named_by_pods()?;
        let mut kept = self.kept()?;
        kept.retain(|hex, _| !used.contains(hex) && !self.ledger.lock().is_used(hex));
        let age_min = i64::try_from(self.gc.minimum_age.as_secs()).unwrap_or(i64::MAX);
        for hex in victims(&kept, wanted_bytes, now.saturating_sub(age_min)) {
            if self.delete(&hex) {
                collected.images += 1;
                collected.freed_bytes += kept.get(&hex).map_or(0, |kept| kept.bytes);
            }
        }
        if collected.images > 0 {
            self.forget_deleted()?;
            self.has_changed.notify_one();
        }
        Ok(collected)
    }

    /// The layers that the pods on this disk name: they are needed for a start without a server.
    fn named_by_pods(&self) -> std::io::Result<BTreeSet<String>> {
        let settings = self.registries.settings();
        let mut layers = BTreeSet::new();
        for (_, dir) in self.dirs.all_pods()? {
            let Some(spec) = dir.read_pod().and_then(|pod| pod.spec) else { continue };
            for volume in spec.volumes.iter().flatten().filter(|volume| volume.image.is_some()) {
                let ready: Option<ReadyVolume> = read_json(&dir.object_file("image", &volume.name));
                layers.extend(ready.map(|ready| ready.hex));
            }
            let inits = spec.init_containers.unwrap_or_default();
            for container in spec.containers.iter().chain(&inits) {
                let image = container.image.as_deref().unwrap_or_default();
                let reference = Reference::parse(settings.stand_in(image)).ok();
                layers.extend(
                    reference
                        .and_then(|r| self.known(&r, Content::Component))
                        .map(|known| known.layer),
                );
            }
        }
        Ok(layers)
    }

    /// Every layer on the disk.
    fn kept(&self) -> std::io::Result<BTreeMap<String, Kept>> {
        let mut all: BTreeMap<String, Kept> = BTreeMap::new();
        for folder in [self.blobs(), self.dirs.compiled()] {
            for (name, bytes, modified) in files(&folder)? {
                let Some(hex) = hex_of_file(&name) else { continue };
                let kept = all.entry(hex.to_owned()).or_default();
                kept.bytes = kept.bytes.saturating_add(bytes);
                kept.last_used = kept.last_used.max(modified);
            }
        }
        for (hex, modified) in self.trees()? {
            let kept = all.entry(hex.clone()).or_default();
            kept.bytes = kept.bytes.saturating_add(tree_bytes(&self.dirs.image_tree(&hex)));
            kept.last_used = kept.last_used.max(modified);
        }
        let ledger = self.ledger.lock();
        for (hex, kept) in &mut all {
            let used = ledger.last_used.get(hex).copied().unwrap_or(0);
            kept.last_used = kept.last_used.max(used);
        }
        Ok(all)
    }

    /// Deletes a layer and its code, unless somebody takes it in this moment.
    fn delete(&self, hex: &str) -> bool {
        let Some(_turn) = self.locks.try_lock(hex) else { return false };
        // Whoever begins after this waits for the turn, and finds the layer gone.
        if self.ledger.lock().is_used(hex) {
            return false;
        }
        let compiled = files(&self.dirs.compiled()).unwrap_or_default();
        for (name, ..) in compiled.iter().filter(|(name, ..)| hex_of_file(name) == Some(hex)) {
            let _ = fs::remove_file(self.dirs.compiled().join(name));
        }
        let is_blob_gone = fs::remove_file(self.blob(hex)).is_ok() || !self.blob(hex).exists();
        is_blob_gone & self.remove_tree(hex).is_ok()
    }

    /// Removes a volume's files: first their name, so that nobody takes half of them for all.
    fn remove_tree(&self, hex: &str) -> std::io::Result<()> {
        let tree = self.dirs.image_tree(hex);
        let temporary = tree.with_extension(TEMPORARY);
        remove_folder(&temporary)?;
        match fs::rename(&tree, &temporary) {
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(cause) => Err(cause),
            Ok(()) => remove_folder(&temporary),
        }
    }

    /// The volumes that are unpacked, with the times of that.
    fn trees(&self) -> std::io::Result<Vec<(String, i64)>> {
        let folder = self.dirs.image_tree("x");
        let Some(folder) = folder.parent() else { return Ok(Vec::new()) };
        let mut all = entries(folder)?;
        all.retain(|(name, meta)| meta.is_dir() && hex_of_file(name).is_some());
        Ok(all.into_iter().map(|(name, meta)| (name, modified(&meta))).collect())
    }

    /// Removes references to layers that are gone, and their times.
    fn forget_deleted(&self) -> std::io::Result<()> {
        let is_here = |hex: &str| self.blob(hex).exists() || self.dirs.image_tree(hex).exists();
        for folder in [self.references(), self.volume_references()] {
            for (name, ..) in files(&folder)? {
                let path = folder.join(name);
                let resolved: Option<Resolved> = read_json(&path);
                if resolved.is_none_or(|resolved| !is_here(&resolved.layer)) {
                    let _ = fs::remove_file(path);
                }
            }
        }
        self.forget_signatures()?;
        let last_used = {
            let mut ledger = self.ledger.lock();
            ledger.last_used.retain(|hex, _| is_here(hex));
            ledger.last_used.clone()
        };
        write_json(&self.dirs.images().join(USED_FILE), &last_used)
    }

    /// Removes signatures of manifests that no reference means any more.
    fn forget_signatures(&self) -> std::io::Result<()> {
        let mut manifests = BTreeSet::new();
        for folder in [self.references(), self.volume_references()] {
            for (name, ..) in files(&folder)? {
                let resolved: Option<Resolved> = read_json(&folder.join(name));
                manifests.extend(resolved.and_then(|resolved| resolved.manifest));
            }
        }
        let folder = self.dirs.images().join(SIGNATURES);
        for (name, ..) in files(&folder)? {
            if !manifests.contains(name.trim_end_matches(".json")) {
                let _ = fs::remove_file(folder.join(name));
            }
        }
        Ok(())
    }

    /// Removes what no living process will finish, and code that this engine cannot run.
    fn sweep(&self, now: i64, part_age_max: Duration) {
        let is_older = |modified: i64, age: Duration| {
            now.saturating_sub(modified) > i64::try_from(age.as_secs()).unwrap_or(i64::MAX)
        };
        let trees = self.dirs.image_tree("x");
        for (name, _) in trees.parent().map(entries).into_iter().flatten().flatten() {
            // Nobody has the turn: nobody is unpacking it.
            if let Some(hex) = name.strip_suffix(&format!(".{TEMPORARY}"))
                && let Some(_turn) = self.locks.try_lock(hex)
            {
                let _ = remove_folder(&trees.with_file_name(&name));
            }
        }
        let references = [self.references(), self.volume_references()];
        for folder in references.into_iter().chain([self.blobs(), self.dirs.compiled()]) {
            for (name, _, modified) in files(&folder).unwrap_or_default() {
                let hex = name.get(..HEX_LEN).unwrap_or_default();
                let ending = name.rsplit('.').next().unwrap_or_default();
                let is_stale = if ending == PART {
                    is_older(modified, part_age_max)
                } else if ending.starts_with("tmp") {
                    is_older(modified, TEMPORARY_AGE_MAX)
                } else {
                    ending == COMPILED
                        && name != compiled_name(hex, &self.engine)
                        && is_older(modified, OTHER_ENGINE_AGE_MAX)
                };
                if is_stale && let Some(_turn) = self.locks.try_lock(hex) {
                    let _ = fs::remove_file(folder.join(name));
                }
            }
        }
    }
}

/// The layer that a file under `sha256/` or `compiled/` belongs to.
fn hex_of_file(name: &str) -> Option<&str> {
    let hex = name.get(..HEX_LEN)?;
    let is_layer = name.len() == HEX_LEN || name.ends_with(&format!(".{COMPILED}"));
    (is_layer && hex.chars().all(|c| c.is_ascii_hexdigit())).then_some(hex)
}

/// Name, size and time of change (Unix seconds) of the files in a folder; none if it is missing.
pub(super) fn files(folder: &Path) -> std::io::Result<Vec<(String, u64, i64)>> {
    let mut all = entries(folder)?;
    all.retain(|(_, meta)| meta.is_file());
    Ok(all.into_iter().map(|(name, meta)| (name, meta.len(), modified(&meta))).collect())
}

/// What is in a folder; nothing if it is missing.
fn entries(folder: &Path) -> std::io::Result<Vec<(String, fs::Metadata)>> {
    let entries = match fs::read_dir(folder) {
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry?;
        // A file may vanish between the two looks.
        if let (Ok(name), Ok(meta)) = (entry.file_name().into_string(), entry.metadata()) {
            all.push((name, meta));
        }
    }
    Ok(all)
}

/// Time of change, in Unix seconds.
fn modified(meta: &fs::Metadata) -> i64 {
    let since = meta.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since.and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(used_percent: u64) -> Disk {
        Disk { capacity: 1000, available: 1000 - 10 * used_percent }
    }

    #[test]
    fn above_the_high_mark_the_disk_is_freed_down_to_the_low_one() {
        let marks = DiskMarks::default();
        let cases = [(0, 0), (84, 0), (85, 50), (90, 100), (100, 200)];
        for (used, excess) in cases {
            assert_eq!(disk(used).excess(marks), excess, "{used} %");
        }
        assert_eq!(Disk { capacity: 0, available: 0 }.excess(marks), 0);
    }

    #[test]
    fn the_longest_unused_go_first_and_the_young_stay() {
        let kept = |bytes, last_used| Kept { bytes, last_used };
        let all = BTreeMap::from([
            ("new".to_owned(), kept(50, 99)),
            ("old".to_owned(), kept(50, 10)),
            ("older".to_owned(), kept(50, 5)),
            ("oldish".to_owned(), kept(50, 20)),
        ]);
        assert_eq!(victims(&all, 60, 90), ["older", "old"]);
        assert_eq!(victims(&all, 1000, 90), ["older", "old", "oldish"]);
        assert_eq!(victims(&all, 0, 90), Vec::<String>::new());
    }

    #[test]
    fn the_time_of_last_use_changes_only_when_a_pod_goes() {
        let mut ledger = Ledger::default();
        ledger.begin("p", "a");
        ledger.begin("q", "a");
        assert!(!ledger.forget_gone(|_| true, 1));
        assert!(ledger.forget_gone(|uid| uid == "q", 2));
        assert!(ledger.is_used("a") && !ledger.uses("p", "a"));
        assert!(!ledger.forget_gone(|uid| uid == "q", 3));
        assert_eq!(ledger.last_used.get("a"), Some(&2));
    }
}
