//! `leases/renewals`: the heartbeats of a node as one request that goes on for as long as it is there.
//!
//! A PATCH each second from each node would be most of what an idle fleet costs, and of many late ones none
//! would count. On a stream a heartbeat is a line ([`crate::streaming::renewals`]), which is sent back
//! once the leader has heard it. A server that does not lead passes the lines of all its nodes on by one
//! stream of its own.
//!
//! # Invariants
//!
//! - A line comes back only if the leader had a quorum when it heard it. When that is not so, or another
//!   server leads, the stream ends.
//! - A node renews its own Lease; servers renew any.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request, Response, header};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::api::node_load::{LEASE_NAMESPACE, renewals_path};
use crate::api::status::Status;
use crate::apiserver::context::Context;
use crate::apiserver::error::ApiError;
use crate::apiserver::router::Call;
use crate::apiserver::{access, body, forward};
use crate::store::StoreError;
use crate::streaming::renewals::{MEDIA_TYPE, Reader, Renewal, lines};

/// Subresource of a Lease.
pub(super) const SUBRESOURCE: &str = "renewals";
/// A node that says nothing for so long has gone.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Time for the leader to take the stream of this server.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// Lines that wait to be passed on; a server has at most a few thousand connections.
const PASSED_MAX: usize = 4096;
/// Lines that are passed on together.
const TOGETHER_MAX: usize = 256;
/// Answers that wait for one node.
const ANSWERS_MAX: usize = 16;

