//! What the instances of a container know of each other, and when one of them takes no request any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use wasmtime::Store;
use wasmtime_wasi_http::handler::{Proxy, ProxyPre};

use super::{TRAPS_IN_A_ROW_MAX, TRAPS_WINDOW};
use crate::guest::{Guest, Template, is_out_of_slots};
use crate::types::{Exit, ExitReason};

/// Requests that one p3 instance handles at the same time; p2 cannot do more than one.
const P3_CONCURRENCY_MAX: usize = 16;

/// The first instance, made when the container started.
pub(crate) struct Seed {
    pub(crate) pre: ProxyPre<Guest>,
    pub(crate) first: (Store<Guest>, Proxy),
}

/// What the instances of a container know of each other.
#[derive(Debug, Default)]
pub(super) struct Shared {
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

impl Shared {
    /// With an instance that has no [`Membership`] yet.
    pub(super) fn with_one() -> Arc<Self> {
        let shared = Self::default();
        shared.instances.store(1, Ordering::SeqCst);
        Arc::new(shared)
    }

    pub(super) fn has_instances(&self) -> bool {
        self.instances.load(Ordering::SeqCst) > 0
    }

    pub(super) async fn gone(&self) {
        loop {
            let mut gone = std::pin::pin!(self.gone.notified());
            gone.as_mut().enable();
            if !self.has_instances() {
                return;
            }
            gone.await;
        }
    }

    pub(super) fn verdict(&self) -> Option<Exit> {
        self.traps.lock().verdict.clone()
    }

    pub(super) fn conclude(&self, exit: Exit) {
        self.traps.lock().verdict.get_or_insert(exit);
    }

    /// A response was given: traps before it are not in a row with those after it.
    pub(super) fn answered(&self) {
        if self.is_trapping.load(Ordering::Relaxed) {
            self.is_trapping.store(false, Ordering::Relaxed);
            let mut traps = self.traps.lock();
            traps.in_a_row = 0;
            traps.first = None;
        }
    }

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
pub(super) struct Membership(Arc<Shared>);

impl Membership {
    /// One more instance, unless there are `max`.
    pub(super) fn enter(shared: &Arc<Shared>, max: usize) -> Option<Self> {
        shared.enter(max).then(|| Self(Arc::clone(shared)))
    }

    /// Of the instance that counts from the beginning; there is one.
    pub(super) fn of_first(shared: &Arc<Shared>) -> Self {
        Self(Arc::clone(shared))
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Makes an instance. On failure the store comes back, which knows of the limits that were hit.
pub(crate) async fn instantiate(
    mut store: Store<Guest>,
    pre: &ProxyPre<Guest>,
    wait_max: Duration,
) -> Result<(Store<Guest>, Proxy), (Store<Guest>, wasmtime::Error)> {
    let burst = Arc::clone(store.data().burst());
    let making = crate::hold::Metered::new(burst, pre.instantiate_async(&mut store));
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

/// One instance at work.
pub(super) struct Worker {
    template: Arc<Template>,
    concurrency: usize,
    /// Requests that it has taken.
    requests: AtomicUsize,
    /// Requests that it takes in its life.
    requests_max: usize,
    /// Bytes of memory that it holds, and beyond which it takes no further request.
    held: Arc<AtomicU64>,
    memory_mark: u64,
    member: Membership,
}

impl Worker {
    pub(super) fn new(
        template: &Arc<Template>,
        store: &Store<Guest>,
        proxy: &Proxy,
        member: Membership,
    ) -> Self {
        Self {
            concurrency: match proxy {
                Proxy::P2(_) => 1,
                Proxy::P3(_) => P3_CONCURRENCY_MAX,
            },
            requests: AtomicUsize::new(0),
            requests_max: if template.config().fresh_instance_per_request {
                1
            } else {
                template.requests_per_instance_max
            },
            held: Arc::clone(store.data().limiter().held()),
            memory_mark: template.memory_mark(),
            template: Arc::clone(template),
            member,
        }
    }

    /// Requests that it handles at the same time.
    pub(super) fn concurrency(&self) -> usize {
        self.concurrency
    }

    /// Whether it takes another request in its life.
    pub(super) fn accepts_more(&self) -> bool {
        let taken = self.requests.load(Ordering::Relaxed);
        let is_used_up = taken >= self.requests_max || (taken > 0 && self.template.reuse.is_off());
        !is_used_up && self.held.load(Ordering::Relaxed) <= self.memory_mark
    }

    /// Counts a request; its number, from 1.
    pub(super) fn took_one(&self) -> usize {
        self.requests.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Its instance has ended. Too many that trap take the container with them.
    pub(super) fn ended(self, store: Store<Guest>, result: wasmtime::Result<()>) {
        let is_over = self.template.kill().is_cancelled();
        // That others have taken all stacks or memories is no fault of the guest.
        if let Err(error) = result
            && !is_over
            && !is_out_of_slots(&error)
        {
            let exit = crate::guest::exit_of_error(&store, &error);
            self.template.trapped(&exit);
            // It may be one of those that answer one request: then another instance will answer.
            let is_second = self.requests.load(Ordering::Relaxed) == 2
                && self.concurrency == 1
                && self.template.reuse.is_unknown();
            let is_last_straw =
                exit.reason != ExitReason::Completed && !is_second && self.member.0.trapped(exit);
            if is_last_straw {
                self.template.kill().cancel();
            }
        }
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
