//! Checks of the devices that a pod claims, and of which containers have them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::api::field_error::Errors;
use crate::api::json::{is_unset, items_at, text_at};
use crate::api::names;

/// Checks `spec.resourceClaims` of `holder` and what containers say of them; `path` is `spec` or
/// `spec.template.spec`.
pub(super) fn validate(holder: &Value, path: &str, errors: &mut Errors) {
    let mut known = BTreeSet::new();
    for (at, claim) in items_at(holder, "/spec/resourceClaims").iter().enumerate() {
        let path = format!("{path}.resourceClaims[{at}]");
        let name = text_at(claim, "/name");
        if name.is_empty() {
            errors.required(format!("{path}.name"));
        } else if let Err(rule) = names::check_dns1123_label(name) {
            errors.invalid(format!("{path}.name"), &json!(name), rule);
        } else if !known.insert(name) {
            errors.duplicate(format!("{path}.name"), &json!(name));
        }
        validate_source(claim, &path, errors);
    }
    for list in ["initContainers", "containers"] {
        for (at, container) in items_at(holder, &format!("/spec/{list}")).iter().enumerate() {
            validate_uses(container, &format!("{path}.{list}[{at}]"), &known, errors);
        }
    }
    if !items_at(holder, "/spec/resources/claims").is_empty() {
        let detail = "claims may not be set for Resources at pod-level";
        errors.forbidden(format!("{path}.resources.claims"), detail);
    }
}

/// Checks what a pod's status says of the claims that were made for it.
pub(super) fn validate_statuses(pod: &Value, errors: &mut Errors) {
    let entries = items_at(pod, "/spec/resourceClaims");
    let mut seen = BTreeSet::new();
    for (at, status) in items_at(pod, "/status/resourceClaimStatuses").iter().enumerate() {
        let path = format!("status.resourceClaimStatuses[{at}]");
        let name = text_at(status, "/name");
        if entries.iter().all(|entry| text_at(entry, "/name") != name) {
            let detail = "must match the name of an entry in `spec.resourceClaims`";
            errors.invalid(format!("{path}.name"), &json!(name), detail);
        }
        if !seen.insert(name) {
            errors.duplicate(format!("{path}.name"), &json!(name));
        }
        if let Some(claim) = status.get("resourceClaimName").filter(|claim| !claim.is_null())
            && let Err(rule) = names::check_dns1123_subdomain(claim.as_str().unwrap_or_default())
        {
            errors.invalid(format!("{path}.resourceClaimName"), claim, rule);
        }
    }
}

fn validate_source(claim: &Value, path: &str, errors: &mut Errors) {
    let (own, template) = ("resourceClaimName", "resourceClaimTemplateName");
    let said = |key: &str| !is_unset(claim.get(key));
    match (said(own), said(template)) {
        (true, true) => {
            let detail = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
            errors.invalid(path, claim, detail);
        }
        (false, false) => {
            let detail = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
            errors.invalid(path, claim, detail);
        }
        _ => {}
    }
    for key in [own, template] {
        if let Some(name) = claim.get(key).filter(|name| !name.is_null())
            && let Err(rule) = names::check_dns1123_subdomain(name.as_str().unwrap_or_default())
        {
            errors.invalid(format!("{path}.{key}"), name, rule);
        }
    }
}

/// Checks the claims that a container names.
fn validate_uses(container: &Value, path: &str, known: &BTreeSet<&str>, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (at, used) in items_at(container, "/resources/claims").iter().enumerate() {
        let path = format!("{path}.resources.claims[{at}]");
        let (name, request) = (text_at(used, "/name"), text_at(used, "/request"));
        if name.is_empty() {
            errors.required(format!("{path}.name"));
            continue;
        }
        let is_twice =
            seen.contains(&(name, request)) || seen.contains(&(name, "")) && !request.is_empty();
        if is_twice {
            errors.duplicate(path.as_str(), &json!(name));
        }
        seen.insert((name, request));
        if !known.contains(name) {
            errors.not_found(format!("{path}.name"), &json!(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(claims: Value, uses: Value) -> Vec<String> {
        let pod = json!({"spec": {"resourceClaims": claims,
            "containers": [{"name": "a", "resources": {"claims": uses}}]}});
        let mut errors = Errors::default();
        validate(&pod, "spec", &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_status_is_of_a_claim_of_the_pod() {
        let found = |statuses: Value| {
            let pod = json!({"spec": {"resourceClaims": [{"name": "a"}, {"name": "b"}]},
                "status": {"resourceClaimStatuses": statuses}});
            let mut errors = Errors::default();
            validate_statuses(&pod, &mut errors);
            errors.into_vec().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let good = json!([{"name": "a", "resourceClaimName": "p-a-x"}, {"name": "b"}]);
        assert_eq!(found(good), Vec::<String>::new());
        let detail = "must match the name of an entry in `spec.resourceClaims`";
        assert_eq!(
            found(json!([{"name": "c"}])),
            [format!("status.resourceClaimStatuses[0].name: Invalid value: \"c\": {detail}")]
        );
        assert_eq!(
            found(json!([{"name": "a"}, {"name": "a"}])),
            ["status.resourceClaimStatuses[1].name: Duplicate value: \"a\""]
        );
        let named = found(json!([{"name": "a", "resourceClaimName": "X Y"}]));
        let wanted = "status.resourceClaimStatuses[0].resourceClaimName: Invalid value";
        assert!(named.len() == 1 && named[0].starts_with(wanted), "{named:?}");
    }

    #[test]
    fn a_pod_as_a_whole_has_no_claims_but_those_of_its_list() {
        let pod = json!({"spec": {"containers": [], "resources": {"claims": [{"name": "a"}]}}});
        let mut errors = Errors::default();
        validate(&pod, "spec", &mut errors);
        let found: Vec<_> = errors.into_vec().into_iter().map(|error| error.field).collect();
        assert_eq!(found, ["spec.resources.claims"]);
    }

    #[test]
    fn a_claim_has_one_source_and_containers_name_claims_of_the_pod() {
        let good = json!([{"name": "a", "resourceClaimName": "x"},
            {"name": "b", "resourceClaimTemplateName": "y"}]);
        let uses =
            json!([{"name": "a"}, {"name": "b", "request": "r"}, {"name": "b", "request": "s"}]);
        assert_eq!(texts(good.clone(), uses), Vec::<String>::new());
        for (claims, uses, wanted) in [
            (json!([{"name": "a"}]), json!([]), "spec.resourceClaims[0]: Invalid value"),
            (
                json!([{"name": "a", "resourceClaimName": "x", "resourceClaimTemplateName": "y"}]),
                json!([]),
                "spec.resourceClaims[0]: Invalid value",
            ),
            (
                json!([{"name": "a", "resourceClaimName": "X"}]),
                json!([]),
                "spec.resourceClaims[0].resourceClaimName: Invalid value: \"X\"",
            ),
            (
                json!([{"name": "a", "resourceClaimName": "x"}, {"name": "a", "resourceClaimName": "y"}]),
                json!([]),
                "spec.resourceClaims[1].name: Duplicate value",
            ),
            (
                good.clone(),
                json!([{"name": "c"}]),
                "spec.containers[0].resources.claims[0].name: Not found: \"c\"",
            ),
            (
                good,
                json!([{"name": "a"}, {"name": "a", "request": "r"}]),
                "spec.containers[0].resources.claims[1]: Duplicate value",
            ),
        ] {
            let found = texts(claims, uses);
            assert!(found.len() == 1 && found[0].starts_with(wanted), "{wanted} in {found:?}");
        }
    }
}
