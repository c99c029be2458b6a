//! Where an image may come from: a copy in the cluster's own registry, mirrors, its registry.

use std::sync::Arc;

use crate::agent::image::credentials::Keyring;
use crate::agent::image::distribution::Source;
use crate::agent::image::reference::{OWN_REGISTRY, Reference};
use crate::agent::image::registries::Endpoint;
use crate::agent::image::registries_file::Registries;
use crate::agent::image::transport::{Outside, Transport};

/// The places to ask, in order.
///
/// What `edgeorc bundle load` brought stands under the image's full name in the cluster's own
/// registry. It comes first: who loaded it wants it, and without a way to the outside every other
/// place costs a time-out.
pub(super) fn all(
    client: &kube::Client,
    registries: &Registries,
    reference: &Reference,
    keyring: &Keyring,
) -> Vec<Source> {
    if reference.is_own() {
        return vec![cluster(client, reference.repository.clone())];
    }
    let copy = reference.copy_repository().map(|name| cluster(client, name).into_copy());
    copy.into_iter().chain(outside(registries, reference, keyring)).collect()
}

/// The places outside of the cluster: mirrors in order, then the registry itself.
pub(super) fn outside(
    registries: &Registries,
    reference: &Reference,
    keyring: &Keyring,
) -> Vec<Source> {
    let settings = registries.settings();
    let transport = Outside::new(Arc::clone(&settings), registries.proxies());
    let transport = Arc::new(Transport::Outside(transport));
    let endpoints = settings.endpoints(reference).into_iter().map(|endpoint| {
        let mut credentials = keyring.find(&endpoint.host, &endpoint.repository);
        let secrets = credentials.len();
        credentials.extend(settings.credential(&endpoint.host));
        Source::new(endpoint, Arc::clone(&transport), credentials).with_secrets(secrets)
    });
    endpoints.collect()
}

/// A repository of the cluster's own registry.
fn cluster(client: &kube::Client, repository: String) -> Source {
    let endpoint = Endpoint { base: "/v2".to_owned(), host: OWN_REGISTRY.to_owned(), repository };
    Source::new(endpoint, Arc::new(Transport::Cluster(client.clone())), Vec::new())
}
