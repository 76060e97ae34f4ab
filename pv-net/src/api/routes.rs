//! The API's paths and their handlers. `GET /openapi.json` is generated from them.

use super::extract::{Asked, Named, NamedInterface, Question, Sent, wrong_query};
use super::openapi::{Document, about, about_with_flags, content, document, ok};
use super::view::{self, ContainerView, FlowView, HealthView, LeaseView, PoolView, PortView, RuleView, StatusView};
use super::view::{ResolveQuery, ResolveView, ServiceView, VerdictQuery, VerdictView};
use super::{Api, action, events, metrics};
use crate::command::{AddInterface, AttachRequest, InterfaceRequest};
use crate::failure::{Failure, Kind};
use crate::lease::unix_time;
use crate::plan::ReloadPlan;
use aide::OperationOutput;
use aide::axum::ApiRouter;
use aide::axum::routing::{get_with, post_with, put_with};
use aide::generate::{GenContext, reset_context};
use aide::openapi::{Operation, StatusCode as Code};
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Json, NoContent, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Most bytes of a request's body: more than any `run.json`.
const MAX_BODY: usize = 1 << 20;
/// How long `policy explain` waits while a new policy is being put in force.
const PATIENCE: Duration = Duration::from_secs(5);

fn routes() -> ApiRouter<Api> {
    let attach_or_detach = get_with(container, about("One container"))
        .put_with(attach, about("Attach a container, or start or stop it"))
        .delete_with(detach, about("Detach a container and release its leases"));
    let interfaces = put_with(attach_interface, about("Add an interface to an attached container"))
        .delete_with(detach_interface, about("Remove an interface from a container and release its lease"));
    ApiRouter::new()
        .api_route("/containers", get_with(containers, about("All containers")))
        .api_route("/containers/{name}", attach_or_detach)
        .api_route("/containers/{name}/interfaces/{interface}", interfaces)
        .api_route("/pools", get_with(pools, about("All pools")))
        .api_route("/leases", get_with(leases, about("All leases: of containers, and of clients of DHCP")))
        .api_route("/ports", get_with(ports, about("Published ports")))
        .api_route("/services", get_with(services, about("Services that containers offer")))
        .api_route("/flows", get_with(flows, about("The flow table")))
        .api_route("/policies", get_with(policies, about("All rules")))
        .api_route("/policy/verdict", get_with(verdict, about("What happens to a flow, and why")))
        .api_route("/resolve", get_with(resolve, about("What would be answered about a name")))
        .api_route("/status", get_with(status, about("The daemon")))
        .api_route("/health", get_with(health, about("Whether the daemon works")))
        .api_route("/metrics", get_with(metrics::metrics, about("Counters and gauges, as OpenMetrics text")))
        .api_route("/events", get_with(events::stream, about("What happens, as it happens: one JSON object a line")))
        .api_route(
            "/dns/queries",
            get_with(
                events::queries,
                about("Questions for names and their answers, as they happen: one JSON object a line"),
            ),
        )
        .api_route(
            "/reload",
            post_with(reload, about_with_flags("Read the configuration again, or say what that would do")),
        )
        .api_route("/down", post_with(down, about("Remove everything and stop")))
        .api_route("/openapi.json", get_with(openapi, about("This document")))
}

pub(super) fn router(api: Api) -> Router {
    let router = Router::from(routes());
    // The router leaves the descriptions of all types in this thread, which are not needed until somebody asks for the
    // document.
    reset_context();
    router
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(api)
}

async fn openapi() -> Document {
    document(routes)
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

/// Runs work that may take long, such as reading a large table, on a thread that may block.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let failed = |e| Err(Failure::new(Kind::Internal, format!("the operation failed: {e}")));
    spawn_blocking(work).await.unwrap_or_else(failed)
}

async fn containers(State(api): State<Api>) -> Result<Json<Vec<ContainerView>>, Failure> {
    let snapshot = api.snapshot();
    let statuses = api.runner.statuses();
    Ok(Json(aside(move || Ok(view::containers(&snapshot, &statuses))).await?))
}

async fn container(State(api): State<Api>, Named(name): Named) -> Result<Json<ContainerView>, Failure> {
    Ok(Json(view::container(&api.snapshot(), &api.runner.statuses(), &name)?))
}

async fn attach(
    State(api): State<Api>,
    Named(name): Named,
    Sent(request): Sent<AttachRequest>,
) -> Result<Json<ContainerView>, Failure> {
    if let Some(action) = request.action {
        return Ok(Json(action::act(&api, &name, action, &request).await?));
    }
    // If the client hangs up, the controller still finishes the operation.
    let after = api.commands.attach(name.clone(), request).await?;
    // The answer waits for the container's `resolv.conf` and DNS name: the client mounts the file next, and others ask
    // for the name.
    api.dns.follows(after.revision).await;
    Ok(Json(view::container(&after, &api.runner.statuses(), &name)?))
}

