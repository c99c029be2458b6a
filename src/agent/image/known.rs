//! What references were resolved to, and where on the disk everything is.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::agent::dirs::{read_json, write_json_aside};
use crate::agent::image::reference::Reference;
use crate::agent::image::{ImageConfig, Images};

/// Namespaces that are remembered of an image; others ask the registry again.
const NAMESPACES_MAX: usize = 256;

/// What is wanted of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// The one component in it.
    Component,
    /// All its files.
    Tree,
}

/// What a reference was resolved to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Resolved {
    /// Hex of the layer's SHA-256; of a volume, of the manifest that has its layers.
    pub(super) layer: String,
    /// Hex of the manifest's; files of the first version have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) manifest: Option<String>,
    /// Bytes of a volume's layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) bytes: Option<u64>,
    /// What the image says of its process; none of an artifact, and in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) config: Option<ImageConfig>,
    /// Namespaces whose pull secrets have opened it; none: it is open to all pods of the node.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) namespaces: BTreeSet<String>,
}

impl Resolved {
    /// Open to all pods, as long as nothing else is said.
    pub(super) fn of(layer: String, manifest: Option<String>, bytes: Option<u64>) -> Self {
        Self { layer, manifest, bytes, config: None, namespaces: BTreeSet::new() }
    }

    /// With what was known of the same manifest: who has opened it once may use it.
    fn joined(mut self, had: Option<&Self>) -> Self {
        let Some(had) = had.filter(|had| had.layer == self.layer && had.manifest == self.manifest)
        else {
            return self;
        };
        if had.namespaces.is_empty() {
            self.namespaces.clear();
        }
        if !self.namespaces.is_empty() {
            let room = NAMESPACES_MAX.saturating_sub(self.namespaces.len());
            self.namespaces.extend(had.namespaces.iter().take(room).cloned());
        }
        self
    }
}

impl Images {
    /// What the reference was resolved to last, if that is here.
    pub(super) fn known(&self, reference: &Reference, content: Content) -> Option<Resolved> {
        let file = self.reference_file(reference, content);
        let known: Option<Resolved> =
            read_json(&file).or_else(|| self.known_by_old_name(reference, content));
        known.filter(|resolved| match content {
            Content::Component => self.blob(&resolved.layer).exists(),
            Content::Tree => self.dirs.image_tree(&resolved.layer).exists(),
        })
    }

    /// Names of files were not always one for each reference: one of those is taken if it cannot mean
    /// anything else.
    fn known_by_old_name(&self, reference: &Reference, content: Content) -> Option<Resolved> {
        let old = reference.old_file_name()?;
        let known: Resolved =
            read_json(&self.reference_folder(content).join(format!("{old}.json")))?;
        let is_same = reference.digest().is_none_or(|hex| known.manifest.as_deref() == Some(hex));
        is_same.then_some(known)
    }

    pub(super) async fn remember(
        &self,
        reference: &Reference,
        content: Content,
        resolved: &Resolved,
    ) -> std::io::Result<()> {
        let file = self.reference_file(reference, content);
        let had = read_json::<Resolved>(&file);
        let joined = resolved.clone().joined(had.as_ref());
        // The same answer again costs the disk nothing.
        if had.as_ref() == Some(&joined) {
            return Ok(());
        }
        write_json_aside(file, &joined).await?;
        self.has_changed.notify_one();
        Ok(())
    }

    pub(super) fn reference_file(&self, reference: &Reference, content: Content) -> PathBuf {
        self.reference_folder(content).join(format!("{}.json", reference.file_name()))
    }

    fn reference_folder(&self, content: Content) -> PathBuf {
        match content {
            Content::Component => self.references(),
            Content::Tree => self.volume_references(),
        }
    }

    pub(super) fn references(&self) -> PathBuf {
        self.dirs.images().join("refs")
    }

    pub(super) fn volume_references(&self) -> PathBuf {
        self.dirs.images().join("volumes")
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.dirs.images().join("sha256")
    }

    pub(super) fn blob(&self, hex: &str) -> PathBuf {
        self.blobs().join(hex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_opened_an_image_once_may_use_it_and_another_image_is_nobodys() {
        let of = |layer: &str, namespaces: &[&str]| Resolved {
            layer: layer.to_owned(),
            manifest: None,
            bytes: None,
            config: None,
            namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect(),
        };
        let joined = |new: &Resolved, had: &Resolved| new.clone().joined(Some(had));
        assert_eq!(joined(&of("a", &["y"]), &of("a", &["x"])), of("a", &["x", "y"]));
        assert_eq!(joined(&of("a", &[]), &of("a", &["x"])), of("a", &[]), "open to all by now");
        assert_eq!(joined(&of("a", &["x"]), &of("a", &[])), of("a", &[]), "it was open to all");
        assert_eq!(joined(&of("b", &["y"]), &of("a", &["x"])), of("b", &["y"]));
        let many: Vec<String> = (0..NAMESPACES_MAX).map(|n| format!("n{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let all = joined(&of("a", &["y"]), &of("a", &many));
        assert!(all.namespaces.len() == NAMESPACES_MAX && all.namespaces.contains("y"));
    }
}
