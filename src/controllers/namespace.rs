//! Empties namespaces that are being deleted, and gives each living one its service account and the
//! CA's certificate.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::{Api, ResourceExt as _};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::api::{Resource, resources};
use crate::client::{Change, is_already_exists, is_not_found};
use crate::controllers::Context;
use crate::controllers::dynamic;
use crate::controllers::object::is_deleting;
use crate::controllers::queue::{Next, Queue, Workers};

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
/// The ConfigMap with the CA's certificate, which every namespace has, and where the first one is.
const ROOT_CA: &str = "kube-root-ca.crt";
const SYSTEM_NAMESPACE: &str = "kube-system";
/// The service account every namespace has.
const SERVICE_ACCOUNT: &str = "default";

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, cancel: CancellationToken) {
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
    let workers = Workers { controller: "namespace", runs_max: RUNS_MAX, rng: context.rng.clone() };
    workers.run(queue, cancel, |name| reconcile(&context, name)).await;
}

async fn reconcile(context: &Context, name: String) -> Result<Next, kube::Error> {
    let Some(namespace) = context.informers.namespaces.store.named("", &name) else {
        return Ok(Next::Wait);
    };
    if !is_deleting(&namespace.metadata) {
        ensure_service_account(context, &name).await?;
        let is_published = ensure_root_ca(context, &name).await?;
        return Ok(if is_published { Next::Wait } else { Next::After(RECHECK_AFTER) });
    }
    let spec = namespace.spec.as_ref();
    let finalizers = spec.and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(Next::Wait);
    }
    if !empty(context, &name).await? {
        return Ok(Next::After(RECHECK_AFTER));
    }
    finalize(context, &namespace).await?;
    info!(k8s.namespace.name = name, "namespace emptied");
    Ok(Next::Wait)
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

/// Gives the namespace the CA's certificate, where its pods find it. Returns `false` while the
/// cluster itself has not written it.
async fn ensure_root_ca(context: &Context, namespace: &str) -> Result<bool, kube::Error> {
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    if api.get_opt(ROOT_CA).await?.is_some() {
        return Ok(true);
    }
    let of_system: Api<ConfigMap> = Api::namespaced(context.client.clone(), SYSTEM_NAMESPACE);
    let Some(original) = of_system.get_opt(ROOT_CA).await? else { return Ok(false) };
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(ROOT_CA.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        data: original.data,
        ..ConfigMap::default()
    };
    match api.create(&PostParams::default(), &map).await {
        Err(err) if !is_already_exists(&err) => Err(err),
        _ => Ok(true),
    }
}

/// Deletes what is in the namespace, pods first: they must not outlive what they rely on, such as
/// the policies of their namespace. Returns whether nothing was left.
async fn empty(context: &Context, namespace: &str) -> Result<bool, kube::Error> {
    let (pods, others): (Vec<_>, Vec<_>) = resources()
        .iter()
        .filter(|resource| resource.is_namespaced && resource.has_verb("delete"))
        .partition(|resource| resource.kind == "Pod");
    for group in [pods, others] {
        let mut left = 0;
        for resource in group {
            left += delete_all(context, resource, namespace).await?;
        }
        if left > 0 {
            debug!(k8s.namespace.name = namespace, left, "namespace not empty yet");
            return Ok(false);
        }
    }
    Ok(true)
}

/// Deletes the objects of one kind; returns how many there were.
async fn delete_all(
    context: &Context,
    resource: &Resource,
    namespace: &str,
) -> Result<usize, kube::Error> {
    let api = dynamic::api(&context.client, resource, namespace);
    let listed = api.list(&ListParams::default().limit(LIST_LEN_MAX)).await?;
    let found = listed.items.len();
    let doomed = listed.items.into_iter().filter(|object| !is_deleting(&object.metadata));
    let deletes = doomed.map(|object| {
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
    outcomes.into_iter().collect::<Result<(), _>>()?;
    Ok(found)
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
