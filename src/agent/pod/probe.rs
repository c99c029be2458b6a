//! Probes: one task per probe of a running container, results as events to its worker.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use edgeorc_runtime::{Body, BoxIo, VirtualNetwork};
use k8s_openapi::api::core::v1::{Container, ExecAction, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::agent::command::{Commands, NotStarted};
use crate::agent::pod::env::expand;
use crate::agent::pod::grpc;
use crate::agent::pod::http_get::http_get;
use crate::agent::pod::plan::seconds;
use crate::agent::pod::worker::News;
use crate::rt::{Rng, TaskGroup};

/// Kubernetes' defaults of the fields of a probe.
const PERIOD_DEFAULT: Duration = Duration::from_secs(10);
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(1);
const FAILURE_THRESHOLD_DEFAULT: u32 = 3;
/// The first tries of a readiness probe come faster than its period: a container that gets ready
/// soon should not wait a whole period to be told so.
const EARLY_INTERVAL: Duration = Duration::from_millis(250);
const EARLY_TRIES_MAX: u32 = 20;

/// The way to the pods of this node. The runtime's network in production.
#[async_trait]
pub(crate) trait PodNetwork: Send + Sync + 'static {
    /// Opens a byte stream to a pod's port.
    async fn connect(&self, to: SocketAddr) -> std::io::Result<BoxIo>;
    /// Sends a request to a pod's port.
    async fn http(
        &self,
        to: SocketAddr,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, String>;
}

#[async_trait]
impl PodNetwork for VirtualNetwork {
    async fn connect(&self, to: SocketAddr) -> std::io::Result<BoxIo> {
        Self::connect(self, to).await
    }

    async fn http(
        &self,
        to: SocketAddr,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, String> {
        Self::http(self, to, request).await.map_err(|e| e.to_string())
    }
}

/// What a probe found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The startup probe passed.
    Started,
    /// The readiness probe changed its mind.
    Ready(bool),
    /// A try failed; the text is for people.
    Unhealthy(String),
    /// A try succeeded in a way that people should look at.
    Suspicious(String),
    /// The startup or liveness probe failed too often: the container has to be stopped.
    Kill {
        /// `startup` or `liveness`.
        probe: &'static str,
        /// The probe's own grace, in place of the pod's.
        grace: Option<Duration>,
    },
}

/// A verdict about one run of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProbeEvent {
    pub(crate) container: usize,
    pub(crate) run: u64,
    pub(crate) verdict: Verdict,
}

/// Starts the probes of a run and sends what they find out, until `cancel` fires.
pub(crate) struct Prober {
    pub(crate) network: Arc<dyn PodNetwork>,
    pub(crate) commands: Commands,
    pub(crate) tasks: TaskGroup,
    pub(crate) rng: Rng,
    pub(crate) news: mpsc::Sender<Box<News>>,
}

/// Why a try is no success.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Miss {
    /// The container is not well.
    Failed(String),
    /// The probe could not be made, which says nothing of the container.
    Errored(String),
}

impl Miss {
    pub(super) fn why(self) -> String {
        match self {
            Self::Failed(why) | Self::Errored(why) => why,
        }
    }
}

impl From<String> for Miss {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
        }
    }

    /// As kubelet's events begin.
    fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

impl Prober {
    /// Probes `spec` at `ip`. Startup first, if there is one; then liveness and readiness, of which a container
    /// that `is_ready` only has to tell when it is no more.
    pub(crate) fn watch(
        &self,
        (container, run): (usize, u64),
        is_ready: bool,
        spec: &Container,
        ip: IpAddr,
        cancel: &CancellationToken,
    ) {
        let check = |kind, probe: &Option<Probe>| {
            probe.as_ref().map(|probe| Check {
                kind,
                probe: probe.clone(),
                spec: spec.clone(),
                ip,
                network: Arc::clone(&self.network),
                commands: self.commands.clone(),
                news: self.news.clone(),
                container,
                run,
                is_ready,
                rng: self.rng.clone(),
            })
        };
        let startup = check(Kind::Startup, &spec.startup_probe);
        let rest: Vec<_> = check(Kind::Liveness, &spec.liveness_probe)
            .into_iter()
            .chain(check(Kind::Readiness, &spec.readiness_probe))
            .collect();
        if startup.is_none() && rest.is_empty() {
            return;
        }
        let cancel = cancel.clone();
        self.tasks.spawn("probe", |group| async move {
            let probing = async {
                if let Some(startup) = startup
                    && !startup.run().await
                {
                    return;
                }
                futures_util::future::join_all(rest.into_iter().map(Check::run)).await;
            };
            tokio::select! {
                () = group.cancelled() => {}
                () = cancel.cancelled() => {}
                () = probing => {}
            }
        });
    }
}

