//! `GET /events`: one JSON object a line, until the client hangs up or the daemon ends.

use super::Api;
use crate::events::Heard;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use std::convert::Infallible;

pub(super) async fn stream(State(api): State<Api>) -> Response {
    let listener = api.bus.listen();
    let lines = stream::unfold((listener, api.stop), |(mut listener, stop)| async move {
        let line = match stop.run_until_cancelled(listener.next()).await?? {
            Heard::Event(event) => serde_json::to_string(&event).unwrap_or_default(),
            Heard::Missed(n) => format!(r#"{{"missed":{n}}}"#),
        };
        Some((Ok::<_, Infallible>(Bytes::from(line + "\n")), (listener, stop)))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}