async fn detach(State(api): State<Api>, Named(name): Named) -> Result<NoContent, Failure> {
    api.commands.detach(name).await?;
    Ok(NoContent)
}

async fn attach_interface(
    State(api): State<Api>,
    NamedInterface(name, interface): NamedInterface,
    Sent(request): Sent<InterfaceRequest>,
) -> Result<Json<ContainerView>, Failure> {
    let add = AddInterface { container: name.clone(), interface, request };
    let after = api.commands.attach_interface(add).await?;
    api.dns.follows(after.revision).await;
    Ok(Json(view::container(&after, &api.runner.statuses(), &name)?))
}

async fn detach_interface(
    State(api): State<Api>,
    NamedInterface(name, interface): NamedInterface,
) -> Result<NoContent, Failure> {
    api.commands.detach_interface(name, interface).await?;
    Ok(NoContent)
}

async fn pools(State(api): State<Api>) -> Json<Vec<PoolView>> {
    Json(view::pools(&api.snapshot()))
}

async fn leases(State(api): State<Api>) -> Json<Vec<LeaseView>> {
    let clients = api.leases.clients().all();
    Json(view::leases(&api.snapshot(), &clients, unix_time()))
}

async fn ports(State(api): State<Api>) -> Json<Vec<PortView>> {
    Json(view::ports(&api.snapshot()))
}

async fn services(State(api): State<Api>) -> Json<Vec<ServiceView>> {
    Json(view::services(&api.snapshot(), &api.dns.zone()))
}

async fn flows(State(api): State<Api>) -> Result<Json<Vec<FlowView>>, Failure> {
    let snapshot = api.snapshot();
    Ok(Json(aside(move || Ok(view::flows(&snapshot)?)).await?))
}

async fn policies(State(api): State<Api>) -> Json<Vec<RuleView>> {
    Json(view::rules(&api.snapshot()))
}

impl Question for VerdictQuery {
    const EXAMPLE: &'static str = "GET /policy/verdict?from=web&to=db&proto=tcp&port=5432";
}

async fn verdict(State(api): State<Api>, Asked(query): Asked<VerdictQuery>) -> Result<Json<VerdictView>, Failure> {
    let query = Arc::new(query);
    let mut snapshots = api.snapshots.clone();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let host = view::host_addresses(&snapshot).await?;
        let (asked, query, probe, config) = (snapshot.clone(), query.clone(), api.probe.clone(), api.config.clone());
        let answer = aside(move || view::explain(&asked, host, &query, &probe, &config)).await;
        // The verdict is only valid if the generation is still the snapshot's. A reload replaces the generation first,
        // and publishes its snapshot later.
        let Some(plane) = &snapshot.plane else { return answer.map(Json) };
        if plane.reader.generation()? == snapshot.policy.generation {
            return answer.map(Json);
        }
        if timeout(PATIENCE, snapshots.changed()).await.is_err() {
            return Err(Failure::new(Kind::Internal, "the policy is being replaced").help("ask again"));
        }
    }
}

impl Question for ResolveQuery {
    const EXAMPLE: &'static str = "GET /resolve?name=db.pv.local&type=AAAA&from=web";
}

async fn resolve(State(api): State<Api>, Asked(query): Asked<ResolveQuery>) -> Result<Json<ResolveView>, Failure> {
    Ok(Json(view::resolve(&api.snapshot(), &api.dns, &query).await?))
}

async fn status(State(api): State<Api>) -> Result<Json<StatusView>, Failure> {
    Ok(Json(view::status(&api.snapshot(), &api.runner.statuses())?))
}

async fn health(State(api): State<Api>) -> Result<Json<HealthView>, Failure> {
    // The counters are read from the kernel, so an answer proves that the maps can be read.
    view::counters(&api.snapshot())?;
    Ok(Json(HealthView { healthy: true }))
}

/// The query of `POST /reload`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ReloadQuery {
    /// If present, only say what the reload would do. The value `false` counts as absent.
    dry_run: Option<String>,
}

impl Question for ReloadQuery {
    const EXAMPLE: &'static str = "POST /reload, or POST /reload?dry_run";
}

/// What a reload has done, or would do.
enum Reloaded {
    Done,
    Planned(Box<ReloadPlan>),
}

