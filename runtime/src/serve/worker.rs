//! Instances of an HTTP component: when one is made, kept and dropped.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;
use wasmtime::component::GuestTaskId;
use wasmtime::{Store, StoreContextMut};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::handler::{
    HandlerState, Instance, Proxy, ProxyPre, ShouldAccept, WorkerExpiration, WorkerState,
    WorkerStatus,
};

use super::reuse::{Retry, Reuse, Turn};
use super::{TRAPS_IN_A_ROW_MAX, TRAPS_WINDOW};
use crate::guest::{Guest, Template};
use crate::meter::Burst;
use crate::types::{Exit, ExitReason};

/// Requests that one p3 instance handles at the same time; p2 cannot do more than one.
const P3_CONCURRENCY_MAX: usize = 16;
/// How often the last instance looks whether it still is: an idle node is to stay idle.
const LAST_IDLE_MAX: Duration = Duration::from_secs(60);
/// An instance that is not the last one goes after this long without a request.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// A request that took longer is given up together with its instance.
const REQUEST_MAX: Duration = Duration::from_secs(600);

/// What the log is told of a component whose instances answer one request.
const ONE_REQUEST: &str = "the instances of this component answer one request each: from now on \
    every request gets a fresh one, as with the annotation edgeorc.io/instances: fresh";

/// The first instance, made when the container started.
pub(crate) struct Seed {
    pub(crate) pre: ProxyPre<Guest>,
    pub(crate) first: (Store<Guest>, Proxy),
}

/// The policy for one container, in the words of wasmtime's handler.
pub(super) struct Workers {
    template: Arc<Template>,
    pre: ProxyPre<Guest>,
    first: Mutex<Option<(Store<Guest>, Proxy)>>,
    shared: Arc<Shared>,
}

/// What the instances of a container know of each other.
#[derive(Debug, Default)]
struct Shared {
    instances: AtomicUsize,
    gone: Notify,
    /// Whether any trap happened since the latest response; read on the hot path.
    is_trapping: AtomicBool,
    traps: Mutex<Traps>,
}

#[derive(Debug, Default)]
struct Traps {
    in_a_row: u32,
    first: Option<Instant>,
    verdict: Option<Exit>,
}

impl Workers {
    pub(super) fn new(template: Arc<Template>, seed: Seed) -> Self {
        let Seed { pre, first } = seed;
        let shared = Arc::new(Shared::default());
        // The first instance counts from now on, so that nobody waits for the end too early.
        shared.instances.store(1, Ordering::SeqCst);
        Self { template, pre, first: Mutex::new(Some(first)), shared }
    }

    pub(super) fn has_instances(&self) -> bool {
        self.shared.instances.load(Ordering::SeqCst) > 0
    }

    pub(super) async fn gone(&self) {
        if self.first.lock().take().is_some() {
            self.shared.leave();
        }
        loop {
            let mut gone = std::pin::pin!(self.shared.gone.notified());
            gone.as_mut().enable();
            if !self.has_instances() {
                return;
            }
            gone.await;
        }
    }

    pub(super) fn verdict(&self) -> Option<Exit> {
        self.shared.traps.lock().verdict.clone()
    }

    /// Says how the container ends, unless that is clear already.
    pub(super) fn conclude(&self, exit: Exit) {
        self.shared.traps.lock().verdict.get_or_insert(exit);
    }

    /// What is known of instances with a request behind them.
    pub(super) fn reuse(&self) -> &Arc<Reuse> {
        &self.template.reuse
    }

    /// Whether instances may turn out to answer one request each. Those of WASI 0.3, which answer
    /// several at the same time, do not.
    pub(super) fn may_be_single_use(&self) -> bool {
        matches!(self.pre, ProxyPre::P2(_)) && self.reuse().is_unknown()
    }

    /// A response was given: traps before it are not in a row with those after it.
    pub(super) fn answered(&self, turn: &Turn, retry: Option<&Retry>) {
        self.reuse().answered(turn);
        if retry.is_some_and(Retry::helped) {
            self.template.log.say(ONE_REQUEST);
        }
        if self.shared.is_trapping.load(Ordering::Relaxed) {
            self.shared.is_trapping.store(false, Ordering::Relaxed);
            let mut traps = self.shared.traps.lock();
            traps.in_a_row = 0;
            traps.first = None;
        }
    }
}

