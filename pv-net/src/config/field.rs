//! A field of a file whose error does not affect the parsing of the other fields.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{DeserializeOwned, Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// A value that should be a `T`: the raw value, and the parsed one or why it is none.
#[derive(Clone, Debug)]
pub struct Field<T> {
    /// The raw JSON value.
    pub value: Value,
    /// The parsed value, or the parser's error.
    pub parsed: Result<T, String>,
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(d)?;
        let parsed = T::deserialize(Strict(&value)).map_err(|e| e.to_string());
        Ok(Self { value, parsed })
    }
}

/// A JSON value of which an enum variant must be chosen by a plain string. serde alone would also take `{"bridge":
/// null}` for `"bridge"`, which the schemas do not allow.
struct Strict<'a>(&'a Value);

impl<'de> Deserializer<'de> for Strict<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.0.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.0.deserialize_option(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Object(_) => Err(Error::invalid_type(Unexpected::Map, &"a name")),
            value => value.deserialize_enum(name, variants, visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl<T: JsonSchema> JsonSchema for Field<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// An object of the file. It keeps unknown fields, so that all of them can be reported.
pub(crate) trait Section: JsonSchema {
    /// The fields that the object does not have by its type.
    fn unknown(&self) -> &Map<String, Value>;

    /// The object's JSON Schema; made only once.
    fn schema() -> &'static Schema;

    /// The names of the object's fields.
    fn names() -> Vec<String> {
        let properties = Self::schema().get("properties").and_then(Value::as_object);
        properties.map(|p| p.keys().cloned().collect()).unwrap_or_default()
    }
}
