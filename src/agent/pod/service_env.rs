//! Service links: the variables by which a container finds Services without DNS.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, Service};

/// Namespace and name of the API's own Service, whose variables every pod has.
const API_SERVICE: (&str, &str) = ("default", "kubernetes");

/// The variables for `pod`: of its namespace's Services unless `enableServiceLinks` is false, and
/// of the API's. Only Services with an address have some.
pub(crate) fn service_env<'a>(
    pod: &Pod,
    services: impl IntoIterator<Item = &'a Service>,
) -> Vec<(String, String)> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let wants_links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    let mut found: Vec<(bool, &str, &Service)> = services
        .into_iter()
        .filter_map(|service| {
            let name = service.metadata.name.as_deref()?;
            let of = service.metadata.namespace.as_deref()?;
            let is_own = wants_links && of == namespace;
            let is_api = (of, name) == API_SERVICE;
            // A Service of the pod's own namespace hides the API's of the same name.
            (is_own || is_api).then_some((of == namespace, name, service))
        })
        .collect();
    found.sort_by_key(|(is_own, name, _)| (*is_own, *name));
    let mut env = Vec::new();
    for (_, name, service) in found {
        add(name, service, &mut env);
    }
    env
}

fn add(name: &str, service: &Service, env: &mut Vec<(String, String)>) {
    let Some(spec) = &service.spec else { return };
    let Some(ip) = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()) else {
        return;
    };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    let prefix = upper(name);
    let mut set = |suffix: String, value: String| env.push((format!("{prefix}{suffix}"), value));
    set("_SERVICE_HOST".to_owned(), ip.to_string());
    set("_SERVICE_PORT".to_owned(), first.port.to_string());
    for port in ports {
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            set(format!("_SERVICE_PORT_{}", upper(name)), port.port.to_string());
        }
    }
    let host = match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    for (at, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let (lower, number) = (protocol.to_lowercase(), port.port);
        let url = format!("{lower}://{host}:{number}");
        if at == 0 {
            set("_PORT".to_owned(), url.clone());
        }
        let of_port = format!("_PORT_{number}_{}", protocol.to_uppercase());
        set(of_port.clone(), url);
        set(format!("{of_port}_PROTO"), lower);
        set(format!("{of_port}_PORT"), number.to_string());
        set(format!("{of_port}_ADDR"), ip.to_string());
    }
}

fn upper(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;

    fn service(namespace: &str, name: &str, ip: &str, ports: Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"clusterIP": ip, "ports": ports},
        }))
        .unwrap()
    }

    fn env_of(wants_links: Option<bool>) -> BTreeMap<String, String> {
        let pod = json!({"metadata": {"namespace": "shop"},
            "spec": {"containers": [], "enableServiceLinks": wants_links}});
        let pod = serde_json::from_value(pod).unwrap();
        let services = [
            service(
                "shop",
                "redis-primary",
                "10.43.0.11",
                json!([{"name": "db-port", "port": 6379}, {"port": 53, "protocol": "UDP"}]),
            ),
            service("shop", "six", "fd00::1", json!([{"port": 80, "protocol": "TCP"}])),
            service("shop", "headless", "None", json!([{"port": 80}])),
            service("other", "hidden", "10.43.0.12", json!([{"port": 80}])),
            service("default", "kubernetes", "10.43.0.1", json!([{"name": "https", "port": 443}])),
        ];
        service_env(&pod, &services).into_iter().collect()
    }

    #[test]
    fn a_pod_has_the_variables_of_its_namespace_and_of_the_api() {
        let env = env_of(None);
        for (name, value) in [
            ("REDIS_PRIMARY_SERVICE_HOST", "10.43.0.11"),
            ("REDIS_PRIMARY_SERVICE_PORT", "6379"),
            ("REDIS_PRIMARY_SERVICE_PORT_DB_PORT", "6379"),
            ("REDIS_PRIMARY_PORT", "tcp://10.43.0.11:6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP", "tcp://10.43.0.11:6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP_PROTO", "tcp"),
            ("REDIS_PRIMARY_PORT_6379_TCP_PORT", "6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP_ADDR", "10.43.0.11"),
            ("REDIS_PRIMARY_PORT_53_UDP", "udp://10.43.0.11:53"),
            ("SIX_PORT", "tcp://[fd00::1]:80"),
            ("KUBERNETES_SERVICE_HOST", "10.43.0.1"),
            ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
        ] {
            assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!env.keys().any(|name| name.starts_with("HEADLESS") || name.starts_with("HIDDEN")));
    }

    #[test]
    fn without_service_links_only_the_api_is_told_of() {
        let env = env_of(Some(false));
        assert!(env.contains_key("KUBERNETES_SERVICE_HOST"));
        assert!(!env.keys().any(|name| name.starts_with("REDIS")));
    }
}
