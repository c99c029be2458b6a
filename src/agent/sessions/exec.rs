//! A command in a running container.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use edgeorc_runtime::{Container, ExitReason};
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

use super::pump::{Incoming, Outgoing};
use super::tty::{self, Terminal, Typed};
use super::{LiveContainer, Options};
use crate::agent::command::{Commands, NotStarted, Running, Streams};
use crate::streaming::frame::Frame;

/// What a shell exits with after an interrupt: 128 + SIGINT.
const CODE_INTERRUPTED: i32 = 130;

/// One session.
pub(super) struct Exec {
    pub(super) commands: Commands,
    pub(super) container: LiveContainer,
    pub(super) options: Options,
}

impl Exec {
    /// Runs the command until it ends or its client is gone.
    pub(super) async fn run(self, body: Body, out: mpsc::Sender<Bytes>) {
        let out = Outgoing::begin(out).await;
        let started = tokio::select! {
            started = self.start() => started,
            () = out.closed() => return,
        };
        match started {
            Ok(running) => {
                let Running { container, stdin, stdout, stderr, guard } = running;
                let (command, incoming) = (Command { stdin, stdout, stderr }, Incoming::new(body));
                tokio::select! {
                    () = finish(&*container, command, &self.options, &out, incoming) => {}
                    () = out.closed() => {}
                }
                container.stop(Duration::ZERO).await;
                guard.disarm();
            }
            Err(error) => {
                out.send(&Frame::Stderr(Bytes::from(format!("{error}\n")))).await;
                out.send(&Frame::Exit(error.code())).await;
            }
        }
    }

    async fn start(&self) -> Result<Running, NotStarted> {
        let Options { has_stdin, is_terminal, .. } = self.options;
        let ready = self.commands.prepare(&self.container, &self.options.command).await?;
        ready.start(Streams { has_stdin, is_terminal }).await
    }
}

/// The ends of a command's streams.
struct Command {
    stdin: Option<DuplexStream>,
    stdout: mpsc::Receiver<Bytes>,
    stderr: mpsc::Receiver<Bytes>,
}

/// Carries the streams until the command has ended or the client is gone.
async fn finish(
    container: &dyn Container,
    command: Command,
    options: &Options,
    out: &Outgoing,
    incoming: Incoming,
) {
    let Command { stdin, stdout, stderr } = command;
    let is_terminal = options.is_terminal;
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
