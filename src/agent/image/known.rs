//! What references were resolved to, and where on the disk everything is.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::agent::dirs::{read_json, write_json};
use crate::agent::image::Images;
use crate::agent::image::reference::Reference;

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
}

impl Images {
    /// What the reference was resolved to last, if that is here.
    pub(super) fn known(&self, reference: &Reference, content: Content) -> Option<Resolved> {
        let known: Option<Resolved> = read_json(&self.reference_file(reference, content));
        known.filter(|resolved| match content {
            Content::Component => self.blob(&resolved.layer).exists(),
            Content::Tree => self.dirs.image_tree(&resolved.layer).exists(),
        })
    }

    pub(super) fn remember(
        &self,
        reference: &Reference,
        content: Content,
        resolved: &Resolved,
    ) -> std::io::Result<()> {
        let file = self.reference_file(reference, content);
        // The same answer again costs the disk nothing.
        if read_json::<Resolved>(&file).as_ref() == Some(resolved) {
            return Ok(());
        }
        write_json(&file, resolved)
    }

    pub(super) fn reference_file(&self, reference: &Reference, content: Content) -> PathBuf {
        let folder = match content {
            Content::Component => self.references(),
            Content::Tree => self.volume_references(),
        };
        folder.join(format!("{}.json", reference.file_name()))
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
