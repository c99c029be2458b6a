//! Heartbeats on a stream to the leader, by way of the server in use.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, StreamBody};
use kube::client::Body;
use tokio::sync::mpsc;

use crate::api::node_load::renewals_path;
use crate::client::send_streamed;
use crate::streaming::renewals::{MEDIA_TYPE, Reader, Renewal, lines};

/// Heartbeats on the way; with more of them the stream is of no use. One a second, so it is this many
/// seconds late.
const UNANSWERED_MAX: usize = 5;

/// A stream that is open.
pub(super) struct Renewals {
    node: String,
    /// Of the next heartbeat.
    number: u64,
    sent: mpsc::Sender<Bytes>,
    answers: Body,
    reader: Reader,
    /// Those on the way: number, and when it was sent by the fence's clock.
    unanswered: VecDeque<(u64, Duration)>,
}

impl Renewals {
    /// Opens the stream for the Lease of `node`, which must be there.
    pub(super) async fn open(client: &kube::Client, node: &str) -> kube::Result<Self> {
        let request =
            Request::post(renewals_path(node)).header(header::CONTENT_TYPE, MEDIA_TYPE).body(());
        let request = request.map_err(kube::Error::HttpError)?;
        let (sent, lines_of) = mpsc::channel(UNANSWERED_MAX);
        let frames = futures_util::stream::unfold(lines_of, |mut lines| async move {
            let line = lines.recv().await?;
            Some((Ok(http_body::Frame::data(line)), lines))
        });
        let body = StreamBody::new(frames).boxed_unsync();
        let answer = send_streamed(client, request, body).await?;
        let (head, answers) = answer.into_parts();
        if !head.status.is_success() {
            let status = kube::core::Status::failure("heartbeats are not taken", "Unavailable");
            return Err(kube::Error::Api(status.with_code(head.status.as_u16()).boxed()));
        }
        Ok(Self {
            node: node.to_owned(),
            number: 0,
            sent,
            answers,
            reader: Reader::default(),
            unanswered: VecDeque::new(),
        })
    }

    /// Sends a heartbeat at `now`. `false`: the stream is of no use any more.
    pub(super) fn beat(&mut self, now: Duration) -> bool {
        if self.unanswered.len() >= UNANSWERED_MAX {
            return false;
        }
        self.number += 1;
        self.unanswered.push_back((self.number, now));
        let line = lines(&[Renewal { node: self.node.clone(), number: self.number }]);
        self.sent.try_send(line).is_ok()
    }

    /// Waits for answers; returns when the newest heartbeat of those that are answered was sent, `None`
    /// when the stream is over.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. Heartbeats are on their way only while somebody waits here.
    pub(super) async fn answered(&mut self) -> Option<Duration> {
        loop {
            let chunk = self.answers.frame().await?.ok()?.into_data().ok()?;
            let Some(newest) = self.reader.read(&chunk).ok()?.pop() else { continue };
            let answered = self.unanswered.partition_point(|(number, _)| *number <= newest.number);
            if let Some((_, sent)) = self.unanswered.drain(..answered).next_back() {
                return Some(sent);
            }
        }
    }
}
