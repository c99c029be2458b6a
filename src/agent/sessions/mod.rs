//! `exec`, `attach` and `port-forward` on the node that runs the pod, in kubelet's paths:
//!
//! - `POST /exec/{namespace}/{pod}/{container}?command=..&command=..&stdin=true&tty=true`
//! - `POST /attach/{namespace}/{pod}/{container}?stdin=true`
//! - `POST /portForward/{namespace}/{pod}?port=8080`
//!
//! Data in: an API server's request with frames of `streaming::frame` as its body (port-forward:
//! bytes of one connection). Data out: the same as the response's body, at the same time.
//!
//! # Invariants
//!
//! - A session ends with its request: a command whose client is gone is killed.
//! - At most [`SESSIONS_MAX`] commands and [`CONNECTIONS_MAX`] forwarded connections at once.

mod attach;
mod exec;
mod forward;
mod live;
mod pump;
mod tty;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::routing::post;
use http::StatusCode;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::agent::command::Commands;
use crate::agent::dirs::PodDir;
use crate::agent::log_file::LogFile;
use crate::agent::pod::start::Shared;
use crate::rt::TaskGroup;
pub(crate) use live::{Live, LiveContainer, Stdin};

/// Commands and attached clients at once on one node.
const SESSIONS_MAX: usize = 64;
/// Forwarded connections at once on one node.
const CONNECTIONS_MAX: usize = 512;
/// Messages of a body that wait for the network.
const BODY_QUEUE_MAX: usize = 8;

/// What the agent gives to sessions once it runs.
pub(crate) struct Workshop {
    pub(crate) shared: Arc<Shared>,
    pub(crate) tasks: TaskGroup,
}

/// A pod that sessions can reach.
#[derive(Debug, Clone)]
pub(crate) struct SessionPod {
    pub(crate) dir: PodDir,
    pub(crate) live: Live,
}

/// The pods of this node by namespace and name, and what sessions with them need. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sessions(Arc<Inner>);

struct Inner {
    pods: Mutex<BTreeMap<(String, String), SessionPod>>,
    workshop: OnceLock<Workshop>,
    sessions: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self(Arc::new(Inner {
            pods: Mutex::default(),
            workshop: OnceLock::new(),
            sessions: Arc::new(Semaphore::new(SESSIONS_MAX)),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        }))
    }
}

impl Sessions {
    /// Opens the workshop. Only the first call has an effect.
    pub(crate) fn open(&self, workshop: Workshop) {
        let _ = self.0.workshop.set(workshop);
    }

    pub(crate) fn insert(&self, namespace: &str, name: &str, pod: SessionPod) {
        self.0.pods.lock().insert((namespace.to_owned(), name.to_owned()), pod);
    }

    /// Forgets the pod, unless another one has taken its name.
    pub(crate) fn remove(&self, namespace: &str, name: &str, live: &Live) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut pods = self.0.pods.lock();
        if pods.get(&key).is_some_and(|pod| pod.live.is_same(live)) {
            pods.remove(&key);
        }
    }

    fn find(&self, namespace: &str, name: &str) -> Result<SessionPod, Refusal> {
        let pods = self.0.pods.lock();
        let found = pods.get(&(namespace.to_owned(), name.to_owned())).cloned();
        found.ok_or((StatusCode::NOT_FOUND, "pod does not exist".to_owned()))
    }

    fn workshop(&self) -> Result<&Workshop, Refusal> {
        let starting = || (StatusCode::SERVICE_UNAVAILABLE, "the agent is starting".to_owned());
        self.0.workshop.get().ok_or_else(starting)
    }
}

/// Why there is no session: a code and a text for the client.
type Refusal = (StatusCode, String);
type Answer = Result<Body, Refusal>;

