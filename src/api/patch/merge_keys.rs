//! How strategic merge treats lists: the `patchStrategy` and `patchMergeKey` of Kubernetes' types.

use crate::api::resource::Resource;

/// What a patch does to a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ListRule {
    /// The patch's list takes its place.
    Replace,
    /// Elements are objects, told apart by this key.
    MergeBy(&'static str),
    /// Elements are scalars; the patch adds to them.
    Union,
}

/// The rule of the list `field`; `parent` is the field whose elements hold it.
pub(super) fn list_rule(res: &Resource, parent: &str, field: &str) -> ListRule {
    let is_container = matches!(parent, "containers" | "initContainers" | "ephemeralContainers");
    match field {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "imagePullSecrets"
        | "resourceClaims"
        | "secrets" => ListRule::MergeBy("name"),
        "env" if is_container => ListRule::MergeBy("name"),
        "ports" if is_container => ListRule::MergeBy("containerPort"),
        "ports" if res.plural == "services" => ListRule::MergeBy("port"),
        "volumeMounts" => ListRule::MergeBy("mountPath"),
        "volumeDevices" => ListRule::MergeBy("devicePath"),
        "hostAliases" | "podIPs" | "hostIPs" => ListRule::MergeBy("ip"),
        "topologySpreadConstraints" => ListRule::MergeBy("topologyKey"),
        "conditions" | "addresses" => ListRule::MergeBy("type"),
        "taints" => ListRule::MergeBy("key"),
        "ownerReferences" => ListRule::MergeBy("uid"),
        "finalizers" => ListRule::Union,
        _ => ListRule::Replace,
    }
}
