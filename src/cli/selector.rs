//! The label selector of an object as the text a query takes.

use serde_json::Value;

/// `spec.selector` of a workload (labels and expressions) or of a Service (labels only).
pub(super) fn of(object: &Value) -> String {
    let selector = object.pointer("/spec/selector");
    let labels = selector
        .and_then(|s| s.get("matchLabels"))
        .or_else(|| selector.filter(|s| s.get("matchExpressions").is_none()))
        .and_then(Value::as_object);
    let mut terms: Vec<String> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)))
        .collect();
    let expressions = selector.and_then(|s| s.get("matchExpressions")).and_then(Value::as_array);
    terms.extend(expressions.into_iter().flatten().filter_map(term));
    terms.join(",")
}

fn term(expression: &Value) -> Option<String> {
    let key = expression.get("key")?.as_str()?;
    let values: Vec<_> = expression
        .get("values")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let values = values.join(",");
    match expression.get("operator")?.as_str()? {
        "In" => Some(format!("{key} in ({values})")),
        "NotIn" => Some(format!("{key} notin ({values})")),
        "Exists" => Some(key.to_owned()),
        "DoesNotExist" => Some(format!("!{key}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_and_expressions_become_one_text() {
        let workload = json!({"spec": {"selector": {
            "matchLabels": {"a": "b"},
            "matchExpressions": [
                {"key": "c", "operator": "In", "values": ["d", "e"]},
                {"key": "f", "operator": "DoesNotExist"},
            ],
        }}});
        assert_eq!(of(&workload), "a=b,c in (d,e),!f");
        assert_eq!(of(&json!({"spec": {"selector": {"a": "b"}}})), "a=b");
        assert_eq!(of(&json!({})), "");
    }
}
