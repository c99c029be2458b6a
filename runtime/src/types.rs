//! The seam between the node agent and the sandboxes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

pub use crate::hold::MayRun;
pub use crate::imports::{Capability, MissingImport, MissingImports};
pub use crate::keyvalue::{KeyValue, KeyValueError};
use crate::stdio::{Input, Stdio};

/// Why a body could not be read to its end.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// Body of every HTTP message that crosses this crate's seams.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BodyError>;

/// A byte stream in both directions: a pipe in memory, a QUIC stream, or a host socket.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}
/// Owned [`Io`].
pub type BoxIo = Box<dyn Io>;

/// Who a guest is, for policy and for telling others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodId {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
}

/// What a pod is before its first container starts.
#[derive(Debug, Clone)]
pub struct PodConfig {
    /// Identity.
    pub id: PodId,
    /// The pod's addresses on the virtual network; the first is the primary.
    pub ips: Vec<IpAddr>,
    /// What the guest sees as its host name.
    pub hostname: String,
    /// Sum of linear memory over all containers, in bytes; `None` is no limit.
    pub memory_bytes_max: Option<u64>,
    /// Names with addresses of their own, asked before all others: Kubernetes' `hostAliases`.
    pub hosts: Vec<(String, IpAddr)>,
    /// Domains that a name which is not whole is tried in, in this order: the searches of the pod's
    /// resolver, the cluster's own among them.
    pub searches: Vec<String>,
    /// Names with at least this many dots are tried as they stand before the searches.
    pub ndots: usize,
}

/// A folder of the host that a guest sees.
#[derive(Debug, Clone)]
pub struct Mount {
    /// Folder on the host; must exist.
    pub host_path: PathBuf,
    /// What `host_path` goes through, if it is a path of `/proc/self/fd`: kept open for as long as
    /// the container may be given the folder.
    pub pin: Option<Arc<OwnedFd>>,
    /// Absolute path in the guest.
    pub guest_path: String,
    /// No write, create, rename, truncate or remove through this mount.
    pub is_read_only: bool,
    /// Size that the volume can grow to by guests' writes; `None` is no limit.
    pub limit: Option<VolumeLimit>,
}

/// How large a volume may become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeLimit {
    /// Folder of the whole volume on the host: mounts of one volume share its limit.
    pub root: PathBuf,
    /// All its files together, in bytes.
    pub bytes_max: u64,
}

/// What one container runs.
#[derive(Debug, Clone)]
pub struct ContainerConfig {
    /// Name within the pod.
    pub name: String,
    /// File with the compiled component (`.cwasm`), made by [`PodRuntime`]'s own compiler.
    pub compiled: PathBuf,
    /// `argv`, including `argv[0]`.
    pub args: Vec<String>,
    /// Environment, in order.
    pub env: Arc<Vec<(String, String)>>,
    /// Preopened folders.
    pub mounts: Vec<Mount>,
    /// Linear memory of this container over all its instances, in bytes; `None` is the engine's slot size.
    pub memory_bytes_max: Option<u64>,
    /// CPU time per second of wall time, in thousandths of a core; `None` is not throttled.
    pub cpu_millis_max: Option<u64>,
    /// CPU time it requests, in thousandths of a core: its weight when guests want more than there
    /// is; `None` is the lowest weight.
    pub cpu_millis: Option<u64>,
    /// Whether its guest may run now; `None` is always.
    pub may_run: Option<MayRun>,
    /// Port at which an HTTP component is served on the pod's address.
    pub http_port: u16,
    /// What `wasi:config/store` answers; `None` does not grant the interface.
    pub config: Option<BTreeMap<String, String>>,
    /// Buckets that `wasi:keyvalue/store` opens; `None` does not grant the interfaces.
    pub buckets: Option<BTreeSet<String>>,
    /// A fresh instance for each HTTP request instead of a kept one.
    pub fresh_instance_per_request: bool,
    /// File that takes stdout and stderr, in the CRI log format: `<RFC 3339> stdout|stderr F|P <line>`.
    pub log_path: PathBuf,
    /// Lasting rate at which it may log, in bytes per second; lines beyond it are dropped with a
    /// notice. A burst of ten seconds' worth is free.
    pub log_bytes_per_second_max: u64,
    /// Size at which the log file is rotated to `<log_path>.1`, in bytes.
    pub log_bytes_max: u64,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// 0 for success; 137 when killed or out of memory; 134 for a trap; else the guest's own code.
    pub code: i32,
    /// Kubernetes' word: `Completed`, `Error` or `OOMKilled`.
    pub reason: ExitReason,
    /// For people: the trap, the import that was missing, the limit that was hit.
    pub message: String,
}

