//! Blobs from other nodes: a blob that several nodes want comes from the registry once.
//!
//! A node that lacks a blob asks the others. It takes the blob from one that has it; waits while one
//! that is fetching it makes progress; and goes to the registry when there is neither.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::agent::image::Images;
use crate::agent::image::distribution::{Fault, USER_AGENT, range_start};
use crate::agent::image::fetch::COMPONENT_BYTES_MAX;
use crate::agent::image::manifest::Blob;
use crate::agent::image::metrics::Origin;
use crate::agent::image::part::{Pace, Part, Transfer};
use crate::agent::image::serve::{self, PHASE_HEADER, RECEIVED_HEADER, REPOSITORY_HEADER};
use crate::agent::image::swarm::{Claim, is_better, rank};
use crate::agent::image::transport::{Body, Broken};
use crate::client::Informer;

/// Other nodes that are asked for one blob. In a larger cluster a blob may come from the registry
/// more than once, but no pull costs more questions than this.
const PEERS_MAX: usize = 16;
/// How many of them are asked in the first round, twice as many in the next one, and so on: when a fleet
/// wants a blob at once, the first few know of each other, and each question costs a handshake.
pub(super) const PEERS_FIRST: usize = 3;
/// Time to reach a node, and time for its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Lost connections after which a node is asked no more during one pull.
const LOSSES_MAX: u32 = 2;
/// A node that sends more slowly than this is left for the next one.
const PACE: Pace = Pace { bytes: 256 * 1024, window: Duration::from_secs(5) };
/// A node that is fetching, or about to, and gets no further for so long is waited for no more.
const STILL_MAX: Duration = Duration::from_secs(45);
/// Longest wait for other nodes in one pull.
const WAIT_MAX: Duration = Duration::from_secs(15 * 60);
/// First and longest pause between two rounds of questions.
const ROUND_MIN: Duration = Duration::from_millis(40);
const ROUND_MAX: Duration = Duration::from_secs(1);
/// How long a node that could not be reached is not asked again.
const UNREACHABLE_FOR: Duration = Duration::from_secs(60);
/// Key of the places of transfers from nodes; no registry has such a host.
const PLACE: &str = "nodes";

/// What a peer sends.
pub type PeerBody = http_body_util::combinators::UnsyncBoxBody<Bytes, PeerError>;
/// Why a peer did not answer, or its answer broke off.
pub type PeerError = Box<dyn std::error::Error + Send + Sync>;

/// The way to the agents of other nodes.
pub trait PeerDialler: Send + Sync + 'static {
    /// A connection to the node of this name. It ends when it is dropped.
    fn dial<'a>(
        &'a self,
        node: &'a str,
    ) -> BoxFuture<'a, Result<Box<dyn PeerConnection>, PeerError>>;
}

/// A connection to the agent of a node, which is who it says.
pub trait PeerConnection: Send + Sync + 'static {
    /// Sends one request and waits for the head of the answer.
    fn send(&self, request: Request<()>) -> BoxFuture<'_, Result<Response<PeerBody>, PeerError>>;
}

/// What this node needs to ask others.
#[derive(Clone)]
pub(crate) struct Peering {
    /// This node's name.
    pub(crate) me: String,
    /// This node has the cluster's registry in its own process.
    pub(crate) is_server: bool,
    pub(crate) dialler: Arc<dyn PeerDialler>,
    /// Names of the other nodes.
    pub(crate) others: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    pub(crate) unreachable: Arc<Unreachable>,
}

/// Nodes that could not be reached lately, and until when they are not asked.
#[derive(Debug, Default)]
pub(crate) struct Unreachable(Mutex<BTreeMap<String, Instant>>);

impl Unreachable {
    fn note(&self, node: &str) {
        let now = Instant::now();
        let mut until = self.0.lock();
        until.retain(|_, until| *until > now);
        until.insert(node.to_owned(), now + UNREACHABLE_FOR);
    }

    fn has(&self, node: &str) -> bool {
        self.0.lock().get(node).is_some_and(|until| *until > Instant::now())
    }
}

impl Peering {
    /// Asks all `nodes` but `me`.
    pub(crate) fn new(
        me: String,
        is_server: bool,
        dialler: Arc<dyn PeerDialler>,
        nodes: Informer<Node>,
    ) -> Self {
        let others = {
            let me = me.clone();
            move || {
                let nodes = nodes.store.state().into_iter();
                nodes.filter_map(|node| node.metadata.name.clone()).filter(|n| *n != me).collect()
            }
        };
        let (others, unreachable) = (Arc::new(others), Arc::default());
        Self { me, is_server, dialler, others, unreachable }
    }
}

/// What a node answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// It has the blob.
    Here,
    /// It has the blob, and gives it to as many as it may.
    Busy,
    /// It asks others, as this node does.
    Asking,
    /// It is fetching it, and has so many bytes.
    Fetching(u64),
    /// It has nothing to do with the blob.
    Absent,
    /// The connection was lost before an answer.
    Lost,
    /// It cannot be reached.
    Unreachable,
}

