//! `pods/eviction`: a delete that asks the pod's disruption budget first.
//!
//! A granted eviction counts the budget down in its status, with the version that was read: of two at
//! once that would take the last one, one finds the version gone, reads again, and is refused.

use axum::body::Body;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::json::{int_at, items_at, len_at, text_at};
use crate::api::selector::LabelSelector;
use crate::api::status::Status;
use crate::api::{self, meta};
use crate::apiserver::delete::{self, Options};
use crate::apiserver::error::ApiError;
use crate::apiserver::router::Call;
use crate::apiserver::{body, response};
use crate::store::{Freshness, Key, Page, Scope, StoreError, Stored};

/// How often a write is tried anew after a conflict.
const RETRIES_MAX: usize = 20;
/// Evictions of one budget that may be granted and not seen yet; Kubernetes' figure.
const DISRUPTED_PODS_MAX: usize = 2000;
/// Seconds until a budget that was just changed has been worked out.
const RETRY_SECONDS: u32 = 1;

/// Evicts the pod of the path.
pub(super) async fn respond(call: Call, request_body: Body) -> Result<Response<Body>, ApiError> {
    let bytes = body::read(request_body).await?;
    let sent = body::parse(body::media_type(&call.headers), &bytes)?.value;
    check(&call, &sent)?;
    let Some(key) = call.info.key() else { return Err(Status::no_such_path().into()) };
    let options = Options::of(&call, sent.get("deleteOptions").unwrap_or(&Value::Null))?;
    evict(&call, &key, options).await?;
    Ok(response::json(StatusCode::CREATED, &Status::done(201).to_value()))
}

/// The body must be an Eviction of this pod.
fn check(call: &Call, sent: &Value) -> Result<(), ApiError> {
    let (kind, version) = (text_at(sent, "/kind"), text_at(sent, "/apiVersion"));
    let is_eviction =
        matches!(kind, "" | "Eviction") && matches!(version, "" | "policy/v1" | "policy/v1beta1");
    if !is_eviction {
        let text = format!(
            "no kind {kind:?} is registered for version {version:?}: expected policy/v1, Kind=Eviction"
        );
        return Err(Status::bad_request(text).into());
    }
    let name = meta::name(sent);
    if !name.is_empty() && Some(name) != call.info.name.as_deref() {
        return Err(
            Status::bad_request("name in URL does not match name in Eviction object").into()
        );
    }
    Ok(())
}

async fn evict(call: &Call, key: &Key, mut options: Options) -> Result<(), ApiError> {
    let has_revision = options.revision.is_some();
    let mut refused = None;
    for _ in 0..RETRIES_MAX {
        let pod = read(call, key).await?;
        check_preconditions(key, &pod, &options)?;
        let permit = permit(call, &pod.object, options.is_dry_run).await?;
        if permit.depends_on_pod && !has_revision {
            // What was judged must be what is deleted.
            options.revision = Some(pod.revision.to_string());
        }
        match end(call, key, &pod, &options, permit.is_told).await {
            Err(error) if error.0.code == 409 && permit.depends_on_pod && !has_revision => {
                options.revision = None;
                refused = Some(error);
            }
            other => return other,
        }
    }
    Err(refused.unwrap_or_else(|| Status::internal("the pod is being written too often").into()))
}

async fn read(call: &Call, key: &Key) -> Result<Stored, ApiError> {
    let found = call.context.store.get(key, Freshness::Latest).await;
    let found = found.map_err(|error| ApiError::store(error, key))?;
    found.ok_or_else(|| Status::not_found(key.resource, &key.name).into())
}

/// Before a budget is counted down for it, the pod must be the one that is meant.
fn check_preconditions(key: &Key, pod: &Stored, options: &Options) -> Result<(), ApiError> {
    let (uid, revision) = (meta::uid(&pod.object), pod.revision.to_string());
    for (what, wanted, has) in [
        ("UID", options.uid.as_deref(), uid),
        ("ResourceVersion", options.revision.as_deref(), revision.as_str()),
    ] {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != has) {
            let detail = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {has}"
            );
            return Err(Status::conflict(key.resource, &key.name, &detail).into());
        }
    }
    Ok(())
}

/// Why a pod may go.
#[derive(Debug, Clone, Copy)]
struct Permit {
    /// It may because of how it is now, not because a budget was counted down.
    depends_on_pod: bool,
    /// Its status tells that it was evicted.
    is_told: bool,
}

