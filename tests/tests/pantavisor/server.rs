//! The control socket of the double.

use crate::double::{Shared, State, listed};
use anyhow::{Context, Result};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The longest value of device metadata, bytes.
const LONGEST_VALUE: usize = 4096;

pub struct Server {
    socket: PathBuf,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(socket: &Path, shared: Arc<Shared>) -> Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let shared = shared.clone();
                std::thread::spawn(move || {
                    // Whoever hangs up gets no answer.
                    let _ = serve(stream, &shared);
                });
            }
        });
        Ok(Self { socket: socket.to_owned(), is_over, thread: Some(thread) })
    }

    pub fn stop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // It wakes up by a connection.
        let _ = UnixStream::connect(&self.socket);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Request {
    method: String,
    path: String,
    body: String,
}

fn read(stream: &UnixStream) -> Result<Request> {
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    lines.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().context("no method")?, words.next().context("no path")?);
    let mut length = 0;
    loop {
        let mut header = String::new();
        lines.read_line(&mut header)?;
        let Some((key, value)) = header.trim().split_once(':') else { break };
        if key.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    lines.read_exact(&mut body)?;
    Ok(Request { method, path, body: String::from_utf8(body)? })
}

fn serve(stream: UnixStream, shared: &Arc<Shared>) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let pid = getsockopt(&stream, PeerCredentials)?.pid();
    let request = read(&stream)?;
    let (status, body) = answer(shared, pid, &request);
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let head = format!("HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nConnection: close");
    write!(&stream, "{head}\r\nContent-Length: {}\r\n\r\n{text}", text.len())?;
    Ok(())
}

/// The container that a process belongs to; none for Pantavisor's own (`ctrl/ctrl_caller.c` finds it by the cgroup).
fn caller(state: &State, pid: i32) -> Option<String> {
    let first = |pid: i32| {
        let of = |name: &str| state.containers.get(name)?.process.as_ref().map(|p| p.pid());
        state.containers.keys().find(|name| of(name) == u32::try_from(pid).ok()).cloned()
    };
    let parent = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may have blanks; behind it are the state and the parent.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<i32>().ok()
    };
    std::iter::successors(Some(pid), |pid| parent(*pid).filter(|pid| *pid > 1)).find_map(first)
}

fn error(status: u16, why: &str) -> (u16, Value) {
    (status, json!({"Error": why}))
}

fn answer(shared: &Arc<Shared>, pid: i32, request: &Request) -> (u16, Value) {
    let caller = caller(&shared.state(), pid);
    let is_mgmt = caller.as_ref().is_none_or(|name| {
        let state = shared.state();
        let roles = state.containers.get(name).map(|entry| entry.run["roles"].clone()).unwrap_or_default();
        roles.as_array().is_some_and(|roles| roles.contains(&json!("mgmt")))
    });
    let parts: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    if parts[0] != "signal" && !is_mgmt {
        return error(403, "Request not sent from a mgmt platform");
    }
    match (request.method.as_str(), &parts[..]) {
        ("POST", ["signal"]) => signal(shared, caller, &request.body),
        ("GET", ["containers"]) => (200, listed(&shared.state())),
        ("PUT", ["containers", name]) => action(shared, name, &request.body),
        ("GET", ["device-meta"]) => (200, json!(shared.state().device_meta)),
        ("PUT", ["device-meta", _]) if request.body.len() > LONGEST_VALUE => error(507, "Data size exceeds the limit"),
        ("PUT", ["device-meta", key]) => {
            shared.state().device_meta.insert((*key).to_owned(), request.body.clone());
            (200, Value::Null)
        }
        ("DELETE", ["device-meta", key]) => match shared.state().device_meta.remove(*key) {
            Some(_) => (200, Value::Null),
            None => error(404, "Device meta does not exist"),
        },
        ("POST", ["commands"]) => command(shared, &request.body),
        ("GET", ["steps", revision @ .., "progress"]) => match shared.state().progress.get(&revision.join("/")) {
            Some((status, message)) => (200, json!({"status": status, "status-msg": message, "progress": 100})),
            None => error(404, "Resource does not exist"),
        },
        _ => error(404, "Resource does not exist"),
    }
}

fn signal(shared: &Shared, caller: Option<String>, body: &str) -> (u16, Value) {
    let Ok(signal) = serde_json::from_str::<Value>(body) else { return error(400, "Signal has bad format") };
    let mut state = shared.state();
    let entry = caller.and_then(|name| state.containers.get_mut(&name));
    match entry.filter(|entry| signal["type"] == "ready" && entry.goal() == "READY") {
        Some(entry) => {
            entry.status = "READY";
            (200, Value::Null)
        }
        None => error(500, "Signal not expected from this platform"),
    }
}

fn action(shared: &Shared, name: &str, body: &str) -> (u16, Value) {
    let found = shared.state().containers.get(name).map(|entry| (entry.run.clone(), entry.status));
    let Some((run, status)) = found else { return error(404, "Container not found") };
    if run["restart_policy"] != "container" {
        return error(403, "Container has restart_policy 'system' and cannot be stopped/started via API.");
    }
    let Ok(body) = serde_json::from_str::<Value>(body) else { return error(400, "Invalid JSON") };
    let starts = match body["action"].as_str() {
        Some("stop") => {
            shared.stop(name);
            return (200, Value::Null);
        }
        Some("start") => status == "STOPPED",
        Some("restart") => {
            shared.stop(name);
            true
        }
        _ => return error(400, "Invalid action. Use 'start', 'stop', or 'restart'"),
    };
    if starts && let Err(why) = shared.start(name, &run) {
        return error(500, &format!("{why:#}"));
    }
    (200, Value::Null)
}

fn command(shared: &Arc<Shared>, body: &str) -> (u16, Value) {
    let Ok(command) = serde_json::from_str::<Value>(body) else { return error(400, "Command has bad format") };
    match (command["op"].as_str(), command["payload"].as_str()) {
        (Some("LOCAL_RUN"), Some(revision)) => {
            drop(shared.begin(revision.to_owned()));
            (200, Value::Null)
        }
        _ => error(400, "Command has bad format"),
    }
}
