//! `GET /openapi.json`, generated from the handlers. A handler's argument and result types describe its request and
//! answer; this file adds what the types do not say.

use super::error::ErrorView;
use crate::failure::Failure;
use aide::OperationOutput;
use aide::axum::ApiRouter;
use aide::generate::{self, GenContext};
use aide::openapi::{Info, License, MediaType, OpenApi, Operation, Parameter, Response, SchemaObject, StatusCode};
use aide::transform::TransformOperation;
use axum::Json;
use axum::response::IntoResponse;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;

/// The OpenAPI 3.1 document for the routes that `routes` makes.
pub(super) fn document<S: Clone + Send + Sync + 'static>(routes: impl FnOnce() -> ApiRouter<S>) -> Document {
    // The JSON Schema dialect of OpenAPI 3.1. The library keeps these settings for the thread until the document is
    // made.
    let settings = SchemaSettings::draft2020_12().with(|s| s.definitions_path = "#/components/schemas/".into());
    generate::in_context(|context| context.schema = settings.into_generator());
    let license = License { name: "MIT OR Apache-2.0".to_owned(), ..License::default() };
    let info = Info {
        title: "pv-net".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        license: Some(license),
        ..Info::default()
    };
    let mut document = OpenApi { info, ..OpenApi::default() };
    let _ = routes().finish_api(&mut document);
    Document(document)
}

/// The document itself. Its format is defined by the OpenAPI Initiative, so it has no schema here.
pub(super) struct Document(OpenApi);

impl IntoResponse for Document {
    fn into_response(self) -> axum::response::Response {
        Json(self.0).into_response()
    }
}

impl OperationOutput for Document {
    type Inner = Self;

    fn inferred_responses(ctx: &mut GenContext, _: &mut Operation) -> Vec<(Option<StatusCode>, Response)> {
        vec![ok(content::<serde_json::Map<String, serde_json::Value>>(ctx, "application/json", "This document"))]
    }
}

/// Sets an operation's summary.
pub(super) fn about(summary: &'static str) -> impl FnOnce(TransformOperation<'_>) -> TransformOperation<'_> {
    move |operation| operation.summary(summary)
}

/// [`about`] for an operation whose query parameters may have no value.
pub(super) fn about_with_flags(summary: &'static str) -> impl FnOnce(TransformOperation<'_>) -> TransformOperation<'_> {
    move |mut operation| {
        for parameter in &mut operation.inner_mut().parameters {
            if let Some(Parameter::Query { parameter_data, .. }) = parameter.as_item_mut() {
                // The library writes its own field as `allow_empty_value`, which OpenAPI does not have.
                parameter_data.extensions.insert("allowEmptyValue".to_owned(), true.into());
            }
        }
        operation.summary(summary)
    }
}

/// A response with status 200.
pub(super) fn ok(response: Response) -> (Option<StatusCode>, Response) {
    (Some(StatusCode::Code(200)), response)
}

/// A response whose body is one `T` of this content type, or several.
pub(super) fn content<T: JsonSchema>(ctx: &mut GenContext, kind: &str, description: &str) -> Response {
    let json_schema = ctx.schema.subschema_for::<T>();
    let schema = SchemaObject { json_schema, example: None, external_docs: None };
    let media = MediaType { schema: Some(schema), ..MediaType::default() };
    Response {
        description: description.to_owned(),
        content: [(kind.to_owned(), media)].into_iter().collect(),
        ..Response::default()
    }
}

/// Every operation may end with an error of any error status.
impl OperationOutput for Failure {
    type Inner = ErrorView;

    fn operation_response(ctx: &mut GenContext, _: &mut Operation) -> Option<Response> {
        Some(content::<ErrorView>(ctx, "application/json", "What is wrong"))
    }

    fn inferred_responses(ctx: &mut GenContext, operation: &mut Operation) -> Vec<(Option<StatusCode>, Response)> {
        Self::operation_response(ctx, operation).map(|response| (None, response)).into_iter().collect()
    }
}
