//! A command over SPDY streams, told apart by their header `streamtype`.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::Streams;
use super::client::{Activity, GOODBYE_MAX, pings};
use super::node;
use super::target::Target;
use crate::apiserver::context::Context;
use crate::streaming::frame::Frame;
use crate::streaming::spdy::{self, Decoder, Encoder};

/// How long a client has to open its streams.
const STREAMS_WAIT_MAX: Duration = Duration::from_secs(30);
/// Frames that wait for the client.
const QUEUE_MAX: usize = 16;
/// Frames that may come before the last stream is open.
const EARLY_MAX: usize = 32;

/// The streams of one command, by number.
#[derive(Debug, Default)]
struct Open {
    error: Option<u32>,
    stdin: Option<u32>,
    stdout: Option<u32>,
    stderr: Option<u32>,
    resize: Option<u32>,
}

impl Open {
    /// Whether every stream that the client announced is there.
    fn is_whole(&self, wanted: Streams) -> bool {
        self.error.is_some()
            && self.stdin.is_some() == wanted.has_stdin
            && self.stdout.is_some() == wanted.has_stdout
            && (self.stderr.is_some() || !wanted.has_stderr || wanted.is_terminal)
            && (self.resize.is_some() || !wanted.is_terminal)
    }

    /// Puts a stream in its place; `false` if it has none.
    fn add(&mut self, stream: u32, kind: &str) -> bool {
        let place = match kind {
            "error" => &mut self.error,
            "stdin" => &mut self.stdin,
            "stdout" => &mut self.stdout,
            "stderr" => &mut self.stderr,
            "resize" => &mut self.resize,
            _ => return false,
        };
        place.replace(stream).is_none()
    }
}

/// Reads the next frame; `None` when the client is gone.
pub(super) async fn next_frame(
    io: &mut (impl AsyncRead + Unpin),
    decoder: &mut Decoder,
) -> io::Result<Option<spdy::Frame>> {
    loop {
        let invalid = |err| io::Error::new(io::ErrorKind::InvalidData, err);
        if let Some(frame) = decoder.next().map_err(invalid)? {
            return Ok(Some(frame));
        }
        if io.read_buf(decoder.buffer()).await? == 0 {
            return Ok(None);
        }
    }
}

/// Serves one client.
pub(super) async fn run(
    io: impl AsyncRead + AsyncWrite + Send + Unpin,
    context: &Context,
    target: &Target,
    path: &str,
    wanted: Streams,
) {
    let (mut read, mut write) = tokio::io::split(io);
    let mut decoder = Decoder::default();
    let opening = open_streams(&mut read, &mut write, &mut decoder, wanted);
    let opened = tokio::time::timeout(STREAMS_WAIT_MAX, opening).await;
    let Ok(Ok(Some((open, early)))) = opened else {
        tracing::debug!("a streaming client did not open its streams");
        return;
    };
    let (input, mut output) = node::command(context, target, path).await;
    let (sender, mut queue) = mpsc::channel::<Bytes>(QUEUE_MAX);
    let activity = Activity::new();
    let (open, activity, answers) = (&open, &activity, sender.clone());
    let from_client = async {
        for frame in early {
            heed(frame, open, &input, &answers).await;
        }
        while let Ok(Some(frame)) = next_frame(&mut read, &mut decoder).await {
            activity.touch();
            heed(frame, open, &input, &answers).await;
        }
    };
    let to_client = async {
        let mut ping = pings();
        // Those of a server are even.
        for id in (2..).step_by(2) {
            let frame = tokio::select! {
                frame = output.next() => frame,
                _ = ping.tick() => {
                    let _ = sender.send(Encoder::ping(id)).await;
                    continue;
                }
            };
            let (stream, bytes) = match frame {
                Frame::Stdout(bytes) => (open.stdout, bytes),
                Frame::Stderr(bytes) => (open.stderr.or(open.stdout), bytes),
                last => {
                    let status = Bytes::from(node::status(&last).to_string());
                    send(&sender, open.error, &status).await;
                    break;
                }
            };
            activity.touch();
            send(&sender, stream, &bytes).await;
        }
        for stream in [open.stdout, open.stderr, open.error].into_iter().flatten() {
            let _ = sender.send(Encoder::data(stream, true, &[])).await;
        }
    };
    let writing = async {
        while let Some(frame) = queue.recv().await {
            if write.write_all(&frame).await.is_err() || write.flush().await.is_err() {
                return;
            }
        }
    };
    tokio::pin!(writing);
    tokio::select! {
        () = from_client => return,
        () = activity.idle() => return,
        () = &mut writing => return,
        () = to_client => {}
    }
    drop((sender, answers, input, output));
    let parting = async {
        writing.await;
        // The client ends the connection when it has read everything.
        while let Ok(Some(_)) = next_frame(&mut read, &mut decoder).await {}
    };
    let _ = tokio::time::timeout(GOODBYE_MAX, parting).await;
}