fn admit(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Refusal> {
    let full = |_| (StatusCode::TOO_MANY_REQUESTS, "too many sessions on this node".to_owned());
    Arc::clone(places).try_acquire_owned().map_err(full)
}

/// The agent's paths for sessions.
pub(crate) fn router(sessions: Sessions) -> Router {
    Router::new()
        .route("/exec/{namespace}/{pod}/{container}", post(run_command))
        .route("/attach/{namespace}/{pod}/{container}", post(attach_to))
        .route("/portForward/{namespace}/{pod}", post(forward_port))
        .with_state(sessions)
}

/// What of a session's streams the client wants.
#[derive(Debug, Clone, Default)]
struct Options {
    command: Vec<String>,
    has_stdin: bool,
    is_terminal: bool,
}

impl Options {
    fn read(query: Vec<(String, String)>) -> Self {
        let mut options = Self::default();
        for (key, value) in query {
            let is_set = matches!(value.as_str(), "true" | "1");
            match key.as_str() {
                "command" => options.command.push(value),
                "stdin" => options.has_stdin = is_set,
                "tty" => options.is_terminal = is_set,
                _ => {}
            }
        }
        options
    }
}

type Container = (String, String, String);

async fn run_command(
    State(sessions): State<Sessions>,
    Path((namespace, pod, container)): Path<Container>,
    Query(query): Query<Vec<(String, String)>>,
    body: Body,
) -> Answer {
    let options = Options::read(query);
    let pod = sessions.find(&namespace, &pod)?;
    let container = container_of(&pod, &container)?;
    let permit = admit(&sessions.0.sessions)?;
    let (out, answer) = answer();
    let workshop = sessions.workshop()?;
    let commands = Commands::new(&workshop.shared, &pod.dir, &pod.live, &workshop.tasks);
    workshop.tasks.spawn("exec", |cancel| async move {
        let _permit = permit;
        let session = exec::Exec { commands, container, options };
        let _ = cancel.run_until_cancelled(session.run(body, out)).await;
    });
    Ok(answer)
}

async fn attach_to(
    State(sessions): State<Sessions>,
    Path((namespace, pod, container)): Path<Container>,
    Query(query): Query<Vec<(String, String)>>,
    body: Body,
) -> Answer {
    let options = Options::read(query);
    let pod = sessions.find(&namespace, &pod)?;
    let container = container_of(&pod, &container)?;
    let permit = admit(&sessions.0.sessions)?;
    let log = LogFile::at_end(container.config.log_path.clone()).await;
    let unreadable =
        |why| (StatusCode::INTERNAL_SERVER_ERROR, format!("the log cannot be read: {why}"));
    let log = log.map_err(unreadable)?;
    let (out, answer) = answer();
    sessions.workshop()?.tasks.spawn("attach", |cancel| async move {
        let _permit = permit;
        let session = attach::run(container, options, log, body, out);
        let _ = cancel.run_until_cancelled(session).await;
    });
    Ok(answer)
}

async fn forward_port(
    State(sessions): State<Sessions>,
    Path((namespace, pod)): Path<(String, String)>,
    Query(query): Query<BTreeMap<String, String>>,
    body: Body,
) -> Answer {
    let port = query.get("port").and_then(|port| port.parse::<u16>().ok()).filter(|port| *port > 0);
    let port =
        port.ok_or((StatusCode::BAD_REQUEST, "a port must be between 1 and 65535".into()))?;
    let pod = sessions.find(&namespace, &pod)?;
    let permit = admit(&sessions.0.connections)?;
    let refused = |error: std::io::Error| {
        let why = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            other => other.to_string(),
        };
        let text = format!("failed to connect to localhost:{port} inside the pod: {why}");
        (StatusCode::BAD_GATEWAY, text)
    };
    let sandbox = pod.live.sandbox();
    let sandbox = sandbox.ok_or((StatusCode::CONFLICT, "the pod is not running".to_owned()))?;
    let io = sandbox.connect(port).await.map_err(refused)?;
    let (out, answer) = answer();
    sessions.workshop()?.tasks.spawn("port-forward", |cancel| async move {
        let _permit = permit;
        let _ = cancel.run_until_cancelled(forward::run(io, body, out)).await;
    });
    Ok(answer)
}

fn container_of(pod: &SessionPod, name: &str) -> Result<LiveContainer, Refusal> {
    let missing = || (StatusCode::NOT_FOUND, format!("container not found ({name:?})"));
    pod.live.container(name).ok_or_else(missing)
}

/// A response's body, and where its bytes come from. The sender learns that nobody reads any more.
fn answer() -> (mpsc::Sender<bytes::Bytes>, Body) {
    let (sender, receiver) = mpsc::channel::<bytes::Bytes>(BODY_QUEUE_MAX);
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
        let bytes = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), receiver))
    });
    (sender, Body::from_stream(stream))
}
