//! Paths and their handlers.

use super::view::{self, ContainerView, FlowView, LeaseView, PoolView, PortView, RuleView, StatusView};
use super::view::{VerdictQuery, VerdictView};
use super::{Api, events, metrics, openapi};
use crate::command::AttachRequest;
use crate::failure::{Failure, Kind};
use crate::model::ContainerName;
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Larger than any `run.json`.
const MAX_BODY: usize = 1 << 20;
/// How long a question about the policy waits for one that is just being put in force.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn router(api: Api) -> Router {
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
        .route("/openapi.json", get(async || Json(openapi::openapi())))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(api)
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

/// Does what may take its time, such as reading a large table, where nobody waits for it.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let failed = |e| Err(Failure::new(Kind::Internal, format!("the operation failed: {e}")));
    spawn_blocking(work).await.unwrap_or_else(failed)
}

async fn containers(State(api): State<Api>) -> Result<Json<Vec<ContainerView>>, Failure> {
    let snapshot = api.snapshot();
    Ok(Json(aside(move || Ok(view::containers(&snapshot))).await?))
}

async fn container(State(api): State<Api>, Path(path): Path<String>) -> Result<Json<ContainerView>, Failure> {
    Ok(Json(view::container(&api.snapshot(), &name(&path)?)?))
}

async fn attach(State(api): State<Api>, Path(path): Path<String>, body: Bytes) -> Result<Json<ContainerView>, Failure> {
    let name = name(&path)?;
    let request: AttachRequest = serde_json::from_slice(&body)
        .map_err(|e| Failure::new(Kind::Usage, format!("body of PUT /containers/{name}: {e}")))?;
    // A client that hangs up leaves no half of an operation: the controller goes on.
    let after = api.commands.attach(name.clone(), request).await?;
    Ok(Json(view::container(&after, &name)?))
}

async fn detach(State(api): State<Api>, Path(path): Path<String>) -> Result<StatusCode, Failure> {
    api.commands.detach(name(&path)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn pools(State(api): State<Api>) -> Json<Vec<PoolView>> {
    Json(view::pools(&api.snapshot()))
}

async fn leases(State(api): State<Api>) -> Json<Vec<LeaseView>> {
    Json(view::leases(&api.snapshot()))
}

async fn ports(State(api): State<Api>) -> Json<Vec<PortView>> {
    Json(view::ports(&api.snapshot()))
}

async fn flows(State(api): State<Api>) -> Result<Json<Vec<FlowView>>, Failure> {
    let snapshot = api.snapshot();
    Ok(Json(aside(move || Ok(view::flows(&snapshot)?)).await?))
}

async fn policies(State(api): State<Api>) -> Json<Vec<RuleView>> {
    Json(view::rules(&api.snapshot()))
}

async fn verdict(
    State(api): State<Api>,
    query: Result<Query<VerdictQuery>, QueryRejection>,
) -> Result<Json<VerdictView>, Failure> {
    let wrong = |e: QueryRejection| {
        let help = "GET /policy/verdict?from=web&to=db&proto=tcp&port=5432";
        Failure::new(Kind::Usage, format!("query of /policy/verdict: {}", e.body_text())).help(help)
    };
    let Query(query) = query.map_err(wrong)?;
    let query = Arc::new(query);
    let mut snapshots = api.snapshots.clone();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let host = view::host_addresses(&snapshot).await?;
        let (asked, query, probe, config) = (snapshot.clone(), query.clone(), api.probe.clone(), api.config.clone());
        let answer = aside(move || view::explain(&asked, host, &query, &probe, &config)).await;
        // A policy that takes another one's place does so before there is a snapshot of it, and the other one goes.
        let Some(plane) = &snapshot.plane else { return answer.map(Json) };
        if plane.reader.generation()? == snapshot.policy.generation {
            return answer.map(Json);
        }
        if timeout(PATIENCE, snapshots.changed()).await.is_err() {
            return Err(Failure::new(Kind::Internal, "the policy is being replaced").help("ask again"));
        }
    }
}

async fn status(State(api): State<Api>) -> Result<Json<StatusView>, Failure> {
    Ok(Json(view::status(&api.snapshot())?))
}

async fn health(State(api): State<Api>) -> Result<Response, Failure> {
    // The counters come from the kernel: an answer says that the maps can be read.
    view::counters(&api.snapshot())?;
    Ok(([(header::CONTENT_TYPE, "application/json")], r#"{"healthy":true}"#).into_response())
}

async fn reload(State(api): State<Api>) -> Result<StatusCode, Failure> {
    api.commands.reload().await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn down(State(api): State<Api>) -> Result<StatusCode, Failure> {
    api.commands.down().await?;
    Ok(StatusCode::NO_CONTENT)
}
