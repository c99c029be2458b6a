//! The fields of Kubernetes' types: numbers on the wire, names in JSON, and how lists and maps merge.
//!
//! Data in: three text files. Data out: one table in memory, made when it is first asked for. The
//! protobuf decoder and server-side apply read it; a kind needs no code of its own for either.
//!
//! The files hold one line for each thing. `:core v1` begins a package and says its `apiVersion`; a
//! line that begins with a letter is a type; a line that begins with a space is a field of it:
//! number, name, type (`[]` a list, `{}` a map from text), and words:
//!
//! | word | meaning |
//! |---|---|
//! | `zero` | a value of zero is one that was set, and stays |
//! | `inline` | the type's fields stand beside this one's in JSON |
//! | `map:a,b` | the list's elements are told apart by these fields |
//! | `set` | the list's elements are scalars, each at most once |
//! | `atomic` | of a type or a field: replaced and owned whole (lists are, unless they say otherwise) |
//! | `granular` | of a field: not `atomic`, though its type is |
//! | `default:X` | what a field that tells elements apart is when it is left out |
//! | `merge:a` `union` `retainKeys` | how a strategic merge patch treats it |
//!
//! # Invariants
//!
//! - Every line is understood and every type named is there; a test holds this, so that nothing is
//!   left to decide at run time.

use std::collections::BTreeMap;
use std::sync::LazyLock;

mod parse;
mod quantities;

pub(crate) use quantities::{canonicalize, canonicalize_type};

/// The text.
const TEXTS: [&str; 3] =
    [include_str!("kubernetes.txt"), include_str!("gateway.txt"), include_str!("aggregator.txt")];
/// Its length: another text, another number (nearly always), for those who cache what is made of it.
pub(crate) const TEXT_BYTES: usize = TEXTS[0].len() + TEXTS[1].len() + TEXTS[2].len();

/// All types.
pub(crate) static SCHEMA: LazyLock<Schema> = LazyLock::new(|| parse::schema(&TEXTS).0);

/// The types by number, and which of them are kinds.
#[derive(Debug, Default)]
pub(crate) struct Schema {
    messages: Vec<Message>,
    /// By `apiVersion` and name.
    named: BTreeMap<(&'static str, &'static str), usize>,
}

/// A type with fields.
#[derive(Debug)]
pub(crate) struct Message {
    /// As Kubernetes names it.
    pub(crate) name: &'static str,
    /// Of its package.
    pub(crate) api_version: &'static str,
    /// Replaced and owned whole.
    pub(crate) is_atomic: bool,
    /// In the order of the file.
    pub(crate) fields: Vec<Field>,
}

/// A field of a [`Message`].
#[derive(Debug)]
pub(crate) struct Field {
    /// On the wire; 0 for types that are never sent as protobuf.
    pub(crate) number: u32,
    /// In JSON.
    pub(crate) name: &'static str,
    /// What it holds, or what its elements are.
    pub(crate) kind: Type,
    /// One, or many.
    pub(crate) shape: Shape,
    /// A zero was set by somebody.
    pub(crate) keeps_zero: bool,
    /// The type's fields stand beside this one's in JSON.
    pub(crate) is_inline: bool,
    /// Replaced and owned whole: `None` leaves it to the type.
    pub(crate) is_atomic: Option<bool>,
    /// A strategic merge patch merges the list: by this field, or, if that is empty, as a set.
    pub(crate) merge_key: Option<&'static str>,
    /// Of a field that tells elements of a list apart: what it is when left out.
    pub(crate) default: Option<&'static str>,
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Text,
    Whole,
    Flag,
    Bytes,
    Quantity,
    IntOrString,
    Time,
    MicroTime,
    /// Any JSON.
    Raw,
    /// A list of texts in a message of its own.
    Texts,
    /// A message, by number.
    Message(usize),
}

/// How many values a field has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shape {
    One,
    Map,
    List(ListType),
}

/// How the elements of a list are told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListType {
    /// Not at all.
    Atomic,
    /// They are scalars.
    Set,
    /// By the values of these fields.
    Map(Vec<&'static str>),
}

impl Schema {
    /// The type of a kind.
    pub(crate) fn kind(&self, api_version: &str, kind: &str) -> Option<usize> {
        self.named.get(&(api_version, kind)).copied()
    }

    /// The type with this number.
    pub(crate) fn message(&self, number: usize) -> Option<&Message> {
        self.messages.get(number)
    }

    /// The field of a type with this name in JSON, those of inlined types among them.
    pub(crate) fn field(&self, message: usize, name: &str) -> Option<&Field> {
        let message = self.message(message)?;
        let own = message.fields.iter().find(|field| field.name == name && !field.is_inline);
        own.or_else(|| {
            let inlined = message.fields.iter().filter(|field| field.is_inline);
            inlined.filter_map(|field| field.kind.message()).find_map(|at| self.field(at, name))
        })
    }
}

impl Type {
    /// The type's number, if it has fields.
    pub(crate) fn message(self) -> Option<usize> {
        match self {
            Self::Message(number) => Some(number),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;

    #[test]
    fn every_line_is_understood_and_every_type_is_there() {
        let (schema, faults) = parse::schema(&TEXTS);
        assert_eq!(faults, Vec::<String>::new());
        assert!(schema.messages.len() > 300, "{}", schema.messages.len());
    }

    #[test]
    fn every_kind_that_is_served_has_its_type() {
        for resource in api::resources() {
            let found = SCHEMA.kind(&resource.api_version(), resource.kind);
            assert!(found.is_some(), "{}", resource.kind);
        }
    }

    /// The types that objects are read through must know every field that can be sent.
    #[test]
    fn fields_are_those_of_the_typed_structs() {
        let pod = SCHEMA.kind("v1", "Pod").unwrap();
        let spec = SCHEMA.field(pod, "spec").unwrap().kind.message().unwrap();
        let containers = SCHEMA.field(spec, "containers").unwrap();
        assert_eq!(containers.shape, Shape::List(ListType::Map(vec!["name"])));
        let container = containers.kind.message().unwrap();
        let ports = SCHEMA.field(container, "ports").unwrap();
        assert_eq!(ports.shape, Shape::List(ListType::Map(vec!["containerPort", "protocol"])));
        let port = ports.kind.message().unwrap();
        assert_eq!(SCHEMA.field(port, "protocol").unwrap().default, Some("TCP"));
        let volumes = SCHEMA.field(spec, "volumes").unwrap().kind.message().unwrap();
        assert!(SCHEMA.field(volumes, "emptyDir").is_some(), "an inlined field is found");
        assert!(SCHEMA.field(volumes, "volumeSource").is_none(), "what inlines it is no field");
        let selector = SCHEMA.field(spec, "nodeSelector").unwrap();
        assert_eq!(selector.is_atomic, Some(true));
    }
}
