//! Services.

use serde_json::Value;

use crate::cli::describe::sheet::{Sheet, list, metadata, scalar, text};
use crate::cli::selector;

/// Endpoints shown of one port; the rest is counted.
const ENDPOINTS_MAX: usize = 3;

/// Describes a service, with its EndpointSlices.
pub(super) fn write(sheet: &mut Sheet, service: &Value, slices: &[Value]) {
    metadata(sheet, service);
    let selector = selector::of(service);
    sheet.pair(0, "Selector", if selector.is_empty() { "<none>".to_owned() } else { selector });
    sheet.pair(0, "Type", text(service, "/spec/type"));
    sheet.known(0, "IP Family Policy", text(service, "/spec/ipFamilyPolicy"));
    let words = |path: &str| list(service, path).iter().map(scalar).collect::<Vec<_>>().join(",");
    sheet.known(0, "IP Families", words("/spec/ipFamilies"));
    sheet.known(0, "IP", text(service, "/spec/clusterIP"));
    sheet.known(0, "IPs", words("/spec/clusterIPs"));
    sheet.known(0, "External IPs", words("/spec/externalIPs"));
    sheet.known(0, "External Name", text(service, "/spec/externalName"));
    for port in list(service, "/spec/ports") {
        let at = |path: &str| text(port, path);
        let name = Some(at("/name")).filter(|name| !name.is_empty());
        let shown = name.clone().unwrap_or_else(|| "<unset>".to_owned());
        let protocol = at("/protocol");
        sheet.pair(0, "Port", format!("{shown}  {}/{protocol}", at("/port")));
        sheet.pair(0, "TargetPort", format!("{}/{protocol}", at("/targetPort")));
        if !at("/nodePort").is_empty() {
            sheet.pair(0, "NodePort", format!("{shown}  {}/{protocol}", at("/nodePort")));
        }
        sheet.pair(0, "Endpoints", endpoints(slices, name.as_deref().unwrap_or_default()));
    }
    sheet.known(0, "Session Affinity", text(service, "/spec/sessionAffinity"));
    sheet.known(0, "External Traffic Policy", text(service, "/spec/externalTrafficPolicy"));
    sheet.known(0, "Internal Traffic Policy", text(service, "/spec/internalTrafficPolicy"));
}

/// `10.0.0.1:80,10.0.0.2:80 + 1 more...` of the ready endpoints of a port.
fn endpoints(slices: &[Value], port_name: &str) -> String {
    let mut ready = Vec::new();
    for slice in slices {
        let port = list(slice, "/ports").iter().find(|port| text(port, "/name") == port_name);
        let Some(port) = port.map(|port| text(port, "/port")) else { continue };
        for endpoint in list(slice, "/endpoints") {
            // Unknown counts as ready, as the API has it.
            let is_ready = endpoint.pointer("/conditions/ready").and_then(Value::as_bool);
            if is_ready.unwrap_or(true) {
                let addresses = list(endpoint, "/addresses").iter().map(scalar);
                ready.extend(addresses.map(|ip| {
                    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
                }));
            }
        }
    }
    ready.sort();
    let more = ready.len().saturating_sub(ENDPOINTS_MAX);
    ready.truncate(ENDPOINTS_MAX);
    match (ready.join(","), more) {
        (shown, _) if shown.is_empty() => "<none>".to_owned(),
        (shown, 0) => shown,
        (shown, more) => format!("{shown} + {more} more..."),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_is_told_with_its_ready_endpoints() {
        let service = json!({
            "metadata": {"name": "s", "namespace": "default"},
            "spec": {"type": "NodePort", "clusterIP": "10.96.0.5", "selector": {"app": "s"},
                "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080,
                    "protocol": "TCP"}]},
        });
        let endpoint =
            |ip: &str, ready: bool| json!({"addresses": [ip], "conditions": {"ready": ready}});
        let ips = ["10.0.0.4", "10.0.0.3", "10.0.0.2", "10.0.0.1"];
        let mut all: Vec<_> = ips.iter().map(|ip| endpoint(ip, true)).collect();
        all.push(endpoint("10.0.0.9", false));
        let slice = json!({"ports": [{"name": "http", "port": 8080}], "endpoints": all});
        let mut sheet = Sheet::default();
        write(&mut sheet, &service, &[slice]);
        let text = sheet.render();
        for line in [
            "Selector:     app=s",
            "Port:         http  80/TCP",
            "NodePort:     http  30080/TCP",
            "Endpoints:    10.0.0.1:8080,10.0.0.2:8080,10.0.0.3:8080 + 1 more...",
        ] {
            assert!(text.contains(line), "{line:?} expected in:\n{text}");
        }
        assert_eq!(endpoints(&[], "http"), "<none>");
    }
}