struct Check {
    kind: Kind,
    probe: Probe,
    spec: Container,
    ip: IpAddr,
    network: Arc<dyn PodNetwork>,
    commands: Commands,
    news: mpsc::Sender<Box<News>>,
    container: usize,
    run: u64,
    is_ready: bool,
    rng: Rng,
}

impl Check {
    /// Probes until the verdict is final. Whether the container may go on.
    async fn run(self) -> bool {
        let period = whole_seconds(self.probe.period_seconds, PERIOD_DEFAULT);
        let successes_min = count(self.probe.success_threshold, 1);
        let failures_max = count(self.probe.failure_threshold, FAILURE_THRESHOLD_DEFAULT);
        tokio::time::sleep(whole_seconds(self.probe.initial_delay_seconds, Duration::ZERO)).await;
        let (mut successes, mut failures, mut is_ready) = (0_u32, 0_u32, self.is_ready);
        let mut misses = 0_u32;
        loop {
            let result = self.once().await;
            match &result {
                Ok(_) => (successes, failures) = (successes.saturating_add(1), 0),
                Err(Miss::Failed(_)) => (successes, failures) = (0, failures.saturating_add(1)),
                // As kubelet does: what says nothing does not count.
                Err(Miss::Errored(_)) => {}
            }
            misses = if result.is_ok() { 0 } else { misses.saturating_add(1) };
            let is_early = self.kind == Kind::Readiness && !is_ready && misses < EARLY_TRIES_MAX;
            if let Err(why) = &result
                && !is_early
            {
                let text = match why {
                    Miss::Failed(why) => format!("{} probe failed: {why}", self.kind.title()),
                    Miss::Errored(why) => format!("{} probe errored: {why}", self.kind.title()),
                };
                self.tell(Verdict::Unhealthy(text)).await;
            }
            if let Ok(Some(warning)) = &result {
                let text = format!("{} probe warning: {warning}", self.kind.title());
                self.tell(Verdict::Suspicious(text)).await;
            }
            match (self.kind, result) {
                (Kind::Startup, Ok(_)) if successes >= successes_min => {
                    return self.tell(Verdict::Started).await;
                }
                (Kind::Readiness, Ok(_)) if successes >= successes_min && !is_ready => {
                    is_ready = true;
                    self.tell(Verdict::Ready(true)).await;
                }
                (Kind::Readiness, Err(Miss::Failed(_))) if failures >= failures_max && is_ready => {
                    is_ready = false;
                    self.tell(Verdict::Ready(false)).await;
                }
                (Kind::Startup | Kind::Liveness, Err(Miss::Failed(_)))
                    if failures >= failures_max =>
                {
                    let grace = self.probe.termination_grace_period_seconds.map(seconds);
                    self.tell(Verdict::Kill { probe: self.kind.name(), grace }).await;
                    return false;
                }
                _ => {}
            }
            let wait = if is_early { period.min(EARLY_INTERVAL) } else { period };
            let jitter = u64::try_from(wait.as_millis() / 16).unwrap_or(0);
            tokio::time::sleep(wait + Duration::from_millis(self.rng.below(jitter))).await;
        }
    }

    async fn tell(&self, verdict: Verdict) -> bool {
        let event = ProbeEvent { container: self.container, run: self.run, verdict };
        self.news.send(Box::new(News::Probe(event))).await.is_ok()
    }

