//! Compiling in a child process: its memory goes back to the system, and a compile bomb hits its
//! limits, not the node's.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit, setpriority_process};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use crate::agent::image::unpack::unpack;
use crate::agent::image::{ImageError, Images};

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
/// Modules remembered as refused; compiling them again would only cost time.
const REFUSED_MAX: usize = 256;
/// Ending of compiled code.
pub(super) const COMPILED: &str = "cwasm";
/// Ending of a component out of an archive, until it is compiled.
const UNPACKED: &str = "unpacked.tmp";

/// Why there is no compiled code.
enum Failure {
    /// The input is no component this node can run: final for these bytes.
    Refused(String),
    /// Time, memory or the disk ran out: it may work another time.
    Unfinished(String),
}

impl Images {
    /// The compiled code of a layer that is here; made if missing.
    pub(super) async fn compiled(&self, hex: &str) -> Result<PathBuf, ImageError> {
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
        let failed = match self.compile(hex, &output).await {
            Ok(()) => {
                self.compile_backoffs.worked(hex);
                return Ok(output);
            }
            Err(failed) => failed,
        };
        match failed {
            Failure::Refused(message) => {
                let mut refused = self.refused.lock();
                if refused.len() >= REFUSED_MAX {
                    refused.pop_first();
                }
                refused.insert(hex.to_owned(), message.clone());
                Err(ImageError::Refused { message, may_change: false })
            }
            Failure::Unfinished(message) => {
                let wait = self.compile_backoffs.failed(hex, &message, Duration::ZERO);
                Err(ImageError::Compile { message, wait })
            }
        }
    }

    async fn compile(&self, hex: &str, output: &Path) -> Result<(), Failure> {
        let stopping = |_| Failure::Unfinished("the agent is stopping".to_owned());
        let _permit = self.compiles.acquire().await.map_err(stopping)?;
        let started = tokio::time::Instant::now();
        let unpacked = self.unpacked(hex, output).await?;
        let input = unpacked.clone().unwrap_or_else(|| self.blob(hex));
        let ended = self.run_compiler(&input, output).await;
        if let Some(unpacked) = unpacked {
            let _ = tokio::fs::remove_file(unpacked).await;
        }
        let (status, complaint) = ended?;
        if status.success() {
            let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(image.digest = hex, elapsed_ms, "component compiled");
            return Ok(());
        }
        let sentence = self.sentence(&complaint);
        Err(match status.code() {
            Some(EXIT_REFUSED) if !OUT_OF_MEMORY.iter().any(|word| complaint.contains(word)) => {
                Failure::Refused(sentence)
            }
            _ => Failure::Unfinished(sentence),
        })
    }

    /// The component out of a layer that is an archive; `None` for a layer that is one itself.
    async fn unpacked(&self, hex: &str, output: &Path) -> Result<Option<PathBuf>, Failure> {
        let (layer, place) = (self.blob(hex), output.with_extension(UNPACKED));
        let to = place.clone();
        let done = tokio::task::spawn_blocking(move || unpack(&layer, &to)).await;
        match done {
            Ok(Ok(is_archive)) => Ok(is_archive.then_some(place)),
            Ok(Err(cause)) => {
                let _ = tokio::fs::remove_file(&place).await;
                Err(match cause.kind() {
                    std::io::ErrorKind::InvalidData => Failure::Refused(cause.to_string()),
                    _ => Failure::Unfinished(format!("cannot unpack the image: {cause}")),
                })
            }
            Err(cause) => Err(Failure::Unfinished(format!("cannot unpack the image: {cause}"))),
        }
    }

    async fn run_compiler(
        &self,
        input: &Path,
        output: &Path,
    ) -> Result<(ExitStatus, String), Failure> {
        let failed = |cause| Failure::Unfinished(format!("cannot run the compiler: {cause}"));
        let mut child = Command::new(&self.compiler.program)
            .args(&self.compiler.args)
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
            Err(_) => Err(Failure::Unfinished(format!(
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

/// The last line, without what the command line puts before it.
fn sentence(complaint: &str) -> String {
    let line = complaint.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or_default().trim().trim_start_matches(COMPLAINT_PREFIX).to_owned()
}

/// File name of the compiled code of a layer.
pub(super) fn compiled_name(hex: &str, engine: &str) -> String {
    format!("{hex}-{engine}.{COMPILED}")
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