/// Why a container ended, in Kubernetes' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Exit code 0 as well, because it was told to stop: it would have gone on.
    Stopped,
    /// Non-zero exit or trap.
    Error,
    /// The memory limit stopped it.
    OomKilled,
    /// Stopped from outside, before it had done what it had to do.
    Killed,
}

/// What a container has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time, by epoch accounting.
    pub cpu: Duration,
    /// Linear memory now, in bytes.
    pub memory_bytes: u64,
}

/// Why a pod or container could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The component wants something that does not exist here or that its pod was not granted.
    /// Give up; `RunContainerError`.
    #[error("{0}")]
    MissingImports(MissingImports),
    /// Not a component this engine can run. Give up.
    #[error("cannot run the component: {reason}")]
    Unsupported {
        /// What is wrong with it.
        reason: String,
    },
    /// A port of the pod is already taken by a sibling. Give up.
    #[error("port {port} of the pod is already in use")]
    PortInUse {
        /// The port asked for twice.
        port: u16,
    },
    /// Host trouble: file missing, no memory. Retry with back-off.
    #[error("cannot start the container: {0}")]
    Host(String),
}

/// Why a module was not compiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The bytes are no Wasm module or component, or use a proposal that is off. Give up.
    #[error("not a valid WebAssembly module or component: {0}")]
    Invalid(String),
    /// Valid, but neither a command, nor an HTTP handler, nor a reactor. Give up.
    #[error("{0}")]
    UnknownWorld(String),
    /// The compiler failed or a limit was hit.
    #[error("cannot compile: {0}")]
    Failed(String),
}

/// What a compiled component is, read from its exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    /// `wasi:cli/run`: runs to its end.
    Command,
    /// `wasi:http/incoming-handler@0.2`: served by the host.
    HttpP2,
    /// `wasi:http/handler@0.3`: served by the host.
    HttpP3,
    /// Neither, but it exports something: instantiated (`_initialize`) and kept until it is
    /// stopped, as a process that waits for signals would be. Nothing calls its exports.
    Reactor,
}

/// Creates pods. The seam between agent and sandboxes: wasmtime in production, a script in tests.
#[async_trait]
pub trait PodRuntime: Send + Sync + 'static {
    /// Makes the sandbox of a pod: its loopback, its limits, its addresses on the node's network.
    ///
    /// # Errors
    ///
    /// [`StartError::Host`] when the node is out of something.
    async fn create(&self, pod: PodConfig) -> Result<Arc<dyn Pod>, StartError>;

    /// Opaque string; compiled code is good for exactly the runtimes that give the same one.
    fn compatibility_hash(&self) -> String;
}

/// The sandbox of one pod.
#[async_trait]
pub trait Pod: Send + Sync + 'static {
    /// Links and starts one container. Returns once its code runs (HTTP: once it can take requests).
    ///
    /// # Errors
    ///
    /// See [`StartError`]; nothing is left behind.
    async fn start(&self, container: ContainerConfig) -> Result<Arc<dyn Container>, StartError>;

    /// As [`Pod::start`], for a container that somebody may talk to, maybe at a terminal: then it is
    /// told so, and its log does not wait for the end of a line. An HTTP component does not read its
    /// input.
    ///
    /// # Errors
    ///
    /// As [`Pod::start`].
    async fn start_with_stdin(
        &self,
        container: ContainerConfig,
        stdin: Input,
        is_terminal: bool,
    ) -> Result<Arc<dyn Container>, StartError> {
        drop((stdin, is_terminal));
        self.start(container).await
    }

    /// Runs a command in the pod, beside its containers: same network, memory counted to the pod.
    /// Its output goes to `stdio`; the configuration's log is not touched.
    ///
    /// # Errors
    ///
    /// See [`StartError`]; [`StartError::Unsupported`] for a component that is no command.
    async fn exec(
        &self,
        command: ContainerConfig,
        stdio: Stdio,
    ) -> Result<Arc<dyn Container>, StartError> {
        drop((command, stdio));
        Err(StartError::Unsupported { reason: "commands cannot be run in this pod".to_owned() })
    }

    /// Opens a byte stream to a port, as a process within the pod would: its loopback first.
    ///
    /// # Errors
    ///
    /// `ConnectionRefused` if nothing listens there.
    async fn connect(&self, port: u16) -> std::io::Result<BoxIo> {
        let _ = port;
        Err(std::io::ErrorKind::ConnectionRefused.into())
    }

    /// What all its containers and commands have used so far, those that have ended as well, and
    /// the memory that they have now.
    fn usage(&self) -> Usage {
        Usage::default()
    }

    /// Stops what still runs and takes the pod's addresses off the network. Idempotent.
    async fn destroy(&self);
}

