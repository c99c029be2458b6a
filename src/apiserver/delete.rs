//! delete and deletecollection.

use axum::body::Body;
use http::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::api::meta::{FOREGROUND, ORPHAN};
use crate::api::status::Status;
use crate::api::{FieldError, Resource, meta};
use crate::apiserver::error::ApiError;
use crate::apiserver::read::{self, Filter};
use crate::apiserver::router::Call;
use crate::apiserver::update::is_finished;
use crate::apiserver::{allocate, body, response};
use crate::store::{Freshness, Key, StoreError, Stored};

/// Grace of a pod that names none, in seconds.
const GRACE_SECONDS: i64 = 30;
/// Longest grace taken, in seconds.
const GRACE_SECONDS_MAX: i64 = 24 * 3600;
/// The longest that a pod may ask for itself: beyond, there are no dates.
const OWN_GRACE_SECONDS_MAX: i64 = i32::MAX as i64;
/// How often a delete that named no version is tried anew after a conflict.
const RETRIES_MAX: usize = 8;
/// Namespaces the system cannot do without.
const KEPT_NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// What becomes of the objects that a deleted one owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Propagation {
    /// They go after it.
    Background,
    /// They go before it.
    Foreground,
    /// They stay.
    Orphan,
}

impl Propagation {
    /// Of `propagationPolicy`, or of `orphanDependents`, by which clients of old say it.
    fn parse(policy: Option<&str>, orphans: Option<bool>) -> Result<Option<Self>, FieldError> {
        const FIELD: &str = "propagationPolicy";
        match (policy, orphans) {
            (None, None) => Ok(None),
            (None, Some(true)) => Ok(Some(Self::Orphan)),
            (None, Some(false)) => Ok(Some(Self::Background)),
            (Some(policy), Some(_)) => {
                let rule = "orphanDependents and deletionPropagation cannot be both set";
                Err(FieldError::invalid(FIELD, &json!(policy), rule))
            }
            (Some("Background"), None) => Ok(Some(Self::Background)),
            (Some("Foreground"), None) => Ok(Some(Self::Foreground)),
            (Some("Orphan"), None) => Ok(Some(Self::Orphan)),
            (Some(other), None) => {
                let known = ["Foreground", "Background", "Orphan", "nil"];
                Err(FieldError::not_supported(FIELD, &json!(other), &known))
            }
        }
    }
}

/// `DeleteOptions`, from the body or the query.
#[derive(Debug, Default)]
pub(super) struct Options {
    grace_seconds: Option<i64>,
    propagation: Option<Propagation>,
    pub(super) uid: Option<String>,
    pub(super) revision: Option<String>,
    pub(super) is_dry_run: bool,
}

impl Options {
    async fn read(call: &Call, request_body: Body) -> Result<Self, ApiError> {
        let bytes = body::read(request_body).await?;
        let sent = if bytes.is_empty() {
            Value::Null
        } else {
            body::parse(body::media_type(&call.headers), &bytes)?.value
        };
        Self::of(call, &sent)
    }

    /// The same for one object only, as it was read.
    pub(super) fn for_object(&self, uid: Option<String>, revision: Option<String>) -> Self {
        Self { uid, revision, ..*self }
    }

    /// Of `sent`, and of the query where that says nothing.
    pub(super) fn of(call: &Call, sent: &Value) -> Result<Self, ApiError> {
        let text = |path: &str| sent.pointer(path).and_then(Value::as_str).map(str::to_owned);
        let grace = sent.get("gracePeriodSeconds").and_then(Value::as_i64);
        let in_query = call.query.number("gracePeriodSeconds")?;
        let in_query = in_query.and_then(|seconds| i64::try_from(seconds).ok());
        let mut policy = sent.get("propagationPolicy").and_then(Value::as_str);
        let mut orphans = sent.get("orphanDependents").and_then(Value::as_bool);
        if policy.is_none() && orphans.is_none() {
            policy = call.query.get("propagationPolicy");
            let said = call.query.get("orphanDependents");
            orphans = said.map(|text| text != "0" && !text.eq_ignore_ascii_case("false"));
        }
        let propagation = Propagation::parse(policy, orphans)
            .map_err(|error| Status::invalid_options("DeleteOptions", &error))?;
        let is_dry_run = call.query.is_dry_run()?
            || sent.pointer("/dryRun/0").and_then(Value::as_str) == Some("All");
        Ok(Self {
            grace_seconds: grace.or(in_query).map(grace_of),
            propagation,
            uid: text("/preconditions/uid"),
            revision: text("/preconditions/resourceVersion"),
            is_dry_run,
        })
    }
}

