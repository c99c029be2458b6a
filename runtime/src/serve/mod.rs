//! Serves HTTP components: requests of the virtual network in, responses of instances out.
//!
//! # Invariants
//!
//! - A request that comes on one of the guests' threads is served there, by whoever brings it, until
//!   its guest waits for something; others cross over once.
//! - Requests in flight are bounded ([`IN_FLIGHT_MAX`]); one more is refused, not queued.
//! - A request counts as in flight until its response body has ended, so that a drain is complete
//!   when nothing is in flight.
//! - A trap drops its instance and fails its request. The container goes on, unless
//!   [`TRAPS_IN_A_ROW_MAX`] instances in a row trap within [`TRAPS_WINDOW`].
//! - A request runs twice only as [`reuse`] has it: its first try was the second request of an
//!   instance of a component that has never answered a second one, and used nothing of its body.

mod body;
mod life;
mod pipe;
mod pool;
mod reuse;
mod slot;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_channel::oneshot;
use http::header::HOST;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use wasmtime_wasi_http::WasiBody;

use self::body::Tracked;
pub(crate) use self::body::{from_wasi, to_hyper, to_wasi};
pub(crate) use self::pipe::serve_pipe;
use self::pool::{Pool, Way};
pub(crate) use self::reuse::Reuse;
use self::reuse::{Spare, Turn};
use self::slot::{Answer, Job, NoRoom};
pub(crate) use self::worker::{Seed, instantiate};
use crate::guest::Template;
use crate::network::{Binding, HttpError, Unsent};
use crate::types::{Body, Exit, ExitReason};

/// Requests that one container handles at the same time.
const IN_FLIGHT_MAX: usize = 1024;
/// Traps without a response in between that end the container.
pub(crate) const TRAPS_IN_A_ROW_MAX: u32 = 3;
/// Time within which they have to happen.
pub(crate) const TRAPS_WINDOW: Duration = Duration::from_secs(1);

/// One served component.
pub(crate) struct HttpService {
    pool: Arc<Pool>,
    in_flight: InFlight,
    bindings: Mutex<Vec<Binding>>,
    /// Another run takes its place.
    has_heir: AtomicBool,
    over: CancellationToken,
}

/// Counts requests from their start to the end of their response body, until none is left and no
/// further one comes.
#[derive(Debug, Clone, Default)]
pub(crate) struct InFlight(Arc<Counter>);

#[derive(Debug, Default)]
struct Counter {
    /// How many, and [`DRAINED`].
    count: AtomicUsize,
    idle: Notify,
}

/// Set once nothing is in flight after a stop: what comes later is refused, not cut off.
const DRAINED: usize = 1 << (usize::BITS - 1);

/// One request in flight.
#[derive(Debug)]
pub(crate) struct Ticket(Arc<Counter>);

/// Why a request may not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Barred {
    Full,
    Drained,
}

impl InFlight {
    fn enter(&self) -> Result<Ticket, Barred> {
        let before = self.0.count.fetch_add(1, Ordering::Relaxed);
        // Dropping the ticket takes the count back.
        let ticket = Ticket(Arc::clone(&self.0));
        match before {
            DRAINED.. => Err(Barred::Drained),
            IN_FLIGHT_MAX.. => Err(Barred::Full),
            _ => Ok(ticket),
        }
    }