impl Shared {
    /// Counts one more instance, unless there are `max`.
    fn enter(&self, max: usize) -> bool {
        self.instances
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
                (count < max).then(|| count + 1)
            })
            .is_ok()
    }

    fn leave(&self) {
        if self.instances.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.gone.notify_waiters();
        }
    }

    /// Leaves unless this is the last instance.
    fn leave_if_spare(&self) -> bool {
        self.instances
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
                (count > 1).then(|| count - 1)
            })
            .is_ok()
    }

    /// Counts a trap; says whether it was one too many.
    fn trapped(&self, exit: Exit) -> bool {
        self.is_trapping.store(true, Ordering::Relaxed);
        let mut traps = self.traps.lock();
        let now = Instant::now();
        match traps.first {
            Some(first) if now.duration_since(first) <= TRAPS_WINDOW => traps.in_a_row += 1,
            _ => {
                traps.first = Some(now);
                traps.in_a_row = 1;
            }
        }
        if traps.in_a_row < TRAPS_IN_A_ROW_MAX {
            return false;
        }
        traps.verdict.get_or_insert(exit);
        true
    }
}

/// Leaves the count when an instance is gone, however that happens.
struct Membership {
    shared: Arc<Shared>,
    has_left: AtomicBool,
}

impl Drop for Membership {
    fn drop(&mut self) {
        if !*self.has_left.get_mut() {
            self.shared.leave();
        }
    }
}

impl HandlerState for Workers {
    type StoreData = Guest;
    type WorkerExpiration = Expiration;
    type WorkerState = Worker;

    async fn instantiate(&self) -> wasmtime::Result<Instance<Guest, Expiration, Worker>> {
        let first = self.first.lock().take();
        if first.is_none() && !self.shared.enter(self.template.instances_max) {
            // The request waits for one of the others.
            wasmtime::bail!("the container has as many instances as it may have");
        }
        let member = Arc::new(Membership {
            shared: Arc::clone(&self.shared),
            has_left: AtomicBool::new(false),
        });
        let (store, proxy) = match first {
            Some(first) => first,
            None => {
                let store = self.template.store()?;
                instantiate(store, &self.pre, self.template.start_wait_max)
                    .await
                    .map_err(|(_, error)| error)?
            }
        };
        let burst = Arc::clone(store.data().burst());
        Ok(Instance {
            expiration: Expiration {
                sleep: tokio::time::sleep(IDLE_MAX),
                killed: self.template.kill().clone().cancelled_owned(),
                burst: Arc::clone(&burst),
                member: Arc::clone(&member),
            },
            state: Worker {
                concurrency: match &proxy {
                    Proxy::P2(_) => 1,
                    Proxy::P3(_) => P3_CONCURRENCY_MAX,
                },
                requests: AtomicUsize::new(0),
                requests_max: if self.template.config().fresh_instance_per_request {
                    1
                } else {
                    self.template.requests_per_instance_max
                },
                template: Arc::clone(&self.template),
                burst,
                held: Arc::clone(store.data().limiter().held()),
                memory_mark: self.template.memory_mark(),
                member,
            },
            store,
            proxy,
            view: |guest| guest.http(),
        })
    }
}

/// Makes an instance. On failure the store comes back, which knows of the limits that were hit.
pub(crate) async fn instantiate(
    mut store: Store<Guest>,
    pre: &ProxyPre<Guest>,
    wait_max: Duration,
) -> Result<(Store<Guest>, Proxy), (Store<Guest>, wasmtime::Error)> {
    let burst = Arc::clone(store.data().burst());
    let making = crate::meter::Metered::new(burst, pre.instantiate_async(&mut store));
    match tokio::time::timeout(wait_max, making).await {
        Ok(Ok(proxy)) => Ok((store, proxy)),
        Ok(Err(error)) => Err((store, error)),
        Err(_) => {
            let error = wasmtime::format_err!(
                "the component was not instantiated within {wait_max:?}: its start function \
                 does not return"
            );
            Err((store, error))
        }
    }
}

pin_project! {
    /// When an instance goes. Polled after each poll of the instance, so it also is the mark that
    /// the guest does not run any more.
    pub(super) struct Expiration {
        #[pin]
        sleep: Sleep,
        #[pin]
        killed: WaitForCancellationFutureOwned,
        burst: Arc<Burst>,
        member: Arc<Membership>,
    }
}

