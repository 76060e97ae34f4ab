//! `GET /events`: one JSON object a line, until the client hangs up or the daemon ends.

use super::Api;
use super::openapi::{content, ok};
use crate::events::{EventView, Heard};
use aide::OperationOutput;
use aide::generate::GenContext;
use aide::openapi::{Operation, StatusCode};
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use schemars::JsonSchema;
use serde::Serialize;
use std::convert::Infallible;

const KIND: &str = "application/x-ndjson";

/// One line of `GET /events`.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum EventLine {
    /// What happened.
    Event(EventView),
    /// The listener was too slow and has missed events.
    Missed {
        /// How many events it has missed.
        missed: u64,
    },
}

/// An endless body of lines.
pub(super) struct Lines(Body);

impl IntoResponse for Lines {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, KIND)], self.0).into_response()
    }
}

impl OperationOutput for Lines {
    type Inner = EventView;

    fn inferred_responses(
        ctx: &mut GenContext,
        _: &mut Operation,
    ) -> Vec<(Option<StatusCode>, aide::openapi::Response)> {
        vec![ok(content::<EventLine>(ctx, KIND, "One object a line, until the client hangs up or the daemon ends"))]
    }
}

pub(super) async fn stream(State(api): State<Api>) -> Lines {
    let listener = api.bus.listen();
    let lines = stream::unfold((listener, api.stop), |(mut listener, stop)| async move {
        let line = match stop.run_until_cancelled(listener.next()).await?? {
            Heard::Event(event) => EventLine::Event(event),
            Heard::Missed(missed) => EventLine::Missed { missed },
        };
        let line = serde_json::to_string(&line).unwrap_or_default();
        Some((Ok::<_, Infallible>(Bytes::from(line + "\n")), (listener, stop)))
    });
    Lines(Body::from_stream(lines))
}