/// Lets the pod go, or says why not.
async fn permit(call: &Call, pod: &Value, is_dry_run: bool) -> Result<Permit, ApiError> {
    if is_of_no_use(pod) {
        return Ok(Permit { depends_on_pod: true, is_told: false });
    }
    let Some(key) = budget_of(call, pod).await? else {
        return Ok(Permit { depends_on_pod: false, is_told: true });
    };
    let now = call.context.clock.now();
    let store = &call.context.store;
    for _ in 0..RETRIES_MAX {
        let found = store.get(&key, Freshness::Latest).await;
        let Some(budget) = found.map_err(|error| ApiError::store(error, &key))? else {
            return Ok(Permit { depends_on_pod: false, is_told: true });
        };
        if may_go_unhealthy(&budget.object, pod) {
            return Ok(Permit { depends_on_pod: true, is_told: true });
        }
        let counted = count_down(&key, &budget.object, meta::name(pod), now)?;
        if is_dry_run {
            return Ok(Permit { depends_on_pod: false, is_told: true });
        }
        match store.update(&key, budget.revision, &counted, &[]).await {
            Ok(_) => return Ok(Permit { depends_on_pod: false, is_told: true }),
            Err(StoreError::Conflict { .. } | StoreError::NotFound) => {}
            Err(error) => return Err(ApiError::store(error, &key)),
        }
    }
    Err(being_processed(&key.name))
}

/// Pods that serve nobody are not worth a budget: not started, ended, or on their way out.
fn is_of_no_use(pod: &Value) -> bool {
    let phase = text_at(pod, "/status/phase");
    matches!(phase, "Pending" | "Succeeded" | "Failed") || meta::deletion_timestamp(pod).is_some()
}

/// The one budget that selects the pod.
async fn budget_of(call: &Call, pod: &Value) -> Result<Option<Key>, ApiError> {
    let Some(resource) = api::find("policy", "v1", "poddisruptionbudgets") else { return Ok(None) };
    let namespace = call.info.namespace.as_deref();
    let scope = Scope::new(resource, namespace);
    let found = call.context.store.list(&scope, &Page::default(), Freshness::Latest).await?;
    let mut matching = found.items.iter().filter(|budget| {
        let selector = budget.object.pointer("/spec/selector").unwrap_or(&Value::Null);
        LabelSelector::from_json(selector).is_ok_and(|selector| selector.matches(pod))
    });
    let first = matching.next();
    if matching.next().is_some() {
        return Err(Status::several_budgets().into());
    }
    Ok(first.map(|budget| Key::new(resource, namespace, meta::name(&budget.object))))
}

