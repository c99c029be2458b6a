//! Settings of one node.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::config::device;
use crate::config::names::{API_PORT, advertise, host_name, is_dns_label, parse_server};
use crate::config::{
    ConfigError, DeviceSettings, DnsSettings, Environment, EvictionSettings, HostPath, NodeFlags,
    PodCidrs, Proxies, ServiceCidrs, TracingSettings, parse_thresholds,
};
use crate::rt::DiskMarks;

/// Default port of the HTTP ingress.
const INGRESS_PORT: u16 = 8080;
/// Default port of the HTTPS ingress.
const INGRESS_HTTPS_PORT: u16 = 8443;
/// Default number of pods on a node: as many as a /24 has addresses for.
const PODS_MAX: u32 = 250;
/// The longest value of a label, and name in its key.
const LABEL_BYTES_MAX: usize = 63;

/// How fast the node reacts. The defaults are the design's.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long a stopping process waits for its tasks. Default 10 s.
    pub shutdown_grace: Duration,
    /// How long one attempt to join may take. Default 30 s.
    pub join_deadline: Duration,
    /// Wait before a container that failed first runs again. Default 10 ms; Kubernetes: 10 s.
    pub restart_backoff_min: Duration,
    /// Longest wait before a container runs again. Default 10 s; Kubernetes: 5 min.
    pub restart_backoff_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            shutdown_grace: Duration::from_secs(10),
            join_deadline: Duration::from_secs(30),
            restart_backoff_min: Duration::from_millis(10),
            restart_backoff_max: Duration::from_secs(10),
        }
    }
}

/// Settings of one node, complete and checked.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// Name of the Node object; a DNS-1123 label. Default: the host name.
    pub node_name: String,
    /// Address the listeners are bound to. Default `0.0.0.0`.
    pub bind_address: IpAddr,
    /// Address other nodes reach this one at. Default: the bind address, or the address of the
    /// default route when that is unspecified.
    pub advertise_address: IpAddr,
    /// Folder for state, certificates, images and logs.
    pub data_dir: PathBuf,
    /// Places that may be in memory, for files that are renewed often. Default: those of the
    /// environment.
    pub memory_dirs: Vec<PathBuf>,
    /// Port of the API (TCP) and of QUIC (UDP). Default 6443.
    pub api_port: u16,
    /// Port of the HTTP ingress. Default 8080.
    pub ingress_port: u16,
    /// Port of the HTTPS ingress; 0 is none. Default 8443.
    pub ingress_https_port: u16,
    /// Somebody asked for that port: the node does not start without it.
    pub is_https_port_required: bool,
    /// A line in the log for every request at the ingress. Default off: it is for those who look for
    /// something, and costs a fast node its speed.
    pub ingress_access_log: bool,
    /// Server to join; `None` starts a new cluster, or goes on with the one in `data_dir`.
    pub join: Option<Join>,
    /// Where images come from and when they go.
    pub images: ImageFlags,
    /// How fast the node reacts.
    pub timing: Timing,
    /// What pods may mount of the host as hostPath or local volumes. Default: nothing.
    pub host_paths: Vec<HostPath>,
    /// How pod addresses are given to nodes; only servers look at it. Default: a /24 of
    /// `10.42.0.0/16` for each.
    pub pod_cidrs: PodCidrs,
    /// What Services have their addresses of; only servers look at it, and the DNS server. Default:
    /// `10.43.0.0/16`.
    pub service_cidrs: ServiceCidrs,
    /// The DNS server for the host and its network. Default: none.
    pub dns: Option<DnsSettings>,
    /// How many pods this node takes. Default 250.
    pub max_pods: u32,
    /// Labels of the Node besides those that every node has. Default: none.
    pub node_labels: BTreeMap<String, String>,
    /// What this machine has that others have not, by name. Default: nothing.
    pub extended_resources: BTreeMap<String, u64>,
    /// Devices that pods can claim, sorted by name. Default: none.
    pub devices: Vec<DeviceSettings>,
    /// Folder with the `proc` and `sys` that tell what the machine is like and how it fares: `/`, but
    /// for tests, which have no hot machine at hand.
    pub machine_root: PathBuf,
    /// What the sandboxes are planned for.
    pub sandboxes: Sandboxes,
    /// When this node counts as short of memory or disk.
    pub eviction: EvictionSettings,
    /// Where traces of requests go. Default: nowhere.
    pub tracing: Option<TracingSettings>,
}

