//! Endpoints.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Endpoints;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{int_at, items_at, set_default_text, str_at, text_at};
use crate::api::kinds::endpoint_slice::{is_of_api, special};
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;
use crate::api::{meta, names};

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "endpoints",
    singular: "endpoints",
    kind: "Endpoints",
    list_kind: "EndpointsList",
    description: "The endpoints of a service in one object, for clients that know no EndpointSlice.",
    short_names: &["ep"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: false,
    has_scale: false,
    has_generation: false,
    subresources: &[],
    columns: &[Column::NAME, Column::text("Endpoints"), Column::AGE],
    field_selectors: &[],
    strategy: Strategy { default, validate, cells, ..Strategy::plain(typed::<Endpoints>) },
};

/// Addresses of all subsets together: far more than the 1,000 that controllers write.
const ADDRESSES_MAX: usize = 10_000;
/// Endpoints listed in a table; the others are counted.
const SHOWN_MAX: usize = 3;

fn default(object: &mut Value) {
    for subset in object.get_mut("subsets").and_then(Value::as_array_mut).into_iter().flatten() {
        for port in subset.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            set_default_text(port, "protocol", "TCP");
        }
    }
}

fn validate(object: &Value, errors: &mut Errors) {
    let subsets = items_at(object, "/subsets");
    let lists = ["addresses", "notReadyAddresses"];
    let all = subsets.iter().flat_map(|one| lists.map(|key| items_at(one, &format!("/{key}"))));
    let count: usize = all.map(<[Value]>::len).sum();
    if count > ADDRESSES_MAX {
        errors.push(FieldError::too_many("subsets", count, ADDRESSES_MAX));
        return;
    }
    for (at, subset) in subsets.iter().enumerate() {
        let path = format!("subsets[{at}]");
        if lists.iter().all(|key| items_at(subset, &format!("/{key}")).is_empty()) {
            let detail = "must specify `addresses` or `notReadyAddresses`";
            errors.push(FieldError::required(path.clone(), detail));
        }
        for key in lists {
            for (index, address) in items_at(subset, &format!("/{key}")).iter().enumerate() {
                let field = format!("{path}.{key}[{index}]");
                validate_address(address, &field, is_of_api(object), errors);
            }
        }
        let ports = items_at(subset, "/ports");
        for (index, port) in ports.iter().enumerate() {
            let path = format!("{path}.ports[{index}]");
            let name = text_at(port, "/name");
            if name.is_empty() {
                if ports.len() > 1 {
                    errors.required(format!("{path}.name"));
                }
            } else if let Err(rule) = names::check_dns1123_label(name) {
                errors.invalid(format!("{path}.name"), &name.into(), rule);
            }
            let number = port.get("port").unwrap_or(&Value::Null);
            if !number.as_i64().is_some_and(|n| (1..=65535).contains(&n)) {
                let detail = "must be between 1 and 65535, inclusive";
                errors.invalid(format!("{path}.port"), number, detail);
            }
            let protocol = port.get("protocol").unwrap_or(&Value::Null);
            errors.one_of(format!("{path}.protocol"), protocol, &["SCTP", "TCP", "UDP"]);
        }
    }
}

fn validate_address(address: &Value, path: &str, is_of_api: bool, errors: &mut Errors) {
    let text = text_at(address, "/ip");
    match text.parse::<IpAddr>() {
        Ok(ip) => {
            if let Some(detail) = special(ip).filter(|_| !is_of_api) {
                errors.invalid(format!("{path}.ip"), &text.into(), detail);
            }
        }
        Err(_) => {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.invalid(format!("{path}.ip"), &text.into(), detail);
        }
    }
    if let Some(hostname) = str_at(address, "/hostname")
        && let Err(rule) = names::check_dns1123_label(hostname)
    {
        errors.invalid(format!("{path}.hostname"), &hostname.into(), rule);
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(meta::name(object)), json!(shown(object)), json!(age(object, now))]
}

/// The ready addresses, with each port.
fn shown(object: &Value) -> String {
    let subsets = items_at(object, "/subsets");
    if subsets.is_empty() {
        return "<none>".to_owned();
    }
    let mut listed = Vec::new();
    let mut count = 0_usize;
    for subset in subsets {
        let ports = items_at(subset, "/ports");
        let numbers: Vec<Option<i64>> = if ports.is_empty() {
            vec![None]
        } else {
            ports.iter().map(|port| int_at(port, "/port")).collect()
        };
        for number in numbers {
            for address in items_at(subset, "/addresses") {
                count = count.saturating_add(1);
                if listed.len() >= SHOWN_MAX {
                    continue;
                }
                let ip = text_at(address, "/ip");
                listed.push(number.map_or_else(|| ip.to_owned(), |port| format!("{ip}:{port}")));
            }
        }
    }
    let mut text = listed.join(",");
    if count > SHOWN_MAX {
        text.push_str(&format!(" + {} more...", count - SHOWN_MAX));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_three_endpoints_are_listed_and_the_others_counted() {
        let addresses: Vec<_> = (1..=2).map(|n| json!({"ip": format!("10.42.0.{n}")})).collect();
        let object = json!({"subsets": [
            {"addresses": addresses, "ports": [{"port": 80}, {"port": 443}],
             "notReadyAddresses": [{"ip": "10.42.0.9"}]},
        ]});
        assert_eq!(shown(&object), "10.42.0.1:80,10.42.0.2:80,10.42.0.1:443 + 1 more...");
        assert_eq!(shown(&json!({"subsets": [{"addresses": addresses}]})), "10.42.0.1,10.42.0.2");
        assert_eq!(shown(&json!({})), "<none>");
    }

    #[test]
    fn addresses_and_ports_are_checked() {
        let refused = |subset: Value| {
            let mut object = json!({"subsets": [subset]});
            default(&mut object);
            let mut errors = Errors::default();
            validate(&object, &mut errors);
            errors.into_vec().len()
        };
        assert_eq!(
            refused(json!({"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 80}]})),
            0
        );
        for subset in [
            json!({"ports": [{"port": 80}]}),
            json!({"addresses": [{"ip": "127.0.0.1"}]}),
            json!({"addresses": [{"ip": "x"}]}),
            json!({"addresses": [{"ip": "192.0.2.1", "hostname": "A"}]}),
            json!({"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 0}]}),
            json!({"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 80, "protocol": "X"}]}),
        ] {
            assert_eq!(refused(subset.clone()), 1, "{subset}");
        }
    }
}
