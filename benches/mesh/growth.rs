//! How tables and their changes grow: with Services, with endpoints, with nodes that watch.

use std::sync::Arc;
use std::time::{Duration, Instant};

use edgeorc::mesh::{Local, LocalError, Mesh, MeshConfig, Routes};
use edgeorc::net::{Body, BoxIo};
use edgeorc::rt::{Rng, TaskGroup};
use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Config};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::support::{Row, row};
use crate::{Bench, Size};

/// Endpoints of each Service, in the small and in the large table.
const ENDPOINTS: [usize; 2] = [1, 10];
/// Changes of one endpoint that are timed.
const CHANGES: usize = 100;
/// Longest time until all have seen a change.
const SEEN_WITHIN: Duration = Duration::from_secs(30);
/// Name of the slice that changes.
const SLICE: &str = "bench-endpoint-change";

/// No pods.
#[derive(Debug)]
struct Nobody;

#[async_trait::async_trait]
impl Local for Nobody {
    async fn connect(
        &self,
        _: Option<std::net::SocketAddr>,
        _: std::net::SocketAddr,
    ) -> std::io::Result<BoxIo> {
        Err(std::io::ErrorKind::ConnectionRefused.into())
    }

    async fn http(
        &self,
        _: std::net::SocketAddr,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, LocalError> {
        Err(LocalError::Refused(Box::new(request)))
    }
}

pub(crate) fn rows(bench: &Bench, size: &Size) -> Vec<Row> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut rows = tables(size);
        rows.extend(changes(bench, size).await);
        rows
    })
}

fn mesh() -> Mesh {
    let tasks = TaskGroup::new(&CancellationToken::new());
    let mut config = MeshConfig::new("node-0", Arc::new(Nobody), tasks, Rng::seeded(1));
    config.node_port_ip = None;
    Mesh::new(config)
}

fn object<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn service(at: usize) -> Service {
    let ip = format!("10.43.{}.{}", at / 250, at % 250 + 1);
    object(json!({
        "metadata": { "namespace": "default", "name": format!("s{at}") },
        "spec": { "clusterIP": ip, "ports": [{ "port": 80 }] },
    }))
}

fn slice(at: usize, endpoints: usize) -> EndpointSlice {
    let endpoint = |i: usize| {
        json!({
            "addresses": [format!("10.42.{}.{}", i % 50, at % 250 + 1)],
            "nodeName": format!("node-{}", i % 50), "conditions": { "ready": true },
        })
    };
    let endpoints: Vec<_> = (0..endpoints).map(endpoint).collect();
    object(json!({
        "addressType": "IPv4",
        "metadata": {
            "namespace": "default", "name": format!("s{at}-1"),
            "labels": { "kubernetes.io/service-name": format!("s{at}") },
        },
        "endpoints": endpoints, "ports": [{ "port": 8080, "protocol": "TCP" }],
    }))
}

/// Time to build a table and to put it in place.
fn tables(size: &Size) -> Vec<Row> {
    let nodes: Vec<Node> = (0..50)
        .map(|at| {
            object(json!({
                "metadata": { "name": format!("node-{at}") },
                "spec": { "podCIDR": format!("10.42.{at}.0/24") },
            }))
        })
        .collect();
    let mut rows = Vec::new();
    for count in [10, 1_000, 10_000].into_iter().filter(|count| *count <= size.services.max(10)) {
        for endpoints in ENDPOINTS {
            let services: Vec<_> = (0..count).map(service).collect();
            let slices: Vec<_> = (0..count).map(|at| slice(at, endpoints)).collect();
            let mesh = mesh();
            let mut times = Vec::new();
            for _ in 0..5 {
                let began = Instant::now();
                mesh.publish(Routes::build(&services, &slices, &nodes, &[], "node-0"));
                times.push(began.elapsed().as_secs_f64() * 1e3);
            }
            let name = format!("new table, {count} Services of {endpoints} endpoints");
            rows.push(row(&name, crate::support::median(times), "ms", "", f64::INFINITY));
        }
    }
    rows
}

/// From the write of an endpoint to the tables of all nodes, of which each watches as an agent does.
async fn changes(bench: &Bench, size: &Size) -> Vec<Row> {
    let kubeconfig = kube::config::Kubeconfig::read_from(bench.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
    let client = Client::try_from(config).unwrap();
    let api = Api::<EndpointSlice>::default_namespaced(client.clone());
    let mut first = slice(0, 1);
    first.metadata.name = Some(SLICE.to_owned());
    api.create(&PostParams::default(), &first).await.unwrap();
    let (seen, mut seen_by) = mpsc::channel(1024);
    let tasks = TaskGroup::new(&CancellationToken::new());
    for _ in 0..size.watchers {
        let (api, seen) = (api.clone(), seen.clone());
        tasks.spawn_until_cancelled("watcher", async move {
            let mesh = mesh();
            let services = [service(0)];
            let stream = watcher(api, watcher::Config::default()).default_backoff();
            let mut stream = Box::pin(stream.applied_objects());
            while let Ok(Some(slice)) = stream.try_next().await {
                if slice.metadata.name.as_deref() != Some(SLICE) {
                    continue;
                }
                mesh.publish(Routes::build(&services, [&slice], &[], &[], "node-0"));
                let change = slice.metadata.annotations.and_then(|a| a.get("change").cloned());
                if seen.send((change.unwrap_or_default(), Instant::now())).await.is_err() {
                    return;
                }
            }
        });
    }
    for _ in 0..size.watchers {
        tokio::time::timeout(SEEN_WITHIN, seen_by.recv()).await.expect("all watch").unwrap();
    }
    let mut times = Vec::new();
    for change in 0..CHANGES {
        let patch = json!({
            "metadata": { "annotations": { "change": change.to_string() } },
            "endpoints": [{
                "addresses": [format!("10.42.0.{}", change % 200 + 1)],
                "conditions": { "ready": true },
            }],
        });
        let began = Instant::now();
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let patching = api.patch(SLICE, &params, &patch);
        let (patched, ()) = tokio::join!(patching, async {
            for _ in 0..size.watchers {
                let (of, at) =
                    tokio::time::timeout(SEEN_WITHIN, seen_by.recv()).await.unwrap().unwrap();
                assert_eq!(of, change.to_string());
                times.push(at.saturating_duration_since(began).as_secs_f64() * 1e3);
            }
        });
        patched.unwrap();
    }
    tasks.shutdown(Duration::from_secs(1)).await;
    times.sort_by(f64::total_cmp);
    let p99 = times[(times.len() - 1) * 99 / 100];
    let name = format!("endpoint change until all of {} nodes route by it, p99", size.watchers);
    vec![row(&name, p99, "ms", "Kubernetes 1 s and more", 100.0)]
}
