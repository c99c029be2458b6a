//! The agent's side of a session: one exchange whose two bodies stream at the same time.

use std::convert::Infallible;

use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::target::Target;
use crate::apiserver::context::Context;
use crate::apiserver::forward;
use crate::streaming::frame::{self, Decoder, Frame, PAYLOAD_BYTES_MAX};

/// Messages that wait for the network on the way to an agent.
pub(super) const QUEUE_MAX: usize = 16;
/// Most bytes read of an agent's refusal.
const REFUSAL_BYTES_MAX: usize = 4 * 1024;

/// Starts an exchange: what is sent to `from_client`'s other end becomes the request's body, until
/// all senders are gone. The error is a text for the client.
pub(in crate::apiserver) async fn exchange(
    context: &Context,
    target: &Target,
    path: &str,
    from_client: mpsc::Receiver<Bytes>,
) -> Result<Body, String> {
    let stream = futures_util::stream::unfold(from_client, |mut receiver| async {
        let bytes = receiver.recv().await?;
        Some((Ok::<_, Infallible>(bytes), receiver))
    });
    let mut request: Request<Body> = forward::get(path).map(|_: Body| Body::from_stream(stream));
    *request.method_mut() = Method::POST;
    let answer = context.forward.node(&target.node, request).await;
    let answer = answer.map_err(|error| error.0.message)?;
    let (head, body) = answer.into_parts();
    if head.status.is_success() {
        return Ok(body);
    }
    let text = Limited::new(body, REFUSAL_BYTES_MAX).collect().await;
    let text = text.map(|text| String::from_utf8_lossy(&text.to_bytes()).into_owned());
    Err(text.unwrap_or_else(|_| format!("node {} answers {}", target.node, head.status)))
}

/// A command's input, on its way to the agent.
#[derive(Debug)]
pub(super) struct Input(mpsc::Sender<Bytes>);

impl Input {
    /// Waits while the command does not read.
    pub(super) async fn send(&self, frame: Frame) {
        match frame {
            Frame::Stdin(mut bytes) => {
                while !bytes.is_empty() {
                    let part = bytes.split_to(bytes.len().min(PAYLOAD_BYTES_MAX));
                    let _ = self.0.send(Frame::Stdin(part).encode()).await;
                }
            }
            // A size of a window is small; a huge one is nobody's window.
            Frame::Resize(bytes) if bytes.len() > PAYLOAD_BYTES_MAX => {}
            // Nobody takes it any more: the output tells why.
            other => drop(self.0.send(other.encode()).await),
        }
    }
}

/// A command's output.
#[derive(Debug)]
pub(super) struct Output {
    body: Result<Body, String>,
    decoder: Decoder,
}

impl Output {
    /// The next frame; the last one is [`Frame::Exit`] or [`Frame::Failed`].
    pub(super) async fn next(&mut self) -> Frame {
        let lost = || Frame::Failed("the connection to the pod's node broke off".to_owned());
        loop {
            let body = match &mut self.body {
                Ok(body) => body,
                Err(text) => return Frame::Failed(text.clone()),
            };
            match self.decoder.next() {
                Ok(Some(frame)) => return frame,
                Ok(None) => {}
                Err(err) => return Frame::Failed(err.to_string()),
            }
            let Some(Ok(frame)) = body.frame().await else { return lost() };
            if let Ok(bytes) = frame.into_data() {
                self.decoder.push(&bytes);
            }
        }
    }
}

/// Starts a command. A refusal is the output's only frame.
pub(super) async fn command(context: &Context, target: &Target, path: &str) -> (Input, Output) {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    // There is room: nothing else was sent.
    let _ = sender.try_send(frame::preface());
    let body = exchange(context, target, path, receiver).await;
    (Input(sender), Output { body, decoder: Decoder::default() })
}

/// The `Status` that tells a client how its command ended.
pub(super) fn status(last: &Frame) -> Value {
    match last {
        Frame::Exit(0) => json!({"metadata": {}, "status": "Success"}),
        Frame::Exit(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        other => {
            let text = if let Frame::Failed(text) = other { text.as_str() } else { "" };
            json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {text}"),
                "reason": "InternalError",
                "details": {"causes": [{"message": text}]},
                "code": 500,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_told_as_kubectl_reads_it() {
        let failed = status(&Frame::Exit(2));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({"reason": "ExitCode", "message": "2"}));
        assert_eq!(status(&Frame::Exit(0))["status"], "Success");
        assert_eq!(status(&Frame::Failed("x".into()))["reason"], "InternalError");
    }
}
