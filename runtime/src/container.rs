//! One container: its start, its end, and what it used.
//!
//! ```text
//!            instantiated                run returned / trapped / strikes
//! start ───────────────────► running ───────────────────────────────────► ended
//!   │                           │ stop: closes its ports and drains within `grace`
//!   └─ StartError               └────────────── kill ───────────────────► ended (Killed)
//! ```

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use wasmtime_wasi_http::handler::ProxyPre;

use crate::code::{Entry, Loaded};
use crate::command;
use crate::guest::{Template, exit_of_code, exit_of_error, is_out_of_slots, killed};
use crate::lanes::Ride;
use crate::limits::Gauge;
use crate::meter::Meter;
use crate::network::Binding;
use crate::serve::{HttpService, Seed, instantiate};
use crate::types::{Container, Exit, ExitReason, StartError, Usage};

/// A command or reactor that is not instantiated after this long is held up by its own start
/// function: its code runs, so it has started.
const STARTED_AFTER: Duration = Duration::from_secs(1);
/// How long instances may take to go after the kill.
const GONE_MAX: Duration = Duration::from_secs(1);

/// What a container does when it is asked to stop.
enum Work {
    /// Refuses new TCP connections, and ends once those that it has taken are done: WASI has no
    /// signals, so there is nothing else to wait for.
    Command(TaskTracker),
    /// Nothing to wait for.
    Reactor,
    /// Closes its port and drains.
    Http(Arc<HttpService>),
}

/// A started container.
pub(crate) struct WasmContainer {
    work: Work,
    meter: Arc<Meter>,
    memory: Arc<Gauge>,
    kill: CancellationToken,
    exit: watch::Receiver<Option<Exit>>,
}

/// A guest that has begun. It ends with this, unless it is waited for.
pub(crate) struct Begun {
    template: Arc<Template>,
    exit: watch::Receiver<Option<Exit>>,
    sign: Sign,
    guard: DropGuard,
}

/// How a guest says that it is there, or why it is not.
enum Sign {
    Serves(oneshot::Receiver<Result<Arc<HttpService>, StartError>>),
    Runs { is_started: oneshot::Receiver<Result<(), StartError>>, is_reactor: bool },
}

impl std::fmt::Debug for WasmContainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WasmContainer").field("exit", &*self.exit.borrow()).finish_non_exhaustive()
    }
}

impl WasmContainer {
    /// Makes the guest of `loaded`. Its first moments are on this thread, which has to be one of the guests'
    /// that may block.
    ///
    /// # Errors
    ///
    /// See [`StartError`]; nothing is left behind.
    pub(crate) fn begin(template: &Arc<Template>, loaded: &Loaded) -> Result<Begun, StartError> {
        let guard = template.kill.clone().drop_guard();
        let (exit, sign) = match loaded.entry {
            Entry::HttpP2 | Entry::HttpP3 => begin_http(template, loaded)?,
            Entry::CommandP2 | Entry::CommandP3 | Entry::Reactor => {
                let (started, is_started) = oneshot::channel();
                let run =
                    command::run(Arc::clone(template), loaded.pre.clone(), loaded.entry, started);
                let is_reactor = loaded.entry == Entry::Reactor;
                (supervise(template, run), Sign::Runs { is_started, is_reactor })
            }
        };
        Ok(Begun { template: Arc::clone(template), exit, sign, guard })
    }

    /// Waits until a guest that has begun is there.
    ///
    /// # Errors
    ///
    /// See [`StartError`]; nothing is left behind.
    pub(crate) async fn started(begun: Begun) -> Result<Arc<Self>, StartError> {
        let Begun { template, exit, sign, guard } = begun;
        let work = match sign {
            Sign::Serves(is_seeded) => match is_seeded.await {
                Ok(service) => Work::Http(service?),
                // It failed by itself; its exit says how.
                Err(_) => Work::Reactor,
            },
            Sign::Runs { is_started, is_reactor } => {
                // A host panic drops the sender; the exit then tells.
                tokio::time::timeout(STARTED_AFTER, is_started)
                    .await
                    .map_or(Ok(()), |started| started.unwrap_or(Ok(())))?;
                if is_reactor { Work::Reactor } else { Work::Command(template.taken.clone()) }
            }
        };
        guard.disarm();
        Ok(Arc::new(Self {
            work,
            meter: Arc::clone(&template.meter),
            memory: Arc::clone(&template.memory),
            kill: template.kill.clone(),
            exit,
        }))
    }

    async fn ended(&self) -> Exit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await;
        // The sender only goes without an exit when the guests' threads go.
        ended.ok().and_then(|exit| exit.clone()).unwrap_or_else(killed)
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Ends it at once.
    pub(crate) async fn kill(&self) {
        self.kill.cancel();
        self.ended().await;
    }
}

