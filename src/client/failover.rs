//! One client for several servers: stays with one, goes on to the next when it fails.

use std::error::Error as StdError;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::debug;

use crate::client::retry::{RetryLimits, retry_delay};
use crate::client::streamed;
use crate::net::Body;
use crate::net::http::full;
use crate::rt::Rng;

type BoxError = Box<dyn StdError + Send + Sync>;

/// The largest request body; kept in memory so that it can be sent again.
const BODY_BYTES_MAX: usize = 64 << 20;
/// How long one server has for the head of its answer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for a request that says so: its body is large, and servers answer once they have all of it.
#[derive(Debug, Clone, Copy)]
pub struct AnswerWithin(pub Duration);

/// How often all servers are tried before the caller hears of it.
const ROUNDS_MAX: u32 = 4;
/// Rests between rounds: an election takes about a second.
const ROUND_REST: RetryLimits =
    RetryLimits { delay_min: Duration::from_millis(100), delay_max: Duration::from_millis(800) };

/// Sends one request to one server.
pub(super) trait Transport: Send + Sync + 'static {
    /// What an answer's body is.
    type Body: Send + 'static;

    /// Sends `request` to `server` and waits for the head of the answer.
    fn send(
        &self,
        server: &str,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Self::Body>, SendFailure>> + Send;
}

