//! A message as a JSON object, by the table.

use serde_json::{Map, Value};

use crate::api::json::is_empty;
use crate::api::protobuf::wire::{self, Part};
use crate::api::protobuf::{DEPTH_MAX, ProtobufError, VALUES_MAX, malformed, scalar};
use crate::api::schema::{Field, Schema, Shape, Type};

/// Decodes one body.
pub(super) struct Decoder<'a> {
    schema: &'a Schema,
    /// How many values may still come.
    left: usize,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(schema: &'a Schema) -> Self {
        Self { schema, left: VALUES_MAX }
    }

    /// Adds the fields in `bytes` to `object`.
    pub(super) fn message(
        &mut self,
        message: usize,
        bytes: &[u8],
        depth: usize,
        object: &mut Map<String, Value>,
    ) -> Result<(), ProtobufError> {
        if depth > DEPTH_MAX {
            return Err(malformed(format!("nested deeper than {DEPTH_MAX} levels")));
        }
        let fields = self.schema.message(message).map_or(&[][..], |message| &message.fields);
        for part in wire::parts(bytes) {
            let (number, part) = part?;
            let Some(field) = fields.iter().find(|field| field.number == number) else { continue };
            let at = |error| match error {
                ProtobufError::Malformed(text) => malformed(format!("{}: {text}", field.name)),
                other => other,
            };
            self.field(field, part, depth, object).map_err(at)?;
        }
        Ok(())
    }

    fn field(
        &mut self,
        field: &Field,
        part: Part<'_>,
        depth: usize,
        object: &mut Map<String, Value>,
    ) -> Result<(), ProtobufError> {
        self.count()?;
        if let (true, Some(message), Part::Bytes(bytes)) =
            (field.is_inline, field.kind.message(), part)
        {
            return self.message(message, bytes, depth + 1, object);
        }
        match field.shape {
            Shape::One => {
                // A message that comes in pieces is one message.
                let before = object.get_mut(field.name).map(Value::take);
                let value = self.value(field.kind, part, depth, before)?;
                let is_set = |value: &Value| {
                    field.keeps_zero
                        || value.is_object()
                        || !is_empty(Some(value))
                        || matches!(field.kind, Type::IntOrString | Type::Raw)
                };
                match value.filter(is_set) {
                    Some(value) => object.insert(field.name.to_owned(), value),
                    None => object.shift_remove(field.name),
                };
            }
            Shape::List(_) => {
                let slot = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(items) = slot else { return Ok(()) };
                if let (Type::Whole, Part::Bytes(bytes)) = (field.kind, part) {
                    for number in wire::packed(bytes)? {
                        self.count()?;
                        items.push(scalar::whole(number));
                    }
                } else {
                    let value = self.value(field.kind, part, depth, None)?;
                    items.push(value.unwrap_or(Value::Null));
                }
            }
            Shape::Map => {
                let slot = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(entries) = slot else { return Ok(()) };
                let Part::Bytes(bytes) = part else {
                    return Err(malformed("malformed protobuf: an entry of a map is a number"));
                };
                let (key, value) = self.entry(field.kind, bytes, depth)?;
                entries.insert(key, value);
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        kind: Type,
        bytes: &[u8],
        depth: usize,
    ) -> Result<(String, Value), ProtobufError> {
        let (mut key, mut value) = (String::new(), scalar::zero(kind));
        for part in wire::parts(bytes) {
            match part? {
                (1, Part::Bytes(text)) => key = wire::text(text)?,
                (2, part) => value = self.value(kind, part, depth, None)?.unwrap_or(Value::Null),
                _ => {}
            }
        }
        Ok((key, value))
    }

    fn value(
        &mut self,
        kind: Type,
        part: Part<'_>,
        depth: usize,
        before: Option<Value>,
    ) -> Result<Option<Value>, ProtobufError> {
        let (Some(message), Part::Bytes(bytes)) = (kind.message(), part) else {
            return scalar::value(kind, part);
        };
        let mut object = match before {
            Some(Value::Object(object)) => object,
            _ => Map::new(),
        };
        self.message(message, bytes, depth + 1, &mut object)?;
        Ok(Some(Value::Object(object)))
    }

    fn count(&mut self) -> Result<(), ProtobufError> {
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| malformed(format!("more than {VALUES_MAX} values")))?;
        Ok(())
    }
}