#[async_trait]
impl Container for WasmContainer {
    async fn wait(&self) -> Exit {
        self.ended().await
    }

    async fn stop(&self, grace: Duration) {
        match &self.work {
            Work::Command(taken) => {
                taken.close();
                let done = async {
                    tokio::select! {
                        () = taken.wait() => {}
                        _ = self.ended() => {}
                    }
                };
                // Over time is what the kill below is for.
                let _ = tokio::time::timeout(grace, done).await;
            }
            Work::Reactor => {}
            Work::Http(service) => {
                service.close();
                let drained = tokio::time::timeout(grace, service.drained()).await;
                service.stopped(drained.is_ok());
            }
        }
        self.kill().await;
    }

    fn hand_over(&self) -> bool {
        let Work::Http(service) = &self.work else { return false };
        service.hand_over();
        true
    }

    fn usage(&self) -> Usage {
        Usage { cpu: self.meter.used(), memory_bytes: self.memory.used() }
    }
}

/// Has the port served. The guest says when it does.
fn begin_http(
    template: &Arc<Template>,
    loaded: &Loaded,
) -> Result<(watch::Receiver<Option<Exit>>, Sign), StartError> {
    let port = template.config.http_port;
    let bindings = template.net.bind_all(port).map_err(|_| StartError::PortInUse { port })?;
    let pre = proxy_pre(loaded)?;
    let (seeded, is_seeded) = oneshot::channel();
    let exit = supervise(template, serve(Arc::clone(template), pre, bindings, seeded));
    Ok((exit, Sign::Serves(is_seeded)))
}

/// Runs a container's main task; its exit is told even if the host panics in it.
fn supervise(
    template: &Arc<Template>,
    run: impl Future<Output = Exit> + Send + 'static,
) -> watch::Receiver<Option<Exit>> {
    let (tell, exit) = watch::channel(None);
    let template = Arc::clone(template);
    let guests = Arc::clone(template.net.guests());
    // Ends with the guest, at the latest when the container is killed.
    let run = async move {
        let exit = AssertUnwindSafe(run).catch_unwind().await.unwrap_or_else(|_| Exit {
            code: 134,
            reason: ExitReason::Error,
            message: "the host failed while it ran the guest".to_owned(),
        });
        template.kill.cancel();
        let _ = tell.send(Some(exit));
    };
    Ride::start_here(guests, Box::pin(run));
    exit
}

fn proxy_pre(loaded: &Loaded) -> Result<ProxyPre<crate::guest::Guest>, StartError> {
    use wasmtime_wasi_http::{p2, p3};

    let pre = loaded.pre.clone();
    let pre = if loaded.entry == Entry::HttpP3 {
        p3::bindings::ServicePre::new(pre).map(ProxyPre::P3)
    } else {
        p2::bindings::ProxyPre::new(pre).map(ProxyPre::P2)
    };
    pre.map_err(|error| StartError::Unsupported { reason: format!("{error:#}") })
}

/// Serves until the container is killed, by others or by its own traps.
async fn serve(
    template: Arc<Template>,
    pre: ProxyPre<crate::guest::Guest>,
    bindings: Vec<Binding>,
    seeded: oneshot::Sender<Result<Arc<HttpService>, StartError>>,
) -> Exit {
    let first = match template.store() {
        // Boxed: a container keeps the room that its task needs at most.
        Ok(store) => Box::pin(instantiate(store, &pre, template.start_wait_max)).await,
        Err(error) => {
            let text = format!("cannot set up the guest: {error:#}");
            let _ = seeded.send(Err(StartError::Host(text)));
            return exit_of_code(1);
        }
    };
    let first = match first {
        Ok(first) => first,
        Err((_, error)) if is_out_of_slots(&error) => {
            let _ = seeded.send(Err(StartError::Host(format!("{error:#}"))));
            return exit_of_code(1);
        }
        Err((store, error)) => {
            let exit = exit_of_error(&store, &error);
            template.trapped(&exit);
            drop(store);
            template.log.flush().await;
            return exit;
        }
    };
    let service = HttpService::new(Arc::clone(&template), Seed { pre, first });
    service.open(bindings);
    let _ = seeded.send(Ok(Arc::clone(&service)));
    let _ = template.kill.run_until_cancelled(service.keep()).await;
    service.close();
    // Instances see the kill at the next tick; one that is stuck in the host is left behind.
    let _ = tokio::time::timeout(GONE_MAX, service.gone()).await;
    template.log.flush().await;
    service.verdict().unwrap_or_else(killed)
}