/// Deletes one object.
pub(super) async fn one(call: Call, request_body: Body) -> Result<Response<Body>, ApiError> {
    let options = Options::read(&call, request_body).await?;
    let Some(key) = call.info.key() else { return Err(Status::no_such_path().into()) };
    let deleted = delete(&call, &key, &options).await?;
    let mut answer = match deleted {
        Deleted::Gone(object) if key.resource.plural != "pods" => {
            let status = Status::deleted(key.resource, &key.name, meta::uid(&object));
            response::json(StatusCode::OK, &status.to_value())
        }
        Deleted::Gone(object) | Deleted::Later(object) => response::json(StatusCode::OK, &object),
    };
    if let Some(text) = warning(key.resource, &options) {
        response::warn(&mut answer, &[text]);
    }
    Ok(answer)
}

/// Deletes every object that the selectors let through.
pub(super) async fn collection(call: Call, request_body: Body) -> Result<Response<Body>, ApiError> {
    if !call.info.resource.has_verb("deletecollection") {
        return Err(Status::method_not_allowed(call.info.resource, "deletecollection").into());
    }
    let options = Options::read(&call, request_body).await?;
    let filter = Filter::of(&call)?;
    let found = read::all(&call, &filter).await?;
    for object in &found.items {
        let key = Key::new(call.info.resource, Some(meta::namespace(object)), meta::name(object));
        match delete(&call, &key, &options).await {
            // Gone meanwhile: that is what was asked for.
            Err(refused) if refused.0.code == 404 => {}
            other => drop(other?),
        }
    }
    let list = json!({
        "kind": call.info.resource.list_kind,
        "apiVersion": call.info.resource.api_version(),
        "metadata": {"resourceVersion": found.revision.to_string()},
        "items": found.items,
    });
    Ok(response::json(StatusCode::OK, &list))
}

/// What became of a delete.
pub(super) enum Deleted {
    /// The object is gone.
    Gone(Value),
    /// It goes when its finalizers and its grace are over.
    Later(Value),
}

/// Deletes the object of `key`, or marks it as going.
pub(super) async fn delete(call: &Call, key: &Key, options: &Options) -> Result<Deleted, ApiError> {
    // As in an update: what is written is checked, what is not written needs the newest state.
    if !options.is_dry_run {
        match attempt(call, key, options, Freshness::Any).await {
            Ok(Attempt::Written(deleted)) => return Ok(deleted),
            Ok(Attempt::Failed(error)) => return Err(error),
            Ok(Attempt::Unchanged(_) | Attempt::Conflict) | Err(_) => {}
        }
    }
    for _ in 0..RETRIES_MAX {
        match attempt(call, key, options, Freshness::Latest).await? {
            Attempt::Written(deleted) | Attempt::Unchanged(deleted) => return Ok(deleted),
            Attempt::Failed(error) => return Err(error),
            Attempt::Conflict => {}
        }
    }
    Err(Status::conflict(key.resource, &key.name, "the object is being written too often").into())
}

/// What became of one attempt.
enum Attempt {
    Written(Deleted),
    /// A dry run, or the object is on its way already.
    Unchanged(Deleted),
    /// Written since it was read.
    Conflict,
    /// The write failed for good; it may have happened, so it is never made again.
    Failed(ApiError),
}

