//! The node's routing table, made anew whenever a Service, its endpoints, a Node or an Ingress
//! changes. Until a server is heard, it is made of what was known last.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::runtime::watcher;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::agent::http_routes::HttpSources;
use crate::agent::known_routes::{Keeper, KnownRoutes};
use crate::client::{Informer, informer};
use crate::mesh::{HttpRoutes, Mesh};
use crate::rt::TaskGroup;

/// Changes within this time become one table.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// The same for changes of nodes alone: a slice says by itself on which node its endpoints are, and a
/// fleet that starts would have all its nodes make a table for each of them. So long for each
/// [`DEBOUNCE_NODES_STEP`] nodes that there are, as a table takes the longer to make, but no longer than
/// for [`DEBOUNCE_STEPS_MAX`] times as many.
const DEBOUNCE_NODES: Duration = Duration::from_secs(1);
const DEBOUNCE_NODES_STEP: usize = 200;
const DEBOUNCE_STEPS_MAX: usize = 5;
/// So many times as long as a table took, its maker rests before the next, but no longer than
/// [`REST_MAX`]: where endpoints are many and change all the time, tables are a tenth of what a core does.
const REST_FACTOR: u32 = 9;
const REST_MAX: Duration = Duration::from_secs(1);

/// What routes are made of, besides HTTP.
pub(crate) struct Sources {
    pub(crate) client: kube::Client,
    pub(crate) services: Informer<Service>,
    pub(crate) nodes: Informer<Node>,
}

/// What of a Node routes are made of.
fn facts(node: &Node) -> impl PartialEq + use<> {
    let spec = node.spec.as_ref();
    let addresses = node.status.as_ref().and_then(|status| status.addresses.clone());
    let ranges = spec.map(|spec| (spec.pod_cidr.clone(), spec.pod_cidrs.clone()));
    (node.metadata.labels.clone(), ranges, addresses)
}

/// Publishes tables until `cancel`.
pub(crate) async fn run(
    sources: Sources,
    mut keeper: Keeper,
    mesh: Mesh,
    tasks: TaskGroup,
    cancel: CancellationToken,
) {
    let Sources { client, services, nodes } = sources;
    if let Some(known) = keeper.restore() {
        let http = HttpRoutes::build(&known.http);
        known.publish(http, &mesh);
    }
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
    let (mut a, mut b, mut c) = (services.changed(), slices.changed(), nodes.changed_in(facts));
    let mut nodes_due: Option<Instant> = None;
    let mut known = KnownRoutes::default();
    let mut has_news = true;
    let mut rested = Instant::now();
    loop {
        if has_news {
            let began = Instant::now();
            for changed in [&mut a, &mut b, &mut c] {
                changed.borrow_and_update();
            }
            nodes_due = None;
            known = publish(&services, &slices, &nodes, &mut http, &mesh);
            keeper.touch();
            rested = Instant::now() + rest(began.elapsed());
        }
        has_news = true;
        let more = tokio::select! {
            () = cancel.cancelled() => {
                keeper.write(&known, &tasks).await;
                return;
            }
            more = a.changed() => more,
            more = b.changed() => more,
            more = c.changed() => {
                nodes_due.get_or_insert_with(|| Instant::now() + debounce(nodes.store.len()));
                has_news = false;
                more
            }
            () = due(nodes_due) => Ok(()),
            () = http.changed() => Ok(()),
            () = keeper.is_due() => {
                keeper.write(&known, &tasks).await;
                has_news = false;
                Ok(())
            }
        };
        if more.is_err() {
            return;
        }
        if has_news {
            let due = rested.max(Instant::now() + DEBOUNCE);
            let _ = cancel.run_until_cancelled(tokio::time::sleep_until(due)).await;
        }
    }
}

/// Makes a table of what there is, and publishes it.
fn publish(
    services: &Informer<Service>,
    slices: &Informer<EndpointSlice>,
    nodes: &Informer<Node>,
    http: &mut HttpSources,
    mesh: &Mesh,
) -> KnownRoutes {
    let services = services.store.state();
    let mut known = KnownRoutes {
        http: http.objects(&services),
        services,
        slices: slices.store.state(),
        nodes: nodes.store.state(),
        ..KnownRoutes::default()
    };
    let http_routes = HttpRoutes::build(&known.http);
    known.certificates = http.certificates(&http_routes);
    known.publish(http_routes, mesh);
    http.tell_closed(mesh);
    known
}

/// How long the maker of a table rests that `took` so long.
fn rest(took: Duration) -> Duration {
    took.saturating_mul(REST_FACTOR).min(REST_MAX)
}

/// How long changes of nodes wait for more of them, where there are `count`.
fn debounce(count: usize) -> Duration {
    let steps = count.div_ceil(DEBOUNCE_NODES_STEP).clamp(1, DEBOUNCE_STEPS_MAX);
    DEBOUNCE_NODES.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX))
}

/// Waits until then; for ever if that is never.
async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_takes_long_is_not_made_again_at_once() {
        let millis = [0, 1, 50, 5000].map(|took| rest(Duration::from_millis(took)).as_millis());
        assert_eq!(millis, [0, 9, 450, 1000]);
    }

    #[test]
    fn the_larger_the_fleet_the_more_nodes_share_a_table() {
        let seconds = [0, 1, 200, 201, 1000, 100_000].map(|count| debounce(count).as_secs());
        assert_eq!(seconds, [1, 1, 1, 2, 5, 5]);
    }
}
