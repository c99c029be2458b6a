//! Checks of security contexts: whose rights a pod and its containers have.

use serde_json::Value;

use crate::api::field_error::Errors;
use crate::api::json::{is_true, items_at};

/// Users and groups that Linux knows.
const IDS: std::ops::RangeInclusive<i64> = 0..=i32::MAX as i64;
const ID_RANGE: &str = "must be between 0 and 2147483647, inclusive";

/// Checks the context of a pod; `path` is that of its spec.
pub(super) fn validate_pod(holder: &Value, path: &str, errors: &mut Errors) {
    for field in ["hostPID", "hostIPC", "hostNetwork"] {
        if is_true(holder, &format!("/spec/{field}")) {
            let detail = "a WebAssembly pod has no namespaces of the host to share";
            errors.forbidden(format!("{path}.{field}"), detail);
        }
    }
    let context = holder.pointer("/spec/securityContext").unwrap_or(&Value::Null);
    let field = format!("{path}.securityContext");
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        check_id(context.get(key), format!("{field}.{key}"), errors);
    }
    for (at, group) in items_at(context, "/supplementalGroups").iter().enumerate() {
        check_id(Some(group), format!("{field}.supplementalGroups[{at}]"), errors);
    }
}

/// Checks the context of a container; `field` is the container's path.
pub(super) fn validate(container: &Value, field: &str, errors: &mut Errors) {
    let context = container.get("securityContext").unwrap_or(&Value::Null);
    let field = format!("{field}.securityContext");
    if is_true(context, "/privileged") {
        let detail = "a WebAssembly container has no privileges of the host to get";
        errors.forbidden(format!("{field}.privileged"), detail);
    }
    for key in ["runAsUser", "runAsGroup"] {
        check_id(context.get(key), format!("{field}.{key}"), errors);
    }
}

fn check_id(id: Option<&Value>, field: String, errors: &mut Errors) {
    if let Some(id) = id.filter(|id| id.as_i64().is_some_and(|id| !IDS.contains(&id))) {
        errors.invalid(field, id, ID_RANGE);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn users_and_groups_are_numbers_that_linux_has_and_nothing_of_the_host_is_shared() {
        let pod = json!({"spec": {"hostPID": true, "securityContext": {"runAsUser": -1,
            "runAsGroup": 1000, "fsGroup": 4_294_967_296_i64, "supplementalGroups": [1, -2]}}});
        let container = json!({"securityContext": {"privileged": true, "runAsGroup": -1}});
        let mut errors = Errors::default();
        validate_pod(&pod, "spec", &mut errors);
        validate(&container, "c", &mut errors);
        let found: Vec<String> = errors.into_vec().iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "spec.hostPID: Forbidden: a WebAssembly pod has no namespaces of the host to share",
                "spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, \
                 inclusive",
                "spec.securityContext.fsGroup: Invalid value: 4294967296: must be between 0 and \
                 2147483647, inclusive",
                "spec.securityContext.supplementalGroups[1]: Invalid value: -2: must be between 0 and \
                 2147483647, inclusive",
                "c.securityContext.privileged: Forbidden: a WebAssembly container has no privileges of \
                 the host to get",
                "c.securityContext.runAsGroup: Invalid value: -1: must be between 0 and 2147483647, \
                 inclusive",
            ]
        );
    }
}
