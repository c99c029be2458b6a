//! What the command line said of a node.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What the command line said of a node, before defaults.
#[derive(Debug, Clone, Default)]
pub struct NodeFlags {
    /// `--node-name`.
    pub node_name: Option<String>,
    /// `--bind-address`.
    pub bind_address: Option<IpAddr>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
    /// `--api-port`.
    pub api_port: Option<u16>,
    /// `--ingress-port`.
    pub ingress_port: Option<u16>,
    /// `--ingress-https-port`.
    pub ingress_https_port: Option<u16>,
    /// `--ingress-access-log`.
    pub ingress_access_log: bool,
    /// `--restart-backoff-min`.
    pub restart_backoff_min: Option<Duration>,
    /// `--restart-backoff-max`.
    pub restart_backoff_max: Option<Duration>,
    /// `--join`: `host:port` or `https://host:port` of a server.
    pub join: Option<String>,
    /// `--token`.
    pub token: Option<String>,
    /// `--registries-file`.
    pub registries_file: Option<PathBuf>,
    /// `--image-gc-high`.
    pub image_gc_high: Option<u8>,
    /// `--image-gc-low`.
    pub image_gc_low: Option<u8>,
    /// `--no-compile`.
    pub no_compile: bool,
    /// `--allow-host-path`, each `PATH` or `PATH:ro`.
    pub host_paths: Vec<String>,
    /// `--cluster-cidr`.
    pub cluster_cidr: Option<String>,
    /// `--node-cidr-mask-size`.
    pub node_cidr_mask_size: Option<u8>,
    /// `--service-cidr`.
    pub service_cidr: Option<String>,
    /// `--dns-bind`.
    pub dns_bind: Option<String>,
    /// `--dns-upstream`, each `IP` or `IP:PORT`.
    pub dns_upstreams: Vec<String>,
    /// `--max-pods`.
    pub max_pods: Option<u32>,
    /// `--node-label`, each `KEY=VALUE`.
    pub node_labels: Vec<String>,
    /// `--extended-resource`, each `NAME=N`.
    pub extended_resources: Vec<String>,
    /// `--device`, each `NAME=PATH[,KEY=VALUE...]`.
    pub devices: Vec<String>,
    /// `--address-bits-max`.
    pub address_bits_max: Option<u32>,
    /// `--eviction-hard`.
    pub eviction_hard: Option<String>,
    /// `--eviction-transition`.
    pub eviction_transition_period: Option<Duration>,
    /// `--pulley`.
    pub pulley: bool,
    /// `--machine-root`.
    pub machine_root: Option<PathBuf>,
    /// `--otlp-endpoint`.
    pub otlp_endpoint: Option<String>,
    /// `--trace-ratio`.
    pub trace_ratio: Option<String>,
}
