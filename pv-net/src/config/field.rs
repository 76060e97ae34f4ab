//! A field that may be wrong without spoiling the rest of its file.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{DeserializeOwned, Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// What a file holds for a `T`: one, or something else and why it is none.
#[derive(Clone, Debug)]
pub struct Field<T> {
    /// As it stands in the file.
    pub value: Value,
    /// What it is.
    pub parsed: Result<T, String>,
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(d)?;
        let parsed = T::deserialize(Strict(&value)).map_err(|e| e.to_string());
        Ok(Self { value, parsed })
    }
}

/// A value of which a choice is made by its name alone. serde takes `{"bridge": null}` for `"bridge"`; the schemas do
/// not.
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

/// An object of the file: keeps the fields that it does not know, so that all of them can be reported.
pub trait Section: JsonSchema {
    /// What the object has beside its fields.
    fn unknown(&self) -> &Map<String, Value>;

    /// Its JSON Schema; made once, for an error asks for it.
    fn schema() -> &'static Schema;

    /// The names of its fields.
    fn names() -> Vec<String> {
        let properties = Self::schema().get("properties").and_then(Value::as_object);
        properties.map(|p| p.keys().cloned().collect()).unwrap_or_default()
    }
}
