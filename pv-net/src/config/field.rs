//! A field that may be wrong without spoiling the rest of its file.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
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
        let parsed = T::deserialize(&value).map_err(|e| e.to_string());
        Ok(Self { value, parsed })
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

    /// The names of its fields.
    fn names() -> Vec<String> {
        let schema = schemars::schema_for!(Self);
        let properties = schema.get("properties").and_then(Value::as_object);
        properties.map(|p| p.keys().cloned().collect()).unwrap_or_default()
    }
}
