//! Resource quotas: what an object uses, which quotas it counts towards, and whether it still fits.
//!
//! Data in: quotas and objects as JSON. Data out: amounts by name, quotas with the new use, refusals.
//!
//! # Invariants
//!
//! - Pure: whether a charge is written is for others, in one transaction with the object.
//! - Admission and the controller count with the same functions.

mod scope;
mod usage;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::api::json::entries_at;
use crate::api::meta;
use crate::api::quantity::Quantity;
use crate::api::resource::Resource;

pub use scope::matches;
pub(crate) use usage::{COMPUTE, containers_need, must_specify};
pub use usage::{is_countable, tracks, usage};

/// Amounts by the names that quotas use: `pods`, `requests.cpu`, `count/deployments.apps`.
pub type Amounts = BTreeMap<String, Quantity>;

/// Why an object may not be: the detail of a 403.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

/// The quota with what `new` uses added to its use; `None` when the object does not count towards it.
/// `old` is the object before a change: what it used is used already.
///
/// # Errors
///
/// Why it does not fit, or what it must say first.
pub fn charge(
    quota: &Value,
    resource: &Resource,
    old: Option<&Value>,
    new: &Value,
) -> Result<Option<Value>, Refusal> {
    let hard = amounts(quota, "/status/hard");
    let wanted: BTreeSet<&str> =
        entries_at(quota, "/spec/hard").map(|(name, _)| name.as_str()).collect();
    let is_about = |name: &&&str| tracks(resource, name);
    let tracked: BTreeSet<&str> = wanted.iter().filter(is_about).copied().collect();
    if tracked.is_empty() || !matches(quota, resource, new) {
        return Ok(None);
    }
    let name = meta::name(quota);
    if old.is_none()
        && let Some(missing) = must_specify(resource, new, &tracked)
    {
        return Err(Refusal(format!("failed quota: {name}: must specify {missing}")));
    }
    let used = amounts(quota, "/status/used");
    let before = old.filter(|old| matches(quota, resource, old)).map(|old| usage(resource, old));
    let before = before.unwrap_or_default();
    let mut added = Amounts::new();
    for (name, amount) in usage(resource, new) {
        let delta = amount.minus(before.get(&name).copied().unwrap_or(Quantity::ZERO));
        if tracked.contains(name.as_str()) && delta.nanos() > 0 {
            added.insert(name, delta);
        }
    }
    if added.is_empty() {
        return Ok(None);
    }
    let unknown: Vec<&str> = added
        .keys()
        .filter(|name| !hard.contains_key(*name) || !used.contains_key(*name))
        .map(String::as_str)
        .collect();
    if !unknown.is_empty() {
        let text = format!("status unknown for quota: {name}, resources: {}", unknown.join(","));
        return Err(Refusal(text));
    }
    let amount_of = |all: &Amounts, name: &str| all.get(name).copied().unwrap_or(Quantity::ZERO);
    let exceeded: Vec<&str> = added
        .iter()
        .filter(|(name, delta)| {
            amount_of(&used, name).plus(**delta).nanos() > amount_of(&hard, name).nanos()
        })
        .map(|(name, _)| name.as_str())
        .collect();
    if !exceeded.is_empty() {
        let show = |all: &Amounts| {
            let pairs = exceeded.iter().map(|name| format!("{name}={}", amount_of(all, name)));
            pairs.collect::<Vec<_>>().join(",")
        };
        return Err(Refusal(format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            show(&added),
            show(&used),
            show(&hard)
        )));
    }
    let mut total = used;
    for (name, delta) in added {
        let sum = amount_of(&total, &name).plus(delta);
        total.insert(name, sum);
    }
    Ok(Some(with_used(quota, &total)))
}

/// The quota with a status that says so.
#[must_use]
pub fn with_used(quota: &Value, used: &Amounts) -> Value {
    let mut charged = quota.clone();
    if let Some(fields) = charged.as_object_mut() {
        let status = fields.entry("status").or_insert_with(|| json!({}));
        if let Some(status) = status.as_object_mut() {
            status.insert("used".to_owned(), shown(used));
        }
    }
    charged
}

/// The amounts as Kubernetes writes them.
#[must_use]
pub fn shown(amounts: &Amounts) -> Value {
    let texts = amounts.iter().map(|(name, amount)| (name.clone(), json!(amount.to_string())));
    Value::Object(texts.collect::<Map<_, _>>())
}

