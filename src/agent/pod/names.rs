//! Names that a pod gives to addresses itself: `hostAliases`, and the searches of `dnsConfig`.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

/// Most search domains that are tried, as in Kubernetes.
const SEARCHES_MAX: usize = 32;

/// Each name of `spec.hostAliases` with its address.
pub(crate) fn host_aliases(pod: &Pod) -> Vec<(String, IpAddr)> {
    let aliases = pod.spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten());
    aliases
        .filter_map(|alias| Some((alias.ip.parse::<IpAddr>().ok()?, alias)))
        .flat_map(|(ip, alias)| alias.hostnames.iter().flatten().map(move |n| (n.clone(), ip)))
        .collect()
}

/// `spec.dnsConfig.searches`: tried after the cluster's own domains.
pub(crate) fn searches(pod: &Pod) -> Vec<String> {
    let config = pod.spec.as_ref().and_then(|spec| spec.dns_config.as_ref());
    let searches = config.into_iter().flat_map(|config| config.searches.iter().flatten());
    searches
        .map(|domain| domain.trim_matches('.').to_owned())
        .filter(|domain| !domain.is_empty())
        .take(SEARCHES_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn aliases_and_searches_are_read_from_the_spec() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [],
            "hostAliases": [{"ip": "10.1.2.3", "hostnames": ["a", "b.c"]}, {"ip": "x", "hostnames": ["d"]}],
            "dnsConfig": {"searches": ["example.org.", "."]}}}))
        .unwrap();
        let ip = IpAddr::from([10, 1, 2, 3]);
        assert_eq!(host_aliases(&pod), [("a".to_owned(), ip), ("b.c".to_owned(), ip)]);
        assert_eq!(searches(&pod), ["example.org"]);
    }
}
