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

/// The compiler of this process: one child at a time, whoever wants it, and beside it one that takes long.
/// So a component that keeps the compiler busy holds those of others up for [`Compiler::slow_after`]. Cheap to
/// clone; all clones are one.
#[derive(Debug, Clone)]
pub struct CodeCompiler(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    compiler: Compiler,
    /// The turn of what has begun, and that of what takes long.
    turns: [Semaphore; 2],
    metrics: CodeMetrics,
}

impl CodeCompiler {
    /// Compiles as `compiler` says, and counts it.
    #[must_use]
    pub fn new(compiler: Compiler, metrics: CodeMetrics) -> Self {
        Self(Arc::new(Inner { compiler, turns: [1, 1].map(Semaphore::new), metrics }))
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
        let [first, slow] = &self.0.turns;
        let turn = first.acquire().await.map_err(stopping)?;
        let mut started = Instant::now();
        let mut compiling = Box::pin(self.0.compile(layer, output));
        let quick = tokio::time::timeout(self.0.compiler.slow_after, &mut compiling).await;
        let made = match quick {
            Ok(made) => made,
            Err(_) => match slow.try_acquire() {
                Ok(_slow_turn) => {
                    drop(turn);
                    compiling.await
                }
                // Begun again when its turn comes: what waits must not hold memory.
                Err(_) => {
                    drop(compiling);
                    drop(turn);
                    let _slow_turn = slow.acquire().await.map_err(stopping)?;
                    started = Instant::now();
                    self.0.compile(layer, output).await
                }
            },
        };
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
    use std::time::Duration;

    use super::*;

    /// Takes as long as the component says.
    const SLEEPS: &str = r#"sleep "$(cat "$1")"; cp "$1" "$2""#;

    #[tokio::test]
    async fn what_takes_long_lets_others_pass_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let compiler = CodeCompiler::new(
            Compiler {
                args: ["-c", SLEEPS, "sh"].map(str::to_owned).to_vec(),
                time_max: Duration::from_secs(2),
                slow_after: Duration::from_millis(100),
                memory_bytes_max: None,
                ..Compiler::new("/bin/sh".into())
            },
            CodeMetrics::default(),
        );
        let make = |name: &str, seconds: &str| {
            let [layer, output] =
                ["in", "out"].map(|end| folder.path().join(format!("{name}.{end}")));
            std::fs::write(&layer, seconds).unwrap();
            let compiler = compiler.clone();
            async move { compiler.make(&layer, &output).await }
        };
        let ended = parking_lot::Mutex::new(Vec::new());
        let noted = async |name: &'static str, seconds: &str| {
            let made = make(name, seconds).await;
            ended.lock().push(name);
            made
        };
        let (bomb, long, short) = tokio::join!(
            noted("bomb", "600"),
            noted("long", "0.5"),
            // The bomb lets the long one pass, and that this one.
            noted("short", "0"),
        );
        assert!(matches!(bomb, Err(CompileFailure::Unfinished(_))), "{bomb:?}");
        assert_eq!((long, short), (Ok(()), Ok(())));
        assert_eq!(*ended.lock(), ["short", "bomb", "long"]);
    }

    #[test]
    fn the_last_line_is_the_sentence() {
        assert_eq!(sentence("warning: x\nerror: not a valid module\n"), "not a valid module");
        assert_eq!(sentence("\n"), "");
    }
}
