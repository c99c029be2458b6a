//! Empties namespaces that are being deleted, says what they wait for, and gives each living one its
//! service account and the CA's certificate.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, NamespaceCondition, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::api::{Resource, resources};
use crate::client::{Change, Store, informer, is_already_exists, is_not_found};
use crate::controllers::Context;
use crate::controllers::dynamic;
use crate::controllers::object::is_deleting;
use crate::controllers::queue::{Next, Queue, Workers};
use crate::rt::TaskGroup;

/// Namespaces looked after at once.
const RUNS_MAX: usize = 4;
/// Objects deleted at once.
const DELETES_MAX: usize = 32;
/// Objects listed in one go; the rest is found in the next round.
const LIST_LEN_MAX: u32 = 500;
/// How long what was deleted gets to go before the namespace is looked at again.
const RECHECK_AFTER: Duration = Duration::from_millis(250);
/// The finalizer that keeps a namespace until it is empty.
const FINALIZER: &str = "kubernetes";
/// The ConfigMap with the CA's certificate, which every namespace has, and its key there.
const ROOT_CA: &str = "kube-root-ca.crt";
const CA_KEY: &str = "ca.crt";
/// The service account every namespace has.
const SERVICE_ACCOUNT: &str = "default";

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, cancel: CancellationToken) {
    let tasks = TaskGroup::new(&cancel);
    let queue = Queue::new();
    context.informers.namespaces.subscribe(queue.feed(|change: &Change<'_, Namespace>, keys| {
        keys.push(change.object().name_any());
    }));
    context.informers.service_accounts.subscribe(queue.feed(
        |change: &Change<'_, ServiceAccount>, keys| {
            if let Change::Removed(account) = change
                && account.name_any() == SERVICE_ACCOUNT
            {
                keys.extend(account.namespace());
            }
        },
    ));
    let named = watcher::Config::default().fields(&format!("metadata.name={ROOT_CA}"));
    let root_cas = informer(Api::<ConfigMap>::all(context.client.clone()), named, &tasks);
    root_cas.subscribe(queue.feed(|change: &Change<'_, ConfigMap>, keys| {
        keys.extend(change.object().namespace());
    }));
    if cancel.run_until_cancelled(root_cas.ready()).await != Some(true) {
        return;
    }
    let workers = Workers { controller: "namespace", runs_max: RUNS_MAX, rng: context.rng.clone() };
    workers.run(queue, cancel, |name| reconcile(&context, &root_cas.store, name)).await;
}

async fn reconcile(
    context: &Context,
    root_cas: &Store<ConfigMap>,
    name: String,
) -> Result<Next, kube::Error> {
    let Some(namespace) = context.informers.namespaces.store.named("", &name) else {
        return Ok(Next::Wait);
    };
    if !is_deleting(&namespace.metadata) {
        ensure_service_account(context, &name).await?;
        ensure_root_ca(context, root_cas, &name).await?;
        return Ok(Next::Wait);
    }
    let spec = namespace.spec.as_ref();
    let finalizers = spec.and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(Next::Wait);
    }
    let mut left = Left { is_nothing: true, ..Left::default() };
    let emptied = empty(context, &name, &mut left).await;
    left.failure = emptied.as_ref().err().map(reason_of);
    if emptied.is_err() || !left.is_nothing {
        tell(context, &namespace, &left).await?;
        return emptied.map(|()| Next::After(RECHECK_AFTER));
    }
    finalize(context, &namespace).await?;
    info!(k8s.namespace.name = name, "namespace emptied");
    Ok(Next::Wait)
}

/// Why a deletion failed, in the API's own word: what else an error tells is for the log.
fn reason_of(err: &kube::Error) -> String {
    match err {
        kube::Error::Api(status) => status.reason.clone(),
        _ => "no answer".to_owned(),
    }
}

