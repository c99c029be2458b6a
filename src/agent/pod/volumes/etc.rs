//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`, as the kubelet and its runtime write them.
//!
//! Names are looked up by the sandbox, which knows all of this without the files: they are for
//! people, and for programs that read them themselves.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod};
use tracing::debug;

use crate::agent::dirs::{PodDir, remove_folder, write_scratch};
use crate::agent::pod::env::Sources;

/// Where guests find the files.
pub(super) const FOLDER: &str = "/etc";
/// The node's own, for pods that have its names.
const NODE_RESOLV_CONF: &str = "/etc/resolv.conf";
/// Most of it that is read, in bytes.
const RESOLV_CONF_BYTES_MAX: u64 = 64 * 1024;
/// Domain of the cluster's names.
const CLUSTER_DOMAIN: &str = "cluster.local";
/// Kubernetes' limits.
const SEARCHES_MAX: usize = 32;
const NAMESERVERS_MAX: usize = 3;
/// Dots that matter at most, as in resolvers.
const NDOTS_MAX: usize = 15;

/// Writes the files of `pod`, unless they are there: in memory if that is possible. Blocks on the disk.
pub(super) fn write(pod: &Pod, dir: &PodDir, sources: &Sources) -> io::Result<()> {
    if let Some(folder) = dir.etc_in_memory() {
        match dir.make(&folder).and_then(|()| write_to(&folder, pod, sources)) {
            Ok(()) => return Ok(()),
            Err(err) => {
                debug!(%err, "no room in memory for the files of /etc, the pod's disk serves");
                let _ = remove_folder(&folder);
            }
        }
    }
    let folder = dir.etc();
    dir.make(&folder)?;
    write_to(&folder, pod, sources)
}

fn write_to(folder: &Path, pod: &Pod, sources: &Sources) -> io::Result<()> {
    let hostname = hostname(pod);
    let files = [
        ("hosts", hosts(pod, &sources.ips)),
        ("hostname", format!("{hostname}\n")),
        ("resolv.conf", resolv_conf(pod, || node_resolv_conf(Path::new(NODE_RESOLV_CONF)))),
    ];
    for (name, content) in files {
        let path = folder.join(name);
        // Most starts find what the last one wrote; the disk is spared.
        if std::fs::read(&path).is_ok_and(|had| had == content.as_bytes()) {
            continue;
        }
        write_scratch(&path, content.as_bytes())?;
    }
    Ok(())
}

/// The files that `container` does not bring itself: none if a volume of it is mounted at their
/// folder, or at the root, which may have that folder.
pub(super) fn wanted(container: &Container) -> Vec<&'static str> {
    let mounts = || container.volume_mounts.iter().flatten();
    let is_at = |path: &str| mounts().any(|mount| mount.mount_path.trim_end_matches('/') == path);
    // A guest has one folder at a path: the one with its last words may be there as well.
    let last_words = container.termination_message_path.as_deref().and_then(|p| p.rsplit_once('/'));
    if is_at(FOLDER) || is_at("") || last_words.is_some_and(|(folder, _)| folder == FOLDER) {
        return Vec::new();
    }
    let files = ["hosts", "hostname", "resolv.conf"].into_iter();
    files.filter(|name| !is_at(&format!("{FOLDER}/{name}"))).collect()
}

fn hostname(pod: &Pod) -> &str {
    let own = pod.spec.as_ref().and_then(|spec| spec.hostname.as_deref());
    own.filter(|name| !name.is_empty()).or(pod.metadata.name.as_deref()).unwrap_or_default()
}

fn hosts(pod: &Pod, ips: &[IpAddr]) -> String {
    let mut text = "# Kubernetes-managed hosts file.\n\
        127.0.0.1\tlocalhost\n\
        ::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::0\tip6-localnet\n\
        fe00::0\tip6-mcastprefix\n\
        fe00::1\tip6-allnodes\n\
        fe00::2\tip6-allrouters\n"
        .to_owned();
    let hostname = hostname(pod);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let spec = pod.spec.as_ref();
    let subdomain = spec.and_then(|spec| spec.subdomain.as_deref()).filter(|name| !name.is_empty());
    for ip in ips {
        match subdomain {
            Some(sub) => text.push_str(&format!(
                "{ip}\t{hostname}.{sub}.{namespace}.svc.{CLUSTER_DOMAIN}\t{hostname}\n"
            )),
            None => text.push_str(&format!("{ip}\t{hostname}\n")),
        }
    }
    let aliases: Vec<_> = spec.into_iter().flat_map(|s| s.host_aliases.iter().flatten()).collect();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names = alias.hostnames.clone().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

/// What a `resolv.conf` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Resolver {
    searches: Vec<String>,
    nameservers: Vec<String>,
    options: Vec<String>,
}