    /// Waits until nothing is in flight; nothing gets in from then on.
    async fn drained(&self) {
        loop {
            let mut idle = std::pin::pin!(self.0.idle.notified());
            idle.as_mut().enable();
            let (seq, count) = (Ordering::SeqCst, &self.0.count);
            match count.compare_exchange(0, DRAINED, seq, seq) {
                Ok(_) | Err(DRAINED..) => return,
                Err(_) => idle.await,
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

impl HttpService {
    /// Serves `template`, beginning with the instance in `seed`.
    pub(crate) fn new(template: Arc<Template>, seed: Seed) -> Arc<Self> {
        Arc::new(Self {
            over: template.kill().clone(),
            pool: Pool::new(template, seed),
            in_flight: InFlight::default(),
            bindings: Mutex::new(Vec::new()),
            has_heir: AtomicBool::new(false),
        })
    }

    /// Takes requests from the network until [`HttpService::close`].
    pub(crate) fn open(self: &Arc<Self>, bindings: Vec<Binding>) {
        for binding in &bindings {
            binding.listen(Some(crate::network::Listener::Http(Arc::clone(self))));
        }
        *self.bindings.lock() = bindings;
    }

    /// Takes no further requests and gives the port back.
    pub(crate) fn close(&self) {
        let bindings = std::mem::take(&mut *self.bindings.lock());
        drop(bindings);
    }

    /// As [`HttpService::close`], for a run that takes its place at once.
    pub(crate) fn hand_over(&self) {
        self.has_heir.store(true, Ordering::SeqCst);
        self.close();
    }

    /// Whether another run listens in its place, or will in a moment.
    pub(crate) fn has_heir(&self) -> bool {
        self.has_heir.load(Ordering::SeqCst)
    }

    /// Lets go of instances that nobody needs any more. Runs until it is dropped.
    pub(crate) async fn keep(&self) {
        self.pool.keep().await;
    }

    /// Whether its container has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Waits until no request is in flight. Those that come later are refused.
    pub(crate) async fn drained(&self) {
        self.in_flight.drained().await;
    }

    /// It was asked to stop. Drained is a success, as of a server that ends on SIGTERM.
    pub(crate) fn stopped(&self, is_drained: bool) {
        if is_drained {
            let reason = ExitReason::Stopped;
            self.pool.conclude(Exit { code: 0, reason, message: String::new() });
        }
    }

    /// Waits until no instance is left; they go once the container is killed.
    pub(crate) async fn gone(&self) {
        self.pool.gone().await;
    }

    /// Why the service gave itself up, if it did.
    pub(crate) fn verdict(&self) -> Option<Exit> {
        self.pool.verdict()
    }

    /// Handles one request. May be called from any thread.
    pub(crate) async fn call(
        &self,
        mut request: http::Request<Body>,
    ) -> Result<http::Response<Body>, HttpError> {
        if self.over.is_cancelled() || self.pool.template().meter.is_held() {
            return Err(HttpError::Refused(Unsent::new(request)));
        }
        let ticket = match self.in_flight.enter() {
            Ok(ticket) => ticket,
            Err(Barred::Full) => return Err(HttpError::Busy(Unsent::new(request))),
            Err(Barred::Drained) => return Err(HttpError::Refused(Unsent::new(request))),
        };
        if request.uri().authority().is_none() && !request.headers().contains_key(HOST) {
            // HTTP/1.0 need not say it, WASI wants it.
            request.headers_mut().insert(HOST, http::HeaderValue::from_static("localhost"));
        }
        let response = self.answer(request.map(to_wasi)).await?;
        Ok(response.map(|body| Tracked::new(body, ticket).boxed_unsync()))
    }

    /// Finds an instance that answers.
    async fn answer(
        &self,
        mut request: http::Request<WasiBody>,
    ) -> Result<http::Response<WasiBody>, HttpError> {
        let mut spare = None;
        if self.pool.may_be_single_use() {
            let (kept, sent) = Spare::of(request);
            (spare, request) = (Some(kept), sent);
        }
        let turn = Turn::default();
        let error = match self.ask(request, &turn).await? {
            Ok(response) => {
                self.pool.answered(&turn, None);
                return Ok(response);
            }
            Err(error) => error,
        };
        let again = spare.filter(|_| turn.get() == 2).and_then(Spare::into_request);
        let Some(request) = again else {
            return Err(HttpError::Guest(first_line(&error)));
        };
        let retry = self.pool.reuse().retry();
        let turn = Turn::default();
        let answer = self.ask(request, &turn).await?;
        let response = answer.map_err(|error| HttpError::Guest(first_line(&error)))?;
        self.pool.answered(&turn, Some(&retry));
        Ok(response)
    }

    /// What one instance answers; an error of its own if there is room for none.
    async fn ask(
        &self,
        request: http::Request<WasiBody>,
        turn: &Turn,
    ) -> Result<Answer, HttpError> {
        let (answer, answered) = oneshot::channel();
        let way = self.pool.place(Job { request, turn: turn.clone(), answer });
        if let Way::To(driver) = way.map_err(|error| HttpError::Guest(format!("{error:#}")))? {
            driver.run().await;
        }
        let answer = answered.await.map_err(|_| wasmtime::format_err!("the instance is gone"));
        match answer.flatten().map_err(wasmtime::Error::downcast::<NoRoom>) {
            Ok(response) => Ok(Ok(response)),
            Err(Ok(NoRoom(request))) => {
                Err(HttpError::Busy(Unsent::new(request.into_inner().map(from_wasi))))
            }
            Err(Err(error)) => Ok(Err(error)),
        }
    }
}

/// What a trap says, without its backtrace.
fn first_line(error: &wasmtime::Error) -> String {
    error.chain().last().map_or_else(String::new, ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_gets_in_once_the_last_one_has_left() {
        let in_flight = InFlight::default();
        let ticket = in_flight.enter().unwrap();
        {
            let mut drained = std::pin::pin!(in_flight.drained());
            assert!(futures_util::poll!(drained.as_mut()).is_pending());
            assert!(in_flight.enter().is_ok(), "callers that were on their way");
            drop(ticket);
            drained.await;
        }
        assert_eq!(in_flight.enter().unwrap_err(), Barred::Drained);
        in_flight.drained().await;
    }

    #[test]
    fn so_many_requests_are_in_flight_and_no_more() {
        let in_flight = InFlight::default();
        let mut tickets: Vec<_> = (0..IN_FLIGHT_MAX).map(|_| in_flight.enter().unwrap()).collect();
        assert_eq!(in_flight.enter().unwrap_err(), Barred::Full);
        tickets.pop();
        assert!(in_flight.enter().is_ok());
    }
}
