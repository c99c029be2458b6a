//! `edgeorc deploy`.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::api::{ACCEPT_JSON, Session};
use super::args::{Deploy, Global, OutputFormat};
use super::exit::{self, Failure};
use super::manifest::App;
use super::progress::Progress;
use super::{output, push, wait};
use crate::api::names;
use crate::config::Environment;
use crate::roles;

/// Port of a sidecar that names none.
const SIDECAR_PORT: u16 = 9090;
/// Largest component taken, in bytes; the registry's own limit.
const COMPONENT_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Checks, pushes, and makes the objects of an app.
pub(super) async fn run(
    deploy: Deploy,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    let name = match &deploy.name {
        Some(name) => checked(name)?,
        None => name_of(&deploy.app)?,
    };
    let env = parse_env(&deploy.env)?;
    let wasm = read_component(&deploy.app)?;
    let mut sidecars = Vec::new();
    for sidecar in &deploy.sidecar {
        let (file, port) = split_sidecar(sidecar);
        sidecars.push((name_of(Path::new(file))?, read_component(Path::new(file))?, port));
    }
    let session = Session::open(global, environment).await?;
    let mut progress = Progress::start(&format!("pushing {}", deploy.app.display()));
    let image = push::push(&session, &name, &wasm).await?;
    let mut pushed = Vec::new();
    for (sidecar, wasm, port) in sidecars {
        progress.step(&format!("pushing sidecar {sidecar}"));
        let image = push::push(&session, &sidecar, &wasm).await?;
        pushed.push((sidecar, image, port));
    }
    let host = deploy.host.clone();
    let app = App {
        host: host.unwrap_or_else(|| format!("{name}.{}.localhost", session.namespace)),
        name,
        namespace: session.namespace.clone(),
        image,
        port: deploy.port,
        env,
        replicas: deploy.replicas,
        sidecars: pushed,
    };
    let objects = apply(&session, &app).await?;
    if deploy.wait {
        let patience = wait::Patience { limit: deploy.timeout, settle: wait::SETTLE, since: None };
        wait::until_ready(&session, &app.name, patience, &mut progress).await?;
    }
    progress.finish();
    report(&app, &objects, ingress_port(&session).await, deploy.output)
}

/// `:PORT` of the ingress, as the first node tells it; nothing when no node does.
async fn ingress_port(session: &Session) -> String {
    let nodes = session.get("/api/v1/nodes?limit=1", ACCEPT_JSON).await.unwrap_or_default();
    let address = nodes
        .pointer("/items/0/metadata/annotations/edgeorc.io~1ingress-address")
        .and_then(Value::as_str)
        .and_then(|address| address.parse::<SocketAddr>().ok());
    address.map(|address| format!(":{}", address.port())).unwrap_or_default()
}

/// Creates or updates the app's objects.
pub(super) async fn apply(session: &Session, app: &App) -> Result<Vec<Value>, Failure> {
    let namespace = &app.namespace;
    let objects = [
        (format!("/apis/apps/v1/namespaces/{namespace}/deployments"), app.deployment()),
        (format!("/api/v1/namespaces/{namespace}/services"), app.service()),
        (format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/ingresses"), app.ingress()),
    ];
    let mut made = Vec::new();
    for (collection, object) in objects {
        made.push(session.create_or_merge(&collection, &object).await?);
    }
    Ok(made)
}

fn report(
    app: &App,
    objects: &[Value],
    ingress_port: String,
    format: Option<OutputFormat>,
) -> Result<(), Failure> {
    match format {
        Some(OutputFormat::Json | OutputFormat::Yaml) => {
            let list =
                json!({"apiVersion": "v1", "kind": "List", "items": objects, "metadata": {}});
            output::document(&list, format.unwrap_or(OutputFormat::Json))
        }
        Some(OutputFormat::Name) => output::data_line(&format!("deployment.apps/{}", app.name)),
        _ => {
            let node_port = objects
                .iter()
                .find_map(|o| o.pointer("/spec/ports/0/nodePort"))
                .map(|port| format!(", and at port {port} of every node"))
                .unwrap_or_default();
            output::words(&format!(
                "{} is served at the ingress as http://{}{ingress_port}/{node_port}",
                app.name, app.host
            ));
            output::data_line(&format!("deployment.apps/{} deployed", app.name))
        }
    }
}

/// Reads a file and checks that it is something a node can run.
pub(super) fn read_component(path: &Path) -> Result<Vec<u8>, Failure> {
    let bad = |why: String| Failure::with(exit::INPUT, format!("{}: {why}", path.display()));
    let size =
        std::fs::metadata(path).map_err(|cause| bad(format!("cannot read it: {cause}")))?.len();
    if size > COMPONENT_BYTES_MAX {
        return Err(bad(format!("{size} bytes are over the limit of {COMPONENT_BYTES_MAX}")));
    }
    let wasm = std::fs::read(path).map_err(|cause| bad(format!("cannot read it: {cause}")))?;
    roles::inspect_module(&wasm).map_err(|cause| bad(cause.to_string()))?;
    Ok(wasm)
}

/// The file's name without its ending, as a name Kubernetes takes.
pub(super) fn name_of(path: &Path) -> Result<String, Failure> {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let mapped: String = stem
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .collect();
    checked(mapped.trim_matches('-')).map_err(|_| {
        Failure::with(exit::USAGE, format!("cannot make a name of {}; set --name", path.display()))
    })
}

/// A name that all of the app's objects may have: the Service's is the narrowest.
fn checked(name: &str) -> Result<String, Failure> {
    names::check_dns1035_label(name)
        .map(|()| name.to_owned())
        .map_err(|rule| Failure::with(exit::USAGE, format!("the name {name:?} cannot be: {rule}")))
}

/// Splits `K=V` words.
pub(super) fn parse_env(words: &[String]) -> Result<Vec<(String, String)>, Failure> {
    words
        .iter()
        .map(|word| {
            word.split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .ok_or_else(|| Failure::with(exit::USAGE, format!("--env {word:?} is not K=V")))
        })
        .collect()
}

/// `FILE[:PORT]`.
fn split_sidecar(word: &str) -> (&str, u16) {
    word.rsplit_once(':')
        .and_then(|(file, port)| Some((file, port.parse().ok()?)))
        .unwrap_or((word, SIDECAR_PORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_becomes_a_kubernetes_name() {
        assert_eq!(name_of(Path::new("/x/My_App.v2.wasm")).unwrap(), "my-app-v2");
        assert!(name_of(Path::new("___.wasm")).is_err());
        assert!(name_of(Path::new("2048.wasm")).is_err(), "a Service's name starts with a letter");
        assert!(checked("Bad_Name").is_err());
    }

    #[test]
    fn a_sidecar_may_name_its_port() {
        assert_eq!(split_sidecar("a.wasm"), ("a.wasm", SIDECAR_PORT));
        assert_eq!(split_sidecar("a.wasm:80"), ("a.wasm", 80));
        assert_eq!(split_sidecar("a:b.wasm"), ("a:b.wasm", SIDECAR_PORT));
    }

    #[test]
    fn environment_words_need_a_key() {
        assert_eq!(parse_env(&["A=b=c".into()]).unwrap(), [("A".into(), "b=c".into())]);
        assert!(parse_env(&["=x".into()]).is_err());
        assert!(parse_env(&["x".into()]).is_err());
    }
}
