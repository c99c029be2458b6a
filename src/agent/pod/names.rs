//! Names of a pod and those it gives to addresses itself: its hostname and
//! `hostAliases`.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use crate::mesh::CLUSTER_DOMAIN;

/// Longest hostname, as of Linux.
const HOSTNAME_BYTES_MAX: usize = 63;

/// The pod's hostname: `spec.hostname`, or its name as far as that can be one.
pub(crate) fn hostname(pod: &Pod) -> String {
    let own = pod.spec.as_ref().and_then(|spec| spec.hostname.clone());
    let name = own.filter(|name| !name.is_empty()).or_else(|| pod.metadata.name.clone());
    let name = name.unwrap_or_default();
    let head = name.get(..HOSTNAME_BYTES_MAX.min(name.len())).unwrap_or(&name);
    head.trim_end_matches(['-', '.']).to_owned()
}

/// What the pod's containers find as `HOSTNAME`: with `setHostnameAsFQDN` the whole name, if the
/// pod has a subdomain.
pub(crate) fn shown_hostname(pod: &Pod) -> String {
    let hostname = hostname(pod);
    let spec = pod.spec.as_ref().filter(|spec| spec.set_hostname_as_fqdn == Some(true));
    match spec.and_then(|spec| spec.subdomain.as_deref()).filter(|name| !name.is_empty()) {
        Some(subdomain) => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            format!("{hostname}.{subdomain}.{namespace}.svc.{CLUSTER_DOMAIN}")
        }
        None => hostname,
    }
}

/// Each name of `spec.hostAliases` with its address.
pub(crate) fn host_aliases(pod: &Pod) -> Vec<(String, IpAddr)> {
    let aliases = pod.spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten());
    aliases
        .filter_map(|alias| Some((alias.ip.parse::<IpAddr>().ok()?, alias)))
        .flat_map(|(ip, alias)| alias.hostnames.iter().flatten().map(move |n| (n.clone(), ip)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn aliases_are_read_from_the_spec() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [],
            "hostAliases": [{"ip": "10.1.2.3", "hostnames": ["a", "b.c"]}, {"ip": "x", "hostnames": ["d"]}]}}))
        .unwrap();
        let ip = IpAddr::from([10, 1, 2, 3]);
        assert_eq!(host_aliases(&pod), [("a".to_owned(), ip), ("b.c".to_owned(), ip)]);
    }

    #[test]
    fn a_hostname_is_the_specs_or_the_pods_name_and_whole_if_asked_for() {
        let names = |name: &str, spec: serde_json::Value| {
            let mut pod = json!({"metadata": {"name": name, "namespace": "shop"},
                "spec": {"containers": []}});
            json_patch::merge(&mut pod["spec"], &spec);
            let pod: Pod = serde_json::from_value(pod).unwrap();
            (hostname(&pod), shown_hostname(&pod))
        };
        let both = |name: &str| (name.to_owned(), name.to_owned());
        assert_eq!(names("web-1", json!({})), both("web-1"));
        assert_eq!(names("web-1", json!({"hostname": "h", "subdomain": "s"})), both("h"));
        let long = format!("{}-{}", "a".repeat(62), "b".repeat(20));
        assert_eq!(names(&long, json!({})), both(&"a".repeat(62)));
        let whole = json!({"hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true});
        assert_eq!(names("web-1", whole), ("h".into(), "h.s.shop.svc.cluster.local".into()));
        assert_eq!(names("web-1", json!({"setHostnameAsFQDN": true})), both("web-1"));
    }
}