/// How a transfer ended.
enum Taken {
    Whole,
    /// The node has no place now.
    Busy,
    /// It broke off, or was too slow.
    Lost,
    /// What came is not the blob.
    Lied,
}

/// A node that is asked, during one pull.
struct Peer {
    name: String,
    connection: Option<Box<dyn PeerConnection>>,
    losses: u32,
    is_dropped: bool,
    /// What it had when it last got further, and when that was.
    moved: Option<(u64, Instant)>,
}

impl Images {
    /// Fetches the blob from other nodes. `false`: this node is to go to the registry, which
    /// whoever asks it is told from now on.
    pub(super) async fn fetch_from_peers(
        &self,
        peering: &Peering,
        blob: &Blob,
        part: &mut Part,
        claim: &Claim<'_>,
    ) -> Result<bool, Fault> {
        let mut peers = candidates(peering, &blob.hex);
        let deadline = Instant::now() + WAIT_MAX;
        let (mut pause, mut width) = (ROUND_MIN, PEERS_FIRST);
        loop {
            claim.begin_round();
            width = width.min(peers.len());
            let asked = peers.get_mut(..width).unwrap_or_default();
            let round = ask_all(asked, peering, &blob.hex, claim.repository()).await;
            if let Some(peer) = round.here.and_then(|at| peers.get_mut(at)) {
                claim.has(part.size());
                match self.take(peer, blob, part, claim).await? {
                    Taken::Whole => return Ok(true),
                    Taken::Busy => {}
                    Taken::Lost => {
                        tracing::debug!(peer = peer.name, "a node sent a blob too slowly");
                        peer.is_dropped = true;
                        continue;
                    }
                    Taken::Lied => {
                        // Who else does nobody knows; the registry is asked for the rest.
                        tracing::warn!(
                            peer = peer.name,
                            image.digest = blob.hex,
                            "a node sent other bytes than asked for"
                        );
                        claim.has(part.size());
                        return Ok(false);
                    }
                }
            } else if !round.is_waited_for && width < peers.len() {
                width = peers.len();
                continue;
            } else if !round.is_waited_for && claim.try_go() {
                return Ok(false);
            }
            width = width.saturating_mul(2);
            if Instant::now() > deadline {
                tracing::debug!(image.digest = blob.hex, "other nodes were waited for long enough");
                claim.has(part.size());
                return Ok(false);
            }
            let spread = u64::try_from(pause.as_millis() / 2).unwrap_or(0);
            tokio::time::sleep(pause / 2 + Duration::from_millis(self.rng.below(spread))).await;
            pause = pause.saturating_mul(2).min(ROUND_MAX);
        }
    }

    /// Goes on with the blob from one node.
    async fn take(
        &self,
        peer: &mut Peer,
        blob: &Blob,
        part: &mut Part,
        claim: &Claim<'_>,
    ) -> Result<Taken, Fault> {
        let Some(connection) = &peer.connection else { return Ok(Taken::Lost) };
        let _place = self.places.take(PLACE).await?;
        let is_whole = blob.size.is_some_and(|size| part.size() == size);
        if !is_whole {
            let Ok(request) = request(Method::GET, (&blob.hex, claim.repository()), part.size())
            else {
                return Ok(Taken::Lost);
            };
            let sent = tokio::time::timeout(ANSWER_TIMEOUT, connection.send(request)).await;
            let Ok(Ok(answer)) = sent else { return Ok(Taken::Lost) };
            let start = match answer.status() {
                StatusCode::OK => 0,
                StatusCode::PARTIAL_CONTENT => range_start(answer.headers()).unwrap_or(0),
                StatusCode::TOO_MANY_REQUESTS => return Ok(Taken::Busy),
                _ => return Ok(Taken::Lost),
            };
            let body: Body = answer.into_body().map_err(Broken::new).boxed_unsync();
            let transfer = Transfer {
                start,
                limit: blob.size.unwrap_or(COMPONENT_BYTES_MAX),
                pace: PACE,
                heard: &|bytes, size| {
                    self.compiler.metrics().pulled(Origin::Peer, bytes);
                    claim.has(size);
                },
            };
            match part.receive(body, transfer).await {
                Ok(()) => {}
                Err(fault @ Fault::Disk(_)) => return Err(fault),
                Err(Fault::Refused(_)) => return Ok(Taken::Lied),
                Err(_) => return Ok(Taken::Lost),
            }
            if blob.size.is_some_and(|size| part.size() < size) {
                return Ok(Taken::Lost);
            }
        }
        match part.finish(&blob.hex).await {
            Ok(()) => {
                tracing::info!(
                    image.digest = blob.hex,
                    peer = peer.name,
                    "blob fetched from a node"
                );
                Ok(Taken::Whole)
            }
            Err(fault @ Fault::Disk(_)) => Err(fault),
            Err(_) => Ok(Taken::Lied),
        }
    }
}

/// The nodes to ask: the first ones in the order for this blob, so that all ask the same.
fn candidates(peering: &Peering, hex: &str) -> Vec<Peer> {
    let is_asked = |name: &String| *name != peering.me && !peering.unreachable.has(name);
    let others = (peering.others)().into_iter().filter(is_asked);
    let ranked: BTreeMap<_, _> = others.map(|name| (rank(hex, &name), name)).collect();
    let chosen = ranked.into_values().take(PEERS_MAX);
    let peer = |name| Peer { name, connection: None, losses: 0, is_dropped: false, moved: None };
    chosen.map(peer).collect()
}

