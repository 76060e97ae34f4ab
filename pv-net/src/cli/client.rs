//! HTTP over the daemon's socket.

use super::Ended;
use crate::api::ErrorView;
use crate::daemon::Paths;
use crate::failure::{Failure, Kind, Message};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::io;
use std::path::Path;
use tokio::net::UnixStream;

fn broken(e: impl std::fmt::Display) -> Ended {
    Ended::Failed(Failure::new(Kind::Internal, format!("talk to the daemon: {e}")))
}

/// Why nobody answers at the socket. It may be a user's runtime that has called pv-net as its hook.
fn unreachable(socket: &Path, e: &io::Error) -> Message {
    let error = format!("the daemon cannot be reached: {}: {e}", socket.display());
    let help = if e.kind() == io::ErrorKind::PermissionDenied {
        "only root may ask it: of a container that another user has started, root can attach the namespace: \
         pv-net attach NAME --pid PID"
    } else {
        "start it with: pv-net run"
    };
    Message { error, help: Some(help.to_owned()) }
}

/// Sends one request. Returns when the response's head has arrived.
pub(crate) async fn send(
    paths: &Paths,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Response<Incoming>, Ended> {
    let socket = paths.socket();
    let stream = UnixStream::connect(&socket).await.map_err(|e| Ended::NoDaemon(unreachable(&socket, &e)))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    let body = body.map(ToString::to_string).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "pv-net")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(broken)?;
    sender.send_request(request).await.map_err(broken)
}

/// Sends one request and reads the whole response; null when it is empty.
pub(crate) async fn call(paths: &Paths, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Ended> {
    let response = send(paths, method, path, body).await?;
    let status = response.status();
    let bytes = response.into_body().collect().await.map_err(broken)?.to_bytes();
    if status.is_success() {
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        return serde_json::from_slice(&bytes).map_err(broken);
    }
    Err(Ended::Failed(failure(status, &bytes)))
}

fn failure(status: StatusCode, bytes: &[u8]) -> Failure {
    let kind = match status {
        StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED => Kind::Usage,
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::CONFLICT => Kind::Conflict,
        _ => Kind::Internal,
    };
    match serde_json::from_slice::<ErrorView>(bytes) {
        Ok(body) if !body.errors.is_empty() => Failure { kind, messages: body.errors },
        Ok(body) => Failure { kind, messages: vec![Message { error: body.error, help: body.help }] },
        Err(_) => Failure::new(kind, format!("the daemon answered {status}")),
    }
}
