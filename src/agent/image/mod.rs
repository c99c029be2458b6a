//! Images: components from the cluster's registry, compiled once for this machine.
//!
//! ```text
//! images/sha256/<hex>            components, by digest
//! images/refs/<reference>.json   what a reference was resolved to last
//! compiled/<hex>-<engine>.cwasm  compiled code
//! ```
//!
//! # Invariants
//!
//! - A file under `sha256/` holds exactly the bytes its name says.
//! - What is cached needs no server.
//! - At most one module is compiled at a time, in a child process with limits.

mod adopt;
mod compile;
mod fetch;
mod reference;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::agent::config::Compiler;
use crate::agent::dirs::{Dirs, read_json, write_json};
use crate::agent::pod::plan::PullPolicy;
use reference::Reference;

/// Why an image is not ready to run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ImageError {
    /// The reference cannot be used. Give up.
    #[error("{0}")]
    Name(String),
    /// It is not here, and may not be pulled. Give up.
    #[error("image {0:?} is not on this node and imagePullPolicy is Never")]
    NeverPulled(String),
    /// The registry did not give it. Retry with back-off.
    #[error("cannot pull: {0}")]
    Pull(String),
    /// It is no component this node can run. Give up.
    #[error("{0}")]
    Compile(String),
    /// The node's disk refused. Retry.
    #[error("cannot write the image: {0}")]
    Disk(#[from] std::io::Error),
}

/// A component that can be started.
#[derive(Debug, Clone)]
pub(crate) struct ReadyImage {
    /// Its compiled code.
    pub(crate) compiled: PathBuf,
    /// `status.imageID`.
    pub(crate) id: String,
}

/// What a reference was resolved to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Resolved {
    /// Hex of the component's SHA-256.
    layer: String,
}

/// Where workers get their images from: [`Images`] in production.
#[async_trait]
pub(crate) trait ImageSource: Send + Sync + 'static {
    /// Pulls and compiles `image` as far as that has not happened yet.
    async fn ready(&self, image: &str, pull: PullPolicy) -> Result<ReadyImage, ImageError>;

    /// Compiles a component that lies in a file; gives its compiled code.
    async fn adopt(&self, file: &Path) -> Result<PathBuf, ImageError>;
}

/// The images of this node.
pub(crate) struct Images {
    client: kube::Client,
    dirs: Dirs,
    compiler: Compiler,
    /// Compiled code is good for exactly the engines that give the same string.
    engine: String,
    compiles: Semaphore,
}

impl Images {
    pub(crate) fn new(
        client: kube::Client,
        dirs: Dirs,
        compiler: Compiler,
        engine: String,
    ) -> Self {
        Self { client, dirs, compiler, engine, compiles: Semaphore::new(1) }
    }

    fn blob(&self, hex: &str) -> PathBuf {
        self.dirs.images().join("sha256").join(hex)
    }
}

#[async_trait]
impl ImageSource for Images {
    async fn adopt(&self, file: &Path) -> Result<PathBuf, ImageError> {
        Self::adopt(self, file).await
    }

    async fn ready(&self, image: &str, pull: PullPolicy) -> Result<ReadyImage, ImageError> {
        let reference = Reference::parse(image)?;
        let file = self.dirs.images().join("refs").join(format!("{}.json", reference.file_name()));
        let known: Option<Resolved> = read_json(&file);
        let known = known.filter(|resolved| self.blob(&resolved.layer).exists());
        let resolved = match (known, pull) {
            (Some(known), PullPolicy::IfNotPresent | PullPolicy::Never) => known,
            (None, PullPolicy::Never) => return Err(ImageError::NeverPulled(image.to_owned())),
            (known, _) => match (self.pull(&reference).await, known) {
                (Ok(resolved), known) => {
                    if known.as_ref() != Some(&resolved) {
                        write_json(&file, &resolved)?;
                    }
                    resolved
                }
                // A node without a server runs what it has.
                (Err(err), Some(known)) => {
                    tracing::warn!(%err, image, "cannot pull, using the image on this node");
                    known
                }
                (Err(err), None) => return Err(err),
            },
        };
        let compiled = self.compiled(&resolved.layer).await?;
        let id = format!("{}@sha256:{}", reference.repository_with_host(), resolved.layer);
        Ok(ReadyImage { compiled, id })
    }
}
