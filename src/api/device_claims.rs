//! The claims of devices that a pod names, and how pod and claim refer to each other. KEP-4381.

use k8s_openapi::api::core::v1::{Pod, ResourceClaim as Used};
use k8s_openapi::api::resource::v1::ResourceClaim;

/// Keeps a claim while devices are given to it.
pub const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// On a claim that was made from a template: which of the pod's claims it is.
pub const POD_CLAIM_NAME: &str = "resource.kubernetes.io/pod-claim-name";
/// Pods that may use one claim.
pub const CONSUMERS_MAX: usize = crate::api::kinds::CONSUMERS_MAX;

/// A claim that a pod names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named<'a> {
    /// The name that the pod's containers use.
    pub entry: &'a str,
    /// The claim's own name; `None` until it was made from its template.
    pub claim: Option<&'a str>,
    /// What it is made from, if nobody made it by hand.
    pub template: Option<&'a str>,
}

/// The claims that the pod names, in its order; without those that turned out not to be needed.
pub fn of_pod(pod: &Pod) -> impl Iterator<Item = Named<'_>> {
    let entries = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten());
    let statuses = pod.status.as_ref().and_then(|status| status.resource_claim_statuses.as_ref());
    entries.filter_map(move |entry| {
        let template = entry.resource_claim_template_name.as_deref();
        let Some(template) = template else {
            let claim = entry.resource_claim_name.as_deref();
            return Some(Named { entry: &entry.name, claim, template });
        };
        let made = statuses.into_iter().flatten().find(|status| status.name == entry.name);
        let claim = match made {
            // The template says that nothing is needed.
            Some(status) => Some(status.resource_claim_name.as_deref()?),
            None => None,
        };
        Some(Named { entry: &entry.name, claim, template: Some(template) })
    })
}

/// Whether the pod claims anything.
#[must_use]
pub fn has_any(pod: &Pod) -> bool {
    let claims = pod.spec.as_ref().and_then(|spec| spec.resource_claims.as_ref());
    claims.is_some_and(|claims| !claims.is_empty())
}

/// Whether devices of the claim are for the pod with this uid.
#[must_use]
pub fn is_reserved_for(claim: &ResourceClaim, pod_uid: &str) -> bool {
    let consumers = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    consumers.into_iter().any(|consumer| consumer.uid == pod_uid)
}

/// Whether what a container uses covers what was given for `request`: alternatives are named
/// `request/alternative`, and count for their request.
#[must_use]
pub fn covers(used: &Used, request: &str) -> bool {
    let main = request.split_once('/').map_or(request, |(main, _)| main);
    used.request.as_deref().is_none_or(|wanted| wanted.is_empty() || wanted == main)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_from_a_template_has_its_name_from_the_status() {
        let pod: Pod =
            serde_json::from_value(json!({"spec": {"containers": [], "resourceClaims": [
            {"name": "own", "resourceClaimName": "shared"},
            {"name": "made", "resourceClaimTemplateName": "t"},
            {"name": "late", "resourceClaimTemplateName": "t"},
            {"name": "needless", "resourceClaimTemplateName": "t"},
        ]}, "status": {"resourceClaimStatuses": [
            {"name": "made", "resourceClaimName": "p-made-x"}, {"name": "needless"}]}}))
            .unwrap();
        let named: Vec<_> = of_pod(&pod).map(|named| (named.entry, named.claim)).collect();
        assert_eq!(named, [("own", Some("shared")), ("made", Some("p-made-x")), ("late", None)]);
        assert!(has_any(&pod) && !has_any(&Pod::default()));
    }

    #[test]
    fn a_container_has_what_it_names_or_all_of_the_claim() {
        let used = |request: Option<&str>| Used {
            name: "c".to_owned(),
            request: request.map(str::to_owned),
        };
        assert!(covers(&used(None), "a") && covers(&used(Some("a")), "a"));
        assert!(covers(&used(Some("a")), "a/small") && !covers(&used(Some("b")), "a"));
    }
}
