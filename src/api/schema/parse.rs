//! From the text to the table.

use std::collections::BTreeMap;

use crate::api::schema::{Field, ListType, Message, Schema, Shape, Type};

/// A field as its line says it; types are looked up when all are known.
struct Line {
    message: usize,
    package: &'static str,
    text: &'static str,
}

/// The table, and the lines that say nothing.
pub(super) fn schema(texts: &[&'static str]) -> (Schema, Vec<String>) {
    let (mut schema, mut lines, mut faults) = (Schema::default(), Vec::new(), Vec::new());
    let mut numbers: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let (mut package, mut api_version) = ("", "");
    for text in texts.iter().flat_map(|text| text.lines()) {
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        if let Some(head) = text.strip_prefix(':') {
            (package, api_version) = head.split_once(' ').unwrap_or((head, ""));
        } else if text.starts_with(' ') {
            let message = schema.messages.len().saturating_sub(1);
            lines.push(Line { message, package, text });
        } else {
            let (name, is_atomic) = match text.split_once(' ') {
                Some((name, rest)) => (name, rest == "atomic"),
                None => (text, false),
            };
            numbers.insert((package, name), schema.messages.len());
            schema.named.insert((api_version, name), schema.messages.len());
            schema.messages.push(Message { name, api_version, is_atomic, fields: Vec::new() });
        }
    }
    for line in lines {
        let field = field(&line, &numbers);
        match (field, schema.messages.get_mut(line.message)) {
            (Some(field), Some(message)) => message.fields.push(field),
            _ => faults.push(line.text.to_owned()),
        }
    }
    (schema, faults)
}

fn field(line: &Line, numbers: &BTreeMap<(&str, &str), usize>) -> Option<Field> {
    let mut words = line.text.split_ascii_whitespace();
    let number = words.next()?.parse().ok()?;
    let name = words.next()?;
    let kind = words.next()?;
    let (mut shape, kind) = if let Some(kind) = kind.strip_prefix("[]") {
        (Shape::List(ListType::Atomic), kind)
    } else if let Some(kind) = kind.strip_prefix("{}") {
        (Shape::Map, kind)
    } else {
        (Shape::One, kind)
    };
    let kind = scalar(kind).or_else(|| {
        let (package, name) = kind.split_once('.').unwrap_or((line.package, kind));
        numbers.get(&(package, name)).map(|number| Type::Message(*number))
    })?;
    let (mut keeps_zero, mut is_inline) = (false, false);
    let (mut is_atomic, mut default, mut merge_key) = (None, None, None);
    for word in words {
        match word.split_once(':').unwrap_or((word, "")) {
            ("zero", "") => keeps_zero = true,
            ("inline", "") => is_inline = true,
            ("atomic", "") => is_atomic = Some(true),
            ("granular", "") => is_atomic = Some(false),
            ("set", "") => shape = Shape::List(ListType::Set),
            ("map", keys) => {
                let mut keys: Vec<&str> = keys.split(',').collect();
                keys.sort_unstable();
                shape = Shape::List(ListType::Map(keys));
            }
            ("default", text) => default = Some(text),
            ("merge", key) => merge_key = Some(key),
            ("union", "") => merge_key = Some(""),
            // The patch itself says which keys to retain.
            ("retainKeys", "") => {}
            _ => return None,
        }
    }
    Some(Field { number, name, kind, shape, keeps_zero, is_inline, is_atomic, merge_key, default })
}

fn scalar(word: &str) -> Option<Type> {
    Some(match word {
        "string" => Type::Text,
        "int" => Type::Whole,
        "bool" => Type::Flag,
        "bytes" => Type::Bytes,
        "quantity" => Type::Quantity,
        "intorstring" => Type::IntOrString,
        "time" => Type::Time,
        "microtime" => Type::MicroTime,
        "raw" | "fields" => Type::Raw,
        "strings" => Type::Texts,
        _ => return None,
    })
}
