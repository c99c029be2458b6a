//! Where in a type a walk stands, and what its values are there.

use serde_json::Value;

use crate::api::resource::Resource;
use crate::api::schema::{ListType, SCHEMA, Shape, Type};

/// What stands at a place.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// Fields of a type.
    Struct(usize),
    /// A map from text to values of this type.
    Map(Type),
    /// A list whose elements are told apart by the values of these fields.
    Keyed(&'static [&'static str], usize),
    /// A list of scalars, each once.
    Set,
    /// One value, owned whole.
    Whole,
    /// Nothing is known: objects are maps, all else is whole.
    Unknown,
}

impl Place {
    /// An object of this kind.
    pub(super) fn root(resource: &Resource) -> Self {
        let message = SCHEMA.kind(&resource.api_version(), resource.kind);
        message.map_or(Self::Unknown, Self::Struct)
    }

    /// The place of a field, and whether the type says that there is one with this name.
    pub(super) fn field(self, name: &str) -> (Self, bool) {
        match self {
            Self::Struct(message) => {
                let Some(field) = SCHEMA.field(message, name) else {
                    return (Self::Unknown, false);
                };
                let place = match &field.shape {
                    Shape::One => Self::of(field.kind, field.is_atomic),
                    Shape::Map if field.is_atomic == Some(true) => Self::Whole,
                    Shape::Map => Self::Map(field.kind),
                    Shape::List(ListType::Atomic) => Self::Whole,
                    Shape::List(ListType::Set) => Self::Set,
                    Shape::List(ListType::Map(keys)) => match field.kind {
                        Type::Message(message) => Self::Keyed(keys, message),
                        _ => Self::Whole,
                    },
                };
                (place, true)
            }
            Self::Map(kind) => (Self::of(kind, None), false),
            _ => (Self::Unknown, false),
        }
    }

    fn of(kind: Type, is_atomic: Option<bool>) -> Self {
        match kind {
            Type::Message(message) => {
                let type_is = SCHEMA.message(message).is_some_and(|message| message.is_atomic);
                if is_atomic.unwrap_or(type_is) { Self::Whole } else { Self::Struct(message) }
            }
            _ => Self::Whole,
        }
    }

    /// Whether the fields of `value` are owned one by one.
    pub(super) fn is_map(self, value: &Value) -> bool {
        matches!(self, Self::Struct(_) | Self::Map(_) | Self::Unknown) && value.is_object()
    }

    /// Whether the elements of `value` are owned one by one.
    pub(super) fn is_list(self, value: &Value) -> bool {
        matches!(self, Self::Keyed(..) | Self::Set) && value.is_array()
    }

    /// The place of an element of a list.
    pub(super) fn element(self) -> Self {
        match self {
            Self::Keyed(_, message) => Self::Struct(message),
            _ => Self::Whole,
        }
    }

    /// The step to an element; `None` for one that lacks what tells it apart.
    pub(super) fn step(self, element: &Value) -> Option<String> {
        match self {
            Self::Keyed(keys, message) => {
                let mut parts = Vec::with_capacity(keys.len());
                for key in keys {
                    let default = || SCHEMA.field(message, key)?.default.map(Value::from);
                    let value = element.get(key).cloned().or_else(default)?;
                    parts.push(format!("{}:{value}", Value::from(*key)));
                }
                Some(format!("k:{{{}}}", parts.join(",")))
            }
            Self::Set => Some(format!("v:{element}")),
            _ => None,
        }
    }
}
