//! Why settings are refused.

use std::path::PathBuf;

use crate::config::{ThresholdError, TracingError};

/// Why the settings are refused. Give up; the text says what to change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The node name is no DNS-1123 label.
    #[error(
        "node name {name:?} must be at most 63 characters of a-z, 0-9 and '-', and start and end with a letter or digit; set --node-name"
    )]
    NodeName {
        /// What was given.
        name: String,
    },
    /// `--join` without `--token` or the reverse.
    #[error(
        "--join and --token go together; make a token with `edgeorc node token create` on a server"
    )]
    JoinWithoutToken,
    /// The waits before restarts are in the wrong order, or none.
    #[error(
        "--restart-backoff-min must be more than 0s and not more than --restart-backoff-max; Kubernetes' values are 10s and 5m"
    )]
    RestartBackoff,
    /// The marks for image garbage collection are not in order.
    #[error("--image-gc-low ({low}) must be below --image-gc-high ({high}), and both at most 100")]
    ImageGcThresholds {
        /// The lower mark, in percent.
        low: u8,
        /// The upper mark, in percent.
        high: u8,
    },
    /// `--eviction-hard` is no list of thresholds.
    #[error(transparent)]
    EvictionHard(#[from] ThresholdError),
    /// The settings of traces cannot be used.
    #[error(transparent)]
    Tracing(#[from] TracingError),
    /// `--registries-file` names no file.
    #[error("--registries-file {path:?} is no file")]
    RegistriesFile {
        /// What was given.
        path: PathBuf,
    },
    /// `--allow-host-path` is no absolute path.
    #[error(
        "--allow-host-path {text:?} must be an absolute path without .., with :ro behind it to allow reading only"
    )]
    HostPath {
        /// What was given.
        text: String,
    },
    /// `--node-label` is no key and value.
    #[error(
        "--node-label {text:?} must be KEY=VALUE, as in topology.kubernetes.io/zone=barn: letters, digits, `-`, `_` and `.`, 63 at most"
    )]
    NodeLabel {
        /// What was given.
        text: String,
    },
    /// `--device` is no name with a place, or one too many.
    #[error(
        "--device {text:?} must be NAME=PATH[,KEY=VALUE...], as in camera0=/dev/video0,model=ov5647: a name of lower-case letters, digits and '-' that no other has, an absolute path, attributes but kind once each; 128 devices at most"
    )]
    Device {
        /// What was given.
        text: String,
    },
    /// `--extended-resource` is no name with a domain and a number.
    #[error(
        "--extended-resource {text:?} must be NAME=N, the name with a domain, as in edgeorc.io/gpio=4"
    )]
    ExtendedResource {
        /// What was given.
        text: String,
    },
    /// `--cluster-cidr` is no range, or not one for pods.
    #[error(
        "--cluster-cidr {text:?} must be an IPv4 range like 10.42.0.0/16, and may have an IPv6 range like fd00:42::/48 behind a comma; each starts at its first address and is apart from the Services' ranges"
    )]
    ClusterCidr {
        /// What was given.
        text: String,
    },
    /// `--service-cidr` is no range, or not a pair of both families.
    #[error(
        "--service-cidr {text:?} must be one range like 10.43.0.0/16, or one of IPv4 and one of IPv6 with a comma between, each starting at its first address"
    )]
    ServiceCidrs {
        /// What was given.
        text: String,
    },
    /// `--dns-bind` or `--dns-upstream` is no address, or the one is given without the other.
    #[error("{flag} {text:?} must be an address like {example}")]
    DnsAddress {
        /// Which flag.
        flag: &'static str,
        /// What was given.
        text: String,
        /// What it may look like.
        example: &'static str,
    },
    /// `--node-cidr-mask-size` does not fit the cluster's range.
    #[error(
        "--node-cidr-mask-size {size} must be from the cluster's {prefix} to 29, and at most 16 more than that"
    )]
    NodeCidrMaskSize {
        /// What was given.
        size: u8,
        /// Of the cluster's range.
        prefix: u8,
    },
    /// `--join` is no address.
    #[error(
        "--join {url:?} is not an address; write https://HOST:PORT, for example https://192.168.1.10:6443"
    )]
    JoinAddress {
        /// What was given.
        url: String,
    },
}
