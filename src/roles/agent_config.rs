//! What the agent of a node is told at its start.

use std::sync::Arc;

use edgeorc_runtime::{PodRuntime, VirtualNetwork};
use k8s_openapi::api::core::v1::Node;

use crate::agent::{AgentConfig, Capacity, ImageGcSettings, ImageSettings, Machine};
use crate::client::Informer;
use crate::roles::node::Base;
use crate::roles::{blobs, compiled};

/// The agent's ways to the cluster, and what it runs pods with.
pub(super) struct AgentDoors {
    pub(super) client: kube::Client,
    pub(super) nodes: Informer<Node>,
    pub(super) runtime: Arc<dyn PodRuntime>,
    pub(super) network: Arc<VirtualNetwork>,
    pub(super) machine: Arc<dyn Machine>,
}

/// What the agent is told at start.
pub(super) fn agent_config(base: &Base, is_server: bool, doors: AgentDoors) -> AgentConfig {
    let data_dir = base.dir.join("agent");
    AgentConfig {
        machine: doors.machine,
        eviction: base.settings.eviction.clone(),
        node_name: base.settings.node_name.clone(),
        node_ips: vec![base.settings.advertise_address],
        data_dir,
        memory_dirs: base.settings.memory_dirs.clone(),
        static_pods: base.dir.join("pod-manifests"),
        client: doors.client,
        nodes: doors.nodes,
        pods: base.pods.clone(),
        runtime: doors.runtime,
        network: doors.network,
        compiler: base.compiler.clone(),
        code_trust: Some(Arc::new(compiled::ServersOnly(base.membership.identity.clone()))),
        peers: Some(Arc::new(blobs::Nodes(base.peers.clone()))),
        images: image_settings(base),
        clock: base.clock.clone(),
        rng: base.rng.clone(),
        is_server,
        labels: base.settings.node_labels.clone(),
        quic_address: Some(base.settings.quic_address()),
        ingress_address: Some(base.settings.ingress_address()),
        capacity: Capacity { pods: base.settings.max_pods, ..Capacity::default() },
        machine_root: base.settings.machine_root.clone(),
        extended_resources: base.settings.extended_resources.clone(),
        devices: base.settings.devices.clone(),
        restart: crate::agent::RestartBackoff {
            min: base.settings.timing.restart_backoff_min,
            max: base.settings.timing.restart_backoff_max,
        },
        shutdown_grace: base.settings.timing.shutdown_grace,
        node_api: base.node_api.clone(),
        host_paths: base.settings.host_paths.clone(),
    }
}

/// Where images come from and when they go, from the node's settings.
fn image_settings(base: &Base) -> ImageSettings {
    let flags = &base.settings.images;
    let named = flags.registries_file.clone();
    ImageSettings {
        registries_file: Some(named.unwrap_or_else(|| base.dir.join("registries.yaml"))),
        proxies: flags.proxies.clone(),
        gc: ImageGcSettings { marks: flags.gc_marks, ..ImageGcSettings::default() },
        ..ImageSettings::default()
    }
}