/// One attempt; an error says that it did not come to a write.
async fn attempt(
    call: &Call,
    key: &Key,
    options: &Options,
    freshness: Freshness,
) -> Result<Attempt, ApiError> {
    let store = &call.context.store;
    let found = store.get(key, freshness).await;
    let current = found
        .map_err(|error| ApiError::store(error, key))?
        .ok_or_else(|| Status::not_found(key.resource, &key.name))?;
    check(key, &current, options)?;
    let marked = mark(key.resource, &current.object, options, call.context.clock.now());
    if options.is_dry_run {
        return Ok(Attempt::Unchanged(Deleted::Gone(marked)));
    }
    let written = if is_finished(key.resource, &marked) {
        let releases = allocate::releases(key.resource, &current.object);
        let gone = store.delete(key, current.revision, &releases).await;
        gone.map(|revision| Deleted::Gone(Stored::new(marked, revision).object))
    } else if marked == current.object {
        return Ok(Attempt::Unchanged(Deleted::Later(marked)));
    } else {
        let later = store.update(key, current.revision, &marked, &[]).await;
        later.map(|stored| Deleted::Later(stored.object))
    };
    match written {
        Ok(deleted) => Ok(Attempt::Written(deleted)),
        Err(StoreError::Conflict { .. }) => Ok(Attempt::Conflict),
        Err(error) => Ok(Attempt::Failed(ApiError::store(error, key))),
    }
}

/// Preconditions, and what may not be deleted at all.
fn check(key: &Key, current: &Stored, options: &Options) -> Result<(), ApiError> {
    let uid = meta::uid(&current.object);
    if let Some(wanted) = options.uid.as_deref().filter(|wanted| *wanted != uid) {
        let detail = format!(
            "Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}"
        );
        return Err(Status::conflict(key.resource, &key.name, &detail).into());
    }
    let revision = current.revision.to_string();
    if let Some(wanted) = options.revision.as_deref().filter(|wanted| *wanted != revision) {
        let detail = format!(
            "Precondition failed: ResourceVersion in precondition: {wanted}, ResourceVersion in object meta: {revision}"
        );
        return Err(Status::conflict(key.resource, &key.name, &detail).into());
    }
    if key.resource.plural == "namespaces" && KEPT_NAMESPACES.contains(&key.name.as_str()) {
        return Err(Status::forbidden(
            key.resource,
            &key.name,
            "this namespace may not be deleted",
        )
        .into());
    }
    Ok(())
}

/// The object with its deletion marked, as it would be stored if it had to wait.
fn mark(resource: &Resource, current: &Value, options: &Options, now: Timestamp) -> Value {
    let mut object = current.clone();
    let grace = grace(resource, current, options);
    let left = current.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    let is_shorter = left.is_none_or(|left| grace < left);
    let is_news = meta::deletion_timestamp(current).is_none() || is_shorter;
    // A pod that is ending may be given less time, and else nothing about its end changes.
    if is_news || resource.plural != "pods" {
        propagate(resource, &mut object, options.propagation);
    }
    if is_news {
        let at = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(now);
        let at = Timestamp::from_second(at.as_second()).unwrap_or(at);
        meta::set_deleted(&mut object, &at.to_string(), grace);
    }
    if resource.plural == "namespaces"
        && let Some(status) = object.get_mut("status").and_then(Value::as_object_mut)
    {
        status.insert("phase".to_owned(), json!("Terminating"));
    }
    object
}

/// Sets the finalizers by which the garbage collector knows what becomes of what the object owns: as
/// `asked` now, else as they are already, else as is usual for the kind.
fn propagate(resource: &Resource, object: &mut Value, asked: Option<Propagation>) {
    let had = meta::finalizers(object);
    let before = had.iter().find_map(|finalizer| match *finalizer {
        FOREGROUND => Some(Propagation::Foreground),
        ORPHAN => Some(Propagation::Orphan),
        _ => None,
    });
    let usual = orphans_by_default(resource).then_some(Propagation::Orphan);
    // The collector does not follow these: their finalizers would stay for ever.
    let is_collected = !matches!(resource.kind, "Event" | "Lease");
    let wanted = match asked.or(before).or(usual).filter(|_| is_collected) {
        Some(Propagation::Foreground) => Some(FOREGROUND),
        Some(Propagation::Orphan) => Some(ORPHAN),
        Some(Propagation::Background) | None => None,
    };
    let is_kept = |one: &&str| wanted == Some(*one) || ![FOREGROUND, ORPHAN].contains(one);
    let mut list: Vec<&str> = had.iter().copied().filter(is_kept).collect();
    list.extend(wanted.filter(|wanted| !had.contains(wanted)));
    if list == had {
        return;
    }
    let (is_empty, list) = (list.is_empty(), json!(list));
    if is_empty {
        meta::remove_field(object, "finalizers");
    } else {
        meta::set_field(object, "finalizers", list);
    }
}

