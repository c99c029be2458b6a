//! Keys and values in columns.

use serde_json::Value;

use crate::api::meta;
use crate::cli::apply::LAST_APPLIED;
use crate::cli::output;

/// Spaces for each level.
const INDENT: &str = "  ";
/// Spaces between a key's colon and its value, at least.
const GAP: usize = 2;
/// Longest annotation shown, in characters.
const ANNOTATION_CHARS_MAX: usize = 140;

#[derive(Debug)]
enum Line {
    /// `Key:  value`; further values stand below the first.
    Pair { key: String, values: Vec<String> },
    /// As it is.
    Text(String),
}

/// Lines of a description, aligned when they are rendered.
#[derive(Debug, Default)]
pub(super) struct Sheet(Vec<(usize, Line)>);

impl Sheet {
    /// `Key:  value`.
    pub(super) fn pair(&mut self, level: usize, key: &str, value: impl Into<String>) {
        self.pairs(level, key, vec![value.into()]);
    }

    /// `Key:  value`, unless the value is empty.
    pub(super) fn known(&mut self, level: usize, key: &str, value: impl Into<String>) {
        let value = value.into();
        if !value.is_empty() {
            self.pair(level, key, value);
        }
    }

    /// `Key:` and the values below each other; `<none>` when there is none.
    pub(super) fn pairs(&mut self, level: usize, key: &str, mut values: Vec<String>) {
        if values.is_empty() {
            values.push("<none>".to_owned());
        }
        self.0.push((level, Line::Pair { key: key.to_owned(), values }));
    }

    /// A line that opens a section.
    pub(super) fn head(&mut self, level: usize, text: &str) {
        self.0.push((level, Line::Text(format!("{text}:"))));
    }

    /// A table with a rule below its head.
    pub(super) fn table(&mut self, level: usize, head: &[&str], rows: Vec<Vec<String>>) {
        let mut all = vec![
            head.iter().map(|cell| (*cell).to_owned()).collect(),
            head.iter().map(|cell| "-".repeat(cell.chars().count())).collect(),
        ];
        all.extend(rows);
        let table = output::columns(&all);
        self.0.extend(table.lines().map(|line| (level, Line::Text(line.to_owned()))));
    }

    /// The text, with the values of one section below each other.
    pub(super) fn render(&self) -> String {
        let mut text = String::new();
        for (at, (level, line)) in self.0.iter().enumerate() {
            let indent = INDENT.repeat(*level);
            match line {
                Line::Text(line) => text.push_str(&format!("{indent}{line}\n")),
                Line::Pair { key, values } => {
                    let width = self.width(at, *level) + 1 + GAP;
                    let mut key = format!("{key}:");
                    for value in values {
                        let line = format!("{indent}{key:width$}{value}");
                        text.push_str(line.trim_end());
                        text.push('\n');
                        key.clear();
                    }
                }
            }
        }
        text
    }

    /// The longest key of the section that the line at `at` is in.
    fn width(&self, at: usize, level: usize) -> usize {
        let (before, after) = self.0.split_at_checked(at).unwrap_or_default();
        let is_inside = |(of, _): &&(usize, Line)| *of >= level;
        let lines = before.iter().rev().take_while(is_inside);
        lines
            .chain(after.iter().take_while(is_inside))
            .filter(|(of, _)| *of == level)
            .filter_map(|(_, line)| match line {
                Line::Pair { key, .. } => Some(key.chars().count()),
                Line::Text(_) => None,
            })
            .max()
            .unwrap_or_default()
    }
}

/// The text at a path; empty when there is none.
pub(super) fn text(object: &Value, path: &str) -> String {
    object.pointer(path).map(scalar).unwrap_or_default()
}

/// A value as text: strings without quotes, null as nothing.
pub(super) fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// The list at a path.
pub(super) fn list<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    object.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The map at a path as `key=value`, or with another separator.
pub(super) fn entries(object: &Value, path: &str, separator: &str) -> Vec<String> {
    let map = object.pointer(path).and_then(Value::as_object);
    map.into_iter()
        .flatten()
        .filter(|(key, _)| *key != LAST_APPLIED)
        .map(|(key, value)| format!("{key}{separator}{}", scalar(value)))
        .collect()
}

/// Annotations as kubectl shows them; long ones are cut.
pub(super) fn annotations(object: &Value, path: &str) -> Vec<String> {
    let mut lines = entries(object, path, ": ");
    for line in &mut lines {
        if let Some((at, _)) = line.char_indices().nth(ANNOTATION_CHARS_MAX) {
            line.truncate(at);
            line.push_str("...");
        }
    }
    lines
}

/// Name, namespace, labels, annotations: how every description starts.
pub(super) fn metadata(sheet: &mut Sheet, object: &Value) {
    sheet.pair(0, "Name", meta::name(object));
    sheet.known(0, "Namespace", meta::namespace(object));
    sheet.pairs(0, "Labels", entries(object, "/metadata/labels", "="));
    sheet.pairs(0, "Annotations", annotations(object, "/metadata/annotations"));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_of_one_section_stand_below_each_other() {
        let mut sheet = Sheet::default();
        sheet.pair(0, "Name", "a");
        sheet.pairs(0, "Labels", vec!["x=1".into(), "y=2".into()]);
        sheet.head(0, "Containers");
        sheet.head(1, "main");
        sheet.pair(2, "Image", "i");
        sheet.pair(2, "Restart Count", "0");
        sheet.pair(0, "QoS Class", "BestEffort");
        assert_eq!(
            sheet.render(),
            "Name:       a\n\
             Labels:     x=1\n            y=2\n\
             Containers:\n  main:\n    Image:          i\n    Restart Count:  0\n\
             QoS Class:  BestEffort\n"
        );
    }

    #[test]
    fn the_last_applied_configuration_is_not_shown() {
        let object = json!({"metadata": {"annotations": {LAST_APPLIED: "{}", "a": "b"}}});
        assert_eq!(annotations(&object, "/metadata/annotations"), ["a: b"]);
    }
}
