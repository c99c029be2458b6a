//! What runs a node's pods: the Wasm runtime, or a script in its place.

use std::sync::Arc;

use edgeorc_runtime::{GuestThreads, PodRuntime, RuntimeConfig, VirtualNetwork, WasmRuntime};
use tokio::runtime::Handle;

use crate::agent::{ClusterKeyValue, GuestUplink, Machine, ThisMachine};
use crate::mesh::Mesh;
use crate::roles::NodeError;
use crate::roles::node::Base;

/// What a *hollow* node has in the place of sandboxes and of a machine: all else of it is a node's.
/// For simulated fleets; it opens neither ingress nor DNS.
#[derive(Clone)]
pub struct Hollow {
    /// Runs the pods.
    pub runtime: Arc<dyn PodRuntime>,
    /// Says what the machine has.
    pub machine: Arc<dyn Machine>,
    /// Where the packets of its connections are worked on. Many such nodes share their threads, and
    /// what would be the delay of one machine must not be that of all.
    pub packets: Handle,
}

impl std::fmt::Debug for Hollow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hollow").finish_non_exhaustive()
    }
}

/// See the module.
pub(super) struct Engine {
    pub(super) runtime: Arc<dyn PodRuntime>,
    pub(super) network: Arc<VirtualNetwork>,
    pub(super) machine: Arc<dyn Machine>,
    /// `None`: no guest runs here, and nobody comes in.
    pub(super) guests: Option<Guests>,
}

/// What guests of the Wasm runtime need.
pub(super) struct Guests {
    /// The ingress shares them.
    pub(super) threads: GuestThreads,
    uplink: Arc<GuestUplink>,
    keyvalue: Arc<ClusterKeyValue>,
}

impl Guests {
    /// Opens the ways from the guests to the cluster.
    pub(super) fn connect(&self, mesh: &Mesh, client: &kube::Client) {
        self.uplink.set(mesh.clone());
        self.keyvalue.set(client.clone());
    }
}

impl Engine {
    /// The Wasm runtime on this machine.
    pub(super) fn wasm(base: &Base) -> Result<Self, NodeError> {
        let network = Arc::new(VirtualNetwork::new());
        let uplink = Arc::new(GuestUplink::default());
        let keyvalue = Arc::new(ClusterKeyValue::default());
        let clock = base.clock.clone();
        let mut config = RuntimeConfig::new(Arc::new(move || clock.system_time()));
        config.keyvalue = keyvalue.clone();
        config.address_bits_max = base.settings.sandboxes.address_bits_max;
        config.is_interpreted = base.settings.sandboxes.are_interpreted;
        let runtime =
            WasmRuntime::new(config, uplink.clone(), network.clone()).map_err(|cause| {
                NodeError::Failed(format!("cannot start the Wasm runtime: {cause}"))
            })?;
        tracing::info!(machine = runtime.machine(), "the Wasm runtime is ready");
        let threads = runtime.threads();
        Ok(Self {
            runtime: Arc::new(runtime),
            network,
            machine: Arc::new(ThisMachine::new(&base.dir.join("agent"))),
            guests: Some(Guests { threads, uplink, keyvalue }),
        })
    }

    /// A script.
    pub(super) fn hollow(hollow: Hollow) -> Self {
        let Hollow { runtime, machine, .. } = hollow;
        Self { runtime, network: Arc::new(VirtualNetwork::new()), machine, guests: None }
    }
}
