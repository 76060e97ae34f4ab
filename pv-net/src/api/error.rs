//! The body of an error.

use crate::failure::{Failure, Kind, Message};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The body of an error.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ErrorView {
    /// Everything that is wrong, on one line.
    pub error: String,
    /// What to do about the first problem that has a remedy.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub help: Option<String>,
    /// All problems, one by one.
    #[serde(default)]
    pub errors: Vec<Message>,
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let code = match self.kind {
            Kind::Usage => StatusCode::BAD_REQUEST,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let help = self.messages.iter().find_map(|m| m.help.clone());
        (code, Json(ErrorView { error: self.line(), help, errors: self.messages })).into_response()
    }
}
