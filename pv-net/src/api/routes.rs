//! Paths and their handlers.

use super::{Shared, events, metrics, openapi};
use crate::daemon::{
    AttachRequest, ContainerView, FlowView, LeaseView, PoolView, PortView, RuleView, StatusView, VerdictQuery,
    VerdictView,
};
use crate::failure::{Failure, Kind, Message};
use crate::model::ContainerName;
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Larger than any `run.json`.
const MAX_BODY: usize = 1 << 20;

pub(super) fn router(shared: Shared) -> Router {
    Router::new()
        .route("/containers", get(containers))
        .route("/containers/{name}", get(container).put(attach).delete(detach))
        .route("/pools", get(pools))
        .route("/leases", get(leases))
        .route("/ports", get(ports))
        .route("/flows", get(flows))
        .route("/policies", get(policies))
        .route("/policy/verdict", get(verdict))
        .route("/status", get(status))
        .route("/health", get(health))
        .route("/metrics", get(metrics::metrics))
        .route("/events", get(events::stream))
        .route("/reload", post(reload))
        .route("/down", post(down))
        .route("/openapi.json", get(openapi::document))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}

/// What an error looks like.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ErrorView {
    /// All that is wrong, on one line.
    pub error: String,
    /// What to do about the first thing that has a remedy.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub help: Option<String>,
    /// One by one.
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

async fn no_such_path(uri: Uri) -> Failure {
    let why = format!("{}: no such path", uri.path());
    Failure::new(Kind::NotFound, why).help("GET /openapi.json lists all paths")
}

async fn no_such_method(method: Method, uri: Uri) -> Response {
    let failure = Failure::new(Kind::Usage, format!("{method} {}: not a method of this path", uri.path()));
    let mut response = failure.into_response();
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}

fn name(text: &str) -> Result<ContainerName, Failure> {
    text.parse().map_err(|e| Failure::new(Kind::Usage, format!("container {text:?}: {e}")))
}

async fn containers(State(shared): State<Shared>) -> Json<Vec<ContainerView>> {
    Json(shared.daemon().await.containers())
}

async fn container(State(shared): State<Shared>, Path(path): Path<String>) -> Result<Json<ContainerView>, Failure> {
    Ok(Json(shared.daemon().await.container(&name(&path)?)?))
}

async fn attach(
    State(shared): State<Shared>,
    Path(path): Path<String>,
    body: Bytes,
) -> Result<Json<ContainerView>, Failure> {
    let name = name(&path)?;
    let request: AttachRequest = serde_json::from_slice(&body)
        .map_err(|e| Failure::new(Kind::Usage, format!("body of PUT /containers/{name}: {e}")))?;
    // A client that hangs up must not leave half an operation: it goes on in a task of its own.
    let task = tokio::spawn(async move {
        let mut daemon = shared.daemon().await;
        daemon.attach(&name, request).await?;
        daemon.container(&name)
    });
    Ok(Json(finished(task).await?))
}

async fn detach(State(shared): State<Shared>, Path(path): Path<String>) -> Result<StatusCode, Failure> {
    let name = name(&path)?;
    let task = tokio::spawn(async move { shared.daemon().await.detach(&name).await });
    finished(task).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn finished<T>(task: tokio::task::JoinHandle<Result<T, Failure>>) -> Result<T, Failure> {
    task.await.unwrap_or_else(|e| Err(Failure::new(Kind::Internal, format!("the operation failed: {e}"))))
}

async fn pools(State(shared): State<Shared>) -> Json<Vec<PoolView>> {
    Json(shared.daemon().await.pool_views())
}

async fn leases(State(shared): State<Shared>) -> Json<Vec<LeaseView>> {
    Json(shared.daemon().await.leases())
}

async fn ports(State(shared): State<Shared>) -> Json<Vec<PortView>> {
    Json(shared.daemon().await.ports())
}

async fn flows(State(shared): State<Shared>) -> Result<Json<Vec<FlowView>>, Failure> {
    Ok(Json(shared.daemon().await.flows()?))
}

async fn policies(State(shared): State<Shared>) -> Result<Json<Vec<RuleView>>, Failure> {
    Ok(Json(shared.daemon().await.policies()?))
}

async fn verdict(
    State(shared): State<Shared>,
    query: Result<Query<VerdictQuery>, QueryRejection>,
) -> Result<Json<VerdictView>, Failure> {
    let wrong = |e: QueryRejection| {
        let help = "GET /policy/verdict?from=web&to=db&proto=tcp&port=5432";
        Failure::new(Kind::Usage, format!("query of /policy/verdict: {}", e.body_text())).help(help)
    };
    let Query(query) = query.map_err(wrong)?;
    Ok(Json(shared.daemon().await.policy_verdict(&query).await?))
}

async fn status(State(shared): State<Shared>) -> Result<Json<StatusView>, Failure> {
    Ok(Json(shared.daemon().await.status()?))
}

async fn health(State(shared): State<Shared>) -> Result<Response, Failure> {
    // The counters come from the kernel: an answer says that the maps can be read.
    shared.daemon().await.counters()?;
    Ok(([(header::CONTENT_TYPE, "application/json")], r#"{"healthy":true}"#).into_response())
}

async fn reload(State(shared): State<Shared>) -> Result<StatusCode, Failure> {
    let inner = shared.clone();
    finished(tokio::spawn(async move { inner.daemon().await.reload().await })).await?;
    events::forward_events(&shared).await;
    Ok(StatusCode::NO_CONTENT)
}

async fn down(State(shared): State<Shared>) -> Result<StatusCode, Failure> {
    let gone = || Failure::new(Kind::Internal, "the daemon is stopping");
    let (answer, wait) = tokio::sync::oneshot::channel();
    shared.down.send(answer).await.map_err(|_| gone())?;
    wait.await.map_err(|_| gone())??;
    Ok(StatusCode::NO_CONTENT)
}