/// Whether the budget lets the pod go because the pod does not serve.
fn may_go_unhealthy(budget: &Value, pod: &Value) -> bool {
    let is_ready = items_at(pod, "/status/conditions")
        .iter()
        .any(|c| text_at(c, "/type") == "Ready" && text_at(c, "/status") == "True");
    if is_ready {
        return false;
    }
    if text_at(budget, "/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow" {
        return true;
    }
    let number = |key: &str| int_at(budget, &format!("/status/{key}")).unwrap_or(0);
    number("desiredHealthy") > 0 && number("currentHealthy") >= number("desiredHealthy")
}

fn being_processed(budget: &str) -> ApiError {
    let cause = format!("The disruption budget {budget} is still being processed by the server.");
    Status::disruption_refused(&cause).come_back(RETRY_SECONDS).into()
}

/// The budget with one disruption less, and `pod` among those that are going.
fn count_down(key: &Key, budget: &Value, pod: &str, now: Timestamp) -> Result<Value, ApiError> {
    let number = |key: &str| int_at(budget, &format!("/status/{key}")).unwrap_or(0);
    if number("observedGeneration") < meta::generation(budget) {
        return Err(being_processed(&key.name));
    }
    let refuse = |detail: &str| ApiError::from(Status::forbidden(key.resource, &key.name, detail));
    let allowed = number("disruptionsAllowed");
    if allowed < 0 {
        return Err(refuse("pdb disruptions allowed is negative"));
    }
    if len_at(budget, "/status/disruptedPods") >= DISRUPTED_PODS_MAX {
        return Err(refuse(
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        ));
    }
    if allowed == 0 {
        let (name, needed) = (&key.name, number("desiredHealthy"));
        let failed = items_at(budget, "/status/conditions").iter().find(|condition| {
            text_at(condition, "/type") == "DisruptionAllowed"
                && text_at(condition, "/reason") == "SyncFailed"
        });
        let cause = match failed {
            Some(failed) => format!(
                "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
                text_at(failed, "/message")
            ),
            None => format!(
                "The disruption budget {name} needs {needed} healthy pods and has {} currently",
                number("currentHealthy")
            ),
        };
        return Err(Status::disruption_refused(&cause).into());
    }
    let mut counted = budget.clone();
    if let Some(status) = counted.get_mut("status").and_then(Value::as_object_mut) {
        status.insert("disruptionsAllowed".to_owned(), json!(allowed - 1));
        if let Some(pods) =
            status.entry("disruptedPods").or_insert_with(|| json!({})).as_object_mut()
        {
            let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
            pods.insert(pod.to_owned(), json!(now.to_string()));
        }
    }
    Ok(counted)
}

/// Tells in the pod's status who ends it, and deletes it.
async fn end(
    call: &Call,
    key: &Key,
    pod: &Stored,
    options: &Options,
    is_told: bool,
) -> Result<(), ApiError> {
    let mut revision = options.revision.clone();
    if is_told
        && !options.is_dry_run
        && let Some(told) = told(&pod.object, &call.context.clock.now_rfc3339())
    {
        match call.context.store.update(key, pod.revision, &told, &[]).await {
            Ok(stored) => revision = revision.map(|_| stored.revision.to_string()),
            // Judged by how it was: to be judged again. Otherwise its end matters, not the note.
            Err(error @ StoreError::Conflict { .. }) if revision.is_some() => {
                return Err(ApiError::store(error, key));
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(ApiError::store(error, key)),
        }
    }
    let uid = Some(meta::uid(&pod.object).to_owned());
    let options = options.for_object(uid, revision);
    match delete::delete(call, key, &options).await {
        // Gone meanwhile, or replaced by one of the same name: that is what was asked for.
        Err(error) if error.0.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

/// The pod with the condition that says so; `None` when it is there.
fn told(pod: &Value, now: &str) -> Option<Value> {
    const TYPE: &str = "DisruptionTarget";
    let had = items_at(pod, "/status/conditions");
    let is_ours = |condition: &Value| text_at(condition, "/type") == TYPE;
    if had.iter().any(|condition| is_ours(condition) && text_at(condition, "/status") == "True") {
        return None;
    }
    let mut conditions: Vec<Value> = had.iter().filter(|c| !is_ours(c)).cloned().collect();
    conditions.push(json!({
        "type": TYPE, "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": now,
    }));
    let mut told = pod.clone();
    let status = told.as_object_mut()?.entry("status").or_insert_with(|| json!({}));
    status.as_object_mut()?.insert("conditions".to_owned(), json!(conditions));
    Some(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(spec: &Value, status: &Value) -> Value {
        json!({"metadata": {"name": "b", "generation": 2}, "spec": spec, "status": status})
    }

    fn key() -> Key {
        Key::new(api::find("policy", "v1", "poddisruptionbudgets").unwrap(), Some("n"), "b")
    }

    #[test]
    fn a_budget_is_counted_down_to_nothing_and_then_refuses() {
        let with = |allowed: i64| {
            budget(
                &json!({}),
                &json!({"observedGeneration": 2,
            "disruptionsAllowed": allowed, "desiredHealthy": 3, "currentHealthy": 3}),
            )
        };
        let counted = count_down(&key(), &with(1), "p", Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(counted["status"]["disruptionsAllowed"], 0);
        assert_eq!(counted["status"]["disruptedPods"]["p"], "1970-01-01T00:00:00Z");
        let refused = count_down(&key(), &counted, "q", Timestamp::UNIX_EPOCH).unwrap_err().0;
        assert_eq!((refused.code, refused.reason.as_str()), (429, "TooManyRequests"));
        let cause = &refused.details.as_ref().unwrap().causes[0];
        assert_eq!(cause.reason, "DisruptionBudget");
        assert_eq!(
            cause.message,
            "The disruption budget b needs 3 healthy pods and has 3 currently"
        );
        let negative = count_down(&key(), &with(-1), "q", Timestamp::UNIX_EPOCH).unwrap_err().0;
        assert_eq!(negative.code, 403);
    }

    #[test]
    fn a_budget_that_nobody_has_worked_out_yet_refuses_for_a_moment() {
        let fresh = budget(&json!({}), &json!({"observedGeneration": 1, "disruptionsAllowed": 1}));
        let refused = count_down(&key(), &fresh, "p", Timestamp::UNIX_EPOCH).unwrap_err().0;
        assert_eq!((refused.code, refused.details.unwrap().retry_after_seconds), (429, Some(1)));
    }

    #[test]
    fn pods_that_serve_nobody_may_go() {
        let in_phase = |phase: &str| json!({"status": {"phase": phase}});
        for phase in ["Pending", "Succeeded", "Failed"] {
            assert!(is_of_no_use(&in_phase(phase)), "{phase}");
        }
        assert!(!is_of_no_use(&in_phase("Running")));
        assert!(is_of_no_use(&json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})));
        let pod =
            |ready: &str| json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let healthy = json!({"currentHealthy": 2, "desiredHealthy": 2});
        let short = json!({"currentHealthy": 1, "desiredHealthy": 2});
        let always = json!({"unhealthyPodEvictionPolicy": "AlwaysAllow"});
        for (spec, status, ready, may) in [
            (&json!({}), &healthy, "False", true),
            (&json!({}), &short, "False", false),
            (&json!({}), &json!({}), "False", false),
            (&always, &short, "False", true),
            (&always, &short, "True", false),
            (&json!({}), &healthy, "True", false),
        ] {
            assert_eq!(
                may_go_unhealthy(&budget(spec, status), &pod(ready)),
                may,
                "{spec} {status}"
            );
        }
    }

    #[test]
    fn an_evicted_pod_says_so_once() {
        let pod = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let told = told(&pod, "now").unwrap();
        assert_eq!(told["status"]["conditions"][1]["reason"], "EvictionByEvictionAPI");
        assert_eq!(super::told(&told, "later"), None);
    }
}
