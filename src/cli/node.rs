//! `edgeorc node`, and the child process that compiles.

use std::future::Future;
use std::time::Duration;

use http::Method;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::api::{ACCEPT_JSON, Session};
use super::args::{Compile, Global, Node, NodeStart, Token};
use super::exit::{self, Failure};
use super::output;
use crate::config::{Environment, NodeFlags, NodeSettings, Sandboxes};
use crate::roles::{self, NodeError, RunningNode};

/// Runs one of the node verbs.
pub(super) async fn run(
    node: Node,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    match node {
        Node::Start(flags) => start_and_run(*flags, environment).await,
        Node::Token(Token::Create { ttl_minutes }) => {
            let ttl = Duration::from_secs(u64::from(ttl_minutes) * 60);
            create_token(ttl, global, environment).await
        }
    }
}

async fn start_and_run(flags: NodeStart, environment: &Environment) -> Result<(), Failure> {
    let flags = NodeFlags {
        node_name: flags.node_name,
        bind_address: flags.bind_address,
        data_dir: flags.data_dir,
        api_port: flags.api_port,
        ingress_port: flags.ingress_port,
        ingress_https_port: flags.ingress_https_port,
        ingress_access_log: flags.ingress_access_log,
        restart_backoff_min: flags.restart_backoff_min,
        restart_backoff_max: flags.restart_backoff_max,
        join: flags.join,
        token: flags.token,
        registries_file: flags.registries_file,
        image_gc_high: flags.image_gc_high,
        image_gc_low: flags.image_gc_low,
        no_compile: flags.no_compile,
        host_paths: flags.allow_host_path,
        cluster_cidr: flags.cluster_cidr,
        node_cidr_mask_size: flags.node_cidr_mask_size,
        service_cidr: flags.service_cidr,
        dns_bind: flags.dns_bind,
        dns_upstreams: flags.dns_upstream,
        max_pods: flags.max_pods,
        node_labels: flags.node_label,
        extended_resources: flags.extended_resource,
        devices: flags.device,
        address_bits_max: flags.address_bits_max,
        eviction_hard: flags.eviction_hard,
        eviction_transition_period: flags.eviction_pressure_transition_period,
        pulley: flags.pulley,
        machine_root: flags.machine_root,
        otlp_endpoint: flags.otlp_endpoint,
        trace_ratio: flags.trace_ratio,
    };
    let settings = NodeSettings::build(flags, environment)
        .map_err(|cause| Failure::with(exit::USAGE, cause.to_string()))?;
    let stop = stop_signal()?;
    tokio::pin!(stop);
    let running = tokio::select! {
        running = start(settings) => running?,
        () = &mut stop => return Ok(()),
    };
    run_until(running, stop).await
}

/// Starts the node; the error is one sentence with its exit code.
pub(super) async fn start(settings: NodeSettings) -> Result<RunningNode, Failure> {
    may_open_many_files();
    roles::start(settings).await.map_err(|error| {
        let code = match error {
            NodeError::Join(_) => exit::JOIN,
            _ => exit::NODE,
        };
        Failure::with(code, error.to_string())
    })
}

/// Runs until `stop`, or until the node ends by itself.
/// Takes the number of open files that the system would allow: a shell allows 1024 at first, and each
/// connection is one.
fn may_open_many_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum
        && let Err(err) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%err, "cannot raise the number of open files");
    }
}

pub(super) async fn run_until(
    mut running: RunningNode,
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    tokio::select! {
        () = stop => output::words("stopping"),
        () = running.ended() => {}
    }
    end(running).await
}

/// Stops the node in order.
pub(super) async fn end(running: RunningNode) -> Result<(), Failure> {
    running.stop().await.map_err(|error| Failure::with(exit::NODE, error.to_string()))
}

/// Resolves at Ctrl-C or SIGTERM.
pub(super) fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    let listen = |kind| {
        signal(kind).map_err(|cause| Failure::failed(format!("cannot listen for signals: {cause}")))
    };
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Makes a bootstrap token Secret and prints the token.
async fn create_token(
    ttl: Duration,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    let session = Session::open(global, environment).await?;
    // The CA is read from the cluster, over a connection that already trusts it.
    let path = "/api/v1/namespaces/kube-system/configmaps/kube-root-ca.crt";
    let ca = session.get(path, ACCEPT_JSON).await?;
    let pem = ca.pointer("/data/ca.crt").and_then(|pem| pem.as_str()).unwrap_or_default();
    let token = roles::new_join_token(pem, ttl)
        .map_err(|cause| Failure::failed(format!("cannot make a token: {cause}")))?;
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": token.secret_name, "namespace": "kube-system"},
        "type": "bootstrap.kubernetes.io/token",
        "stringData": token.secret_data,
    });
    session
        .json(Method::POST, "/api/v1/namespaces/kube-system/secrets", ACCEPT_JSON, Some(&secret))
        .await?;
    output::data_line(&token.token)
}

/// Compiles one module; what a node runs as a child process.
pub(super) fn compile(compile: &Compile) -> Result<(), Failure> {
    let Compile { input, output, address_bits_max, pulley } = compile;
    let sandboxes = Sandboxes { address_bits_max: *address_bits_max, are_interpreted: *pulley };
    roles::compile_module(input, output, sandboxes).map_err(|error| {
        // The node takes INPUT as final for these bytes; anything else it tries again.
        let code = if roles::is_module_at_fault(&error) { exit::INPUT } else { exit::FAILED };
        Failure::with(code, error.to_string())
    })
}