/// What the sandboxes are planned for, if not for this machine: shows on a large machine how a small
/// one does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sandboxes {
    /// Address bits that they are sized for, if fewer than the machine has. Default: all.
    pub address_bits_max: Option<u32>,
    /// Whether guests are interpreted, as on machines for which there is no code generator.
    pub are_interpreted: bool,
}

/// Where images come from and when they go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFlags {
    /// `registries.yaml` as it was named; `None` is the one in the data folder, if there is one.
    pub registries_file: Option<PathBuf>,
    /// Above which use of the disk unused images are deleted, and down to which.
    pub gc_marks: DiskMarks,
    /// Whether this node compiles components. A small one may run what servers compile. Default true.
    pub compiles: bool,
    /// Proxies on the way to registries. Default: those of the environment.
    pub proxies: Proxies,
}

/// Where and how to join.
#[derive(Debug, Clone)]
pub struct Join {
    /// `host:port` of a server's QUIC endpoint.
    pub server: String,
    /// The token, not yet parsed.
    pub token: String,
}

impl NodeSettings {
    /// Completes `flags` with the environment and the defaults, and checks the result.
    ///
    /// # Errors
    ///
    /// [`ConfigError`]; nothing was touched.
    pub fn build(flags: NodeFlags, environment: &Environment) -> Result<Self, ConfigError> {
        let node_name = flags.node_name.unwrap_or_else(host_name);
        if !is_dns_label(&node_name) {
            return Err(ConfigError::NodeName { name: node_name });
        }
        let bind_address = flags.bind_address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let join = match (flags.join, flags.token) {
            (None, None) => None,
            (Some(url), Some(token)) => Some(Join { server: parse_server(&url)?, token }),
            _ => return Err(ConfigError::JoinWithoutToken),
        };
        let timing = timing(flags.restart_backoff_min, flags.restart_backoff_max)?;
        let default_marks = DiskMarks::default();
        let images = ImageFlags {
            registries_file: flags.registries_file,
            gc_marks: DiskMarks {
                high_percent: flags.image_gc_high.unwrap_or(default_marks.high_percent),
                low_percent: flags.image_gc_low.unwrap_or(default_marks.low_percent),
            },
            compiles: !flags.no_compile,
            proxies: environment.proxies.clone(),
        };
        let (low, high) = (images.gc_marks.low_percent, images.gc_marks.high_percent);
        if low >= high || high > 100 {
            return Err(ConfigError::ImageGcThresholds { low, high });
        }
        if let Some(path) = images.registries_file.clone().filter(|path| !path.is_file()) {
            return Err(ConfigError::RegistriesFile { path });
        }
        let service_cidrs = ServiceCidrs::build(flags.service_cidr.as_deref())?;
        let (cluster_cidr, mask_size) = (flags.cluster_cidr.as_deref(), flags.node_cidr_mask_size);
        Ok(Self {
            images,
            node_name,
            bind_address,
            advertise_address: advertise(bind_address),
            data_dir: flags.data_dir.unwrap_or_else(|| environment.default_data_dir()),
            memory_dirs: environment.memory_dirs.clone(),
            api_port: flags.api_port.unwrap_or(API_PORT),
            ingress_port: flags.ingress_port.unwrap_or(INGRESS_PORT),
            ingress_https_port: flags.ingress_https_port.unwrap_or(INGRESS_HTTPS_PORT),
            is_https_port_required: flags.ingress_https_port.is_some_and(|port| port != 0),
            ingress_access_log: flags.ingress_access_log,
            join,
            timing,
            host_paths: each(&flags.host_paths, HostPath::parse)?,
            pod_cidrs: PodCidrs::build(cluster_cidr, mask_size, &service_cidrs)?,
            service_cidrs,
            dns: DnsSettings::build(flags.dns_bind.as_deref(), &flags.dns_upstreams)?,
            max_pods: flags.max_pods.unwrap_or(PODS_MAX),
            node_labels: each(&flags.node_labels, node_label)?,
            extended_resources: each(&flags.extended_resources, extended_resource)?,
            devices: device::devices(&flags.devices)?,
            machine_root: flags.machine_root.unwrap_or_else(|| PathBuf::from("/")),
            eviction: eviction(flags.eviction_hard.as_deref(), flags.eviction_transition_period)?,
            tracing: TracingSettings::build(
                flags.otlp_endpoint.as_deref(),
                flags.trace_ratio.as_deref(),
                &environment.otel,
            )?,
            sandboxes: Sandboxes {
                address_bits_max: flags.address_bits_max,
                are_interpreted: flags.pulley,
            },
        })
    }

