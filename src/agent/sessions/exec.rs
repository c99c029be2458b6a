//! A command in a running container.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use edgeorc_runtime::{Container, ContainerConfig, ExitReason, Pod, StartError, Stdio};
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

use super::find::FindError;
use super::pump::{Incoming, Outgoing};
use super::tty::{self, Terminal, Typed};
use super::{LiveContainer, Options, SessionPod, Workshop};
use crate::streaming::frame::Frame;

/// Bytes of input that wait for the command to read them.
const STDIN_BYTES: usize = 64 * 1024;
/// Writes of the command that wait for the network.
const OUTPUT_QUEUE_MAX: usize = 4;
/// What a shell exits with when it does not find a command.
const CODE_NOT_FOUND: i32 = 127;
/// What a shell exits with when it finds something that does not run.
const CODE_NOT_RUNNABLE: i32 = 126;

/// What a shell exits with after an interrupt: 128 + SIGINT.
const CODE_INTERRUPTED: i32 = 130;

/// One session.
pub(super) struct Exec<'a> {
    pub(super) workshop: &'a Workshop,
    pub(super) pod: SessionPod,
    pub(super) container: LiveContainer,
    pub(super) options: Options,
}

/// A command that runs, and the ends of its streams.
struct Running {
    container: Arc<dyn Container>,
    stdin: Option<DuplexStream>,
    stdout: mpsc::Receiver<Bytes>,
    stderr: mpsc::Receiver<Bytes>,
}

impl Exec<'_> {
    /// Runs the command until it ends or its client is gone.
    pub(super) async fn run(self, body: Body, out: mpsc::Sender<Bytes>) {
        let out = Outgoing::begin(out).await;
        let started = tokio::select! {
            started = self.start() => started,
            () = out.closed() => return,
        };
        match started {
            Ok(running) => {
                let container = Arc::clone(&running.container);
                let guard = KillOnDrop(Some(Arc::clone(&container)), &self.workshop.tasks);
                tokio::select! {
                    () = finish(running, self.options.is_terminal, &out, Incoming::new(body)) => {}
                    () = out.closed() => {}
                }
                container.stop(Duration::ZERO).await;
                guard.disarm();
            }
            Err((code, text)) => {
                out.send(&Frame::Stderr(Bytes::from(format!("{text}\n")))).await;
                out.send(&Frame::Exit(code)).await;
            }
        }
    }

    async fn start(&self) -> Result<Running, (i32, String)> {
        let name = self.options.command.first().cloned().unwrap_or_default();
        let not_found = |why: &str| (CODE_NOT_FOUND, format!("exec: {name:?}: {why}"));
        let found = self.find(&name).await.map_err(|error| match error {
            FindError::NotFound if name.contains('/') => not_found("no such file or directory"),
            FindError::NotFound => not_found("executable file not found in $PATH"),
            FindError::Image(error) => (CODE_NOT_RUNNABLE, format!("exec: {name:?}: {error}")),
        })?;
        let gone = || (CODE_NOT_RUNNABLE, "the pod is not running".to_owned());
        let sandbox = self.pod.live.sandbox().ok_or_else(gone)?;
        let mut config: ContainerConfig = self.container.config.clone();
        config.compiled = found.compiled;
        config.args.clone_from(&self.options.command);
        config.mounts.extend(found.root);
        self.launch(&*sandbox, config).await.map_err(|error| {
            (CODE_NOT_RUNNABLE, format!("exec: {name:?}: exec format error: {error}"))
        })
    }

    async fn launch(
        &self,
        sandbox: &dyn Pod,
        config: ContainerConfig,
    ) -> Result<Running, StartError> {
        let (out, stdout) = mpsc::channel(OUTPUT_QUEUE_MAX);
        let (err, stderr) = mpsc::channel(OUTPUT_QUEUE_MAX);
        let (near, far) = tokio::io::duplex(STDIN_BYTES);
        let is_terminal = self.options.is_terminal;
        let stdin = self.options.has_stdin.then_some(near);
        let input: Option<edgeorc_runtime::Input> =
            if stdin.is_some() { Some(Box::new(far)) } else { None };
        let stdio = Stdio { stdin: input, stdout: out, stderr: err, is_terminal };
        let container = sandbox.exec(config, stdio).await?;
        Ok(Running { container, stdin, stdout, stderr })
    }
}

/// Carries the streams until the command has ended or the client is gone.
async fn finish(running: Running, is_terminal: bool, out: &Outgoing, incoming: Incoming) {
    let Running { container, stdin, stdout, stderr } = running;
    let output = async {
        if is_terminal {
            let shown = |bytes: Bytes| Frame::Stdout(tty::screen(&bytes));
            tokio::join!(out.pump(stdout, shown), out.pump(stderr, shown));
        } else {
            tokio::join!(out.pump(stdout, Frame::Stdout), out.pump(stderr, Frame::Stderr));
        }
        container.wait().await
    };
    let code = tokio::select! {
        exit = output => {
            if exit.reason != ExitReason::Completed && !exit.message.is_empty() {
                out.send(&Frame::Stderr(Bytes::from(format!("{}\n", exit.message)))).await;
            }
            exit.code
        }
        why = feed(stdin, is_terminal.then(Terminal::default), out, incoming) => match why {
            Fed::Gone => return,
            Fed::Interrupted => CODE_INTERRUPTED,
        }
    };
    out.send(&Frame::Exit(code)).await;
}

/// Why no more input comes.
enum Fed {
    Gone,
    Interrupted,
}

/// Gives the client's input to the command until the client is gone or wants it to end.
async fn feed(
    mut stdin: Option<DuplexStream>,
    mut terminal: Option<Terminal>,
    out: &Outgoing,
    mut incoming: Incoming,
) -> Fed {
    while let Some(frame) = incoming.next().await {
        match frame {
            Frame::Stdin(bytes) => {
                let typed = match &mut terminal {
                    Some(terminal) => terminal.keys(&bytes),
                    None => Typed { input: bytes.into(), ..Typed::default() },
                };
                if !typed.echo.is_empty() {
                    out.send(&Frame::Stdout(typed.echo.into())).await;
                }
                if typed.is_interrupt {
                    return Fed::Interrupted;
                }
                let Some(pipe) = stdin.as_mut() else { continue };
                // A command that reads no more is not the client's fault: it ends by itself.
                if pipe.write_all(&typed.input).await.is_err() || typed.is_end {
                    stdin = None;
                }
            }
            Frame::CloseStdin => stdin = None,
            // WASI has no terminals, so there is nothing to resize.
            _ => {}
        }
    }
    Fed::Gone
}

/// Ends the command when its session is dropped half way.
struct KillOnDrop<'a>(Option<Arc<dyn Container>>, &'a crate::rt::TaskGroup);

impl KillOnDrop<'_> {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(container) = self.0.take() {
            self.1.spawn("exec-kill", |_| async move { container.stop(Duration::ZERO).await });
        }
    }
}
