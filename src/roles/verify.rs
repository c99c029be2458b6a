//! Signatures of images: the agent's way to registries behind the API server's door.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::agent::SignatureVerifier;
use crate::api::image_policy::Rules;
use crate::apiserver::ImageVerifier;

/// Lets the API server see images as the node it runs on does.
#[derive(Debug)]
pub(super) struct AgentVerifier(pub(super) SignatureVerifier);

impl ImageVerifier for AgentVerifier {
    fn verify<'a>(
        &'a self,
        rules: &'a Rules,
        pod: &'a Value,
        image: &'a str,
    ) -> BoxFuture<'a, Result<(), String>> {
        self.0.verify(rules, pod, image).boxed()
    }
}