    /// Address of the QUIC endpoint as told to other nodes.
    #[must_use]
    pub fn quic_address(&self) -> SocketAddr {
        SocketAddr::new(self.advertise_address, self.api_port)
    }

    /// Address of the ingress as told to users.
    #[must_use]
    pub fn ingress_address(&self) -> SocketAddr {
        SocketAddr::new(self.advertise_address, self.ingress_port)
    }
}

/// Reads all texts of a flag.
fn each<T, C: FromIterator<T>>(
    texts: &[String],
    read: impl Fn(&str) -> Result<T, ConfigError>,
) -> Result<C, ConfigError> {
    texts.iter().map(|text| read(text)).collect()
}

/// Reads `NAME=N`. The name has a domain, as Kubernetes wants of resources that it does not know.
fn extended_resource(text: &str) -> Result<(String, u64), ConfigError> {
    let refused = || ConfigError::ExtendedResource { text: text.to_owned() };
    let (name, count) = text.split_once('=').ok_or_else(refused)?;
    let (domain, rest) = name.split_once('/').ok_or_else(refused)?;
    let is_kubernetes = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    if !is_plain(domain, "-.") || !is_plain(rest, "-_.") || is_kubernetes || name.len() > 253 {
        return Err(refused());
    }
    Ok((name.to_owned(), count.parse().map_err(|_| refused())?))
}

