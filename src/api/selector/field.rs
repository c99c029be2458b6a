//! Field selectors: `status.phase!=Failed,spec.nodeName=n1`.

use std::fmt;

use serde_json::Value;

use crate::api::resource::Resource;
use crate::api::selector::{SELECTOR_BYTES_MAX, SelectorError, TERMS_MAX};

/// Terms that must all hold for fields of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<Term>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    path: String,
    value: String,
    is_equal: bool,
}

impl FieldSelector {
    /// Parses the query parameter; empty text selects everything.
    ///
    /// # Errors
    ///
    /// When it does not parse or names a field `res` cannot be selected by.
    pub fn parse(res: &Resource, text: &str) -> Result<Self, SelectorError> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(SelectorError::TooLong);
        }
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            if terms.len() >= TERMS_MAX {
                return Err(SelectorError::TooLong);
            }
            if !term.is_empty() {
                terms.push(Term::parse(res, term)?);
            }
        }
        Ok(Self(terms))
    }

    /// Whether it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all terms hold for `object`.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|term| (field_text(object, &term.path) == term.value) == term.is_equal)
    }

    /// The value a field must have, when the selector fixes it to one.
    #[must_use]
    pub fn required(&self, path: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|term| term.is_equal && term.path == path)
            .map(|term| term.value.as_str())
    }

    /// The name objects must have, so that a list is a get.
    #[must_use]
    pub fn required_name(&self) -> Option<&str> {
        self.required("metadata.name")
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let operator = if term.is_equal { "=" } else { "!=" };
            let value = term.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{comma}{}{operator}{value}", term.path)?;
        }
        Ok(())
    }
}

impl Term {
    fn parse(res: &Resource, term: &str) -> Result<Self, SelectorError> {
        let syntax = || {
            SelectorError::Syntax(format!("invalid selector: '{term}'; can't understand '{term}'"))
        };
        let at = term.find(['=', '!']).ok_or_else(syntax)?;
        let (path, rest) = (term.get(..at).unwrap_or(""), term.get(at..).unwrap_or(""));
        let (value, is_equal) = if let Some(value) = rest.strip_prefix("!=") {
            (value, false)
        } else if let Some(value) = rest.strip_prefix("==") {
            (value, true)
        } else if let Some(value) = rest.strip_prefix('=') {
            (value, true)
        } else {
            return Err(syntax());
        };
        let path = canonical_path(res, path)?;
        Ok(Self { path, value: unescape(value).ok_or_else(syntax)?, is_equal })
    }
}

fn canonical_path(res: &Resource, path: &str) -> Result<String, SelectorError> {
    // Kubernetes still answers to this old name.
    let path = if path == "spec.host" && res.kind == "Pod" { "spec.nodeName" } else { path };
    let is_known = path == "metadata.name"
        || (path == "metadata.namespace" && res.is_namespaced)
        || res.field_selectors.contains(&path);
    if is_known {
        Ok(path.to_owned())
    } else {
        Err(SelectorError::UnsupportedField(path.to_owned()))
    }
}

/// The text of a field as selectors see it: absent is empty, flags are words.
fn field_text(object: &Value, path: &str) -> String {
    // `podIPs` is selected by any of its entries in none of the supported versions; the first
    // counts.
    let mut at = object;
    // Kubernetes' name for it in selectors alone.
    let pointer = if path == "status.successful" { "status.succeeded" } else { path };
    for key in pointer.split('.') {
        match at.get(key) {
            Some(next) => at = next,
            None => return default_text(path),
        }
    }
    match at {
        Value::String(text) => text.clone(),
        Value::Null => default_text(path),
        other => other.to_string(),
    }
}

fn default_text(path: &str) -> String {
    match path {
        "spec.unschedulable" | "spec.hostNetwork" => "false".to_owned(),
        "status.replicas" | "status.successful" => "0".to_owned(),
        _ => String::new(),
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        if is_escaped {
            is_escaped = false;
        } else if c == '\\' {
            is_escaped = true;
        } else if c == ',' {
            parts.push(text.get(start..at).unwrap_or(""));
            start = at + 1;
        }
    }
    parts.push(text.get(start..).unwrap_or(""));
    parts
}

/// Resolves `\\`, `\,` and `\=`; other escapes, and bare `,` and `=`, are mistakes.
fn unescape(text: &str) -> Option<String> {
    let mut result = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => result.push(chars.next().filter(|c| matches!(c, '\\' | ',' | '='))?),
            ',' | '=' => return None,
            c => result.push(c),
        }
    }
    Some(result)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::api::find;

    fn pods() -> &'static Resource {
        find("", "v1", "pods").unwrap()
    }

    #[test]
    fn terms_are_joined_by_and() {
        let pod = json!({"metadata": {"name": "a", "namespace": "d"}, "spec": {"nodeName": "n1"},
            "status": {"phase": "Running"}});
        let table = [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a,metadata.namespace=d", true),
            ("metadata.name!=a", false),
            ("spec.nodeName=n1,status.phase!=Succeeded,status.phase!=Failed", true),
            ("spec.host=n1", true),
            ("spec.nodeName=", false),
            ("spec.schedulerName=", true),
            ("spec.hostNetwork=false", true),
        ];
        for (text, expected) in table {
            let selector = FieldSelector::parse(pods(), text).unwrap();
            assert_eq!(selector.matches(&pod), expected, "{text}");
        }
    }

    #[test]
    fn unsupported_fields_and_bad_text_are_refused() {
        for text in ["spec.x=1", "metadata.name", "metadata.name~a", "metadata.name=a=b", "=a"] {
            assert!(FieldSelector::parse(pods(), text).is_err(), "{text}");
        }
        let nodes = find("", "v1", "nodes").unwrap();
        assert!(FieldSelector::parse(nodes, "metadata.namespace=a").is_err());
        assert!(FieldSelector::parse(nodes, "spec.unschedulable=true").is_ok());
    }

    #[test]
    fn a_fixed_name_is_told() {
        let selector =
            FieldSelector::parse(pods(), "status.phase=Running,metadata.name=a").unwrap();
        assert_eq!(selector.required_name(), Some("a"));
        let selector = FieldSelector::parse(pods(), "metadata.name!=a").unwrap();
        assert_eq!(selector.required_name(), None);
    }

    proptest! {
        #[test]
        fn any_value_survives_printing_and_parsing(value in "\\PC*") {
            let selector = FieldSelector(vec![Term {
                path: "metadata.name".to_owned(),
                value: value.clone(),
                is_equal: true,
            }]);
            let parsed = FieldSelector::parse(pods(), &selector.to_string()).unwrap();
            prop_assert_eq!(parsed, selector);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            let _ = FieldSelector::parse(pods(), &text);
        }
    }
}
