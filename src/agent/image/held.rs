//! What the node tells of the images it has: `status.images`, for schedulers and people.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agent::dirs::read_json;
use crate::agent::image::Images;
use crate::agent::image::gc::files;
use crate::agent::image::known::Resolved;
use crate::agent::image::reference::Reference;

/// Images that are told, the largest first: kubelet's `nodeStatusMaxImages`.
const IMAGES_MAX: usize = 50;
/// Names of one image that are told, as kubelet does it.
const NAMES_MAX: usize = 5;
/// Pause after a change is told, and before: images that come together are one write.
const PAUSE: Duration = Duration::from_secs(5);

/// An image that is here, as a Node's status has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HeldImage {
    /// By digest first, then by tag; those of the cluster's own registry also without its host, as
    /// pods name them.
    names: Vec<String>,
    /// Bytes of the component, or of a volume's layers.
    size_bytes: u64,
}

impl Images {
    /// The images that are told, as they change.
    pub(crate) fn held(&self) -> watch::Receiver<Vec<HeldImage>> {
        self.held.subscribe()
    }

    /// Looks at what is here whenever that changed, but not all the time, until `cancel`.
    pub(crate) async fn tell_held(self: Arc<Self>, cancel: CancellationToken) {
        let looking = async {
            loop {
                let images = Arc::clone(&self);
                if let Ok(held) = tokio::task::spawn_blocking(move || images.look()).await {
                    self.held.send_if_modified(|told| {
                        let is_news = *told != held;
                        *told = held;
                        is_news
                    });
                }
                self.has_changed.notified().await;
                tokio::time::sleep(PAUSE).await;
            }
        };
        let _ = cancel.run_until_cancelled(looking).await;
    }

    fn look(&self) -> Vec<HeldImage> {
        let mut found: BTreeMap<String, (BTreeSet<String>, u64)> = BTreeMap::new();
        for folder in [self.references(), self.volume_references()] {
            for (file, ..) in files(&folder).unwrap_or_default() {
                let Some((names, hex, bytes)) = self.held_by(&folder, &file) else { continue };
                let entry = found.entry(hex).or_default();
                entry.0.extend(names);
                entry.1 = bytes;
            }
        }
        told(found.into_values())
    }

    /// Names, digest and size of the image that a file under `refs/` or `volumes/` speaks of.
    fn held_by(&self, folder: &Path, file: &str) -> Option<(Vec<String>, String, u64)> {
        let reference = Reference::of_file(file.strip_suffix(".json")?)?;
        let known: Resolved = read_json(&folder.join(file))?;
        let bytes = match known.bytes {
            Some(bytes) => self.dirs.image_tree(&known.layer).exists().then_some(bytes)?,
            None => self.blob(&known.layer).metadata().ok()?.len(),
        };
        Some((names_of(&reference, known.manifest.as_deref()), known.layer, bytes))
    }
}

fn names_of(reference: &Reference, manifest: Option<&str>) -> Vec<String> {
    let mut references = vec![reference.clone()];
    if let Some(hex) = manifest {
        references.push(Reference { reference: format!("sha256:{hex}"), ..reference.clone() });
    }
    let mut names = Vec::new();
    for reference in references {
        let name = reference.to_string();
        if reference.is_own()
            && let Some((_, short)) = name.split_once('/')
        {
            names.push(short.to_owned());
        }
        names.push(name);
    }
    names
}

/// The largest images first, each with its first few names.
fn told(all: impl Iterator<Item = (BTreeSet<String>, u64)>) -> Vec<HeldImage> {
    let mut all: Vec<_> = all
        .map(|(names, size_bytes)| {
            let (digests, tags): (Vec<_>, Vec<_>) =
                names.into_iter().partition(|name| name.contains('@'));
            let names = digests.into_iter().chain(tags).take(NAMES_MAX).collect();
            HeldImage { names, size_bytes }
        })
        .collect();
    all.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.names.cmp(&b.names)));
    all.truncate(IMAGES_MAX);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(name: &str) -> Vec<String> {
        let reference = Reference::parse(name).unwrap();
        assert_eq!(Reference::of_file(&reference.file_name()), Some(reference.clone()), "{name}");
        names_of(&reference, Some(&"a".repeat(64)))
    }

    #[test]
    fn an_image_has_the_names_that_pods_give_it() {
        let hex = "a".repeat(64);
        assert_eq!(
            held("shop/web:v1"),
            [
                "shop/web:v1".to_owned(),
                "registry.edgeorc.local/shop/web:v1".to_owned(),
                format!("shop/web@sha256:{hex}"),
                format!("registry.edgeorc.local/shop/web@sha256:{hex}"),
            ]
        );
        let other = format!("ghcr.io:443/o/app@sha256:{hex}");
        assert_eq!(held("ghcr.io:443/o/app:2"), ["ghcr.io:443/o/app:2", other.as_str()]);
    }

    #[test]
    fn the_largest_are_told_with_their_digests_first() {
        let names = |of: &[&str]| of.iter().map(|name| (*name).to_owned()).collect();
        let many = (0..100).map(|at| (names(&[&format!("i{at}:1")]), at));
        let all =
            told(many.chain([(names(&["a:1", "a:2", "a:3", "a:4", "a:5", "b@sha256:1"]), 999)]));
        assert_eq!(all.len(), IMAGES_MAX);
        assert_eq!(all[0].names, ["b@sha256:1", "a:1", "a:2", "a:3", "a:4"]);
        assert_eq!((all[1].size_bytes, all[49].size_bytes), (99, 51));
    }
}