async fn ensure_service_account(context: &Context, namespace: &str) -> Result<(), kube::Error> {
    if context.informers.service_accounts.store.named(namespace, SERVICE_ACCOUNT).is_some() {
        return Ok(());
    }
    let api: Api<ServiceAccount> = Api::namespaced(context.client.clone(), namespace);
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(SERVICE_ACCOUNT.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    match api.create(&PostParams::default(), &account).await {
        Err(err) if !is_already_exists(&err) => Err(err),
        _ => Ok(()),
    }
}

/// Gives the namespace the CA's certificate, where its pods find it, or puts right what was changed in it.
async fn ensure_root_ca(
    context: &Context,
    root_cas: &Store<ConfigMap>,
    namespace: &str,
) -> Result<(), kube::Error> {
    let data = BTreeMap::from([(CA_KEY.to_owned(), context.root_ca.to_string())]);
    let found = root_cas.named(namespace, ROOT_CA);
    if found.as_ref().is_some_and(|found| found.data.as_ref() == Some(&data)) {
        return Ok(());
    }
    let (api, params) = (Api::namespaced(context.client.clone(), namespace), PostParams::default());
    let written = match found {
        Some(found) => {
            let right = ConfigMap { data: Some(data), binary_data: None, ..(*found).clone() };
            api.replace(ROOT_CA, &params, &right).await
        }
        None => {
            let metadata = ObjectMeta {
                name: Some(ROOT_CA.to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            };
            let map = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
            api.create(&params, &map).await
        }
    };
    match written {
        Err(err) if !is_already_exists(&err) => Err(err),
        _ => Ok(()),
    }
}

/// What a namespace still holds.
#[derive(Debug, Default, PartialEq)]
struct Left {
    /// Nothing at all was found.
    is_nothing: bool,
    /// Objects that were told to go before and are still there, by resource.
    resources: BTreeMap<String, usize>,
    /// How many of them wait for each finalizer.
    finalizers: BTreeMap<String, usize>,
    /// Why not all could be told to go.
    failure: Option<String>,
}

/// Deletes what is in the namespace, pods first: they must not outlive what they rely on, such as
/// the policies of their namespace. Notes in `left` what was found.
async fn empty(context: &Context, namespace: &str, left: &mut Left) -> Result<(), kube::Error> {
    let (pods, others): (Vec<_>, Vec<_>) = resources()
        .iter()
        .filter(|resource| resource.is_namespaced && resource.has_verb("delete"))
        .partition(|resource| resource.kind == "Pod");
    for group in [pods, others] {
        for resource in group {
            delete_all(context, resource, namespace, left).await?;
        }
        if !left.is_nothing {
            debug!(k8s.namespace.name = namespace, ?left, "namespace not empty yet");
            return Ok(());
        }
    }
    Ok(())
}

/// Deletes the objects of one kind; notes those that are there.
async fn delete_all(
    context: &Context,
    resource: &Resource,
    namespace: &str,
    left: &mut Left,
) -> Result<(), kube::Error> {
    let api = dynamic::api(&context.client, resource, namespace);
    let listed = api.list(&ListParams::default().limit(LIST_LEN_MAX)).await?;
    left.is_nothing &= listed.items.is_empty();
    let (going, doomed): (Vec<_>, Vec<_>) =
        listed.items.into_iter().partition(|object| is_deleting(&object.metadata));
    if !going.is_empty() {
        let name = format!("{}.{}", resource.plural, resource.group);
        left.resources.insert(name, going.len());
    }
    for finalizer in going.into_iter().flat_map(|object| object.metadata.finalizers).flatten() {
        *left.finalizers.entry(finalizer).or_insert(0) += 1;
    }
    let deletes = doomed.into_iter().map(|object| {
        let api = api.clone();
        async move {
            let params = DeleteParams {
                preconditions: Some(Preconditions { uid: object.uid(), resource_version: None }),
                ..DeleteParams::background()
            };
            match api.delete(&object.name_any(), &params).await {
                Err(err) if !is_not_found(&err) => Err(err),
                _ => Ok(()),
            }
        }
    });
    let outcomes: Vec<_> = stream::iter(deletes).buffer_unordered(DELETES_MAX).collect().await;
    outcomes.into_iter().collect()
}

/// Says in the status what the namespace waits for, if anything has been told to go and stays.
async fn tell(context: &Context, namespace: &Namespace, left: &Left) -> Result<(), kube::Error> {
    let was = namespace.status.as_ref().and_then(|status| status.conditions.clone());
    if left.resources.is_empty() && left.failure.is_none() && was.is_none() {
        return Ok(());
    }
    let conditions = conditions(left, was.as_deref().unwrap_or_default(), context.clock.now());
    if was.as_ref() == Some(&conditions) {
        return Ok(());
    }
    let patch = json!({
        "metadata": { "resourceVersion": namespace.resource_version() },
        "status": { "conditions": conditions },
    });
    let api: Api<Namespace> = Api::all(context.client.clone());
    let (name, params) = (namespace.name_any(), PatchParams::default());
    match api.patch_status(&name, &params, &Patch::Merge(patch)).await {
        Err(err) if !is_not_found(&err) => Err(err),
        _ => Ok(()),
    }
}

/// Kubernetes' conditions of a namespace on its way out. All kinds are known here, so the condition on their
/// discovery is never true.
fn conditions(left: &Left, was: &[NamespaceCondition], now: Timestamp) -> Vec<NamespaceCondition> {
    let listed = |counts: &BTreeMap<String, usize>, word: &str| {
        let each =
            counts.iter().map(|(name, count)| format!("{name} {word} {count} resource instances"));
        each.collect::<Vec<_>>().join(", ")
    };
    let remaining = match listed(&left.resources, "has") {
        none if none.is_empty() => {
            (false, "ContentRemoved", "All content successfully removed".to_owned())
        }
        list => (true, "SomeResourcesRemain", format!("Some resources are remaining: {list}")),
    };
    let finalizers = match listed(&left.finalizers, "in") {
        none if none.is_empty() => (
            false,
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished".to_owned(),
        ),
        list => (
            true,
            "SomeFinalizersRemain",
            format!("Some content in the namespace has finalizers remaining: {list}"),
        ),
    };
    let discovered = "All resources successfully discovered".to_owned();
    let deletion = match &left.failure {
        None => {
            let message = "All content successfully deleted, may be waiting on finalization";
            (false, "ContentDeleted", message.to_owned())
        }
        Some(why) => {
            let message = format!("Failed to delete all resource types: {why}");
            (true, "ContentDeletionFailed", message)
        }
    };
    [
        ("NamespaceDeletionDiscoveryFailure", (false, "ResourcesDiscovered", discovered)),
        ("NamespaceDeletionContentFailure", deletion),
        ("NamespaceContentRemaining", remaining),
        ("NamespaceFinalizersRemaining", finalizers),
    ]
    .map(|(type_, (is_true, reason, message))| {
        let status = if is_true { "True" } else { "False" };
        let same = was.iter().find(|was| was.type_ == type_ && was.status == status);
        let since = same.and_then(|was| was.last_transition_time.clone());
        NamespaceCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: since.or(Some(Time(now))),
        }
    })
    .into()
}

async fn finalize(context: &Context, namespace: &Namespace) -> Result<(), kube::Error> {
    let mut emptied = namespace.clone();
    if let Some(finalizers) = emptied.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    let api: Api<Namespace> = Api::all(context.client.clone());
    let params = PostParams::default();
    match api.replace_subresource("finalize", &namespace.name_any(), &params, &emptied).await {
        Err(err) if !is_not_found(&err) => Err(err),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_is_told_with_its_finalizers_and_since_when() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (first, later) = (at("2026-01-01T00:00:00Z"), at("2026-01-01T00:00:05Z"));
        let left = Left {
            is_nothing: false,
            resources: [("configmaps.".to_owned(), 2), ("jobs.batch".to_owned(), 1)].into(),
            finalizers: [("a/b".to_owned(), 3)].into(),
            failure: None,
        };
        let was = conditions(&left, &[], first);
        let told: Vec<_> = was
            .iter()
            .map(|one| (one.type_.as_str(), one.status.as_str(), one.message.as_deref().unwrap()))
            .collect();
        assert_eq!(
            told[2..],
            [
                (
                    "NamespaceContentRemaining",
                    "True",
                    "Some resources are remaining: configmaps. has 2 resource instances, \
                     jobs.batch has 1 resource instances",
                ),
                (
                    "NamespaceFinalizersRemaining",
                    "True",
                    "Some content in the namespace has finalizers remaining: \
                     a/b in 3 resource instances",
                ),
            ]
        );
        assert!(told[..2].iter().all(|(_, status, _)| *status == "False"), "{told:?}");
        assert_eq!(conditions(&left, &was, later), was, "the same again changes nothing");
        let held = Left { finalizers: BTreeMap::new(), ..left };
        let is = conditions(&held, &was, later);
        let since = is.iter().map(|one| one.last_transition_time.as_ref().unwrap().0);
        assert_eq!(since.collect::<Vec<_>>(), [first, first, first, later]);
        let failed = Left { failure: Some("denied".to_owned()), ..held };
        let failed = &conditions(&failed, &is, later)[1];
        assert_eq!(
            (failed.type_.as_str(), failed.status.as_str()),
            ("NamespaceDeletionContentFailure", "True")
        );
        let why = "Failed to delete all resource types: denied";
        assert_eq!(failed.message.as_deref(), Some(why));
    }
}
