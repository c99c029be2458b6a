//! The life of one instance, as a future: made, serving, gone.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use futures_util::stream::{FuturesUnordered, Stream as _};
use wasmtime::component::Accessor;
use wasmtime::{AsContextMut as _, Store};
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::handler::{Prepared, Proxy};

use super::pool::Pool;
use super::slot::{Activity, Job, Slot};
use super::worker::{Membership, Worker, instantiate};
use crate::guest::Guest;

/// The whole life of an instance. Whoever has it drives it; dropping it ends the instance.
pub(super) type Life = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An instance that is made, or what it will be made of.
pub(super) enum Origin {
    Made(Store<Guest>, Proxy),
    Fresh(Store<Guest>),
}

impl Origin {
    fn store(&self) -> &Store<Guest> {
        match self {
            Self::Made(store, _) | Self::Fresh(store) => store,
        }
    }
}

/// Puts an instance into its slot.
pub(super) fn begin(pool: &Arc<Pool>, origin: Origin, member: Membership) -> (Arc<Slot>, Life) {
    let slot = Slot::new(Arc::clone(origin.store().data().burst()));
    let life = Box::pin(live(Arc::clone(pool), Arc::clone(&slot), origin, member));
    (slot, life)
}

async fn live(pool: Arc<Pool>, slot: Arc<Slot>, origin: Origin, member: Membership) {
    let (store, proxy) = match origin {
        Origin::Made(store, proxy) => (store, proxy),
        Origin::Fresh(store) => {
            match instantiate(store, pool.pre(), pool.template().start_wait_max).await {
                Ok(made) => made,
                Err((store, error)) => {
                    drop((store, member));
                    pool.not_made(&slot, error);
                    return;
                }
            }
        }
    };
    let worker = Worker::new(pool.template(), &store, &proxy, member);
    let mut store = store;
    let result = {
        let serving =
            store.run_concurrent(async |guest| serve(guest, &proxy, &slot, &worker).await);
        let mut serving = std::pin::pin!(serving);
        // From outside: a guest that does not return keeps the loop inside from running.
        std::future::poll_fn(|cx| match serving.as_mut().poll(cx) {
            Poll::Pending if slot.is_given_up() => {
                Poll::Ready(Err(wasmtime::format_err!("guest timed out")))
            }
            polled => polled.map(Result::flatten),
        })
        .await
    };
    worker.ended(store, result);
}

/// Serves what comes into the slot until the instance is used up or traps.
async fn serve(
    guest: &Accessor<Guest>,
    proxy: &Proxy,
    slot: &Slot,
    worker: &Worker,
) -> wasmtime::Result<()> {
    let function = match proxy {
        Proxy::P2(proxy) => *proxy.wasi_http_incoming_handler().func_handle().func(),
        Proxy::P3(proxy) => *proxy.wasi_http_handler().func_handle().func(),
    };
    let mut calls = FuturesUnordered::new();
    std::future::poll_fn(|cx| {
        loop {
            while let Poll::Ready(Some(ended)) = Pin::new(&mut calls).poll_next(cx) {
                if let Err(error) = ended {
                    return Poll::Ready(Err(error));
                }
            }
            let can_enter = guest.poll_ready_for_concurrent_call(function, cx).is_ready();
            let accepts = can_enter && worker.accepts_more();
            let has_room = accepts && calls.len() < worker.concurrency();
            // Before the inbox is looked at, so that nothing that comes into it is missed.
            slot.register(cx.waker());
            if has_room && let Some(job) = slot.take() {
                calls.push(call(guest, proxy, (slot, worker), job));
                continue;
            }
            if !calls.is_empty() {
                slot.set(if has_room { Activity::Roomy } else { Activity::Busy });
            } else if guest.poll_no_interesting_tasks(cx).is_pending() {
                slot.set(Activity::Busy);
            } else if accepts {
                slot.set(Activity::Idle);
            } else {
                return Poll::Ready(Ok(()));
            }
            return Poll::Pending;
        }
    })
    .await
}

/// One request, from the call of the guest until it has returned.
fn call<'a>(
    guest: &'a Accessor<Guest>,
    proxy: &'a Proxy,
    (slot, worker): (&'a Slot, &Worker),
    job: Job,
) -> impl Future<Output = wasmtime::Result<()>> + 'a {
    let number = worker.took_one();
    job.turn.set(number);
    let turnover = slot.begin(number);
    let (request, answer) = (job.request, job.answer);
    let prepared = guest.with(|mut store| {
        Prepared::new(store.as_context_mut(), proxy, request, |guest| guest.http(), answer)
    });
    // Nothing ends a request before its time but the end of its instance.
    async move {
        let _turnover = turnover;
        prepared?.run(guest, std::future::pending()).await.map(drop)
    }
}
