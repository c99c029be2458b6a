//! Terms of node selectors: what pods and persistent volumes say about nodes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

/// Whether the term asks for nothing: required, it matches no node.
#[must_use]
pub fn is_empty_term(term: &NodeSelectorTerm) -> bool {
    let is_empty = |requirements: &Option<Vec<NodeSelectorRequirement>>| {
        requirements.as_ref().is_none_or(Vec::is_empty)
    };
    is_empty(&term.match_expressions) && is_empty(&term.match_fields)
}

/// Whether the node of this name and these labels meets all that the term asks for.
#[must_use]
pub fn node_term_matches(
    term: &NodeSelectorTerm,
    name: &str,
    node_labels: &BTreeMap<String, String>,
) -> bool {
    if is_empty_term(term) {
        return false;
    }
    let mut labels = term.match_expressions.iter().flatten();
    let mut fields = term.match_fields.iter().flatten();
    labels
        .all(|wanted| requirement_matches(wanted, node_labels.get(&wanted.key).map(String::as_str)))
        && fields.all(|wanted| {
            requirement_matches(wanted, (wanted.key == "metadata.name").then_some(name))
        })
}

fn requirement_matches(requirement: &NodeSelectorRequirement, found: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let is_listed = found.is_some_and(|found| values.iter().any(|value| value == found));
    let numbers = || {
        let found: i64 = found?.parse().ok()?;
        let bound: i64 = values.first()?.parse().ok()?;
        Some((found, bound))
    };
    match requirement.operator.as_str() {
        "In" => is_listed,
        "NotIn" => !is_listed,
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => numbers().is_some_and(|(found, bound)| found > bound),
        "Lt" => numbers().is_some_and(|(found, bound)| found < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_requirement_compares_as_its_operator_says() {
        for (operator, values, found, expected) in [
            ("In", json!(["a", "b"]), Some("b"), true),
            ("In", json!(["a"]), None, false),
            ("NotIn", json!(["a"]), None, true),
            ("NotIn", json!(["a"]), Some("a"), false),
            ("Exists", Value::Null, Some(""), true),
            ("DoesNotExist", Value::Null, None, true),
            ("Gt", json!(["3"]), Some("4"), true),
            ("Gt", json!(["3"]), Some("x"), false),
            ("Lt", json!(["3"]), Some("2"), true),
            ("Like", json!(["3"]), Some("3"), false),
        ] {
            let requirement = serde_json::from_value(
                json!({ "key": "k", "operator": operator, "values": values }),
            )
            .unwrap();
            assert_eq!(requirement_matches(&requirement, found), expected, "{operator}");
        }
    }
}