/// One started container.
#[async_trait]
pub trait Container: Send + Sync + 'static {
    /// Waits for the end. May be called many times, also after the end.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    async fn wait(&self) -> Exit;

    /// Ends the guest: it takes no new requests or connections, and is stopped once those that it
    /// has are done, at the latest after `grace`. Returns when it has ended.
    async fn stop(&self, grace: Duration);

    /// Gives its port up to the run that takes its place, and goes on with the requests that it has; new ones
    /// wait a second for that run. `false`, and nothing has happened, if it serves no HTTP.
    fn hand_over(&self) -> bool {
        false
    }

    /// What it has used so far.
    fn usage(&self) -> Usage;
}

/// Datagrams that one flow may hold in each direction before its sender waits or drops.
pub const FLOW_DATAGRAMS_MAX: usize = 32;

/// One end of a flow of datagrams between two addresses. Dropping it ends the flow.
#[derive(Debug)]
pub struct Datagrams {
    /// To the other end.
    pub tx: mpsc::Sender<Bytes>,
    /// From the other end.
    pub rx: mpsc::Receiver<Bytes>,
}

impl Datagrams {
    /// The two ends of a new flow.
    #[must_use]
    pub fn pair() -> (Self, Self) {
        let (near_tx, far_rx) = mpsc::channel(FLOW_DATAGRAMS_MAX);
        let (far_tx, near_rx) = mpsc::channel(FLOW_DATAGRAMS_MAX);
        (Self { tx: near_tx, rx: near_rx }, Self { tx: far_tx, rx: far_rx })
    }
}

/// The way from a guest to everything that is not its own pod. Implemented by the node's mesh.
#[async_trait]
pub trait Uplink: Send + Sync + 'static {
    /// Opens a TCP-like connection from a guest's socket at `source` to a pod, Service or outside
    /// address. A pod sees `source` as its peer.
    ///
    /// # Errors
    ///
    /// `ConnectionRefused`, `TimedOut`, `HostUnreachable`, `PermissionDenied` become the WASI codes.
    async fn connect(
        &self,
        from: &PodId,
        source: SocketAddr,
        to: SocketAddr,
    ) -> std::io::Result<BoxIo>;

    /// Carries a flow of datagrams from a guest's socket at `source` to a pod, Service or outside
    /// address, until the guest's side lets go of it. Which endpoint of a Service gets them is
    /// decided once per flow.
    ///
    /// # Errors
    ///
    /// As of [`Uplink::connect`]. What was sent by then is lost, as UDP may lose anything.
    async fn datagrams(
        &self,
        from: &PodId,
        source: SocketAddr,
        to: SocketAddr,
        flow: Datagrams,
    ) -> std::io::Result<()> {
        drop((from, source, to, flow));
        Err(std::io::ErrorKind::Unsupported.into())
    }

    /// Resolves a whole name, which ends with a dot. Empty is "no such name".
    async fn resolve(&self, from: &PodId, name: &str) -> Vec<IpAddr>;

    /// Sends an HTTP request; the authority names a pod, Service or outside host.
    ///
    /// # Errors
    ///
    /// Whatever kept the response head from arriving.
    async fn http(
        &self,
        from: &PodId,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, BodyError>;
}

/// Labels for the runtime's metrics: name to value.
pub type Counters = BTreeMap<&'static str, u64>;