/// Answers a request for the subresource.
pub(super) async fn respond(
    call: Call,
    method: &Method,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let Some(key) = call.info.key() else { return Err(Status::no_such_path().into()) };
    if key.namespace.as_deref() != Some(LEASE_NAMESPACE) {
        return Err(Status::no_such_path().into());
    }
    if method != Method::POST {
        return Err(Status::method_not_allowed(key.resource, method.as_str()).into());
    }
    if body::media_type(&call.headers) != MEDIA_TYPE {
        return Err(Status::unsupported_media_type(&[MEDIA_TYPE]).into());
    }
    let is_server = access::may_do_everything(&call.user);
    if !is_server && access::node_name(&call.user) != Some(&key.name) {
        let detail = "a node renews its own Lease";
        return Err(Status::forbidden(key.resource, &key.name, detail).into());
    }
    let context = call.context;
    let heard = Heard {
        body: body.into_data_stream(),
        reader: Reader::default(),
        own: (!is_server || key.name == context.node_name).then(|| key.name.clone()),
        cancel: context.cancel.clone(),
    };
    let body = match context.store.leader_elsewhere() {
        None => here(context, heard),
        // Two servers that take each other for the leader must not pass lines to and fro.
        Some(leader) if heard.own.is_none() => {
            return Err(Status::unavailable(format!("{leader} leads")).into());
        }
        Some(leader) => {
            let line = context.relay.line(&context, &leader).await?;
            passed_on(line, heard, key.name)
        }
    };
    let mut response = Response::new(body);
    let media_type = http::HeaderValue::from_static(MEDIA_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    Ok(response)
}

/// The heartbeats of one stream as they arrive.
struct Heard {
    body: BodyDataStream,
    reader: Reader,
    /// The only node that may be named.
    own: Option<String>,
    cancel: CancellationToken,
}

impl Heard {
    /// The next ones; `None` when the stream is to end. Cancel safe.
    async fn next(&mut self) -> Option<Vec<Renewal>> {
        let next = tokio::time::timeout(SILENCE_MAX, self.body.next());
        let chunk = self.cancel.run_until_cancelled(next).await?.ok()??.ok()?;
        let renewals = self.reader.read(&chunk).ok()?;
        let is_allowed = |one: &Renewal| self.own.as_ref().is_none_or(|own| *own == one.node);
        renewals.iter().all(is_allowed).then_some(renewals)
    }
}

/// This server leads: what arrives counts.
fn here(context: Context, heard: Heard) -> Body {
    let answers = futures_util::stream::unfold((context, heard), |(context, mut heard)| async {
        loop {
            let mut renewals = heard.next().await?;
            let mut is_over = false;
            renewals.retain(|one| {
                let renewed = context.store.renew(&one.node);
                // A node without a Lease writes one when its stream ends; others on a line go on.
                let is_for_one = |err| matches!(err, &StoreError::NotFound) && heard.own.is_none();
                is_over |= renewed.as_ref().is_err_and(|err| !is_for_one(err));
                renewed.is_ok()
            });
            if is_over {
                return None;
            }
            if !renewals.is_empty() {
                return Some((Ok::<_, Infallible>(lines(&renewals)), (context, heard)));
            }
        }
    });
    Body::from_stream(answers)
}

/// The nodes that wait for answers by one line.
type Waiting = Arc<Mutex<BTreeMap<String, mpsc::Sender<u64>>>>;

/// The stream of this server to the leader, while there is one.
#[derive(Debug, Default)]
pub(super) struct Relay(tokio::sync::Mutex<Option<Line>>);

#[derive(Debug, Clone)]
struct Line {
    leader: String,
    renewals: mpsc::Sender<Renewal>,
    waiting: Waiting,
}

impl Relay {
    /// The stream to `leader`, opened if need be.
    async fn line(&self, context: &Context, leader: &str) -> Result<Line, ApiError> {
        let mut current = self.0.lock().await;
        let is_usable = |line: &&Line| line.leader == leader && !line.renewals.is_closed();
        if let Some(line) = current.as_ref().filter(is_usable) {
            return Ok(line.clone());
        }
        let away = || ApiError::from(Status::unavailable(format!("{leader} takes no heartbeats")));
        let (renewals, passed) = mpsc::channel(PASSED_MAX);
        let mut request = Request::new(Body::from_stream(together(passed)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = renewals_path(&context.node_name).parse().map_err(|_| away())?;
        let media_type = http::HeaderValue::from_static(MEDIA_TYPE);
        request.headers_mut().insert(header::CONTENT_TYPE, media_type);
        let opened = context.forward.server(leader, request);
        let opened = tokio::time::timeout(OPEN_TIMEOUT, opened).await.map_err(|_| away())??;
        if !forward::is_ok(&opened) {
            return Err(away());
        }
        let waiting = Waiting::default();
        let answers = answer(opened.into_body(), Arc::clone(&waiting));
        context.sessions.spawn_until_cancelled("renewals", answers);
        let line = Line { leader: leader.to_owned(), renewals, waiting };
        *current = Some(line.clone());
        Ok(line)
    }
}

/// What is to be passed on, as many lines at a time as there are.
fn together(
    passed: mpsc::Receiver<Renewal>,
) -> impl futures_util::Stream<Item = Result<Bytes, Infallible>> {
    futures_util::stream::unfold(passed, |mut passed| async move {
        let mut renewals = Vec::new();
        let count = passed.recv_many(&mut renewals, TOGETHER_MAX).await;
        (count > 0).then(|| (Ok(lines(&renewals)), passed))
    })
}

/// Gives the leader's answers to those who wait for them, until there are no more.
async fn answer(body: Body, waiting: Waiting) {
    // Whoever waits sees that it is over, however this ends.
    struct Over(Waiting);
    impl Drop for Over {
        fn drop(&mut self) {
            self.0.lock().clear();
        }
    }
    let over = Over(waiting);
    let (mut body, mut reader) = (body.into_data_stream(), Reader::default());
    while let Some(Ok(chunk)) = body.next().await {
        let Ok(answered) = reader.read(&chunk) else { return };
        let waiting = over.0.lock();
        for one in answered {
            if let Some(node) = waiting.get(&one.node) {
                // For a node that takes no answers the next one will do.
                let _ = node.try_send(one.number);
            }
        }
    }
}

/// Another server leads: lines go to it, and its answers come back.
fn passed_on(line: Line, heard: Heard, node: String) -> Body {
    let (answered, answers) = mpsc::channel(ANSWERS_MAX);
    let own = answered.downgrade();
    line.waiting.lock().insert(node.clone(), answered);
    let passage = Passage { line, heard, node, own, answers };
    let answers = futures_util::stream::unfold(passage, |mut passage| async move {
        let answer = passage.next().await?;
        Some((Ok::<_, Infallible>(lines(&[answer])), passage))
    });
    Body::from_stream(answers)
}

/// The stream of one node through this server.
struct Passage {
    line: Line,
    heard: Heard,
    node: String,
    /// Where its answers are put, to tell it from a later stream of the node.
    own: mpsc::WeakSender<u64>,
    answers: mpsc::Receiver<u64>,
}

impl Passage {
    /// The next answer; `None` when it is over.
    async fn next(&mut self) -> Option<Renewal> {
        loop {
            tokio::select! {
                renewals = self.heard.next() => {
                    for one in renewals? {
                        self.line.renewals.send(one).await.ok()?;
                    }
                }
                number = self.answers.recv() => {
                    return Some(Renewal { node: self.node.clone(), number: number? });
                }
            }
        }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let mut waiting = self.line.waiting.lock();
        let is_own = waiting.get(&self.node).zip(self.own.upgrade());
        if is_own.is_some_and(|(there, own)| there.same_channel(&own)) {
            waiting.remove(&self.node);
        }
    }
}
