//! Verifies signatures for the API server of this node, which asks before it takes a pod.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::agent::image::credentials::{self, Keyring};
use crate::agent::image::distribution::Source;
use crate::agent::image::places::Places;
use crate::agent::image::reference::Reference;
use crate::agent::image::{Registries, fetch, signature, sources};
use crate::api::image_policy::Rules;
use crate::config::Proxies;

/// Images of one registry that are looked at at a time; more wait, and those of other registries do
/// not wait with them. Each look has its caller's deadline.
const AT_ONCE: usize = 8;
/// Images that are looked at at a time, of whatever registries.
const AT_ONCE_ALL: usize = 256;
/// How long an image that was good counts as good: replicas are made many at a time.
const GOOD_FOR: Duration = Duration::from_secs(5);
/// Images that are remembered as good.
const GOOD_MAX: usize = 1024;

/// Looks for signatures in the registries, with this node's `registries.yaml`.
pub struct SignatureVerifier {
    client: kube::Client,
    registries: Registries,
    places: Places,
    all_places: Semaphore,
    good: Mutex<BTreeMap<(String, Rules), Instant>>,
}

impl std::fmt::Debug for SignatureVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignatureVerifier").finish_non_exhaustive()
    }
}

impl SignatureVerifier {
    /// With the registries that `registries.yaml` names, if there is one.
    #[must_use]
    pub fn open(client: kube::Client, registries_file: Option<PathBuf>, proxies: &Proxies) -> Self {
        Self::new(client, Registries::open(registries_file, None, proxies))
    }

    pub(crate) fn new(client: kube::Client, registries: Registries) -> Self {
        let (places, all_places) = (Places::new(AT_ONCE), Semaphore::new(AT_ONCE_ALL));
        Self { client, registries, places, all_places, good: Mutex::default() }
    }

    /// Whether the image, as the pod names it, is signed as the rules want.
    ///
    /// # Errors
    ///
    /// Why not, for people.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing stays of a question.
    pub async fn verify(&self, rules: &Rules, pod: &Value, image: &str) -> Result<(), String> {
        let policy = rules.policy().map_err(|why| why.to_string())?;
        let settings = self.registries.settings();
        let image = settings.stand_in(image);
        let question = (image.to_owned(), rules.clone());
        if self.good.lock().get(&question).is_some_and(|at| at.elapsed() < GOOD_FOR) {
            return Ok(());
        }
        let reference = Reference::parse(image).map_err(|why| why.to_string())?;
        let _place = self.places.take(&reference.host).await.map_err(|why| why.to_string())?;
        let _one = self.all_places.acquire().await.map_err(|_| "the server is stopping")?;
        let keyring = if reference.is_own() {
            Keyring::default()
        } else {
            let pod: Pod = serde_json::from_value(pod.clone()).map_err(|why| why.to_string())?;
            credentials::read(&self.client, &pod).await.0
        };
        let sources = sources::all(&self.client, &self.registries, &reference, &keyring);
        let hex = match reference.digest() {
            Some(hex) => hex.to_owned(),
            None => resolve(&sources, &reference).await?,
        };
        signature::find(&sources, &reference.name(), &hex, &policy).await?;
        let mut good = self.good.lock();
        good.retain(|_, at| at.elapsed() < GOOD_FOR);
        if good.len() < GOOD_MAX {
            good.insert(question, Instant::now());
        }
        Ok(())
    }
}

/// Hex of the digest that the tag means now.
async fn resolve(sources: &[Source], reference: &Reference) -> Result<String, String> {
    let mut faults = Vec::new();
    for source in sources {
        match source.manifest(&reference.reference).await {
            Ok(content) => return Ok(hex::encode(Sha256::digest(content))),
            Err(_) if source.is_copy() => {}
            Err(fault) => faults.push((source.host().to_owned(), fault)),
        }
    }
    Err(fetch::sum(reference, faults).to_string())
}
