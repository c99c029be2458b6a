//! Validation errors that name the field, in the words of Kubernetes.

use std::fmt;

use serde_json::Value;

/// Errors reported for one object; the rest would only be noise.
pub const ERRORS_MAX: usize = 64;
/// Characters of a bad value that are repeated in its error.
const VALUE_CHARS_MAX: usize = 256;

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// What kind of mistake it is.
    pub kind: FieldErrorKind,
    /// Path of the field, for example `spec.containers[0].name`.
    pub field: String,
    /// The text after the path, for example `Required value`.
    pub message: String,
}

/// The kind of mistake; it becomes `reason` of a cause in `Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldErrorKind {
    /// The field must be set.
    Required,
    /// The value breaks a rule.
    Invalid,
    /// The value is not one of a list.
    NotSupported,
    /// The field must not be set or changed here.
    Forbidden,
    /// The value occurs twice.
    Duplicate,
    /// The value names something that is not there.
    NotFound,
    /// The value is too long.
    TooLong,
    /// There are too many values.
    TooMany,
}

impl FieldErrorKind {
    /// The reason string of `Status.details.causes`.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotFound => "FieldValueNotFound",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl FieldError {
    /// The field must be set.
    #[must_use]
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::new(FieldErrorKind::Required, field, with_detail("Required value", detail))
    }

    /// The value breaks a rule that `detail` states.
    #[must_use]
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        let message = with_detail(&format!("Invalid value: {}", shown(value)), detail);
        Self::new(FieldErrorKind::Invalid, field, message)
    }

    /// The value is not one of `supported`.
    #[must_use]
    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let message =
            format!("Unsupported value: {}: supported values: {}", shown(value), list.join(", "));
        Self::new(FieldErrorKind::NotSupported, field, message)
    }

    /// The field must not be set or changed; `detail` says why.
    #[must_use]
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::new(FieldErrorKind::Forbidden, field, with_detail("Forbidden", detail))
    }

    /// The value occurs twice.
    #[must_use]
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        let message = format!("Duplicate value: {}", shown(value));
        Self::new(FieldErrorKind::Duplicate, field, message)
    }

    /// The value is longer than `bytes_max`.
    #[must_use]
    pub fn too_long(field: impl Into<String>, bytes_max: usize) -> Self {
        let message = format!("Too long: may not be more than {bytes_max} bytes");
        Self::new(FieldErrorKind::TooLong, field, message)
    }

    /// There are more than `items_max` values.
    #[must_use]
    pub fn too_many(field: impl Into<String>, items: usize, items_max: usize) -> Self {
        let message = format!("Too many: {items}: must have at most {items_max} items");
        Self::new(FieldErrorKind::TooMany, field, message)
    }

    fn new(kind: FieldErrorKind, field: impl Into<String>, message: String) -> Self {
        Self { kind, field: field.into(), message }
    }
}

fn with_detail(text: &str, detail: &str) -> String {
    if detail.is_empty() { text.to_owned() } else { format!("{text}: {detail}") }
}

/// A value as Kubernetes repeats it in an error: strings quoted, the rest as JSON, cut if long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= VALUE_CHARS_MAX {
        return text;
    }
    let mut cut: String = text.chars().take(VALUE_CHARS_MAX).collect();
    cut.push_str("...");
    cut
}

/// Collects errors up to [`ERRORS_MAX`].
#[derive(Debug, Default)]
pub(crate) struct Errors(Vec<FieldError>);

impl Errors {
    pub(crate) fn push(&mut self, error: FieldError) {
        if self.0.len() < ERRORS_MAX {
            self.0.push(error);
        }
    }

    pub(crate) fn required(&mut self, field: impl Into<String>) {
        self.push(FieldError::required(field, ""));
    }

    pub(crate) fn required_because(&mut self, field: impl Into<String>, detail: &str) {
        self.push(FieldError::required(field, detail));
    }

    pub(crate) fn invalid(&mut self, field: impl Into<String>, value: &Value, detail: &str) {
        self.push(FieldError::invalid(field, value, detail));
    }

    pub(crate) fn forbidden(&mut self, field: impl Into<String>, detail: &str) {
        self.push(FieldError::forbidden(field, detail));
    }

    pub(crate) fn duplicate(&mut self, field: impl Into<String>, value: &Value) {
        self.push(FieldError::duplicate(field, value));
    }

    pub(crate) fn not_found(&mut self, field: impl Into<String>, value: &Value) {
        let message = format!("Not found: {}", shown(value));
        self.push(FieldError::new(FieldErrorKind::NotFound, field, message));
    }

    pub(crate) fn one_of(&mut self, field: impl Into<String>, value: &Value, supported: &[&str]) {
        if value.as_str().is_none_or(|text| !supported.contains(&text)) {
            self.push(FieldError::not_supported(field, value, supported));
        }
    }

    pub(crate) fn into_vec(self) -> Vec<FieldError> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_are_those_of_kubernetes() {
        let table = [
            (
                FieldError::required("spec.containers[0].name", ""),
                "spec.containers[0].name: Required value",
            ),
            (
                FieldError::invalid("spec.replicas", &json!(-1), "must be >= 0"),
                "spec.replicas: Invalid value: -1: must be >= 0",
            ),
            (
                FieldError::not_supported("a", &json!("x"), &["A", "B"]),
                r#"a: Unsupported value: "x": supported values: "A", "B""#,
            ),
            (FieldError::forbidden("spec", "no"), "spec: Forbidden: no"),
            (FieldError::duplicate("a[1]", &json!("x")), r#"a[1]: Duplicate value: "x""#),
            (FieldError::too_long("a", 63), "a: Too long: may not be more than 63 bytes"),
        ];
        for (error, text) in table {
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn a_long_value_is_cut_and_errors_are_bounded() {
        let error = FieldError::invalid("a", &json!("x".repeat(10_000)), "");
        assert!(error.message.len() < 300);
        let mut errors = Errors::default();
        for _ in 0..1000 {
            errors.required("a");
        }
        assert_eq!(errors.into_vec().len(), ERRORS_MAX);
    }
}