#[expect(clippy::disallowed_types, reason = "wasmtime's handler keeps its own time")]
impl WorkerExpiration for Expiration {
    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        status: WorkerStatus,
        start: std::time::Instant,
    ) -> Poll<()> {
        let mut this = self.project();
        this.burst.settle();
        if this.killed.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        // The timer runs on without regard to requests: what has changed since it was set is
        // looked at when it fires, which costs nothing per request.
        while this.sleep.as_mut().poll(cx).is_ready() {
            let limit = match status {
                WorkerStatus::Idle => IDLE_MAX,
                WorkerStatus::Requests | WorkerStatus::PostReturn => REQUEST_MAX,
            };
            let left = limit.saturating_sub(start.elapsed());
            let is_over = left.is_zero()
                && (status != WorkerStatus::Idle || this.member.shared.leave_if_spare());
            if is_over {
                let is_idle = status == WorkerStatus::Idle;
                this.member.has_left.store(is_idle, Ordering::SeqCst);
                return Poll::Ready(());
            }
            let again = if left.is_zero() { LAST_IDLE_MAX } else { left.min(IDLE_MAX) };
            this.sleep.as_mut().reset(Instant::now() + again);
        }
        Poll::Pending
    }
}

/// One instance at work.
pub(super) struct Worker {
    template: Arc<Template>,
    concurrency: usize,
    /// Requests that it has taken.
    requests: AtomicUsize,
    /// Requests that it takes in its life.
    requests_max: usize,
    burst: Arc<Burst>,
    /// Bytes of memory that it holds, and beyond which it takes no further request.
    held: Arc<AtomicU64>,
    memory_mark: u64,
    member: Arc<Membership>,
}

impl WorkerState for Worker {
    type StoreData = Guest;
    type RequestData = Turn;

    fn should_accept_request(&self, concurrent: usize, total: usize) -> ShouldAccept {
        let is_used_up = total >= self.requests_max || (total > 0 && self.template.reuse.is_off());
        let is_full = self.held.load(Ordering::Relaxed) > self.memory_mark;
        if is_used_up || is_full {
            ShouldAccept::Never
        } else if concurrent >= self.concurrency {
            ShouldAccept::No
        } else {
            ShouldAccept::Yes
        }
    }

    fn on_request_start(
        &self,
        _store: StoreContextMut<'_, Guest>,
        turn: Turn,
        _task: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + Sync>> {
        turn.set(self.requests.fetch_add(1, Ordering::Relaxed) + 1);
        self.burst.touch();
        Box::pin(RequestMark { burst: Arc::clone(&self.burst) })
    }

    fn drop(&self, store: Store<Guest>, result: Result<(), wasmtime::Error>) {
        self.burst.settle();
        let is_over = self.template.kill().is_cancelled();
        if let Err(error) = result
            && !is_over
        {
            let exit = crate::guest::exit_of_error(&store, &error);
            self.template.trapped(&exit);
            // It may be one of those that answer one request: then another instance will answer.
            let is_second = self.requests.load(Ordering::Relaxed) == 2
                && self.concurrency == 1
                && self.template.reuse.is_unknown();
            let is_last_straw = exit.reason != ExitReason::Completed
                && !is_second
                && self.member.shared.trapped(exit);
            if is_last_straw {
                self.template.kill().cancel();
            }
        }
        drop(store);
    }
}

/// Never ends by itself; its drop is the end of its request.
struct RequestMark {
    burst: Arc<Burst>,
}

impl Future for RequestMark {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl Drop for RequestMark {
    fn drop(&mut self) {
        self.burst.settle();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit() -> Exit {
        Exit { code: 134, reason: ExitReason::Error, message: "trap".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn only_traps_in_a_row_within_a_second_end_the_container() {
        let shared = Shared::default();
        assert!(!shared.trapped(exit()) && !shared.trapped(exit()));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!shared.trapped(exit()), "the row was too slow");
        assert!(!shared.trapped(exit()));
        assert!(shared.trapped(exit()));
        assert_eq!(shared.traps.lock().verdict, Some(exit()));
    }

    #[test]
    fn a_container_has_a_bounded_number_of_instances() {
        let shared = Shared::default();
        assert!(shared.enter(2) && shared.enter(2) && !shared.enter(2));
        shared.leave();
        assert!(shared.enter(2));
    }
}
