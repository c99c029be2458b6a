//! Conditions in the form of the Gateway API.

use serde_json::{Value, json};

/// One condition: its type, whether it holds, the reason and what to tell.
#[derive(Debug, Clone)]
pub(super) struct Condition {
    pub(super) kind: &'static str,
    pub(super) holds: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Condition {
    pub(super) fn yes(kind: &'static str, reason: &'static str) -> Self {
        Self { kind, holds: true, reason, message: String::new() }
    }

    pub(super) fn no(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, holds: false, reason, message: message.into() }
    }
}

/// What stands in status; what held before keeps its time.
pub(super) fn written(
    conditions: &[Condition],
    had: Option<&Value>,
    generation: i64,
    now: &str,
) -> Value {
    let text = |value: &Value, key: &str| {
        value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let had = had.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let one = |condition: &Condition| {
        let status = if condition.holds { "True" } else { "False" };
        let before = had.iter().find(|one| text(one, "type") == condition.kind);
        let since = before.filter(|one| text(one, "status") == status);
        let since = since.map(|one| text(one, "lastTransitionTime"));
        json!({
            "type": condition.kind,
            "status": status,
            "reason": condition.reason,
            "message": condition.message,
            "observedGeneration": generation,
            "lastTransitionTime": since.unwrap_or_else(|| now.to_owned()),
        })
    };
    conditions.iter().map(one).collect()
}