/// How the pod's names are looked up: the domains that one which is not whole is tried in, and with
/// how many dots it is tried as it stands first.
pub(crate) fn lookups(pod: &Pod) -> (Vec<String>, usize) {
    let resolver = resolver(pod, || node_resolv_conf(Path::new(NODE_RESOLV_CONF)));
    let searches = resolver.searches.iter().map(|domain| domain.trim_matches('.').to_owned());
    let ndots = resolver.options.iter().find_map(|option| option.strip_prefix("ndots:"));
    // As many as resolvers take; what is no number is the default of them all.
    let ndots = ndots.and_then(|text| text.parse().ok()).unwrap_or(1_usize).min(NDOTS_MAX);
    (searches.filter(|domain| !domain.is_empty()).collect(), ndots)
}

/// No nameserver stands there but those that the pod or its node names: the sandbox asks none.
fn resolv_conf(pod: &Pod, of_node: impl FnOnce() -> Resolver) -> String {
    let resolver = resolver(pod, of_node);
    let mut text = String::new();
    if !resolver.searches.is_empty() {
        text.push_str(&format!("search {}\n", resolver.searches.join(" ")));
    }
    for server in resolver.nameservers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !resolver.options.is_empty() {
        text.push_str(&format!("options {}\n", resolver.options.join(" ")));
    }
    text
}

/// The pod's resolver, by its `dnsPolicy` and `dnsConfig`.
fn resolver(pod: &Pod, of_node: impl FnOnce() -> Resolver) -> Resolver {
    let spec = pod.spec.as_ref();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut resolver = match spec.and_then(|spec| spec.dns_policy.as_deref()) {
        Some("None") => Resolver::default(),
        Some("Default") => of_node(),
        _ => Resolver {
            searches: vec![
                format!("{namespace}.svc.{CLUSTER_DOMAIN}"),
                format!("svc.{CLUSTER_DOMAIN}"),
                CLUSTER_DOMAIN.to_owned(),
            ],
            nameservers: Vec::new(),
            options: vec!["ndots:5".to_owned()],
        },
    };
    if let Some(own) = spec.and_then(|spec| spec.dns_config.as_ref()) {
        add(&mut resolver.nameservers, own.nameservers.iter().flatten().cloned());
        add(&mut resolver.searches, own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            // The pod's own word replaces the other one.
            resolver.options.retain(|had| had.split(':').next() != Some(name.as_str()));
            let value = option.value.as_deref().filter(|value| !value.is_empty());
            resolver.options.push(value.map_or(name.clone(), |value| format!("{name}:{value}")));
        }
    }
    resolver.searches.truncate(SEARCHES_MAX);
    resolver.nameservers.truncate(NAMESERVERS_MAX);
    resolver
}

/// Adds what is not there yet.
fn add(to: &mut Vec<String>, more: impl Iterator<Item = String>) {
    for one in more {
        if !to.contains(&one) {
            to.push(one);
        }
    }
}

