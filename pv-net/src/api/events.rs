//! What happens, as it happens: one JSON object a line, until the client hangs up or the daemon ends.

use super::openapi::{content, ok};
use super::view::QueryView;
use super::{Api, view};
use crate::bus::{Heard, Listener};
use crate::events::EventView;
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
use std::marker::PhantomData;

const KIND: &str = "application/x-ndjson";

/// One line.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "{V}Line")]
enum Line<V> {
    /// What happened.
    Message(V),
    /// The listener was too slow and has missed some.
    Missed {
        /// How many it has missed.
        missed: u64,
    },
}

/// An endless body of lines, each with a `V`.
pub(super) struct Lines<V>(Body, PhantomData<V>);

impl<V> IntoResponse for Lines<V> {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, KIND)], self.0).into_response()
    }
}

impl<V: JsonSchema> OperationOutput for Lines<V> {
    type Inner = V;

    fn inferred_responses(
        ctx: &mut GenContext,
        _: &mut Operation,
    ) -> Vec<(Option<StatusCode>, aide::openapi::Response)> {
        vec![ok(content::<Line<V>>(ctx, KIND, "One object a line, until the client hangs up or the daemon ends"))]
    }
}

/// The lines for what `listener` hears, each as `view` shows it.
fn lines<T, V>(api: &Api, listener: Listener<T>, view: impl Fn(T) -> V + Clone + Send + 'static) -> Lines<V>
where
    T: Clone + Send + 'static,
    V: Serialize + Send + 'static,
{
    let lines = stream::unfold((listener, api.stop.clone(), view), |(mut listener, stop, view)| async move {
        let line = match stop.run_until_cancelled(listener.next()).await?? {
            Heard::Message(message) => Line::Message(view(message)),
            Heard::Missed(missed) => Line::Missed { missed },
        };
        let line = serde_json::to_string(&line).unwrap_or_default();
        Some((Ok::<_, Infallible>(Bytes::from(line + "\n")), (listener, stop, view)))
    });
    Lines(Body::from_stream(lines), PhantomData)
}

pub(super) async fn stream(State(api): State<Api>) -> Lines<EventView> {
    lines(&api, api.bus.listen(), |event| event)
}

pub(super) async fn queries(State(api): State<Api>) -> Lines<QueryView> {
    let snapshots = api.snapshots.clone();
    lines(&api, api.dns.watch(), move |exchange| {
        let snapshot = snapshots.borrow().clone();
        view::query(&snapshot, &exchange)
    })
}
