//! `authentication.k8s.io` and `authorization.k8s.io`: what the one who asks is, and may do. Nothing of
//! it is stored: a review is created and is the answer.

use crate::api::resource::{Column, Resource, Strategy};

/// What the groups serve.
pub static RESOURCES: [Resource; 3] = [
    resource(
        "authentication.k8s.io",
        ("selfsubjectreviews", "selfsubjectreview"),
        ("SelfSubjectReview", "SelfSubjectReviewList"),
        "Who the one who asks is.",
    ),
    resource(
        "authorization.k8s.io",
        ("selfsubjectaccessreviews", "selfsubjectaccessreview"),
        ("SelfSubjectAccessReview", "SelfSubjectAccessReviewList"),
        "Whether the one who asks may do something.",
    ),
    resource(
        "authorization.k8s.io",
        ("selfsubjectrulesreviews", "selfsubjectrulesreview"),
        ("SelfSubjectRulesReview", "SelfSubjectRulesReviewList"),
        "All that the one who asks may do in a namespace.",
    ),
];

const fn resource(
    group: &'static str,
    (plural, singular): (&'static str, &'static str),
    (kind, list_kind): (&'static str, &'static str),
    description: &'static str,
) -> Resource {
    Resource {
        group,
        version: "v1",
        plural,
        singular,
        kind,
        list_kind,
        description,
        short_names: &[],
        categories: &[],
        is_namespaced: false,
        verbs: &["create"],
        is_volatile: false,
        has_status: false,
        has_scale: false,
        has_generation: false,
        subresources: &[],
        columns: &[Column::NAME],
        field_selectors: &[],
        // It is never stored, so never decoded.
        strategy: Strategy::plain(|object| Ok(object.clone())),
    }
}

/// The review that a URL's path names.
#[must_use]
pub fn at(path: &str) -> Option<&'static Resource> {
    let (version_path, plural) = path.trim_end_matches('/').rsplit_once('/')?;
    RESOURCES.iter().find(|res| res.plural == plural && res.version_path() == version_path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_review_or_none() {
        let kind = |path: &str| at(path).map(|res| res.kind);
        let access = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        assert_eq!(kind(access), Some("SelfSubjectAccessReview"));
        assert_eq!(kind(&format!("{access}/")), Some("SelfSubjectAccessReview"));
        assert_eq!(kind("/apis/authentication.k8s.io/v1/selfsubjectaccessreviews"), None);
        assert_eq!(kind("/api/v1/pods"), None);
        assert_eq!(kind("/"), None);
    }
}