/// What a round of questions came to.
struct Round {
    /// The first that said it has the blob.
    here: Option<usize>,
    /// Somebody will have it soon.
    is_waited_for: bool,
}

/// Asks all at once. Ends with the first that has the blob: the others do not matter then.
async fn ask_all(peers: &mut [Peer], peering: &Peering, hex: &str, repository: &str) -> Round {
    let mut round = Round { here: None, is_waited_for: false };
    let asked = peers.iter_mut().enumerate().filter(|(_, peer)| !peer.is_dropped);
    let mut answers: FuturesUnordered<_> = asked
        .map(|(at, peer)| async move {
            let said = peer.ask(peering.dialler.as_ref(), (hex, repository)).await;
            if said == Said::Unreachable {
                peering.unreachable.note(&peer.name);
            }
            (at, said, peer.note(said, is_better(hex, &peer.name, &peering.me)))
        })
        .collect();
    while let Some((at, said, is_waited_for)) = answers.next().await {
        round.is_waited_for |= is_waited_for;
        if said == Said::Here {
            round.here = Some(at);
            break;
        }
    }
    round
}

impl Peer {
    async fn ask(&mut self, dialler: &dyn PeerDialler, blob: (&str, &str)) -> Said {
        let Ok(request) = request(Method::HEAD, blob, 0) else { return Said::Unreachable };
        if self.connection.is_none() {
            match tokio::time::timeout(ANSWER_TIMEOUT, dialler.dial(&self.name)).await {
                Ok(Ok(connection)) => self.connection = Some(connection),
                _ => return Said::Unreachable,
            }
        }
        let Some(connection) = &self.connection else { return Said::Unreachable };
        match tokio::time::timeout(ANSWER_TIMEOUT, connection.send(request)).await {
            Ok(Ok(answer)) => said(&answer),
            _ => {
                self.connection = None;
                Said::Lost
            }
        }
    }

    /// Notes an answer; whether the node is worth waiting for.
    fn note(&mut self, said: Said, is_better: bool) -> bool {
        let has = match said {
            Said::Here | Said::Absent => {
                self.moved = None;
                return false;
            }
            Said::Unreachable => {
                self.is_dropped = true;
                return false;
            }
            Said::Lost => {
                self.losses += 1;
                self.is_dropped = self.losses >= LOSSES_MAX;
                return !self.is_dropped;
            }
            Said::Asking if !is_better => return false,
            Said::Asking | Said::Busy => 0,
            Said::Fetching(bytes) => bytes,
        };
        let now = Instant::now();
        let (had, since) = *self.moved.get_or_insert((has, now));
        if has > had {
            self.moved = Some((has, now));
            return true;
        }
        // One that is busy gives its places away in time.
        said == Said::Busy || now.saturating_duration_since(since) < STILL_MAX
    }
}

/// Asks for a blob out of a repository.
fn request(
    method: Method,
    (hex, repository): (&str, &str),
    offset: u64,
) -> Result<Request<()>, http::Error> {
    let mut request = Request::builder()
        .method(method)
        .uri(serve::path(hex))
        .header(REPOSITORY_HEADER, repository)
        .header(header::USER_AGENT, USER_AGENT);
    if offset > 0 {
        request = request.header(header::RANGE, format!("bytes={offset}-"));
    }
    request.body(())
}

fn said(answer: &Response<PeerBody>) -> Said {
    let text = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
    match answer.status() {
        StatusCode::OK => Said::Here,
        StatusCode::TOO_MANY_REQUESTS => Said::Busy,
        StatusCode::ACCEPTED if text(PHASE_HEADER) == Some(serve::FETCHING) => {
            Said::Fetching(text(RECEIVED_HEADER).and_then(|text| text.parse().ok()).unwrap_or(0))
        }
        StatusCode::ACCEPTED => Said::Asking,
        _ => Said::Absent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_that_gets_no_further_is_not_waited_for_for_ever() {
        let peer = || Peer {
            name: "a".to_owned(),
            connection: None,
            losses: 0,
            is_dropped: false,
            moved: None,
        };
        let mut fetching = peer();
        for bytes in [0, 1, 2] {
            assert!(fetching.note(Said::Fetching(bytes), false));
            tokio::time::advance(STILL_MAX - Duration::from_secs(1)).await;
        }
        assert!(fetching.note(Said::Fetching(2), false));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!fetching.note(Said::Fetching(2), false), "it stands still");
        let mut asking = peer();
        assert!(!asking.note(Said::Asking, false), "it waits for this node");
        assert!(asking.note(Said::Asking, true));
        tokio::time::advance(STILL_MAX).await;
        assert!(!asking.note(Said::Asking, true));
        let mut lost = peer();
        assert!(lost.note(Said::Lost, true) && !lost.note(Said::Lost, true) && lost.is_dropped);
    }
}
