//! Compiling in a child process: its memory goes back to the system, and a compile bomb hits its
//! limits, not the node's.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use rustix::process::{Pid, Resource, Rlimit, prlimit, setpriority_process};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::agent::config::Compiler;
use crate::agent::image::metrics::CodeMetrics;
use crate::agent::image::unpack::unpack;

/// Niceness of the child: guests and the control plane go first.
const NICENESS: i32 = 10;
/// Most bytes read of what the child says.
const COMPLAINT_BYTES_MAX: u64 = 16 * 1024;
/// What the command line puts before its one sentence.
const COMPLAINT_PREFIX: &str = "error: ";
/// The command line's exit code for an input that is no component: the same input gives it again.
const EXIT_REFUSED: i32 = 3;
/// What the child writes when memory is refused: Rust before it aborts, the system in an error.
const OUT_OF_MEMORY: &[&str] =
    &["memory allocation of", "Cannot allocate memory", "out of memory", "failed to allocate"];
/// Ending of a component out of an archive, until it is compiled.
const UNPACKED: &str = "unpacked.tmp";

/// Why there is no compiled code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileFailure {
    /// The input is no component this node can run: final for these bytes. Give up.
    #[error("{0}")]
    Refused(String),
    /// Time, memory or the disk ran out. Retry later.
    #[error("{0}")]
    Unfinished(String),
}

/// The compiler of this process: one child at a time, whoever wants it. Cheap to clone; all clones
/// are one.
#[derive(Debug, Clone)]
pub struct CodeCompiler(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    compiler: Compiler,
    turn: Semaphore,
    metrics: CodeMetrics,
}

impl CodeCompiler {
    /// Compiles as `compiler` says, and counts it.
    #[must_use]
    pub fn new(compiler: Compiler, metrics: CodeMetrics) -> Self {
        Self(Arc::new(Inner { compiler, turn: Semaphore::new(1), metrics }))
    }

    /// Whether this node compiles at all.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.0.compiler.is_here
    }

    /// The longest that one compile takes, waiting for others not included.
    #[must_use]
    pub fn time_max(&self) -> std::time::Duration {
        self.0.compiler.time_max
    }

    pub(super) fn metrics(&self) -> &CodeMetrics {
        &self.0.metrics
    }

    /// Compiles the layer of an image, which is a component or an archive with one in it, into the
    /// file `output`. Waits for its turn.
    ///
    /// # Errors
    ///
    /// [`CompileFailure`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future kills the child.
    pub async fn make(&self, layer: &Path, output: &Path) -> Result<(), CompileFailure> {
        let stopping = |_| CompileFailure::Unfinished("the agent is stopping".to_owned());
        let _permit = self.0.turn.acquire().await.map_err(stopping)?;
        let started = Instant::now();
        let made = self.0.compile(layer, output).await;
        let result = match &made {
            Ok(()) => "ok",
            Err(CompileFailure::Refused(_)) => "refused",
            Err(CompileFailure::Unfinished(_)) => "unfinished",
        };
        self.0.metrics.compiled(result, started.elapsed().as_secs_f64());
        made
    }
}

impl Inner {
    async fn compile(&self, layer: &Path, output: &Path) -> Result<(), CompileFailure> {
        let unpacked = unpacked(layer, output).await?;
        let input = unpacked.as_deref().unwrap_or(layer);
        let ended = self.run(input, output).await;
        if let Some(unpacked) = unpacked {
            let _ = tokio::fs::remove_file(unpacked).await;
        }
        let (status, complaint) = ended?;
        if status.success() {
            return Ok(());
        }
        let sentence = self.sentence(&complaint);
        Err(match status.code() {
            Some(EXIT_REFUSED) if !OUT_OF_MEMORY.iter().any(|word| complaint.contains(word)) => {
                CompileFailure::Refused(sentence)
            }
            _ => CompileFailure::Unfinished(sentence),
        })
    }

    async fn run(
        &self,
        input: &Path,
        output: &Path,
    ) -> Result<(ExitStatus, String), CompileFailure> {
        let failed =
            |cause| CompileFailure::Unfinished(format!("cannot run the compiler: {cause}"));
        let mut child = Command::new(&self.compiler.program)
            .args(&self.compiler.args)
            .envs(self.compiler.env.iter().map(|(name, value)| (name, value)))
            .arg(input)
            .arg(output)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        self.limit(&child);
        let run = async {
            let mut complaint = String::new();
            if let Some(stderr) = child.stderr.take() {
                let mut stderr = stderr.take(COMPLAINT_BYTES_MAX);
                let _ = stderr.read_to_string(&mut complaint).await;
            }
            (child.wait().await, complaint)
        };
        let time_max = self.compiler.time_max;
        match tokio::time::timeout(time_max, run).await {
            Ok((status, complaint)) => Ok((status.map_err(failed)?, complaint)),
            Err(_) => Err(CompileFailure::Unfinished(format!(
                "compiling took longer than {} s",
                time_max.as_secs_f64()
            ))),
        }
    }

    /// The child's own sentence, or what it was killed for.
    fn sentence(&self, complaint: &str) -> String {
        if OUT_OF_MEMORY.iter().any(|word| complaint.contains(word)) || complaint.trim().is_empty()
        {
            let limit = match self.compiler.memory_bytes_max {
                Some(bytes) => format!(" (it may use {} MiB)", bytes / (1024 * 1024)),
                None => String::new(),
            };
            return format!("the compiler was stopped: it ran out of memory{limit} or was killed");
        }
        sentence(complaint)
    }

    /// Lowers the child's priority and bounds its memory, as far as the system allows.
    fn limit(&self, child: &Child) {
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let _ = setpriority_process(pid, NICENESS);
        if let Some(bytes) = self.compiler.memory_bytes_max {
            let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
            let _ = prlimit(pid, Resource::Data, limit);
        }
    }
}

/// The component out of a layer that is an archive; `None` for a layer that is one itself.
async fn unpacked(layer: &Path, output: &Path) -> Result<Option<PathBuf>, CompileFailure> {
    let place = output.with_extension(UNPACKED);
    let (from, to) = (layer.to_owned(), place.clone());
    let done = tokio::task::spawn_blocking(move || unpack(&from, &to)).await;
    match done {
        Ok(Ok(is_archive)) => Ok(is_archive.then_some(place)),
        Ok(Err(cause)) => {
            let _ = tokio::fs::remove_file(&place).await;
            Err(match cause.kind() {
                std::io::ErrorKind::InvalidData => CompileFailure::Refused(cause.to_string()),
                _ => CompileFailure::Unfinished(format!("cannot unpack the image: {cause}")),
            })
        }
        Err(cause) => Err(CompileFailure::Unfinished(format!("cannot unpack the image: {cause}"))),
    }
}

/// The last line, without what the command line puts before it.
fn sentence(complaint: &str) -> String {
    let line = complaint.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or_default().trim().trim_start_matches(COMPLAINT_PREFIX).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_sentence() {
        assert_eq!(sentence("warning: x\nerror: not a valid module\n"), "not a valid module");
        assert_eq!(sentence("\n"), "");
    }
}
