//! The form of `services.json`.

use crate::config::field::{Field, Section};
use schemars::{JsonSchema, Schema};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::sync::LazyLock;

/// What a container offers, `services.json`. A list alone is read too.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub struct Manifest {
    /// `service-manifest-xconnect@1`.
    #[serde(rename = "#spec")]
    pub spec: Option<Field<String>>,
    /// Its services.
    pub services: Option<Field<Vec<Field<Service>>>>,
    /// Fields that are none.
    #[serde(flatten)]
    #[schemars(skip)]
    pub unknown: Map<String, Value>,
}

impl Section for Manifest {
    fn unknown(&self) -> &Map<String, Value> {
        &self.unknown
    }

    fn schema() -> &'static Schema {
        static SCHEMA: LazyLock<Schema> = LazyLock::new(|| schemars::schema_for!(Manifest));
        &SCHEMA
    }
}

section! {
    /// A service that a container offers.
    Service {
        /// What others find it by, one label.
        name: String,
        /// What is spoken, such as `tcp`, `udp`, `http`, `unix` or `dbus`.
        r#type: String,
        /// The container's port; others find it in DNS.
        port: u32,
        /// The container's socket, an absolute path.
        socket: String,
    }
}