/// Accepts streams until the announced ones are open; frames that came meanwhile are kept.
async fn open_streams(
    read: &mut (impl AsyncRead + Unpin),
    write: &mut (impl AsyncWrite + Unpin),
    decoder: &mut Decoder,
    wanted: Streams,
) -> io::Result<Option<(Open, Vec<spdy::Frame>)>> {
    let (mut open, mut early, mut encoder) = (Open::default(), Vec::new(), Encoder::default());
    while !open.is_whole(wanted) {
        let Some(frame) = next_frame(read, decoder).await? else { return Ok(None) };
        match frame {
            spdy::Frame::SynStream { stream, headers, .. } => {
                let kind = headers.get("streamtype").map_or("", String::as_str);
                let is_known = open.add(stream, kind);
                let answer = if is_known { encoder.reply(stream) } else { Encoder::refuse(stream) };
                write.write_all(&answer).await?;
                write.flush().await?;
            }
            spdy::Frame::Ping { id } => {
                write.write_all(&Encoder::ping(id)).await?;
                write.flush().await?;
            }
            frame @ spdy::Frame::Data { .. } if early.len() < EARLY_MAX => early.push(frame),
            spdy::Frame::Data { .. } => return Ok(None),
            _ => {}
        }
    }
    Ok(Some((open, early)))
}

/// Does what a client's frame asks for.
async fn heed(frame: spdy::Frame, open: &Open, input: &node::Input, answers: &mpsc::Sender<Bytes>) {
    match frame {
        spdy::Frame::Data { stream, is_last, bytes } if Some(stream) == open.stdin => {
            input.send(Frame::Stdin(bytes)).await;
            if is_last {
                input.send(Frame::CloseStdin).await;
            }
        }
        spdy::Frame::Data { stream, bytes, .. } if Some(stream) == open.resize => {
            input.send(Frame::Resize(bytes)).await;
        }
        spdy::Frame::Reset { stream } if Some(stream) == open.stdin => {
            input.send(Frame::CloseStdin).await;
        }
        spdy::Frame::SynStream { stream, .. } => {
            let _ = answers.send(Encoder::refuse(stream)).await;
        }
        // An even one is the client's answer to ours.
        spdy::Frame::Ping { id } if id % 2 == 1 => drop(answers.send(Encoder::ping(id)).await),
        _ => {}
    }
}

/// Sends on a stream that the client has opened; what it did not want is dropped.
async fn send(sender: &mpsc::Sender<Bytes>, stream: Option<u32>, bytes: &[u8]) {
    if let Some(stream) = stream {
        let _ = sender.send(Encoder::data(stream, false, bytes)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_begins_when_every_announced_stream_is_open() {
        let wanted =
            Streams { has_stdin: true, has_stdout: true, has_stderr: true, is_terminal: false };
        let mut open = Open::default();
        for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
            assert!(open.add(stream, kind));
            assert!(!open.is_whole(wanted), "{kind}");
        }
        assert!(!open.add(7, "stdout"), "a second one");
        assert!(!open.add(7, "data"));
        assert!(open.add(7, "stderr"));
        assert!(open.is_whole(wanted));
        assert!(!open.is_whole(Streams { is_terminal: true, ..wanted }), "no resize");
    }
}