    /// One try. The text is a warning.
    async fn once(&self) -> Result<Option<String>, Miss> {
        let timeout = whole_seconds(self.probe.timeout_seconds, TIMEOUT_DEFAULT);
        if let Some(exec) = &self.probe.exec {
            return self.run_command(exec, timeout).await.map(|()| None);
        }
        let action = async {
            if let Some(get) = &self.probe.http_get {
                http_get(&*self.network, get, &self.spec, self.ip).await
            } else if let Some(tcp) = &self.probe.tcp_socket {
                tcp_socket(&*self.network, tcp, &self.spec, self.ip).await.map(|()| None)
            } else if let Some(call) = &self.probe.grpc {
                let port = u16::try_from(call.port);
                let port = port.map_err(|_| Miss::Errored("no such port".to_owned()))?;
                let service = call.service.as_deref().unwrap_or_default();
                let to = SocketAddr::new(self.ip, port);
                Ok(grpc::check(&*self.network, to, service).await.map(|()| None)?)
            } else {
                Err(Miss::Errored("the probe names nothing to do".to_owned()))
            }
        };
        let done = tokio::time::timeout(timeout, action).await;
        let late = || Miss::Failed(format!("no answer within {} s", timeout.as_secs()));
        done.unwrap_or_else(|_| Err(late()))
    }

    /// Exit code 0 is success. The time counts from the start of the command: finding it may take
    /// a compiler.
    async fn run_command(&self, exec: &ExecAction, timeout: Duration) -> Result<(), Miss> {
        let errored = |why: NotStarted| Miss::Errored(why.to_string());
        let container = self.commands.container(&self.spec.name);
        let container = container.ok_or_else(|| errored(NotStarted::Gone))?;
        let words = exec.command.iter().flatten();
        let command: Vec<_> = words.map(|word| expand(word, &container.config.env)).collect();
        let ready = self.commands.prepare(&container, &command).await.map_err(errored)?;
        let Ok(ended) = tokio::time::timeout(timeout, ready.run()).await else {
            return Err(Miss::Failed(format!("command {:?} timed out", command.join(" "))));
        };
        match ended.map_err(errored)? {
            output if output.code == 0 => Ok(()),
            output => Err(Miss::Failed(output.text.trim_end().to_owned())),
        }
    }
}

/// Whether a probe or hook is to go to another host than the pod.
pub(super) fn is_elsewhere(host: Option<&str>, ip: IpAddr) -> bool {
    host.is_some_and(|host| !host.is_empty() && host != ip.to_string())
}

/// Opens a connection, and closes it.
pub(super) async fn tcp_socket(
    network: &dyn PodNetwork,
    tcp: &TCPSocketAction,
    spec: &Container,
    ip: IpAddr,
) -> Result<(), Miss> {
    if is_elsewhere(tcp.host.as_deref(), ip) {
        let why = "tcpSocket with a host other than the pod is not supported";
        return Err(Miss::Failed(why.to_owned()));
    }
    let to = SocketAddr::new(ip, port_of(&tcp.port, spec).map_err(Miss::Errored)?);
    let dialed = network.connect(to).await;
    dialed.map(drop).map_err(|err| Miss::Failed(format!("dial {to}: {err}")))
}

/// The port a probe or hook names, by number or by the name of a port of the container.
pub(super) fn port_of(port: &IntOrString, spec: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => spec
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
            .map(|p| p.container_port)
            .or_else(|| name.parse().ok()),
    };
    number
        .and_then(|n| u16::try_from(n).ok())
        .ok_or_else(|| "the probe names a port that the container does not have".to_owned())
}

fn whole_seconds(value: Option<i32>, default: Duration) -> Duration {
    value
        .and_then(|s| u64::try_from(s).ok())
        .filter(|s| *s > 0)
        .map_or(default, Duration::from_secs)
}

fn count(value: Option<i32>, default: u32) -> u32 {
    value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
}
