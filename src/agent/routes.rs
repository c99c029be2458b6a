//! The node's routing table, made anew whenever a Service, its endpoints, a Node or an Ingress
//! changes.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::runtime::watcher;
use tokio_util::sync::CancellationToken;

use crate::agent::http_routes::HttpSources;
use crate::client::{Informer, informer};
use crate::mesh::{Mesh, Routes};
use crate::rt::TaskGroup;

/// Changes within this time become one table.
const DEBOUNCE: Duration = Duration::from_millis(5);

/// Publishes tables until `cancel`.
pub(crate) async fn run(
    client: kube::Client,
    services: Informer<Service>,
    nodes: Informer<Node>,
    mesh: Mesh,
    tasks: TaskGroup,
    cancel: CancellationToken,
) {
    let config = watcher::Config::default;
    let slices = informer(Api::<EndpointSlice>::all(client.clone()), config(), &tasks);
    let node = mesh.node_name().to_owned();
    let mut http = HttpSources::start(client, node, nodes.clone(), &tasks);
    let ready = async {
        services.ready().await && slices.ready().await && nodes.ready().await && http.ready().await
    };
    if cancel.run_until_cancelled(ready).await != Some(true) {
        return;
    }
    let (mut a, mut b, mut c) = (services.changed(), slices.changed(), nodes.changed());
    loop {
        for changed in [&mut a, &mut b, &mut c] {
            changed.borrow_and_update();
        }
        let (services, slices) = (services.store.state(), slices.store.state());
        let nodes = nodes.store.state();
        let (http_routes, certificates) = http.build(&services);
        let routes = Routes::build(
            services.iter().map(AsRef::as_ref),
            slices.iter().map(AsRef::as_ref),
            nodes.iter().map(AsRef::as_ref),
            [],
            mesh.node_name(),
        );
        mesh.set_certificates(certificates);
        mesh.publish(routes.with_http(http_routes));
        http.tell_closed(&mesh);
        let more = tokio::select! {
            () = cancel.cancelled() => return,
            more = a.changed() => more,
            more = b.changed() => more,
            more = c.changed() => more,
            () = http.changed() => Ok(()),
        };
        if more.is_err() {
            return;
        }
        tokio::time::sleep(DEBOUNCE).await;
    }
}
