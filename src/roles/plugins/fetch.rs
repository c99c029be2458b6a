//! From the image of a plugin to its compiled code.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tokio::fs::File;

use crate::agent::{CodeCompiler, ImageReader};

/// Largest plugin, in bytes.
const BYTES_MAX: u64 = 32 << 20;

/// What a plugin's name meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// The image by the digest of its manifest.
    pub(crate) image: String,
    /// Hex of the digest of the component.
    pub(crate) layer: String,
    /// Its size.
    pub(crate) bytes: u64,
}

/// Brings plugins into a folder of its own.
pub(crate) struct Fetcher {
    pub(crate) reader: ImageReader,
    pub(crate) compiler: CodeCompiler,
    pub(crate) folder: PathBuf,
    /// Whose compiled code the engine can load.
    pub(crate) engine: String,
}

impl Fetcher {
    /// Asks the registry what `image` means now.
    pub(crate) async fn find(&self, image: &str) -> Result<Found, String> {
        let image = self.reader.image(image).map_err(|why| why.to_string())?;
        let component = image.component().await.map_err(|why| why.to_string())?;
        if component.bytes > BYTES_MAX {
            let (has, max) = (component.bytes, BYTES_MAX);
            return Err(format!("the component has {has} bytes, a plugin may have {max}"));
        }
        let image = format!("{}@sha256:{}", image.name(), component.manifest);
        Ok(Found { image, layer: component.layer, bytes: component.bytes })
    }

    /// The compiled code, made if it is not there.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: code appears whole or not at all, and a piece of a component is fetched anew.
    pub(crate) async fn fetch(&self, found: &Found) -> Result<PathBuf, String> {
        let failed = |cause: std::io::Error| format!("cannot keep the component: {cause}");
        let code = self.code(&found.layer);
        if code.exists() {
            return Ok(code);
        }
        tokio::fs::create_dir_all(&self.folder).await.map_err(failed)?;
        let component = self.folder.join(format!("{}.part", found.layer));
        let made = self.make(found, &component, &code).await;
        let _ = tokio::fs::remove_file(&component).await;
        made.map(|()| code)
    }

    async fn make(&self, found: &Found, component: &Path, code: &Path) -> Result<(), String> {
        let image = self.reader.image(&found.image).map_err(|why| why.to_string())?;
        let mut file =
            File::create(component).await.map_err(|cause| format!("cannot keep it: {cause}"))?;
        let copied =
            image.copy_blob(&format!("sha256:{}", found.layer), found.bytes, &mut file).await;
        copied.map_err(|why| why.to_string())?;
        if !self.compiler.is_here() {
            return Err("this server does not compile".to_owned());
        }
        self.compiler.make(component, code).await.map_err(|why| why.to_string())
    }

    fn code(&self, layer: &str) -> PathBuf {
        self.folder.join(format!("{layer}-{}.cwasm", self.engine))
    }

    /// Removes all code but that of these components. What is loaded stays loaded.
    pub(crate) async fn keep_only(&self, layers: &BTreeSet<String>) {
        let kept: BTreeSet<_> = layers.iter().map(|layer| self.code(layer)).collect();
        let Ok(mut entries) = tokio::fs::read_dir(&self.folder).await else { return };
        while let Ok(Some(entry)) = entries.next_entry().await {
            if !kept.contains(&entry.path()) {
                let _ = tokio::fs::remove_file(entry.path()).await;
            }
        }
    }
}
