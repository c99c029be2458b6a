//! The Service `kubernetes` in `default`, by which pods find the API: its address, and the servers
//! behind it. Written by the leader, which knows the servers.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use edgeorc_raft::{Replica, Status};
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use crate::client::is_already_exists;
use crate::config::ServiceCidrs;

/// Name and namespace of the Service.
const NAME: &str = "kubernetes";
const NAMESPACE: &str = "default";
/// Its port.
const PORT: u16 = 443;
/// Pause after a write that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Label that ties a slice to its Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Says that nobody is to make slices of these `Endpoints`: they are made beside them.
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";

/// The Service's address: the first of the range. In every server's certificate.
pub(super) fn address(cidrs: &ServiceCidrs) -> IpAddr {
    cidrs.primary.first()
}

/// Keeps Service and endpoints as the servers are, for ever.
pub(super) async fn keep(client: kube::Client, replica: Replica, cidrs: ServiceCidrs) {
    let mut status = replica.status();
    let mut written: Option<Vec<Value>> = None;
    loop {
        let wanted = slices(&status.borrow_and_update());
        if written.as_ref() != Some(&wanted) {
            match write(&client, address(&cidrs), &wanted).await {
                Ok(()) => written = Some(wanted),
                Err(err) => {
                    tracing::debug!(%err, "the API's own service is not written yet");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// The endpoints: one slice for each port and family that servers have.
fn slices(status: &Status) -> Vec<Value> {
    let addresses = status.members.values().filter_map(|member| member.address.parse().ok());
    let mut groups: BTreeMap<(bool, u16), Vec<IpAddr>> = BTreeMap::new();
    for address in addresses.collect::<std::collections::BTreeSet<SocketAddr>>() {
        groups.entry((address.is_ipv6(), address.port())).or_default().push(address.ip());
    }
    let slice = |(at, ((is_v6, port), ips)): (usize, ((bool, u16), Vec<IpAddr>))| {
        let name = if at == 0 { NAME.to_owned() } else { format!("{NAME}-{at}") };
        let endpoint =
            |ip: &IpAddr| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}});
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name, "namespace": NAMESPACE,
                "labels": { SERVICE_LABEL: NAME },
            },
            "addressType": if is_v6 { "IPv6" } else { "IPv4" },
            "endpoints": ips.iter().map(endpoint).collect::<Vec<_>>(),
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        })
    };
    groups.into_iter().enumerate().map(slice).collect()
}

async fn write(client: &kube::Client, ip: IpAddr, wanted: &[Value]) -> Result<(), kube::Error> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    if services.get_opt(NAME).await?.is_none() {
        let service = json!({
            "metadata": {"name": NAME, "namespace": NAMESPACE,
                "labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {"clusterIP": ip.to_string(), "ports": [
                {"name": "https", "port": PORT, "targetPort": 6443, "protocol": "TCP"}]},
        });
        let service = serde_json::from_value(service).map_err(kube::Error::SerdeError)?;
        match services.create(&PostParams::default(), &service).await {
            Err(err) if !is_already_exists(&err) => return Err(err),
            _ => {}
        }
    }
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let mut kept = Vec::new();
    for slice in wanted {
        let typed: EndpointSlice =
            serde_json::from_value(slice.clone()).map_err(kube::Error::SerdeError)?;
        let name = typed.name_any();
        if api.get_opt(&name).await?.is_none() {
            api.create(&PostParams::default(), &typed).await?;
        } else {
            api.patch(&name, &PatchParams::default(), &Patch::Merge(slice)).await?;
        }
        kept.push(name);
    }
    let of_service = kube::api::ListParams::default().labels(&format!("{SERVICE_LABEL}={NAME}"));
    for slice in api.list(&of_service).await? {
        let name = slice.name_any();
        if !kept.contains(&name) {
            api.delete(&name, &kube::api::DeleteParams::default()).await?;
        }
    }
    write_endpoints(client, wanted).await
}

/// The same for clients that know no EndpointSlice.
async fn write_endpoints(client: &kube::Client, slices: &[Value]) -> Result<(), kube::Error> {
    let api: Api<Endpoints> = Api::namespaced(client.clone(), NAMESPACE);
    let wanted = endpoints(slices);
    if api.get_opt(NAME).await?.is_none() {
        let typed = serde_json::from_value(wanted).map_err(kube::Error::SerdeError)?;
        api.create(&PostParams::default(), &typed).await?;
    } else {
        api.patch(NAME, &PatchParams::default(), &Patch::Merge(wanted)).await?;
    }
    Ok(())
}

fn endpoints(slices: &[Value]) -> Value {
    let subset = |slice: &Value| {
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        let addresses = endpoints.map(|endpoint| json!({"ip": endpoint.pointer("/addresses/0")}));
        json!({"addresses": addresses.collect::<Vec<_>>(), "ports": slice["ports"]})
    };
    json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "name": NAME, "namespace": NAMESPACE,
            "labels": { SKIP_MIRROR: "true" },
        },
        "subsets": slices.iter().map(subset).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use edgeorc_raft::Member;

    use super::*;

    #[test]
    fn servers_of_one_port_share_a_slice() {
        let mut status = Status::default();
        for (id, address) in
            ["10.0.0.2:6443", "10.0.0.1:6443", "10.0.0.3:7443", "node"].into_iter().enumerate()
        {
            let id = id as u64;
            let member = Member {
                id,
                name: id.to_string(),
                address: address.to_owned(),
                store_uuid: [0; 16],
            };
            status.members.insert(id, member);
        }
        let slices = slices(&status);
        assert_eq!(slices.len(), 2);
        assert_eq!(slices[0]["metadata"]["name"], NAME);
        assert_eq!(slices[0]["endpoints"][0]["addresses"], json!(["10.0.0.1"]));
        assert_eq!(slices[0]["endpoints"].as_array().unwrap().len(), 2);
        assert_eq!(slices[1]["ports"][0]["port"], 7443);
        let endpoints = endpoints(&slices);
        assert_eq!(endpoints["metadata"]["labels"][SKIP_MIRROR], "true");
        assert_eq!(
            endpoints["subsets"][0],
            json!({
                "addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}],
                "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}],
            })
        );
    }
}
