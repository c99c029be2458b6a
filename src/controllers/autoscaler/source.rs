//! Where an autoscaler's figures come from: the scale of its workload, `metrics.k8s.io`,
//! `custom.metrics.k8s.io` and `external.metrics.k8s.io`.

use std::collections::BTreeMap;

use http::Request;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use serde_json::{Value, json};

use crate::api::{self, quantity::Quantity};

/// Characters that stand in a query as they are.
const PLAIN: &[u8] = b"-_.~";

/// The scale of a workload.
#[derive(Debug, Clone)]
pub(super) struct Scale {
    path: String,
    object: Value,
}

impl Scale {
    /// Replicas that are wanted.
    pub(super) fn wanted(&self) -> u32 {
        count(&self.object, "/spec/replicas")
    }

    /// Replicas that are there.
    pub(super) fn present(&self) -> u32 {
        count(&self.object, "/status/replicas")
    }

    /// What selects its pods; none is nothing.
    pub(super) fn selector(&self) -> &str {
        self.object.pointer("/status/selector").and_then(Value::as_str).unwrap_or_default()
    }

    /// Writes another number, if nobody else has written since.
    pub(super) async fn set(
        &self,
        client: &kube::Client,
        replicas: u32,
    ) -> Result<(), kube::Error> {
        let mut object = self.object.clone();
        json_patch::merge(&mut object, &json!({ "spec": { "replicas": replicas } }));
        let request = Request::put(&self.path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(object.to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
        client.request::<Value>(request).await.map(drop)
    }
}

fn count(object: &Value, pointer: &str) -> u32 {
    let number = object.pointer(pointer).and_then(Value::as_u64);
    number.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

/// Reads the scale of a workload.
pub(super) async fn scale(
    client: &kube::Client,
    namespace: &str,
    (api_version, kind, name): (&str, &str, &str),
) -> Result<Scale, String> {
    let (group, version) = api::meta::split_api_version(api_version);
    let resource = api::find_kind(group, version, kind).filter(|resource| resource.has_scale);
    let resource =
        resource.ok_or_else(|| format!("no matches for kind {kind:?} in group {group:?}"))?;
    let (root, plural) = (resource.version_path(), resource.plural);
    let path = format!("{root}/namespaces/{namespace}/{plural}/{name}/scale");
    let object = get(client, &path).await?;
    Ok(Scale { path, object })
}

/// One measure of a pod's resource.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub(super) at: Timestamp,
    pub(super) window: SignedDuration,
    /// Thousandths by container.
    pub(super) by_container: BTreeMap<String, i64>,
}

/// What pods use of a resource, by name.
pub(super) async fn resource(
    client: &kube::Client,
    namespace: &str,
    selector: &str,
    resource: &str,
) -> Result<BTreeMap<String, Measured>, String> {
    let path = format!(
        "/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={}",
        escaped(selector)
    );
    let list = get(client, &path).await?;
    let of = |item: &Value| {
        let name = item.pointer("/metadata/name")?.as_str()?.to_owned();
        let at = item.get("timestamp")?.as_str()?.parse().ok()?;
        let window = item.get("window").and_then(Value::as_str).unwrap_or_default();
        let seconds = window.trim_end_matches('s').parse().unwrap_or(0);
        let containers = item.get("containers")?.as_array()?.iter().filter_map(|container| {
            let name = container.get("name")?.as_str()?.to_owned();
            let used = container.get("usage")?.get(resource)?.as_str()?;
            Some((name, millis(used)?))
        });
        let by_container: BTreeMap<String, i64> = containers.collect();
        let window = SignedDuration::from_secs(seconds);
        (!by_container.is_empty()).then_some((name, Measured { at, window, by_container }))
    };
    Ok(items(&list).iter().filter_map(of).collect())
}

/// Thousandths of a custom metric of pods, by name.
pub(super) async fn pods(
    client: &kube::Client,
    namespace: &str,
    selector: &str,
    (metric, metric_selector): (&str, &str),
) -> Result<BTreeMap<String, i64>, String> {
    let path = format!(
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}/pods/*/{metric}?labelSelector={}{}",
        escaped(selector),
        of_metric(metric_selector),
    );
    let list = get(client, &path).await?;
    let of = |item: &Value| {
        let name = item.pointer("/describedObject/name")?.as_str()?.to_owned();
        Some((name, millis(item.get("value")?.as_str()?)?))
    };
    Ok(items(&list).iter().filter_map(of).collect())
}

/// Thousandths of a custom metric of one object.
pub(super) async fn object(
    client: &kube::Client,
    namespace: &str,
    described: &CrossVersionObjectReference,
    (metric, metric_selector): (&str, &str),
) -> Result<i64, String> {
    let place = place_of(described)?;
    let path = format!(
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}/{place}/{metric}?{}",
        of_metric(metric_selector).trim_start_matches('&'),
    );
    let list = get(client, &path).await?;
    let value = items(&list).first().and_then(|item| millis(item.get("value")?.as_str()?));
    value.ok_or_else(|| format!("no value of {metric} for {} {}", described.kind, described.name))
}

/// Where the custom metrics of an object are, below its namespace: its group and kind count, whatever
/// the version.
fn place_of(object: &CrossVersionObjectReference) -> Result<String, String> {
    let api_version = object.api_version.as_deref().unwrap_or_default();
    let (group, _) = api::meta::split_api_version(api_version);
    let (kind, name) = (object.kind.as_str(), object.name.as_str());
    if group.is_empty() && kind == "Namespace" {
        // Whatever its name: a reference never leads out of the autoscaler's own.
        return Ok("metrics".to_owned());
    }
    let is_it = |resource: &&api::Resource| resource.group == group && resource.kind == kind;
    let resource = api::resources().iter().find(is_it);
    let resource =
        resource.ok_or_else(|| format!("no matches for kind {kind:?} in group {group:?}"))?;
    Ok(format!("{}/{name}", resource.qualified()))
}

/// Thousandths of an external metric, all its series together.
pub(super) async fn external(
    client: &kube::Client,
    namespace: &str,
    metric: &str,
    selector: &str,
) -> Result<i64, String> {
    let path = format!(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}?labelSelector={}",
        escaped(selector)
    );
    let list = get(client, &path).await?;
    let values = items(&list).iter().filter_map(|item| millis(item.get("value")?.as_str()?));
    let values: Vec<i64> = values.collect();
    if values.is_empty() {
        return Err(format!("no metrics returned from external metrics API for {metric}"));
    }
    Ok(values.into_iter().fold(0, i64::saturating_add))
}

fn of_metric(selector: &str) -> String {
    if selector.is_empty() {
        String::new()
    } else {
        format!("&metricLabelSelector={}", escaped(selector))
    }
}

async fn get(client: &kube::Client, path: &str) -> Result<Value, String> {
    let request = Request::get(path).body(Vec::new()).map_err(|err| err.to_string())?;
    client.request::<Value>(request).await.map_err(|err| match err {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    })
}

fn items(list: &Value) -> &[Value] {
    list.get("items").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Thousandths of a quantity.
pub(super) fn millis(text: &str) -> Option<i64> {
    text.parse::<Quantity>().ok().map(Quantity::millis)
}

fn escaped(text: &str) -> String {
    let one = |byte: u8| {
        if byte.is_ascii_alphanumeric() || PLAIN.contains(&byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_pass_through_a_query() {
        assert_eq!(escaped("a=b,c in (d)"), "a%3Db%2Cc%20in%20%28d%29");
        assert_eq!(of_metric(""), "");
        assert_eq!(of_metric("a=b"), "&metricLabelSelector=a%3Db");
    }

    #[test]
    fn metrics_of_an_object_are_under_its_plural_and_group() {
        let of = |api_version: Option<&str>, kind: &str| {
            place_of(&CrossVersionObjectReference {
                api_version: api_version.map(str::to_owned),
                kind: kind.to_owned(),
                name: "web".to_owned(),
            })
        };
        let is = |path: &str| Ok(path.to_owned());
        let ingress = is("ingresses.networking.k8s.io/web");
        assert_eq!(of(Some("networking.k8s.io/v1"), "Ingress"), ingress);
        assert_eq!(of(Some("networking.k8s.io/v1beta1"), "Ingress"), ingress, "of any version");
        assert_eq!(of(Some("apps/v1"), "Deployment"), is("deployments.apps/web"));
        assert_eq!(of(Some("v1"), "Service"), is("services/web"));
        assert_eq!(of(None, "Service"), is("services/web"));
        assert_eq!(of(Some("v1"), "Namespace"), is("metrics"), "its own, whatever the name");
        let nothing = |kind: &str, group: &str| {
            Err(format!("no matches for kind {kind:?} in group {group:?}"))
        };
        assert_eq!(of(Some("example.com/v1"), "Widget"), nothing("Widget", "example.com"));
        assert_eq!(of(None, "Ingress"), nothing("Ingress", ""));
    }

    #[test]
    fn amounts_are_thousandths() {
        assert_eq!(millis("250m"), Some(250));
        assert_eq!(millis("2Ki"), Some(2_048_000));
        assert_eq!(millis("1500000n"), Some(2));
        assert_eq!(millis("x"), None);
    }
}