/// Reads `KEY=VALUE`; the key may have a domain, the value may be empty.
fn node_label(text: &str) -> Result<(String, String), ConfigError> {
    let refused = || ConfigError::NodeLabel { text: text.to_owned() };
    let (key, value) = text.split_once('=').ok_or_else(refused)?;
    let (domain, name) =
        key.split_once('/').map_or((None, key), |(domain, name)| (Some(domain), name));
    let is_word = |word: &str| is_plain(word, "-_.") && word.len() <= LABEL_BYTES_MAX;
    let is_domain = |domain: &str| is_plain(domain, "-.") && domain.len() <= 253;
    if !is_word(name) || !domain.is_none_or(is_domain) || !(value.is_empty() || is_word(value)) {
        return Err(refused());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Whether `part` is of letters, digits and, but for its ends, of `more`.
fn is_plain(part: &str, more: &str) -> bool {
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    is_end(part.chars().next())
        && is_end(part.chars().last())
        && part.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

fn eviction(
    thresholds: Option<&str>,
    transition_period: Option<Duration>,
) -> Result<EvictionSettings, ConfigError> {
    let mut settings = EvictionSettings::default();
    if let Some(text) = thresholds {
        settings.thresholds = parse_thresholds(text)?;
    }
    if let Some(period) = transition_period {
        settings.transition_period = period;
    }
    Ok(settings)
}

/// The timing, with these bounds of the back-off.
fn timing(min: Option<Duration>, max: Option<Duration>) -> Result<Timing, ConfigError> {
    let defaults = Timing::default();
    let timing = Timing {
        restart_backoff_min: min.unwrap_or(defaults.restart_backoff_min),
        restart_backoff_max: max.unwrap_or(defaults.restart_backoff_max),
        ..defaults
    };
    if timing.restart_backoff_min.is_zero()
        || timing.restart_backoff_min > timing.restart_backoff_max
    {
        return Err(ConfigError::RestartBackoff);
    }
    Ok(timing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(name: &str) -> NodeFlags {
        NodeFlags { node_name: Some(name.to_owned()), ..NodeFlags::default() }
    }

    #[test]
    fn a_node_name_must_be_a_dns_label() {
        let environment = Environment::default();
        for good in ["pi-1", "a", "0"] {
            assert!(NodeSettings::build(flags(good), &environment).is_ok(), "{good}");
        }
        for bad in ["", "Pi", "a.b", "-a", "a-", "ä", &"x".repeat(64)] {
            let refused = NodeSettings::build(flags(bad), &environment);
            assert!(matches!(refused, Err(ConfigError::NodeName { .. })), "{bad}");
        }
    }

    #[test]
    fn extended_resources_have_a_domain_and_a_number() {
        let build = |texts: &[&str]| {
            let texts = texts.iter().map(|text| (*text).to_owned()).collect();
            let flags = NodeFlags { extended_resources: texts, ..flags("n") };
            NodeSettings::build(flags, &Environment::default())
        };
        let settings = build(&["edgeorc.io/gpio=4", "acme.com/camera=1"]).unwrap();
        let has = [("edgeorc.io/gpio".to_owned(), 4), ("acme.com/camera".to_owned(), 1)];
        assert_eq!(settings.extended_resources, has.into());
        for bad in
            ["gpio=1", "a/b", "a/b=x", "a/b=-1", "/b=1", "a/=1", "x.kubernetes.io/b=1", "a b/c=1"]
        {
            assert!(matches!(build(&[bad]), Err(ConfigError::ExtendedResource { .. })), "{bad}");
        }
    }

    #[test]
    fn labels_of_the_node_have_a_key_and_perhaps_a_value() {
        let build = |text: &str| {
            let flags = NodeFlags { node_labels: vec![text.to_owned()], ..flags("n") };
            NodeSettings::build(flags, &Environment::default())
        };
        for (text, key, value) in
            [("a.b/zone=barn", "a.b/zone", "barn"), ("x=", "x", ""), ("x=1.2_c", "x", "1.2_c")]
        {
            let labels = build(text).unwrap().node_labels;
            assert_eq!(labels, [(key.to_owned(), value.to_owned())].into(), "{text}");
        }
        let long = format!("a={}", "x".repeat(64));
        for bad in ["zone", "=x", "a/=x", "/a=x", "a b=x", "a=b c", "a=-", "A_b/c=d", &long] {
            assert!(matches!(build(bad), Err(ConfigError::NodeLabel { .. })), "{bad}");
        }
    }

    #[test]
    fn join_and_token_go_together() {
        let lonely = NodeFlags { join: Some("a:1".into()), ..flags("n") };
        let refused = NodeSettings::build(lonely, &Environment::default());
        assert!(matches!(refused, Err(ConfigError::JoinWithoutToken)));
    }

    #[test]
    fn the_waits_before_restarts_must_be_in_order() {
        let with = |min, max| {
            let ms = |ms: Option<u64>| ms.map(Duration::from_millis);
            let flags = NodeFlags {
                restart_backoff_min: ms(min),
                restart_backoff_max: ms(max),
                ..flags("n")
            };
            NodeSettings::build(flags, &Environment::default())
        };
        let kubernetes = with(Some(10_000), Some(300_000)).unwrap().timing;
        assert_eq!(kubernetes.restart_backoff_max, Duration::from_secs(300));
        assert!(with(None, None).is_ok());
        for (min, max) in [(Some(0), None), (Some(20_000), None), (Some(5), Some(4))] {
            assert!(matches!(with(min, max), Err(ConfigError::RestartBackoff)), "{min:?} {max:?}");
        }
    }

    #[test]
    fn the_marks_of_image_garbage_collection_are_in_order() {
        let build = |low, high| {
            let flags = NodeFlags { image_gc_low: low, image_gc_high: high, ..flags("n") };
            NodeSettings::build(flags, &Environment::default())
        };
        let default = build(None, None).unwrap().images;
        assert_eq!((default.gc_marks.low_percent, default.gc_marks.high_percent), (80, 85));
        assert!(build(Some(10), Some(20)).is_ok());
        for (low, high) in [(Some(90), None), (None, Some(80)), (None, Some(101))] {
            let refused = build(low, high);
            assert!(matches!(refused, Err(ConfigError::ImageGcThresholds { .. })));
        }
    }
}
