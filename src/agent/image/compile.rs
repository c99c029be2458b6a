//! Compiling in a child process: its memory goes back to the system, and a compile bomb hits its
//! limits, not the node's.

use std::path::PathBuf;
use std::process::Stdio;

use rustix::process::{Pid, Resource, Rlimit, prlimit, setpriority_process};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use crate::agent::image::{ImageError, Images};

/// Niceness of the child: guests and the control plane go first.
const NICENESS: i32 = 10;
/// Most bytes read of what the child says.
const COMPLAINT_BYTES_MAX: u64 = 16 * 1024;
/// What the command line puts before its one sentence.
const COMPLAINT_PREFIX: &str = "error: ";

impl Images {
    /// The compiled code of a component that is here; made if missing.
    pub(super) async fn compiled(&self, hex: &str) -> Result<PathBuf, ImageError> {
        let output = self.dirs.compiled().join(format!("{hex}-{}.cwasm", self.engine));
        if output.exists() {
            return Ok(output);
        }
        let stopped = |_| ImageError::Pull("the agent is stopping".to_owned());
        let _permit = self.compiles.acquire().await.map_err(stopped)?;
        // Somebody else may have compiled it while this pod waited.
        if !output.exists() {
            self.compile(hex, &output).await?;
        }
        Ok(output)
    }

    async fn compile(&self, hex: &str, output: &std::path::Path) -> Result<(), ImageError> {
        let started = tokio::time::Instant::now();
        let mut child = Command::new(&self.compiler.program)
            .args(&self.compiler.args)
            .arg(self.blob(hex))
            .arg(output)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
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
        let Ok((status, complaint)) = tokio::time::timeout(time_max, run).await else {
            return Err(ImageError::Compile(format!(
                "compiling took longer than {} s",
                time_max.as_secs()
            )));
        };
        if status?.success() {
            let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(image.digest = hex, elapsed_ms, "component compiled");
            return Ok(());
        }
        Err(ImageError::Compile(sentence(&complaint)))
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

/// The child's own sentence, or what it was killed for.
fn sentence(complaint: &str) -> String {
    let line = complaint.lines().rev().find(|line| !line.trim().is_empty());
    match line {
        Some(line) => line.trim().trim_start_matches(COMPLAINT_PREFIX).to_owned(),
        None => "the compiler was stopped: it ran out of memory or was killed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_sentence() {
        assert_eq!(sentence("warning: x\nerror: not a valid module\n"), "not a valid module");
        assert!(sentence("\n").contains("ran out of memory"));
    }
}
