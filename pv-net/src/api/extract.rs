//! Extractors: the parts of a request that handlers need, already checked. A wrong part is answered like any other
//! error.

use crate::failure::{Failure, Kind};
use crate::model::{ContainerName, IfName, InvalidName};
use aide::OperationInput;
use aide::generate::GenContext;
use aide::openapi::Operation;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The container named in the path.
pub(super) struct Named(pub ContainerName);

#[derive(Deserialize, JsonSchema)]
struct NamePath {
    /// The container's name.
    name: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let path = Path::<NamePath>::from_request_parts(parts, state).await;
        let Path(NamePath { name }) = path.map_err(|e| Failure::new(Kind::Usage, e.body_text()))?;
        name.parse().map(Self).map_err(|e| Failure::new(Kind::Usage, format!("container {name:?}: {e}")))
    }
}

/// The container and the interface named in the path.
pub(super) struct NamedInterface(pub ContainerName, pub IfName);

#[derive(Deserialize, JsonSchema)]
struct InterfacePath {
    /// The container's name.
    name: String,
    /// The interface's name inside the container.
    interface: String,
}

impl<S: Send + Sync> FromRequestParts<S> for NamedInterface {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let usage = |why: String| Failure::new(Kind::Usage, why);
        let path = Path::<InterfacePath>::from_request_parts(parts, state).await;
        let Path(InterfacePath { name, interface }) = path.map_err(|e| usage(e.body_text()))?;
        let container = name.parse().map_err(|e| usage(format!("container {name:?}: {e}")))?;
        let wrong = |e: InvalidName| usage(format!("interface {interface:?}: {e}"));
        Ok(Self(container, interface.parse().map_err(wrong)?))
    }
}

impl OperationInput for NamedInterface {
    fn operation_input(ctx: &mut GenContext, operation: &mut Operation) {
        Path::<InterfacePath>::operation_input(ctx, operation);
    }
}

impl OperationInput for Named {
    fn operation_input(ctx: &mut GenContext, operation: &mut Operation) {
        Path::<NamePath>::operation_input(ctx, operation);
    }
}

/// The type of a path's query.
pub(super) trait Question: DeserializeOwned + JsonSchema {
    /// An example of a right request, for the error's help.
    const EXAMPLE: &'static str;
}

/// The query of a request.
pub(super) struct Asked<Q>(pub Q);

impl<S: Send + Sync, Q: Question> FromRequestParts<S> for Asked<Q> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = Query::<Q>::from_request_parts(parts, state).await;
        let query = query.map_err(|e| wrong_query::<Q>(parts.uri.path(), &e.body_text()))?;
        Ok(Self(query.0))
    }
}

/// The error for a wrong query.
pub(super) fn wrong_query<Q: Question>(path: &str, why: &str) -> Failure {
    Failure::new(Kind::Usage, format!("query of {path}: {why}")).help(Q::EXAMPLE)
}

impl<Q: Question> OperationInput for Asked<Q> {
    fn operation_input(ctx: &mut GenContext, operation: &mut Operation) {
        Query::<Q>::operation_input(ctx, operation);
    }
}

/// A JSON body, whatever its content type says.
pub(super) struct Sent<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Sent<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let what = format!("body of {} {}", request.method(), request.uri().path());
        let body = Bytes::from_request(request, state).await.map_err(IntoResponse::into_response)?;
        let wrong = |e| Failure::new(Kind::Usage, format!("{what}: {e}")).into_response();
        serde_json::from_slice(&body).map(Self).map_err(wrong)
    }
}

impl<T: JsonSchema> OperationInput for Sent<T> {
    fn operation_input(ctx: &mut GenContext, operation: &mut Operation) {
        Json::<T>::operation_input(ctx, operation);
    }
}