impl IntoResponse for Reloaded {
    fn into_response(self) -> Response {
        match self {
            Self::Done => NoContent.into_response(),
            Self::Planned(plan) => Json(plan).into_response(),
        }
    }
}

impl OperationOutput for Reloaded {
    type Inner = ReloadPlan;

    fn inferred_responses(
        ctx: &mut GenContext,
        operation: &mut Operation,
    ) -> Vec<(Option<Code>, aide::openapi::Response)> {
        let mut all = NoContent::inferred_responses(ctx, operation);
        all.push(ok(content::<ReloadPlan>(ctx, "application/json", "With dry_run: what would be done")));
        all
    }
}

async fn reload(State(api): State<Api>, Asked(query): Asked<ReloadQuery>) -> Result<Reloaded, Failure> {
    match query.dry_run.as_deref() {
        Some("" | "true" | "1") => Ok(Reloaded::Planned(Box::new(api.commands.plan().await?))),
        None | Some("false" | "0") => {
            api.commands.reload().await?;
            Ok(Reloaded::Done)
        }
        Some(other) => Err(wrong_query::<ReloadQuery>("/reload", &format!("dry_run = {other:?}"))),
    }
}

async fn down(State(api): State<Api>) -> Result<NoContent, Failure> {
    api.commands.down().await?;
    Ok(NoContent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn described() -> Value {
        let text = axum::body::to_bytes(document(routes).into_response().into_body(), usize::MAX);
        let text = futures_util::future::FutureExt::now_or_never(text).expect("it is there").expect("whole");
        serde_json::from_slice(&text).expect("JSON")
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = described();
        let text = document.to_string();
        let mut seen = 0;
        for part in text.split("\"$ref\":\"#").skip(1) {
            let path = part.split('"').next().expect("a string");
            assert!(document.pointer(path).is_some(), "{path}");
            seen += 1;
        }
        assert!(seen > 20, "{seen}");
    }

    #[test]
    fn every_operation_says_what_it_answers_and_that_it_may_fail() {
        let document = described();
        let paths = document["paths"].as_object().expect("paths");
        // A path that is routed without a description would be missing in the document.
        let source = include_str!("routes.rs");
        let code = source.split("#[cfg(test)]").next().expect("code");
        assert_eq!(paths.len(), code.matches(".api_route(").count());
        assert!(!code.contains(".route("), "a path that is not described");
        let no_failure =
            ["/pools", "/leases", "/ports", "/services", "/policies", "/events", "/dns/queries", "/openapi.json"];
        for (path, item) in paths {
            for (method, operation) in item.as_object().expect("operations") {
                let at = format!("{method} {path}: {operation}");
                assert!(!operation["summary"].as_str().unwrap_or_default().is_empty(), "{at}");
                let responses = operation["responses"].as_object().expect("responses");
                assert!(responses.keys().any(|code| code.starts_with('2')), "{at}");
                let error = &responses.get("default").map(|r| &r["content"]["application/json"]["schema"]["$ref"]);
                let wanted =
                    (!no_failure.contains(&path.as_str())).then(|| Value::from("#/components/schemas/ErrorView"));
                assert_eq!(error.cloned(), wanted, "{at}");
            }
        }
        let pointer = |path: &str| document.pointer(path).unwrap_or_else(|| panic!("{path}"));
        assert_eq!(document["openapi"], "3.1.0");
        assert_eq!(*pointer("/paths/~1reload/post/parameters/0/name"), "dry_run");
        assert_eq!(*pointer("/paths/~1reload/post/parameters/0/allowEmptyValue"), true);
        pointer("/paths/~1reload/post/responses/204");
        pointer("/paths/~1reload/post/responses/200/content/application~1json/schema");
        pointer("/paths/~1events/get/responses/200/content/application~1x-ndjson/schema");
        pointer("/paths/~1dns~1queries/get/responses/200/content/application~1x-ndjson/schema");
        pointer("/paths/~1metrics/get/responses/200/content/application~1openmetrics-text/schema");
        pointer("/paths/~1containers~1{name}/put/requestBody/content/application~1json/schema");
        let name = pointer("/paths/~1containers~1{name}/put/parameters/0");
        assert_eq!((&name["name"], &name["in"], &name["required"]), (&"name".into(), &"path".into(), &true.into()));
        let port = pointer("/paths/~1policy~1verdict/get/parameters").as_array().expect("a list");
        let required: Vec<_> =
            port.iter().map(|p| (p["name"].as_str(), p["required"].as_bool().unwrap_or(false))).collect();
        assert_eq!(required, [(Some("from"), true), (Some("to"), true), (Some("proto"), true), (Some("port"), false)]);
    }
}
