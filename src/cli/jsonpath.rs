//! The part of Kubernetes' JSONPath that `wait` needs: fields, indexes, `[*]`, and filters by
//! equality.

use serde_json::Value;

/// Longest path taken, in bytes.
const PATH_BYTES_MAX: usize = 4096;

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// Elements whose field (a path of names) has this text.
    Where(Vec<String>, String),
}

/// A parsed path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Parses `{.status.conditions[?(@.type=="Ready")].status}`; braces and the first dot may be
    /// left out, as kubectl allows.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let refused = |why: &str| format!("{text:?} is not a JSONPath that can be used: {why}");
        if text.len() > PATH_BYTES_MAX {
            return Err(refused("it is too long"));
        }
        let inner = text.trim();
        let inner = match inner.strip_prefix('{') {
            Some(rest) => rest.strip_suffix('}').ok_or_else(|| refused("a brace is open"))?,
            None => inner,
        };
        let mut rest = inner.strip_prefix('$').unwrap_or(inner);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('[') {
                let end = closing(after).ok_or_else(|| refused("a bracket is open"))?;
                let (inside, after) = after.split_at_checked(end).unwrap_or_default();
                steps.push(bracket(inside.trim()).ok_or_else(|| refused("a bracket's content"))?);
                rest = after.strip_prefix(']').unwrap_or_default();
            } else {
                let name = rest.strip_prefix('.').unwrap_or(rest);
                let (name, after) = field(name);
                match name.as_str() {
                    "" => return Err(refused("a name is empty")),
                    "*" => steps.push(Step::All),
                    _ => steps.push(Step::Field(name)),
                }
                rest = after;
            }
        }
        if steps.is_empty() { Err(refused("it is empty")) } else { Ok(Self(steps)) }
    }

    /// Every value it leads to.
    pub(super) fn find<'a>(&self, object: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![object];
        for step in &self.0 {
            found = found.into_iter().flat_map(|value| step.follow(value)).collect();
        }
        found
    }
}

impl Step {
    fn follow<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let items = || value.as_array().map_or(&[][..], Vec::as_slice);
        match self {
            Self::Field(name) => value.get(name).into_iter().collect(),
            Self::Index(at) => {
                let len = i64::try_from(items().len()).unwrap_or(i64::MAX);
                let at = if *at < 0 { len.saturating_add(*at) } else { *at };
                usize::try_from(at).ok().and_then(|at| items().get(at)).into_iter().collect()
            }
            Self::All => match value {
                Value::Object(map) => map.values().collect(),
                _ => items().iter().collect(),
            },
            Self::Where(path, wanted) => {
                let has = |item: &&Value| {
                    let field = path.iter().try_fold(*item, |value, name| value.get(name));
                    field.is_some_and(|field| text(field) == *wanted)
                };
                items().iter().filter(has).collect()
            }
        }
    }
}

/// A value as text: strings without quotes.
pub(super) fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A name up to the next dot or bracket; a backslash takes the next character as it is.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '.' | '[' => return (name, text.get(at..).unwrap_or_default()),
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            _ => name.push(c),
        }
    }
    (name, "")
}

/// Where the bracket closes; one inside quotes does not.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, ']') => return Some(at),
            (None, _) => {}
        }
    }
    None
}

fn bracket(inside: &str) -> Option<Step> {
    if inside == "*" {
        return Some(Step::All);
    }
    if let Some(filter) = inside.strip_prefix("?(").and_then(|f| f.strip_suffix(')')) {
        let (left, right) = filter.split_once("==")?;
        let path = left.trim().strip_prefix("@.")?;
        let path: Vec<_> = path.split('.').map(str::to_owned).collect();
        let right = right.trim();
        return Some(Step::Where(path, unquoted(right).unwrap_or(right).to_owned()));
    }
    match unquoted(inside) {
        Some(name) => Some(Step::Field(name.to_owned())),
        None => inside.parse().ok().map(Step::Index),
    }
}

fn unquoted(text: &str) -> Option<&str> {
    ['\'', '"'].iter().find_map(|q| text.strip_prefix(*q)?.strip_suffix(*q))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_where_kubectl_s_lead() {
        let object = json!({
            "status": {
                "phase": "Running", "count": 3,
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "X", "status": "F"}],
            },
            "metadata": {"labels": {"a.b/c": "d"}},
        });
        let cases = [
            ("{.status.phase}", vec!["Running"]),
            ("status.phase", vec!["Running"]),
            ("{.status.count}", vec!["3"]),
            ("{.status.conditions[?(@.type==\"Ready\")].status}", vec!["True"]),
            ("{.status.conditions[*].type}", vec!["Ready", "X"]),
            ("{.status.conditions[-1].type}", vec!["X"]),
            ("{.metadata.labels['a.b/c']}", vec!["d"]),
            ("{.metadata.labels.a\\.b/c}", vec!["d"]),
            ("{.status.absent}", vec![]),
        ];
        for (path, wanted) in cases {
            let path = JsonPath::parse(path).unwrap();
            let found: Vec<_> = path.find(&object).into_iter().map(text).collect();
            assert_eq!(found, wanted, "{path:?}");
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for bad in ["", "{}", "{.a", ".a[", ".a[?(@.b>1)]", "..a", ".a[x]"] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
    }
}
