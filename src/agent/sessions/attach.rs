//! A client at the streams of a running container: output from now on, and its input.

use std::io;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::live::Stdin;
use super::pump::{Incoming, Outgoing};
use super::tty::{self, Terminal, Typed};
use super::{LiveContainer, Options};
use crate::agent::log_file::LogFile;
use crate::streaming::frame::Frame;

/// How often the log is looked at for more.
const POLL: Duration = Duration::from_millis(50);

/// Serves one client until the container ends or the client is gone.
pub(super) async fn run(
    container: LiveContainer,
    options: Options,
    mut log: LogFile,
    body: Body,
    out: mpsc::Sender<Bytes>,
) {
    let out = Outgoing::begin(out).await;
    let stdin = container.stdin.clone().filter(|_| options.has_stdin);
    let output = async {
        loop {
            let is_over = tokio::select! {
                _ = container.container.wait() => true,
                () = tokio::time::sleep(POLL) => false,
            };
            // Once more after the end: its last lines are in the file by then.
            while let Ok(true) = send(&mut log, options.is_terminal, &out).await {}
            if is_over {
                out.send(&Frame::Exit(0)).await;
                return;
            }
        }
    };
    let terminal = options.is_terminal.then(Terminal::default);
    tokio::select! {
        () = output => {}
        () = feed(stdin.as_ref(), terminal, &out, Incoming::new(body)) => {
            out.send(&Frame::Exit(0)).await;
        }
        () = out.closed() => {}
    }
    if let Some(stdin) = stdin {
        stdin.detached().await;
    }
}

/// Gives the client's input to the container; returns when the client is gone. An interrupt ends
/// the session, not the container.
async fn feed(
    stdin: Option<&Stdin>,
    mut terminal: Option<Terminal>,
    out: &Outgoing,
    mut incoming: Incoming,
) {
    while let Some(frame) = incoming.next().await {
        match (frame, stdin) {
            (Frame::Stdin(bytes), stdin) => {
                let typed = match &mut terminal {
                    Some(terminal) => terminal.keys(&bytes),
                    None => Typed { input: bytes.into(), ..Typed::default() },
                };
                if typed.is_interrupt {
                    break;
                }
                let Some(stdin) = stdin else { continue };
                out.send(&Frame::Stdout(typed.echo.into())).await;
                // A container that does not read any more still has output.
                let _ = stdin.write(&typed.input).await;
                if typed.is_end {
                    stdin.detached().await;
                }
            }
            (Frame::CloseStdin, Some(stdin)) => stdin.detached().await,
            _ => {}
        }
    }
}

/// Sends the whole lines that were added to a container's log, in the CRI format; whether there were any.
async fn send(log: &mut LogFile, is_terminal: bool, out: &Outgoing) -> io::Result<bool> {
    let lines = log.next().await?;
    for line in lines.split(|b| *b == b'\n') {
        match frame(line) {
            Some(Frame::Stdout(bytes) | Frame::Stderr(bytes)) if is_terminal => {
                out.send(&Frame::Stdout(tty::screen(&bytes))).await;
            }
            Some(frame) => out.send(&frame).await,
            None => {}
        }
    }
    Ok(!lines.is_empty())
}

/// A line of the log as its stream had it.
fn frame(line: &[u8]) -> Option<Frame> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (_time, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    let mut text = parts.next().unwrap_or_default().to_vec();
    if tag != b"P" {
        text.push(b'\n');
    }
    let text = Bytes::from(text);
    Some(if stream == b"stderr" { Frame::Stderr(text) } else { Frame::Stdout(text) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::log_file::rotated;

    #[test]
    fn a_line_of_the_log_goes_to_its_stream() {
        let text = |text: &'static str| Bytes::from_static(text.as_bytes());
        assert_eq!(frame(b"t stdout F a b"), Some(Frame::Stdout(text("a b\n"))));
        assert_eq!(frame(b"t stderr P part"), Some(Frame::Stderr(text("part"))));
        assert_eq!(frame(b""), None);
    }

    #[tokio::test]
    async fn only_what_is_added_is_followed_also_after_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        std::fs::write(&path, "t stdout F old\n").unwrap();
        let mut log = LogFile::at_end(path.clone()).await.unwrap();
        let (sender, mut sent) = mpsc::channel(16);
        let out = Outgoing::begin(sender).await;
        sent.recv().await.unwrap();
        std::fs::write(&path, "t stdout F old\nt stdout F a\nt stderr F b\nt std").unwrap();
        assert!(send(&mut log, false, &out).await.unwrap());
        let frame = |text: &'static str| Bytes::from_static(text.as_bytes());
        assert_eq!(sent.recv().await.unwrap(), Frame::Stdout(frame("a\n")).encode());
        assert_eq!(sent.recv().await.unwrap(), Frame::Stderr(frame("b\n")).encode());
        std::fs::rename(&path, rotated(&path)).unwrap();
        std::fs::write(&path, "t stdout F c\n").unwrap();
        assert!(send(&mut log, false, &out).await.unwrap());
        assert_eq!(sent.recv().await.unwrap(), Frame::Stdout(frame("c\n")).encode());
        assert!(!send(&mut log, false, &out).await.unwrap());
    }
}