/// The amounts at a JSON pointer; what is no amount is left out.
#[must_use]
pub fn amounts(object: &Value, pointer: &str) -> Amounts {
    let of_one = |(name, value): (&String, &Value)| Some((name.clone(), amount(value)?));
    entries_at(object, pointer).filter_map(of_one).collect()
}

/// A quantity: a text, or a number as YAML has it.
pub(crate) fn amount(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

/// Adds `more` to `to`.
pub fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.get(name).copied().unwrap_or(Quantity::ZERO).plus(*amount);
        to.insert(name.clone(), sum);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api;

    fn pods() -> &'static Resource {
        api::find("", "v1", "pods").unwrap()
    }

    fn pod(cpu: &str) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}}]}})
    }

    fn quota(hard: &Value, used: &Value) -> Value {
        json!({"metadata": {"name": "q"}, "spec": {"hard": hard},
            "status": {"hard": hard, "used": used}})
    }

    #[test]
    fn what_fits_is_added_and_what_does_not_is_refused_in_kubernetes_words() {
        let q = quota(
            &json!({"pods": "2", "requests.cpu": "1"}),
            &json!({"pods": "1", "requests.cpu": "600m"}),
        );
        let charged = charge(&q, pods(), None, &pod("400m")).unwrap().unwrap();
        assert_eq!(charged["status"]["used"], json!({"pods": "2", "requests.cpu": "1"}));
        let refused = charge(&q, pods(), None, &pod("500m")).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1"
        );
        let refused = charge(&charged, pods(), None, &pod("400m")).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "exceeded quota: q, requested: pods=1,requests.cpu=400m, used: pods=2,requests.cpu=1, limited: pods=2,requests.cpu=1"
        );
    }

    #[test]
    fn a_quota_of_compute_wants_every_container_to_say_what_it_needs() {
        let q = quota(
            &json!({"requests.cpu": "1", "limits.memory": "1Gi"}),
            &json!({"requests.cpu": "0", "limits.memory": "0"}),
        );
        let refused = charge(&q, pods(), None, &pod("100m")).unwrap_err();
        assert_eq!(refused.to_string(), "failed quota: q: must specify limits.memory for: a");
        let bare = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        let refused = charge(&q, pods(), None, &bare).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "failed quota: q: must specify limits.memory for: a,b; requests.cpu for: a,b"
        );
    }

    #[test]
    fn a_quota_that_nobody_has_counted_yet_refuses() {
        let fresh = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "2"}}});
        let refused = charge(&fresh, pods(), None, &pod("1")).unwrap_err();
        assert_eq!(refused.to_string(), "status unknown for quota: q, resources: pods");
    }

    #[test]
    fn others_do_not_count_and_a_change_counts_by_what_it_adds() {
        let maps = api::find("", "v1", "configmaps").unwrap();
        let q = quota(&json!({"pods": "0"}), &json!({"pods": "0"}));
        assert_eq!(charge(&q, maps, None, &json!({})), Ok(None));
        let claims = api::find("", "v1", "persistentvolumeclaims").unwrap();
        let claim = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
        let q = quota(
            &json!({"requests.storage": "3Gi", "persistentvolumeclaims": "1"}),
            &json!({"requests.storage": "1Gi", "persistentvolumeclaims": "1"}),
        );
        let grown = charge(&q, claims, Some(&claim("1Gi")), &claim("2Gi")).unwrap().unwrap();
        assert_eq!(grown["status"]["used"]["requests.storage"], "2Gi");
        assert_eq!(grown["status"]["used"]["persistentvolumeclaims"], "1");
        charge(&q, claims, Some(&claim("1Gi")), &claim("4Gi")).unwrap_err();
        assert_eq!(charge(&q, claims, Some(&claim("2Gi")), &claim("1Gi")), Ok(None));
    }

    proptest! {
        /// However pods come, what is used never goes beyond what is allowed.
        #[test]
        fn no_order_of_pods_exceeds_a_quota(sizes in prop::collection::vec(1_u32..900, 1..30)) {
            let hard = json!({"pods": "10", "limits.cpu": "2"});
            let mut q = quota(&hard, &json!({"pods": "0", "limits.cpu": "0"}));
            let mut sum = 0;
            for size in sizes {
                if let Ok(Some(charged)) = charge(&q, pods(), None, &pod(&format!("{size}m"))) {
                    q = charged;
                    sum += size;
                }
            }
            prop_assert!(sum <= 2000);
            let used = amounts(&q, "/status/used");
            prop_assert_eq!(used["limits.cpu"].millis(), i64::from(sum));
            prop_assert!(used["pods"].units() <= 10);
        }
    }
}
