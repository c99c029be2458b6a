//! How strategic merge treats lists: the `patchStrategy` and `patchMergeKey` of Kubernetes' types.

use crate::api::resource::Resource;
use crate::api::schema::{SCHEMA, Shape};

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

/// Where in a type a patch stands; nowhere in what has no type.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place(Option<usize>);

impl Place {
    /// An object of this kind.
    pub(super) fn root(res: &Resource) -> Self {
        Self(SCHEMA.kind(&res.api_version(), res.kind))
    }

    /// The place of a field, or of its elements.
    pub(super) fn field(self, name: &str) -> Self {
        let field = self.0.and_then(|message| SCHEMA.field(message, name));
        Self(field.filter(|field| field.shape != Shape::Map).and_then(|field| field.kind.message()))
    }

    /// The rule of the list in a field.
    pub(super) fn list_rule(self, name: &str) -> ListRule {
        let field = self.0.and_then(|message| SCHEMA.field(message, name));
        match field.and_then(|field| field.merge_key) {
            None => ListRule::Replace,
            Some("") => ListRule::Union,
            Some(key) => ListRule::MergeBy(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;

    fn rule(kind: (&str, &str, &str), path: &[&str]) -> ListRule {
        let (list, before) = path.split_last().unwrap();
        let root = Place::root(api::find(kind.0, kind.1, kind.2).unwrap());
        before.iter().fold(root, |place, name| place.field(name)).list_rule(list)
    }

    #[test]
    fn lists_have_the_rule_of_their_own_type() {
        let (pods, nodes) = (("", "v1", "pods"), ("", "v1", "nodes"));
        let (slices, accounts) =
            (("discovery.k8s.io", "v1", "endpointslices"), ("", "v1", "serviceaccounts"));
        let deployments = ("apps", "v1", "deployments");
        let by = ListRule::MergeBy;
        let cases = [
            (pods, &["spec", "containers"][..], by("name")),
            (pods, &["spec", "containers", "ports"], by("containerPort")),
            (pods, &["spec", "ephemeralContainers", "env"], by("name")),
            (pods, &["spec", "tolerations"], ListRule::Replace),
            (pods, &["spec", "imagePullSecrets"], by("name")),
            (accounts, &["imagePullSecrets"], ListRule::Replace),
            (accounts, &["secrets"], by("name")),
            (deployments, &["spec", "template", "spec", "volumes"], by("name")),
            (deployments, &["metadata", "finalizers"], ListRule::Union),
            (deployments, &["metadata", "ownerReferences"], by("uid")),
            (nodes, &["spec", "taints"], ListRule::Replace),
            (nodes, &["status", "addresses"], by("type")),
            (slices, &["endpoints", "addresses"], ListRule::Replace),
            (("", "v1", "services"), &["spec", "ports"], by("port")),
        ];
        for (kind, path, wanted) in cases {
            assert_eq!(rule(kind, path), wanted, "{kind:?} {path:?}");
        }
    }
}
