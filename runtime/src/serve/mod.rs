//! Serves HTTP components: requests of the virtual network in, responses of instances out.
//!
//! # Invariants
//!
//! - A request crosses from the caller's threads to the guests' once: the caller's future puts it
//!   into the queue of wasmtime's handler, the instance's task answers into it.
//! - Requests in flight are bounded ([`IN_FLIGHT_MAX`]); one more is refused, not queued.
//! - A request counts as in flight until its response body has ended, so that a drain is complete
//!   when nothing is in flight.
//! - A trap drops its instance and fails its request. The container goes on, unless
//!   [`TRAPS_IN_A_ROW_MAX`] instances in a row trap within [`TRAPS_WINDOW`].
//! - A request runs twice only as [`reuse`] has it: its first try was the second request of an
//!   instance of a component that has never answered a second one, and used nothing of its body.

mod body;
mod pipe;
mod reuse;
mod worker;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::HOST;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use wasmtime_wasi_http::WasiBody;
use wasmtime_wasi_http::handler::{InstantiationError, ProxyHandler};

use self::body::Tracked;
pub(crate) use self::body::{from_wasi, to_hyper, to_wasi};
pub(crate) use self::pipe::serve_pipe;
pub(crate) use self::reuse::Reuse;
use self::reuse::{Spare, Turn};
use self::worker::Workers;
pub(crate) use self::worker::{Seed, instantiate};
use crate::guest::{Template, exit_of_code};
use crate::network::{Binding, HttpError, Unsent};
use crate::types::{Body, Exit};

/// Requests that one container handles at the same time.
const IN_FLIGHT_MAX: usize = 1024;
/// Traps without a response in between that end the container.
pub(crate) const TRAPS_IN_A_ROW_MAX: u32 = 3;
/// Time within which they have to happen.
pub(crate) const TRAPS_WINDOW: Duration = Duration::from_secs(1);
/// How often, and after which pause, a request waits for an instance when there is no room for
/// another one.
const INSTANCE_RETRIES_MAX: u32 = 50;
const INSTANCE_RETRY_PAUSE: Duration = Duration::from_millis(10);

/// One served component.
pub(crate) struct HttpService {
    handler: ProxyHandler<Workers>,
    guests: Handle,
    in_flight: InFlight,
    bindings: Mutex<Vec<Binding>>,
    over: CancellationToken,
}

/// Counts requests from their start to the end of their response body.
#[derive(Debug, Clone, Default)]
pub(crate) struct InFlight(Arc<Counter>);

#[derive(Debug, Default)]
struct Counter {
    count: AtomicUsize,
    idle: Notify,
}

/// One request in flight.
#[derive(Debug)]
pub(crate) struct Ticket(Arc<Counter>);

impl InFlight {
    fn enter(&self) -> Option<Ticket> {
        let ticket = Ticket(Arc::clone(&self.0));
        // Dropping the ticket takes the count back.
        (self.0.count.fetch_add(1, Ordering::Relaxed) < IN_FLIGHT_MAX).then_some(ticket)
    }

    async fn idle(&self) {
        loop {
            let mut idle = std::pin::pin!(self.0.idle.notified());
            idle.as_mut().enable();
            if self.0.count.load(Ordering::SeqCst) == 0 {
                return;
            }
            idle.await;
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
            guests: template.net().guests().handle().clone(),
            over: template.kill().clone(),
            handler: ProxyHandler::new(Workers::new(template, seed)),
            in_flight: InFlight::default(),
            bindings: Mutex::new(Vec::new()),
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

    /// Whether its container has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Waits until no request is in flight.
    pub(crate) async fn drained(&self) {
        self.in_flight.idle().await;
    }

    /// It was asked to stop. Drained is a success, as of a server that ends on SIGTERM.
    pub(crate) fn stopped(&self, is_drained: bool) {
        if is_drained {
            self.handler.state().conclude(exit_of_code(0));
        }
    }

    /// Waits until no instance is left; they go once the container is killed.
    pub(crate) async fn gone(&self) {
        self.handler.state().gone().await;
    }

    /// Why the service gave itself up, if it did.
    pub(crate) fn verdict(&self) -> Option<Exit> {
        self.handler.state().verdict()
    }

    /// Handles one request. May be called from any thread.
    pub(crate) async fn call(
        &self,
        mut request: http::Request<Body>,
    ) -> Result<http::Response<Body>, HttpError> {
        if self.over.is_cancelled() {
            return Err(HttpError::Refused(Unsent::new(request)));
        }
        let Some(ticket) = self.in_flight.enter() else {
            return Err(HttpError::Busy(Unsent::new(request)));
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
        let workers = self.handler.state();
        let mut spare = None;
        let mut retry = None;
        if workers.may_be_single_use() {
            let (kept, sent) = Spare::of(request);
            (spare, request) = (Some(kept), sent);
        }
        for _ in 0..INSTANCE_RETRIES_MAX {
            let turn = Turn::default();
            let future = self.handler.handle(turn.clone(), request);
            let error = match (Entered { handle: &self.guests, future }).await {
                Ok(response) => {
                    workers.answered(&turn, retry.as_ref());
                    return Ok(response);
                }
                Err(error) => error,
            };
            let refused = match error.downcast::<InstantiationError<Turn>>() {
                Ok(refused) => refused,
                Err(error) => {
                    let again = spare.take().filter(|_| turn.get() == 2);
                    let Some(again) = again.and_then(Spare::into_request) else {
                        return Err(HttpError::Guest(first_line(&error)));
                    };
                    retry = Some(workers.reuse().retry());
                    request = again;
                    continue;
                }
            };
            if !workers.has_instances() {
                return Err(HttpError::Guest(format!("{:#}", refused.error)));
            }
            // No room for another instance: wait for one of the others.
            request =
                refused.request.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            tokio::time::sleep(INSTANCE_RETRY_PAUSE).await;
        }
        Err(HttpError::Busy(Unsent::new(request.map(from_wasi))))
    }
}

/// What a trap says, without its backtrace.
fn first_line(error: &wasmtime::Error) -> String {
    error.chain().last().map_or_else(String::new, ToString::to_string)
}

pin_project! {
    /// Polls a future as if on the guests' threads, so that the tasks it starts run there.
    struct Entered<'a, F> {
        handle: &'a Handle,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Entered<'_, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = this.handle.enter();
        this.future.poll(cx)
    }
}
