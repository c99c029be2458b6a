//! `edgeorc scale`.

use http::Method;
use serde_json::json;

use super::api::Session;
use super::args::{Global, Scale};
use super::exit::Failure;
use super::{output, target};
use crate::config::Environment;

/// Sets the number of replicas through the scale subresource.
pub(super) async fn run(
    scale: Scale,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    let target = target::parse_one(&scale.what)?;
    let session = Session::open(global, environment).await?;
    let path = format!("{}/scale", target.path(Some(&session.namespace)));
    let body = json!({"spec": {"replicas": scale.replicas}});
    session.json(Method::PATCH, &path, "application/merge-patch+json", Some(&body)).await?;
    let name = target.name.unwrap_or_default();
    output::data_line(&format!("{}/{name} scaled to {}", target.resource.singular, scale.replicas))
}
