//! `edgeorc describe`: an object and its events for reading, laid out as kubectl does.
//!
//! Data in: the object, and what belongs to it (ReplicaSets, EndpointSlices, pods). Data out: text.
//!
//! # Invariants
//!
//! - Asking is done here; what turns objects into text is pure.
//! - Neither managed fields nor the last applied configuration are ever shown.

mod container;
mod generic;
mod node;
mod pod;
mod service;
mod sheet;
mod workload;

use serde_json::Value;

use super::api::{ACCEPT_JSON, Session};
use super::args::{Describe, Global};
use super::exit::Failure;
use super::{events, get, output, selector, target, wait};
use crate::api::meta;
use crate::config::Environment;
use crate::rt::WallClock;
use sheet::Sheet;

/// Shows one object.
pub(super) async fn run(
    describe: Describe,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    let target = target::parse_one(&describe.what)?;
    let session = Session::open(global, environment).await?;
    let object = session.get(&target.path(Some(&session.namespace)), ACCEPT_JSON).await?;
    let now = WallClock::system().now();
    let namespace = &session.namespace;
    let name = meta::name(&object);
    let mut sheet = Sheet::default();
    match target.resource.plural {
        "pods" => pod::write(&mut sheet, &object, now),
        "deployments" => {
            let query = format!("labelSelector={}", get::escape(&selector::of(&object)));
            let path = format!("/apis/apps/v1/namespaces/{namespace}/replicasets?{query}");
            let sets = session.get(&path, ACCEPT_JSON).await?;
            workload::write(&mut sheet, &object, wait::items(&sets));
        }
        "services" => {
            let label = get::escape(&format!("kubernetes.io/service-name={name}"));
            let path = format!(
                "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector={label}"
            );
            let slices = session.get(&path, ACCEPT_JSON).await?;
            service::write(&mut sheet, &object, wait::items(&slices));
        }
        "nodes" => {
            let field = get::escape(&format!("spec.nodeName={name}"));
            let path = format!("/api/v1/pods?fieldSelector={field}");
            let pods = session.get(&path, ACCEPT_JSON).await?;
            node::write(&mut sheet, &object, wait::items(&pods), now);
        }
        _ => generic::write(&mut sheet, &object),
    }
    let mut text = sheet.render();
    text.push_str(&events::about(&session, &object, target.resource.kind).await?);
    output::data(&text)
}

/// A pod template as text, indented once.
pub(super) fn template(template: &Value) -> String {
    let mut sheet = Sheet::default();
    pod::write_template(&mut sheet, 0, template);
    sheet.render()
}
