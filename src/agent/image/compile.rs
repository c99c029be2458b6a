//! From a layer to its code: on the disk, from a server, or made here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::agent::image::adopt::digest;
use crate::agent::image::fetch::COMPONENT_BYTES_MAX;
use crate::agent::image::fleet::NotFetched;
use crate::agent::image::part::PART;
use crate::agent::image::process::CompileFailure;
use crate::agent::image::{ImageError, Images, Wanted};
use crate::client::EventType;

/// Modules remembered as refused; compiling them again would only cost time.
const REFUSED_MAX: usize = 256;
/// How long a component may take to be compiled before that is told.
const TOLD_AFTER: Duration = Duration::from_millis(500);
/// Reason of the event.
const COMPILING: &str = "Compiling";
/// Ending of compiled code.
pub(super) const COMPILED: &str = "cwasm";
/// Letters of an engine's name that tell it apart from others, for people.
const ENGINE_SHOWN: usize = 12;

/// Who compiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// A server, for all nodes; this node if none does.
    Fleet,
    /// This node, if it can.
    Node,
}

impl Images {
    /// The compiled code of a layer that is here; made if missing.
    pub(super) async fn compiled(&self, hex: &str, by: By) -> Result<PathBuf, ImageError> {
        let output = self.dirs.compiled().join(compiled_name(hex, &self.engine));
        // Whoever has the turn may be fetching, compiling or deleting it.
        let _turn = self.locks.lock(hex).await;
        if output.exists() {
            return Ok(output);
        }
        if !self.blob(hex).exists() {
            return Err(ImageError::Vanished);
        }
        if let Some(message) = self.refused.lock().get(hex).cloned() {
            return Err(ImageError::Refused { message, may_change: false });
        }
        if let Some(failed) = self.compile_backoffs.waiting(hex) {
            let wait = failed.remaining();
            return Err(ImageError::Compile { message: failed.message, wait });
        }
        let failed = match self.obtain(hex, &output, by).await {
            Ok(()) => {
                self.compile_backoffs.worked(hex);
                return Ok(output);
            }
            Err(failed) => failed,
        };
        match failed {
            CompileFailure::Refused(message) => {
                let mut refused = self.refused.lock();
                if refused.len() >= REFUSED_MAX {
                    refused.pop_first();
                }
                refused.insert(hex.to_owned(), message.clone());
                Err(ImageError::Refused { message, may_change: false })
            }
            CompileFailure::Unfinished(message) => {
                let wait = self.compile_backoffs.failed(hex, &message, Duration::ZERO);
                Err(ImageError::Compile { message, wait })
            }
        }
    }

    /// As [`Self::compiled`]; when that takes long, the pod's events tell what it waits for.
    pub(super) async fn compiled_for(
        &self,
        wanted: &Wanted<'_>,
        hex: &str,
    ) -> Result<PathBuf, ImageError> {
        let mut compiled = std::pin::pin!(self.compiled(hex, By::Fleet));
        match tokio::time::timeout(TOLD_AFTER, &mut compiled).await {
            Ok(compiled) => compiled,
            Err(_) => {
                let message = format!("Compiling image \"{}\"", wanted.image);
                self.tell(wanted, EventType::Normal, COMPILING, message);
                compiled.await
            }
        }
    }

    /// Whether a layer still is what its name says; a disk may have changed it. It goes if not, and is
    /// fetched again.
    async fn check_layer(&self, hex: &str) -> Result<(), CompileFailure> {
        let unread = |cause: std::io::Error| CompileFailure::Unfinished(cause.to_string());
        let mut file = tokio::fs::File::open(self.blob(hex)).await.map_err(unread)?;
        if digest(&mut file, None, COMPONENT_BYTES_MAX).await.map_err(unread)? == hex {
            return Ok(());
        }
        tracing::error!(image.digest = hex, "the layer on the disk is damaged");
        tokio::fs::remove_file(self.blob(hex)).await.map_err(unread)?;
        let text = "the image on the disk was damaged, it is fetched again";
        Err(CompileFailure::Unfinished(text.to_owned()))
    }

    /// Brings the code into `output`: from a server, or from the compiler of this node.
    async fn obtain(&self, hex: &str, output: &Path, by: By) -> Result<(), CompileFailure> {
        let fetched = if by == By::Fleet || !self.compiler.is_here() {
            self.fetch_code(hex, output).await
        } else {
            Err(NotFetched::Unasked)
        };
        let Err(why) = fetched else { return Ok(()) };
        if self.compiler.is_here() {
            tracing::debug!(image.digest = hex, reason = %why, "no code from a server");
            let started = tokio::time::Instant::now();
            self.check_layer(hex).await?;
            self.compiler.make(&self.blob(hex), output).await?;
            // What came of a server's code is of no use any more.
            let _ = tokio::fs::remove_file(output.with_extension(PART)).await;
            let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(image.digest = hex, elapsed_ms, "component compiled");
            return Ok(());
        }
        if let NotFetched::Refused(message) = why {
            return Err(CompileFailure::Refused(message));
        }
        let engine = self.engine.get(..ENGINE_SHOWN).unwrap_or(&self.engine);
        Err(CompileFailure::Unfinished(format!(
            "this node does not compile, and has no code for its engine {engine} from a server: {why}"
        )))
    }
}

/// File name of the compiled code of a layer.
pub(super) fn compiled_name(hex: &str, engine: &str) -> String {
    format!("{hex}-{engine}.{COMPILED}")
}
