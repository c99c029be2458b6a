//! From bytes to an object, and the check of an object against its typed struct.

use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Nesting of objects and arrays that a body may have. Kubernetes objects stay below 20.
pub const DEPTH_MAX: usize = 64;
/// Unknown or duplicate fields that are listed for one body.
pub const FIELDS_LISTED_MAX: usize = 32;

/// Why bytes are not an object.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, or nested deeper than [`DEPTH_MAX`]: answer 400.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
}

/// A parsed body.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The value; of a key that occurs twice the last one counts.
    pub value: Value,
    /// Paths of keys that occur twice, for `fieldValidation`.
    pub duplicates: Vec<String>,
}

/// Parses JSON and notes the keys that occur twice.
///
/// # Errors
///
/// When `bytes` are not JSON or nest too deeply.
pub fn parse_json(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let mut duplicates = Vec::new();
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let mut path = Vec::new();
    let seed = Node { duplicates: &mut duplicates, path: &mut path };
    let value = seed.deserialize(&mut json)?;
    json.end()?;
    Ok(Decoded { value, duplicates })
}

struct Node<'a> {
    duplicates: &'a mut Vec<String>,
    path: &'a mut Vec<Step>,
}

enum Step {
    Key(String),
    Index(usize),
}

fn path_text(path: &[Step], last: &str) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) => push_key(&mut text, key),
            Step::Index(index) => push_index(&mut text, *index),
        }
    }
    push_key(&mut text, last);
    text
}

fn push_key(path: &mut String, key: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
}

fn push_index(path: &mut String, index: usize) {
    path.push_str(&format!("[{index}]"));
}

impl Node<'_> {
    fn below(&mut self) -> Node<'_> {
        Node { duplicates: self.duplicates, path: self.path }
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        if self.path.len() > DEPTH_MAX {
            return Err(serde::de::Error::custom(format!("exceeded max depth of {DEPTH_MAX}")));
        }
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            self.path.push(Step::Index(items.len()));
            let item = seq.next_element_seed(self.below())?;
            self.path.pop();
            match item {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            if map.contains_key(&key) && self.duplicates.len() < FIELDS_LISTED_MAX {
                self.duplicates.push(path_text(self.path, &key));
            }
            self.path.push(Step::Key(key.clone()));
            let value = access.next_value_seed(self.below())?;
            self.path.pop();
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// Reads an object through its typed struct and writes it again.
pub(crate) type Decoder = fn(&Value) -> Result<Value, String>;

/// The [`Decoder`] of `T`.
pub(crate) fn typed<T: DeserializeOwned + serde::Serialize>(
    value: &Value,
) -> Result<Value, String> {
    let object =
        T::deserialize(value).map_err(|err| match serde_path_to_error::deserialize(value) {
            // To follow the path costs a text for each key: only where there is something to tell.
            Err::<T, _>(at) if at.path().to_string() != "." => {
                format!("{}: {}", at.path(), in_words(&err.to_string()))
            }
            _ => in_words(&err.to_string()),
        })?;
    serde_json::to_value(object).map_err(|err| err.to_string())
}

/// The complaint of serde in the words of those who write JSON.
fn in_words(complaint: &str) -> String {
    const WORDS: [(&str, &str); 6] = [
        ("expected i32", "expected an integer (int32)"),
        ("expected i64", "expected an integer (int64)"),
        ("expected a sequence", "expected an array"),
        ("expected a map", "expected an object"),
        ("invalid type: sequence", "invalid type: array"),
        ("invalid type: map", "invalid type: object"),
    ];
    let replaced = |text: String, (from, to): (&str, &str)| text.replace(from, to);
    let mut text = WORDS.into_iter().fold(complaint.to_owned(), replaced);
    // The name of a Rust struct says nothing to them.
    if let Some((before, name)) = text.rsplit_once("expected ")
        && name.trim_start_matches("struct ").starts_with(|first: char| first.is_ascii_uppercase())
    {
        text = format!("{before}expected an object");
    }
    text
}

/// Drops what `known` (the same object after [`typed`]) lacks from `sent`. Returns the paths of the first of
/// these fields.
pub(crate) fn drop_lost(sent: &mut Value, known: &Value) -> Vec<String> {
    let mut lost = Vec::new();
    compare(sent, known, &mut String::new(), &mut lost);
    lost
}

fn compare(sent: &mut Value, known: &Value, path: &mut String, lost: &mut Vec<String>) {
    let start = path.len();
    match (sent, known) {
        (Value::Object(sent), Value::Object(known)) => {
            sent.retain(|key, value| {
                push_key(path, key);
                let found = known.get(key);
                match found {
                    Some(known) => compare(value, known, path, lost),
                    // A null means "not set", and what is not set is not written again.
                    None if value.is_null() || lost.len() >= FIELDS_LISTED_MAX => {}
                    None => lost.push(path.clone()),
                }
                path.truncate(start);
                found.is_some()
            });
        }
        (Value::Array(sent), Value::Array(known)) => {
            for (index, (value, known)) in sent.iter_mut().zip(known).enumerate() {
                push_index(path, index);
                compare(value, known, path, lost);
                path.truncate(start);
            }
        }
        _ => {}
    }
}
