//! Commands in a pod's sandbox, beside its containers: what `exec`, probes and hooks run.
//!
//! Data in: a container that runs, and an argument vector. Data out: the command's streams and its
//! end.
//!
//! # Invariants
//!
//! - A command runs in the pod's sandbox and nowhere else, with the container's environment and
//!   volumes; what it is made of comes from the container's volumes, this node's tools, or the
//!   container's own component.
//! - Nothing that a command writes is in the container's log.
//! - A command whose [`Running`] is dropped is killed.

mod find;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use edgeorc_runtime::{Container, ContainerConfig, ExitReason, Input, Pod, StartError, Stdio};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use crate::agent::dirs::PodDir;
use crate::agent::image::ImageError;
use crate::agent::pod::start::Shared;
use crate::agent::sessions::{Live, LiveContainer};
use crate::rt::TaskGroup;
pub(crate) use find::root;

/// Bytes of input that wait for the command to read them.
const STDIN_BYTES: usize = 64 * 1024;
/// Writes of the command that wait for whoever reads them.
const OUTPUT_QUEUE_MAX: usize = 4;
/// Most bytes of output that are kept of a command that nobody watches: kubelet's figure.
pub(crate) const KEPT_BYTES_MAX: usize = 10 * 1024;
/// What a shell exits with when it does not find a command.
const CODE_NOT_FOUND: i32 = 127;
/// What a shell exits with when it finds something that does not run.
const CODE_NOT_RUNNABLE: i32 = 126;

/// Why a command did not start; the text is what a shell would say.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotStarted {
    /// Nothing has this name. Give up.
    #[error("exec: {name:?}: {why}")]
    NotFound { name: String, why: &'static str },
    /// Something has, and its code cannot be had. Retry: an image may come.
    #[error("exec: {name:?}: {cause}")]
    Image { name: String, cause: ImageError },
    /// It is nothing that runs. Give up.
    #[error("exec: {name:?}: exec format error: {cause}")]
    NotRunnable { name: String, cause: StartError },
    /// The container or its pod does not run. Give up.
    #[error("the pod is not running")]
    Gone,
}

impl NotStarted {
    /// The exit code for it.
    pub(crate) fn code(&self) -> i32 {
        match self {
            Self::NotFound { .. } => CODE_NOT_FOUND,
            Self::Image { .. } | Self::NotRunnable { .. } | Self::Gone => CODE_NOT_RUNNABLE,
        }
    }
}

/// Runs commands beside the containers of one pod. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Commands {
    shared: Arc<Shared>,
    dir: PodDir,
    live: Live,
    tasks: TaskGroup,
}

/// What of a command's streams somebody is at.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Streams {
    pub(crate) has_stdin: bool,
    pub(crate) is_terminal: bool,
}

/// A command that was found, and is ready to run.
pub(crate) struct Ready {
    name: String,
    sandbox: Arc<dyn Pod>,
    config: ContainerConfig,
    tasks: TaskGroup,
}

/// A command that runs, and the ends of its streams.
pub(crate) struct Running {
    pub(crate) container: Arc<dyn Container>,
    pub(crate) stdin: Option<DuplexStream>,
    pub(crate) stdout: mpsc::Receiver<Bytes>,
    pub(crate) stderr: mpsc::Receiver<Bytes>,
    pub(crate) guard: KillOnDrop,
}

/// What a command that nobody watched has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) code: i32,
    /// The beginning of stdout and stderr, as they came.
    pub(crate) text: String,
}

impl Commands {
    pub(crate) fn new(shared: &Arc<Shared>, dir: &PodDir, live: &Live, tasks: &TaskGroup) -> Self {
        let (shared, dir) = (Arc::clone(shared), dir.clone());
        Self { shared, dir, live: live.clone(), tasks: tasks.clone() }
    }

    /// A container that runs.
    pub(crate) fn container(&self, name: &str) -> Option<LiveContainer> {
        self.live.container(name)
    }

    /// Finds what to run for the container, and compiles it if need be.
    pub(crate) async fn prepare(
        &self,
        container: &LiveContainer,
        command: &[String],
    ) -> Result<Ready, NotStarted> {
        let name = command.first().cloned().unwrap_or_default();
        let found = self.find(container, &name).await?;
        let sandbox = self.live.sandbox().ok_or(NotStarted::Gone)?;
        let mut config = container.config.clone();
        config.compiled = found.compiled;
        config.args = command.to_vec();
        config.mounts.extend(found.root);
        Ok(Ready { name, sandbox, config, tasks: self.tasks.clone() })
    }
}

impl Ready {
    /// Starts it.
    pub(crate) async fn start(self, streams: Streams) -> Result<Running, NotStarted> {
        let (out, stdout) = mpsc::channel(OUTPUT_QUEUE_MAX);
        let (err, stderr) = mpsc::channel(OUTPUT_QUEUE_MAX);
        let (near, far) = tokio::io::duplex(STDIN_BYTES);
        let (stdin, input): (_, Option<Input>) =
            if streams.has_stdin { (Some(near), Some(Box::new(far))) } else { (None, None) };
        let is_terminal = streams.is_terminal;
        let stdio = Stdio { stdin: input, stdout: out, stderr: err, is_terminal };
        let started = self.sandbox.exec(self.config, stdio).await;
        let container =
            started.map_err(|cause| NotStarted::NotRunnable { name: self.name, cause })?;
        let guard = KillOnDrop(Some(Arc::clone(&container)), self.tasks);
        Ok(Running { container, stdin, stdout, stderr, guard })
    }

    /// Runs it to its end without input; keeps the first [`KEPT_BYTES_MAX`] bytes of its output.
    ///
    /// # Cancel safety
    ///
    /// The command is killed when the future is dropped.
    pub(crate) async fn run(self) -> Result<Output, NotStarted> {
        let running = self.start(Streams::default()).await?;
        let Running { container, stdin: _, mut stdout, mut stderr, guard } = running;
        let mut kept = Vec::new();
        let (mut has_stdout, mut has_stderr) = (true, true);
        while has_stdout || has_stderr {
            let bytes = tokio::select! {
                bytes = stdout.recv(), if has_stdout => {
                    has_stdout = bytes.is_some();
                    bytes
                }
                bytes = stderr.recv(), if has_stderr => {
                    has_stderr = bytes.is_some();
                    bytes
                }
            };
            keep(&mut kept, &bytes.unwrap_or_default());
        }
        let exit = container.wait().await;
        guard.disarm();
        if exit.reason != ExitReason::Completed {
            keep(&mut kept, exit.message.as_bytes());
        }
        Ok(Output { code: exit.code, text: String::from_utf8_lossy(&kept).into_owned() })
    }
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = KEPT_BYTES_MAX.saturating_sub(kept.len());
    kept.extend(bytes.iter().take(room));
}

/// Kills a command when whoever waits for it is dropped half way.
pub(crate) struct KillOnDrop(Option<Arc<dyn Container>>, TaskGroup);

impl KillOnDrop {
    /// The command has ended.
    pub(crate) fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(container) = self.0.take() {
            self.1.spawn("command-kill", |_| async move { container.stop(Duration::ZERO).await });
        }
    }
}
