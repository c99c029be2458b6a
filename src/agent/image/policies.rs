//! What namespaces want of images, as a node knows it: asked for when a container starts, and kept
//! on disk for starts without an API.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use crate::agent::dirs::{read_json, write_json_aside};
use crate::api::image_policy::{Demand, Rules};
use crate::api::names;

/// How long an answer of the API is good for: a change is heeded this late at most.
const FRESH: Duration = Duration::from_secs(5);
/// How long the API may take when something is known from before: a node that lost its servers starts
/// its pods all the same, and soon.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long it may take when nothing is known.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Namespaces remembered in memory; the rest are asked for again.
const NAMESPACES_MAX: usize = 1024;

/// The policies of namespaces.
pub(super) struct Policies {
    client: kube::Client,
    dir: PathBuf,
    known: Mutex<BTreeMap<String, (Instant, Option<Rules>)>>,
}

/// A file: what a namespace wanted when the API was asked last.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    rules: Option<Rules>,
}

impl Policies {
    /// With one file for each namespace in `dir`.
    pub(super) fn new(client: kube::Client, dir: PathBuf) -> Self {
        Self { client, dir, known: Mutex::default() }
    }

    /// What a namespace wants, or wanted at `version` or later; without an API what it wanted last.
    ///
    /// # Errors
    ///
    /// The API cannot be asked, and never could be about this namespace.
    pub(super) async fn of(
        &self,
        namespace: &str,
        version: Option<&str>,
    ) -> Result<Option<Rules>, String> {
        names::check_dns1123_label(namespace).map_err(str::to_owned)?;
        let known = self.known.lock().get(namespace).cloned();
        if let Some((_, rules)) = known.filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(rules);
        }
        let file = self.dir.join(format!("{namespace}.json"));
        let kept: Option<Kept> = read_json(&file);
        let limit = if kept.is_some() { REFRESH_TIMEOUT } else { READ_TIMEOUT };
        let asked = tokio::time::timeout(limit, self.ask(namespace, version)).await;
        match asked.unwrap_or_else(|_| Err("the API does not answer".to_owned())) {
            Ok(rules) => {
                if kept.as_ref().map(|kept| &kept.rules) != Some(&rules)
                    && let Err(err) = write_json_aside(file, &Kept { rules: rules.clone() }).await
                {
                    tracing::warn!(%err, k8s.namespace.name = namespace, "cannot keep an image policy");
                }
                self.remember(namespace, &rules);
                Ok(rules)
            }
            Err(why) => {
                tracing::debug!(
                    why,
                    k8s.namespace.name = namespace,
                    "image policy as it was known"
                );
                let rules = kept.map(|kept| kept.rules).ok_or(why)?;
                // Whoever comes next does not wait for it as well.
                self.remember(namespace, &rules);
                Ok(rules)
            }
        }
    }

    fn remember(&self, namespace: &str, rules: &Option<Rules>) {
        let mut known = self.known.lock();
        if known.len() >= NAMESPACES_MAX {
            known.clear();
        }
        known.insert(namespace.to_owned(), (Instant::now(), rules.clone()));
    }

    async fn ask(&self, namespace: &str, version: Option<&str>) -> Result<Option<Rules>, String> {
        let path = format!("/api/v1/namespaces/{namespace}");
        let found = match version {
            // A server that has told of a pod knows its namespace, and need not ask the others.
            Some(version) => self.get(&format!("{path}?resourceVersion={version}")).await,
            None => self.get(&path).await,
        };
        let found = match found {
            Ok(Some(found)) => Some(found),
            // The cluster was restored and has not come so far again.
            _ if version.is_some() => self.get(&path).await?,
            found => found?,
        };
        let Some(demand) = found.as_ref().and_then(Demand::of) else { return Ok(None) };
        let (keys_namespace, keys_name) = demand.keys();
        let are_names = names::check_dns1123_label(keys_namespace).is_ok()
            && names::check_dns1123_subdomain(keys_name).is_ok();
        let path = format!("/api/v1/namespaces/{keys_namespace}/configmaps/{keys_name}");
        let keys = if are_names { self.get(&path).await? } else { None };
        Ok(Some(demand.with_keys(keys.as_ref())))
    }

    /// An object; `None`: there is none.
    async fn get(&self, path: &str) -> Result<Option<Value>, String> {
        let request = http::Request::get(path).body(Vec::new()).map_err(|err| err.to_string())?;
        match self.client.request(request).await {
            Ok(object) => Ok(Some(object)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(err) => Err(err.to_string()),
        }
    }
}