/// Whether what an object of that kind owns stays when a delete does not say what becomes of it: so it
/// was before there was garbage collection.
fn orphans_by_default(resource: &Resource) -> bool {
    matches!((resource.group, resource.plural), ("batch", "jobs") | ("", "replicationcontrollers"))
}

/// What a client is told that may not know of that.
fn warning(resource: &Resource, options: &Options) -> Option<String> {
    let is_surprising = options.propagation.is_none() && orphans_by_default(resource);
    let plural = resource.plural;
    is_surprising.then(|| format!("child pods are preserved by default when {plural} are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning"))
}

/// The grace that is meant: one that is negative is a second, not none.
fn grace_of(seconds: i64) -> i64 {
    if seconds < 0 { 1 } else { seconds.min(GRACE_SECONDS_MAX) }
}

/// Seconds a pod has to end by itself: none when it does not run.
fn grace(resource: &Resource, object: &Value, options: &Options) -> i64 {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let is_over = matches!(text("/status/phase"), "Succeeded" | "Failed");
    if resource.plural != "pods" || text("/spec/nodeName").is_empty() || is_over {
        return 0;
    }
    let own = object.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
    let own = own.map(|seconds| seconds.clamp(0, OWN_GRACE_SECONDS_MAX));
    options.grace_seconds.or(own).unwrap_or(GRACE_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;

    fn marked(pod: &Value, options: &Options) -> Value {
        mark(api::find("", "v1", "pods").unwrap(), pod, options, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_running_pod_gets_its_grace_and_a_waiting_one_goes_at_once() {
        let pods = api::find("", "v1", "pods").unwrap();
        let running =
            json!({"metadata": {}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 7}});
        let later = marked(&running, &Options::default());
        assert_eq!(later["metadata"]["deletionTimestamp"], "1970-01-01T00:00:07Z");
        assert!(!is_finished(pods, &later));
        assert_eq!([-5, 0, 9].map(grace_of), [1, 0, 9]);
        let forced = Options { grace_seconds: Some(0), ..Options::default() };
        assert!(is_finished(pods, &marked(&later, &forced)));
        let waiting = json!({"metadata": {}, "spec": {}});
        assert!(is_finished(pods, &marked(&waiting, &Options::default())));
    }

    #[test]
    fn no_grace_leads_out_of_the_calendar() {
        let spec = json!({"nodeName": "n", "terminationGracePeriodSeconds": i64::MAX});
        let marked = marked(&json!({"metadata": {}, "spec": spec}), &Options::default());
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], OWN_GRACE_SECONDS_MAX);
        assert_eq!(marked["metadata"]["deletionTimestamp"], "2038-01-19T03:14:07Z");
    }

    #[test]
    fn grace_is_never_lengthened() {
        let running = json!({"metadata": {}, "spec": {"nodeName": "n"}});
        let short = marked(&running, &Options { grace_seconds: Some(1), ..Options::default() });
        let again = marked(&short, &Options { grace_seconds: Some(60), ..Options::default() });
        assert_eq!(again, short);
    }

    #[test]
    fn pods_of_a_replication_controller_stay_unless_the_client_says_otherwise() {
        let object = json!({"metadata": {"name": "x"}});
        let finalizers = |plural, group, propagation: Option<Propagation>| {
            let resource = api::find(group, "v1", plural).unwrap();
            let options = Options { propagation, ..Options::default() };
            let marked = mark(resource, &object, &options, Timestamp::UNIX_EPOCH);
            marked["metadata"]["finalizers"].clone()
        };
        assert_eq!(finalizers("replicationcontrollers", "", None), json!(["orphan"]));
        let background = Some(Propagation::Background);
        assert_eq!(finalizers("replicationcontrollers", "", background), Value::Null);
        assert_eq!(finalizers("replicasets", "apps", None), Value::Null);
        assert_eq!(finalizers("events", "", Some(Propagation::Foreground)), Value::Null);
    }

    #[test]
    fn finalizers_and_propagation_keep_an_object() {
        let maps = api::find("", "v1", "configmaps").unwrap();
        let object = json!({"metadata": {"name": "x"}});
        let options = Options { propagation: Some(Propagation::Foreground), ..Options::default() };
        let kept = mark(maps, &object, &options, Timestamp::UNIX_EPOCH);
        assert_eq!(kept["metadata"]["finalizers"], json!(["foregroundDeletion"]));
        assert!(!is_finished(maps, &kept));
        let gone = mark(maps, &object, &Options::default(), Timestamp::UNIX_EPOCH);
        assert!(is_finished(maps, &gone));
    }

    #[test]
    fn each_delete_may_say_anew_what_becomes_of_dependents() {
        let maps = api::find("", "v1", "configmaps").unwrap();
        let again = |object: &Value, propagation: Option<Propagation>| {
            let options = Options { propagation, ..Options::default() };
            mark(maps, object, &options, Timestamp::UNIX_EPOCH)
        };
        let finalizers = |object: &Value| object["metadata"]["finalizers"].clone();
        let plain = json!({"metadata": {"name": "x"}});
        let foreground = again(&plain, Some(Propagation::Foreground));
        assert_eq!(again(&foreground, None), foreground, "what was said before counts");
        let orphan = again(&foreground, Some(Propagation::Orphan));
        assert_eq!(finalizers(&orphan), json!([ORPHAN]));
        assert_eq!(again(&orphan, None), orphan);
        let foreground = again(&orphan, Some(Propagation::Foreground));
        assert_eq!(finalizers(&foreground), json!([FOREGROUND]));
        let background = again(&foreground, Some(Propagation::Background));
        assert_eq!(finalizers(&background), Value::Null);
        assert!(is_finished(maps, &background), "nothing is left to wait for");
        let held = json!({"metadata": {"name": "x", "finalizers": [ORPHAN, "a.b/c"]}});
        assert_eq!(finalizers(&again(&held, None)), json!([ORPHAN, "a.b/c"]));
        let background = again(&held, Some(Propagation::Background));
        assert_eq!(finalizers(&background), json!(["a.b/c"]));
        assert!(!is_finished(maps, &background));
    }

    #[test]
    fn nothing_about_the_end_of_a_pod_changes_but_that_it_comes_sooner() {
        let running = json!({"metadata": {"finalizers": [FOREGROUND]}, "spec": {"nodeName": "n"}});
        let ending = marked(&running, &Options::default());
        let propagation = Some(Propagation::Background);
        let later = Options { propagation, ..Options::default() };
        assert_eq!(marked(&ending, &later), ending);
        let sooner = Options { grace_seconds: Some(0), propagation, ..Options::default() };
        assert_eq!(marked(&ending, &sooner)["metadata"]["finalizers"], Value::Null);
    }

    #[test]
    fn what_becomes_of_dependents_is_said_in_one_way_only() {
        let said = |policy, orphans| {
            Propagation::parse(policy, orphans).map_err(|error| error.to_string())
        };
        assert_eq!(said(None, None), Ok(None));
        assert_eq!(said(None, Some(true)), Ok(Some(Propagation::Orphan)));
        assert_eq!(said(None, Some(false)), Ok(Some(Propagation::Background)));
        assert_eq!(said(Some("Foreground"), None), Ok(Some(Propagation::Foreground)));
        assert_eq!(
            said(Some("Orphan"), Some(true)).unwrap_err(),
            "propagationPolicy: Invalid value: \"Orphan\": orphanDependents and deletionPropagation cannot be both set"
        );
        assert_eq!(
            said(Some("Never"), None).unwrap_err(),
            "propagationPolicy: Unsupported value: \"Never\": supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
        );
    }
}