/// How sending failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendFailure {
    /// Not a byte was sent: any request may go to another server.
    #[error("request not sent")]
    NotSent(#[source] BoxError),
    /// The server may have acted: only a read may go to another server.
    #[error("request not answered")]
    Unanswered(#[source] BoxError),
}

/// Why no server answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum FailoverError {
    /// No server is known yet. Retry.
    #[error("no server is known")]
    NoServers,
    /// Every server was tried, or the one that may have acted did not answer. A write has to be
    /// read back before it is retried.
    #[error("no server answered")]
    Failed(#[source] SendFailure),
    /// The request is too large, or its body could not be read. Give up.
    #[error("cannot read the request's body")]
    Body(#[source] BoxError),
}

/// The servers, and the one in use.
pub(super) struct Failover<T> {
    transport: T,
    servers: watch::Receiver<Vec<String>>,
    /// The server that answered last, or that is to: what begins at the same time goes to the same one.
    current: Mutex<Option<String>>,
    rng: Rng,
}

impl<T: Transport> Failover<T> {
    pub(super) fn new(transport: T, servers: watch::Receiver<Vec<String>>, rng: Rng) -> Arc<Self> {
        Arc::new(Self { transport, servers, current: Mutex::new(None), rng })
    }

    /// Sends `request` to the server in use, or to the first of the others that takes it.
    ///
    /// Reads go on to the next server whatever happens; writes only while nothing was sent.
    pub(super) async fn call<B>(
        &self,
        request: Request<B>,
    ) -> Result<Response<T::Body>, FailoverError>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<BoxError>,
    {
        let (mut parts, body) = request.into_parts();
        if let Some(body) = streamed::take(&mut parts.extensions) {
            return self.once(Request::from_parts(parts, body)).await;
        }
        let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
        let request = Request::from_parts(parts, body.map_err(FailoverError::Body)?.to_bytes());
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let mut last = FailoverError::NoServers;
        for round in 0..ROUNDS_MAX {
            if round > 0 {
                tokio::time::sleep(retry_delay(ROUND_REST, round - 1, &self.rng)).await;
            }
            let servers = self.in_order();
            let count = servers.len();
            for (at, server) in servers.into_iter().enumerate() {
                match self.attempt(&server, request.clone().map(full)).await {
                    Ok(answer) if answer.status() == StatusCode::SERVICE_UNAVAILABLE => {
                        // It is up but can do nothing, perhaps cut off from the others.
                        self.leave(&server);
                        if !is_read || at + 1 == count {
                            return Ok(answer);
                        }
                    }
                    Ok(answer) => {
                        *self.current.lock() = Some(server);
                        return Ok(answer);
                    }
                    Err(failure) => {
                        debug!(peer = server, %failure, round, "server failed");
                        self.leave(&server);
                        let may_have_acted = matches!(failure, SendFailure::Unanswered(_));
                        last = FailoverError::Failed(failure);
                        if may_have_acted && !is_read {
                            return Err(last);
                        }
                    }
                }
            }
        }
        Err(last)
    }

    /// Sends a request whose body cannot be sent twice to the server in use.
    async fn once(&self, request: Request<Body>) -> Result<Response<T::Body>, FailoverError> {
        let server = self.in_order().into_iter().next().ok_or(FailoverError::NoServers)?;
        self.attempt(&server, request).await.map_err(|failure| {
            debug!(peer = server, %failure, "server failed");
            self.leave(&server);
            FailoverError::Failed(failure)
        })
    }

    async fn attempt(
        &self,
        server: &str,
        request: Request<Body>,
    ) -> Result<Response<T::Body>, SendFailure> {
        let within = request.extensions().get::<AnswerWithin>().map(|within| within.0);
        let sent = self.transport.send(server, request);
        let late = |elapsed: tokio::time::error::Elapsed| SendFailure::Unanswered(elapsed.into());
        tokio::time::timeout(within.unwrap_or(ATTEMPT_TIMEOUT), sent).await.map_err(late)?
    }

    /// The server in use first; the others from a random one on, so that the clients of a server
    /// that dies do not all go to the same next one.
    fn in_order(&self) -> Vec<String> {
        let mut servers = self.servers.borrow().clone();
        let start = self.rng.below(servers.len() as u64);
        servers.rotate_left(usize::try_from(start).unwrap_or(0));
        let mut current = self.current.lock();
        match servers.iter().position(|server| Some(server) == current.as_ref()) {
            Some(at) => {
                let first = servers.remove(at);
                servers.insert(0, first);
            }
            None => *current = servers.first().cloned(),
        }
        servers
    }

    fn leave(&self, server: &str) {
        let mut current = self.current.lock();
        if current.as_deref() == Some(server) {
            *current = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http_body_util::Full;

    use super::*;

    #[derive(Clone, Copy, PartialEq)]
    enum Mood {
        Well,
        Dead,
        Mute,
        CutOff,
        /// Answers after 40 s.
        Slow,
    }

    /// Servers as moods, and who was asked.
    struct Script {
        moods: Mutex<BTreeMap<String, Mood>>,
        asked: Mutex<Vec<String>>,
    }

    impl Transport for Arc<Script> {
        type Body = ();

        async fn send(&self, server: &str, _: Request<Body>) -> Result<Response<()>, SendFailure> {
            self.asked.lock().push(server.to_owned());
            tokio::task::yield_now().await;
            let mood = self.moods.lock().get(server).copied();
            match mood {
                Some(Mood::Slow) => {
                    tokio::time::sleep(Duration::from_secs(40)).await;
                    Ok(Response::new(()))
                }
                Some(Mood::Well) => Ok(Response::new(())),
                Some(Mood::CutOff) => {
                    let answer = Response::builder().status(StatusCode::SERVICE_UNAVAILABLE);
                    Ok(answer.body(()).unwrap())
                }
                Some(Mood::Mute) => Err(SendFailure::Unanswered("reset".into())),
                Some(Mood::Dead) | None => Err(SendFailure::NotSent("refused".into())),
            }
        }
    }

    fn cluster(moods: &[(&str, Mood)]) -> (Arc<Script>, Arc<Failover<Arc<Script>>>) {
        let script = Arc::new(Script { moods: Mutex::default(), asked: Mutex::default() });
        let names = moods.iter().map(|(name, _)| (*name).to_owned()).collect();
        for (name, mood) in moods {
            script.moods.lock().insert((*name).to_owned(), *mood);
        }
        let failover = Failover::new(script.clone(), watch::channel(names).1, Rng::seeded(3));
        (script, failover)
    }

    fn request(method: Method) -> Request<Full<Bytes>> {
        Request::builder().method(method).uri("/api/v1/pods").body(Full::default()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn requests_stay_with_a_server_that_answers() {
        let moods = [("a", Mood::Well), ("b", Mood::Well), ("c", Mood::Well)];
        let (script, failover) = cluster(&moods);
        for _ in 0..5 {
            failover.call(request(Method::GET)).await.unwrap();
        }
        let asked = script.asked.lock().clone();
        assert!(asked.iter().all(|server| *server == asked[0]), "{asked:?}");
    }

    /// Each server that has one of a node's watches is one more connection, with its pings.
    #[tokio::test(start_paused = true)]
    async fn requests_that_begin_together_go_to_one_server() {
        let moods = [("a", Mood::Well), ("b", Mood::Well), ("c", Mood::Well)];
        let (script, failover) = cluster(&moods);
        let all = (0..9).map(|_| failover.call(request(Method::GET)));
        futures_util::future::try_join_all(all).await.unwrap();
        let asked = script.asked.lock().clone();
        assert!(asked.iter().all(|server| *server == asked[0]), "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn writes_go_on_when_nothing_was_sent() {
        let (_, failover) = cluster(&[("a", Mood::Dead), ("b", Mood::Well), ("c", Mood::Dead)]);
        failover.call(request(Method::POST)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_may_have_worked_is_not_sent_again_and_a_read_is() {
        let (script, failover) = cluster(&[("a", Mood::Mute), ("b", Mood::Mute)]);
        let failed = failover.call(request(Method::POST)).await.unwrap_err();
        assert!(matches!(failed, FailoverError::Failed(SendFailure::Unanswered(_))));
        assert_eq!(script.asked.lock().len(), 1);
        script.moods.lock().insert("b".into(), Mood::Well);
        failover.call(request(Method::GET)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_whose_body_is_large_says_how_long_its_answer_may_take() {
        let (_, failover) = cluster(&[("a", Mood::Slow)]);
        failover.call(request(Method::PUT)).await.unwrap_err();
        let mut large = request(Method::PUT);
        large.extensions_mut().insert(AnswerWithin(Duration::from_secs(60)));
        failover.call(large).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_cut_off_is_left_for_the_next() {
        let (script, failover) = cluster(&[("a", Mood::CutOff), ("b", Mood::Well)]);
        assert_eq!(failover.call(request(Method::GET)).await.unwrap().status(), StatusCode::OK);
        script.moods.lock().insert("b".into(), Mood::CutOff);
        let answer = failover.call(request(Method::GET)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "none can do better");
    }

    #[tokio::test(start_paused = true)]
    async fn servers_that_come_back_in_time_are_found() {
        let (script, failover) = cluster(&[("a", Mood::Dead)]);
        let heal = async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            script.moods.lock().insert("a".into(), Mood::Well);
        };
        let (answer, ()) = tokio::join!(failover.call(request(Method::POST)), heal);
        answer.unwrap();
    }
}