fn node_resolv_conf(path: &Path) -> Resolver {
    let mut text = String::new();
    // A node without the file has nothing to give.
    let read = std::fs::File::open(path).and_then(|file| {
        let mut file = io::Read::take(file, RESOLV_CONF_BYTES_MAX);
        io::Read::read_to_string(&mut file, &mut text)
    });
    if read.is_err() {
        return Resolver::default();
    }
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (key, rest) = (words.next(), words.map(str::to_owned));
        match key {
            // The last one counts, as for the system's resolver.
            Some("search" | "domain") => resolver.searches = rest.collect(),
            Some("nameserver") => resolver.nameservers.extend(rest.take(1)),
            Some("options") => resolver.options.extend(rest),
            _ => {}
        }
    }
    resolver
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        let mut pod = json!({"metadata": {"name": "web-1", "namespace": "shop"},
            "spec": {"containers": []}});
        json_patch::merge(&mut pod["spec"], &spec);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn the_hosts_file_is_the_kubelets() {
        let ips = ["10.42.0.5".parse().unwrap()];
        let plain = hosts(&pod(json!({})), &ips);
        assert!(plain.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(plain.ends_with("\tip6-allrouters\n10.42.0.5\tweb-1\n"), "{plain}");
        let full = hosts(
            &pod(json!({"hostname": "db", "subdomain": "pg", "hostAliases": [
                {"ip": "10.1.2.3", "hostnames": ["a", "b.c"]}, {"ip": "::2", "hostnames": ["d"]}]})),
            &ips,
        );
        assert!(
            full.ends_with(
                "10.42.0.5\tdb.pg.shop.svc.cluster.local\tdb\n\n\
                 # Entries added by HostAliases.\n10.1.2.3\ta\tb.c\n::2\td\n"
            ),
            "{full}"
        );
    }

    #[test]
    fn the_resolver_follows_the_pods_policy() {
        let of_node = || Resolver {
            searches: vec!["lan".to_owned()],
            nameservers: vec!["192.0.2.1".to_owned()],
            options: vec!["edns0".to_owned()],
        };
        let text = |spec: Value| resolv_conf(&pod(spec), of_node);
        let cluster = "search shop.svc.cluster.local svc.cluster.local cluster.local\n";
        assert_eq!(text(json!({})), format!("{cluster}options ndots:5\n"));
        let node = "search lan\nnameserver 192.0.2.1\noptions edns0\n";
        assert_eq!(text(json!({"dnsPolicy": "Default"})), node);
        assert_eq!(text(json!({"dnsPolicy": "None"})), "");
        let own = json!({"nameservers": ["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"],
            "searches": ["example.org", "cluster.local"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}]});
        assert_eq!(
            text(json!({"dnsConfig": own})),
            "search shop.svc.cluster.local svc.cluster.local cluster.local example.org\n\
             nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\noptions ndots:2 rotate\n"
        );
        let none = text(json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"]}}));
        assert_eq!(none, "nameserver 1.1.1.1\n");
    }

    #[test]
    fn names_are_looked_up_as_the_resolver_says() {
        let of = |spec: Value| lookups(&pod(spec));
        let cluster = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"];
        assert_eq!(of(json!({})), (cluster.map(str::to_owned).to_vec(), 5));
        let own =
            json!({"searches": ["example.org."], "options": [{"name": "ndots", "value": "2"}]});
        let none = json!({"dnsPolicy": "None", "dnsConfig": own});
        assert_eq!(of(none), (vec!["example.org".to_owned()], 2));
        assert_eq!(of(json!({"dnsPolicy": "None"})), (Vec::new(), 1));
    }

    #[test]
    fn the_nodes_file_is_read_as_the_system_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let text = "# x\ndomain old\nsearch a b\nnameserver 192.0.2.1 x\nnameserver 192.0.2.2\noptions edns0 trust-ad\nsortlist y\n";
        std::fs::write(&path, text).unwrap();
        let read = node_resolv_conf(&path);
        assert_eq!(read.searches, ["a", "b"]);
        assert_eq!(read.nameservers, ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(read.options, ["edns0", "trust-ad"]);
        assert_eq!(node_resolv_conf(&folder.path().join("none")), Resolver::default());
    }

    #[test]
    fn a_containers_own_mounts_win() {
        let left = |paths: &[&str]| {
            let mounts: Vec<_> =
                paths.iter().map(|path| json!({"name": "v", "mountPath": path})).collect();
            let container: Container =
                serde_json::from_value(json!({"name": "c", "volumeMounts": mounts})).unwrap();
            wanted(&container)
        };
        assert_eq!(left(&["/etc/ssl", "/data"]), ["hosts", "hostname", "resolv.conf"]);
        assert_eq!(left(&["/etc/hosts"]), ["hostname", "resolv.conf"]);
        assert!(left(&["/etc/"]).is_empty());
        assert!(left(&["/"]).is_empty());
        let last: Container =
            serde_json::from_value(json!({"name": "c", "terminationMessagePath": "/etc/last"}))
                .unwrap();
        assert!(wanted(&last).is_empty());
    }
}
