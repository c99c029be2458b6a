//! APIService.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{int_at, is_true, is_unset, items_at, set_default, text_at};
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;
use crate::api::{discovery, meta, names};

pub(super) const RESOURCE: Resource = Resource {
    group: "apiregistration.k8s.io",
    version: "v1",
    plural: "apiservices",
    singular: "apiservice",
    kind: "APIService",
    list_kind: "APIServiceList",
    description: "A version of an API group that another server answers, behind a Service.",
    short_names: &[],
    categories: &["api-extensions"],
    is_namespaced: false,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[Column::NAME, Column::text("Service"), Column::text("Available"), Column::AGE],
    field_selectors: &[],
    strategy: Strategy {
        default,
        validate,
        warnings,
        check_name,
        cells,
        ..Strategy::plain(typed::<APIService>)
    },
};

/// Port of a Service that does not say one.
const PORT: i64 = 443;

fn default(object: &mut Value) {
    let service = object.pointer_mut("/spec/service").filter(|service| service.is_object());
    if let Some(service) = service {
        set_default(service, "port", PORT);
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    match name.split_once('.') {
        Some((version, _)) if names::check_dns1035_label(version).is_ok() => {
            names::check_dns1123_subdomain(name)
        }
        _ => Err("must be `spec.version+\".\"+spec.group`"),
    }
}

fn validate(object: &Value, errors: &mut Errors) {
    let (group, version) = (text_at(object, "/spec/group"), text_at(object, "/spec/version"));
    let wanted = format!("{version}.{group}");
    if meta::name(object) != wanted {
        let detail = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        errors.invalid("metadata.name", &json!(meta::name(object)), &detail);
    }
    if group.is_empty() && version != "v1" {
        errors.required_because(
            "spec.group",
            "only v1 may have an empty group and it better be legacy kube",
        );
    } else if let Err(rule) = names::check_dns1123_subdomain(group)
        && !group.is_empty()
    {
        errors.invalid("spec.group", &json!(group), rule);
    }
    if let Err(rule) = names::check_dns1035_label(version) {
        errors.invalid("spec.version", &json!(version), rule);
    }
    for (field, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let value = int_at(object, &format!("/spec/{field}")).unwrap_or(0);
        if !(1..=most).contains(&value) {
            let detail = format!("must be positive and less than {most}");
            errors.invalid(format!("spec.{field}"), &json!(value), &detail);
        }
    }
    validate_service(object, errors);
}

fn validate_service(object: &Value, errors: &mut Errors) {
    let bundle = text_at(object, "/spec/caBundle");
    let is_blind = is_true(object, "/spec/insecureSkipTLSVerify");
    if object.pointer("/spec/service").is_none_or(Value::is_null) {
        if !bundle.is_empty() {
            let detail = "local APIServices may not have a caBundle";
            errors.invalid("spec.caBundle", &json!(bundle), detail);
        }
        if is_blind {
            let detail = "local APIServices may not have insecureSkipTLSVerify";
            errors.invalid("spec.insecureSkipTLSVerify", &json!(true), detail);
        }
        return;
    }
    for field in ["namespace", "name"] {
        if text_at(object, &format!("/spec/service/{field}")).is_empty() {
            errors.required(format!("spec.service.{field}"));
        }
    }
    let port = int_at(object, "/spec/service/port").unwrap_or(0);
    if !(1..=i64::from(u16::MAX)).contains(&port) {
        let detail = "must be between 1 and 65535, inclusive";
        errors.invalid("spec.service.port", &json!(port), detail);
    }
    if is_blind && !bundle.is_empty() {
        let detail = "may not be true if caBundle is present";
        errors.invalid("spec.insecureSkipTLSVerify", &json!(true), detail);
    }
    let is_pem = |bytes: &Vec<u8>| bytes.windows(11).any(|window| window == b"-----BEGIN ");
    if !bundle.is_empty() && !STANDARD.decode(bundle).is_ok_and(|bytes| is_pem(&bytes)) {
        errors.invalid("spec.caBundle", &json!("<bytes>"), "must be certificates in PEM");
    }
}

/// Charts bring APIServices of groups that are part of this server.
fn warnings(object: &Value) -> Vec<String> {
    let (group, version) = (text_at(object, "/spec/group"), text_at(object, "/spec/version"));
    let is_remote = !is_unset(object.pointer("/spec/service"));
    if is_remote && discovery::is_served(group, version) {
        vec![format!(
            "{group}/{version} is served by this server: the APIService is kept, and asked only for what is not"
        )]
    } else {
        Vec::new()
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let service = match text_at(object, "/spec/service/name") {
        "" => "Local".to_owned(),
        name => format!("{}/{name}", text_at(object, "/spec/service/namespace")),
    };
    let conditions = items_at(object, "/status/conditions");
    let available = conditions.iter().find(|c| text_at(c, "/type") == "Available");
    let available = match available {
        None => "Unknown".to_owned(),
        Some(condition) => match text_at(condition, "/status") {
            "True" => "True".to_owned(),
            status => format!("{status} ({})", text_at(condition, "/reason")),
        },
    };
    vec![json!(meta::name(object)), json!(service), json!(available), json!(age(object, now))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(changes: &[(&str, Value)]) -> Value {
        let mut object = json!({"metadata": {"name": "v1beta1.external.metrics.k8s.io"}, "spec": {
            "group": "external.metrics.k8s.io", "version": "v1beta1", "insecureSkipTLSVerify": true,
            "groupPriorityMinimum": 100, "versionPriority": 100,
            "service": {"namespace": "default", "name": "adapter"}}});
        for (key, value) in changes {
            object["spec"][key] = value.clone();
        }
        default(&mut object);
        object
    }

    fn texts(object: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate(object, &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_api_service_is_named_after_what_it_serves() {
        let good = service(&[]);
        assert_eq!(texts(&good), Vec::<String>::new());
        assert_eq!(good["spec"]["service"]["port"], 443);
        assert!(check_name("v1beta1.external.metrics.k8s.io").is_ok() && check_name("v1").is_err());
        for (key, value, wanted) in [
            ("version", json!("v1"), "metadata.name: Invalid value"),
            ("versionPriority", json!(0), "spec.versionPriority: Invalid value"),
            ("groupPriorityMinimum", json!(20_001), "spec.groupPriorityMinimum: Invalid value"),
            ("service", json!({"name": "adapter"}), "spec.service.namespace: Required value"),
            ("service", Value::Null, "spec.insecureSkipTLSVerify: Invalid value"),
        ] {
            let found = texts(&service(&[(key, value)]));
            assert!(found.len() == 1 && found[0].starts_with(wanted), "{wanted} in {found:?}");
        }
        let bundle = STANDARD.encode("-----BEGIN CERTIFICATE-----");
        let both = texts(&service(&[("caBundle", json!(bundle))]));
        assert!(both.len() == 1 && both[0].contains("caBundle is present"), "{both:?}");
    }

    #[test]
    fn the_columns_are_kubectls() {
        let mut object = service(&[]);
        assert_eq!(cells(&object, Timestamp::UNIX_EPOCH)[1..3], ["default/adapter", "Unknown"]);
        object["status"] = json!({"conditions": [
            {"type": "Available", "status": "False", "reason": "MissingEndpoints"}]});
        assert_eq!(cells(&object, Timestamp::UNIX_EPOCH)[2], "False (MissingEndpoints)");
        object["spec"]["group"] = json!("metrics.k8s.io");
        assert_eq!(warnings(&object).len(), 1);
    }
}
