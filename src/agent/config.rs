//! What an agent is told at start.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use edgeorc_runtime::{PodRuntime, VirtualNetwork};
use k8s_openapi::api::core::v1::{Node, Pod};

use crate::agent::{CodeCompiler, CodeTrust, ImageSettings, Machine, NodeApi, PeerDialler};
use crate::client::{Informer, Interned};
use crate::config::{DeviceSettings, EvictionSettings, HostPath};
use crate::rt::{Rng, WallClock};

/// Settings and collaborators of an [`crate::agent::Agent`].
#[derive(Clone)]
pub struct AgentConfig {
    /// `metadata.name` of this machine's Node.
    pub node_name: String,
    /// Addresses other nodes and people reach this machine at; the first is the primary.
    pub node_ips: Vec<IpAddr>,
    /// Folder that is the agent's own: pods, images, compiled code. Created if missing.
    pub data_dir: PathBuf,
    /// Places that may be in memory, for files that are renewed often; the first one that is serves.
    pub memory_dirs: Vec<PathBuf>,
    /// The door to the API, in process or over QUIC.
    pub client: kube::Client,
    /// All nodes, as `client` sees them.
    pub nodes: Informer<Node>,
    /// Pods that other parts of this process hold as well.
    pub pods: Interned<Pod>,
    /// Runs the sandboxes.
    pub runtime: Arc<dyn PodRuntime>,
    /// The switch the runtime puts its pods on; probes reach pods through it.
    pub network: Arc<VirtualNetwork>,
    /// Makes compiled code.
    pub compiler: CodeCompiler,
    /// Tells which compiled code of others may be run. `None`: none is asked for.
    pub code_trust: Option<Arc<dyn CodeTrust>>,
    /// The way to other nodes, which may have an image's blobs. `None`: none is asked.
    pub peers: Option<Arc<dyn PeerDialler>>,
    /// How images are pulled and kept.
    pub images: ImageSettings,
    /// Time of day, for status and logs.
    pub clock: WallClock,
    /// Spreads retries.
    pub rng: Rng,
    /// Whether this machine is a server: labels the Node as control plane.
    pub is_server: bool,
    /// More labels for the Node; they win over the built-in ones.
    pub labels: BTreeMap<String, String>,
    /// Where other nodes open QUIC connections to; annotation `edgeorc.io/quic-address`.
    pub quic_address: Option<SocketAddr>,
    /// Where this node's ingress listens; annotation `edgeorc.io/ingress-address`.
    pub ingress_address: Option<SocketAddr>,
    /// Folder with the manifests of static pods. Need not exist.
    pub static_pods: PathBuf,
    /// What pods may use.
    pub capacity: Capacity,
    /// What this machine has that others have not, by name: `edgeorc.io/gpio` and how many.
    pub extended_resources: BTreeMap<String, u64>,
    /// Devices that pods can claim, sorted by name.
    pub devices: Vec<DeviceSettings>,
    /// Folder with the `proc` and `sys` that tell what the machine is like and how it fares: `/`.
    pub machine_root: PathBuf,
    /// How containers are started again.
    pub restart: RestartBackoff,
    /// Time all pods together get to end when the agent stops. Default 10 s.
    pub shutdown_grace: Duration,
    /// What servers may ask this agent.
    pub node_api: NodeApi,
    /// What pods may mount of the host. Default: nothing.
    pub host_paths: Vec<HostPath>,
    /// Where figures of memory and disks come from; in production [`crate::agent::ThisMachine`].
    pub machine: Arc<dyn Machine>,
    /// When the node is short of them.
    pub eviction: EvictionSettings,
}

/// What the machine offers to pods. Zero means: ask the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Thousandths of a core. Default: all cores.
    pub cpu_millis: u64,
    /// Bytes of RAM. Default: all RAM.
    pub memory_bytes: u64,
    /// Bytes of RAM kept for edgeorc and the system, subtracted for `allocatable`. Default 128 MiB.
    pub memory_reserved_bytes: u64,
    /// How many pods. Default 250: as many as a /24 has addresses for.
    pub pods: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { cpu_millis: 0, memory_bytes: 0, memory_reserved_bytes: 128 * 1024 * 1024, pods: 250 }
    }
}

/// Back-off between the runs of a container: starts at `min`, doubles, ends at `max`. A run of twice
/// `max` starts it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartBackoff {
    /// Wait before the first restart. Default 10 ms; Kubernetes: 10 s.
    pub min: Duration,
    /// Longest wait. Default 10 s; Kubernetes: 5 min.
    pub max: Duration,
}

impl Default for RestartBackoff {
    fn default() -> Self {
        Self { min: Duration::from_millis(10), max: Duration::from_secs(10) }
    }
}

/// How compiled code is made: a short-lived child process, called as `program args.. IN OUT`.
#[derive(Debug, Clone)]
pub struct Compiler {
    /// Whether this node compiles. A small one may leave it to the servers. Default true.
    pub is_here: bool,
    /// The executable; in production this binary itself.
    pub program: PathBuf,
    /// Arguments before the two file names; in production `["compile"]`.
    pub args: Vec<String>,
    /// Its environment, besides this process's; in production what keeps the allocator from taking a
    /// gigabyte of address space as its private memory before it is told that it may have no more.
    pub env: Vec<(String, String)>,
    /// The child is killed after this long. Default 120 s.
    pub time_max: Duration,
    /// What has not come to its end after this long lets others pass. Default 10 s.
    pub slow_after: Duration,
    /// The child's private memory, in bytes; `None` is no limit. Default 1 GiB.
    pub memory_bytes_max: Option<u64>,
}

impl Compiler {
    /// The compiler of the binary at `program`, with the default limits.
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self {
            is_here: true,
            program,
            args: vec!["compile".to_owned()],
            env: vec![("MIMALLOC_ARENA_EAGER_COMMIT".to_owned(), "0".to_owned())],
            time_max: Duration::from_secs(120),
            slow_after: Duration::from_secs(10),
            memory_bytes_max: Some(1024 * 1024 * 1024),
        }
    }
}

impl std::fmt::Debug for AgentConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentConfig")
            .field("node_name", &self.node_name)
            .field("node_ips", &self.node_ips)
            .field("data_dir", &self.data_dir)
            .finish_non_exhaustive()
    }
}
