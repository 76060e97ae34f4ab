//! The device under test: one daemon, four pools, five containers, and a way to ask the daemon that starts no program.

use anyhow::{Context, Result, bail, ensure};
use harness::{Container, Device, Namespace, configs, patience};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The device and its containers.
pub struct Lab {
    /// The device, its daemon running.
    pub device: Device,
    /// In pool `internal`, as `b`.
    pub a: Container,
    /// In pool `internal`, as `a`.
    pub b: Container,
    /// In pool `management`, closed to `internal`.
    pub c: Container,
    /// In pool `left`, open to `right`.
    pub d: Container,
    /// In pool `right`, open to `left`.
    pub e: Container,
}

/// Two closed pools and two open ones.
fn config() -> Value {
    let mut config = configs::two_pools();
    for (name, number) in [("left", 5), ("right", 6)] {
        let mut pool = configs::pool(number);
        pool["isolated"] = json!(false);
        config["network"]["pools"][name] = pool;
    }
    config
}

impl Lab {
    /// Starts the daemon and attaches the containers.
    pub fn start() -> Result<Self> {
        let device = Device::started(&config())?;
        let attach = |name: &str, pool: &str| attach(&device, name, pool);
        let (a, b) = (attach("a", "internal")?, attach("b", "internal")?);
        let c = attach("c", "management")?;
        let (d, e) = (attach("d", "left")?, attach("e", "right")?);
        Ok(Self { device, a, b, c, d, e })
    }

    /// `GET path` of the API.
    pub fn get(&self, path: &str) -> Result<Value> {
        call(&self.device, "GET", path, "")
    }

    /// How often `word` stands in the answer to `GET path`, that is not kept: it may be many megabytes.
    pub fn count(&self, path: &str, word: &str) -> Result<usize> {
        let mut stream = request(&self.device, "GET", path, "")?;
        let (mut seen, mut found) = (Vec::new(), 0);
        let mut buffer = vec![0u8; 16 * 1024];
        loop {
            let length = stream.read(&mut buffer).with_context(|| path.to_owned())?;
            if length == 0 {
                return Ok(found);
            }
            seen.extend_from_slice(&buffer[..length]);
            found += seen.windows(word.len()).filter(|part| *part == word.as_bytes()).count();
            // Less than a word is left, so that none is counted twice and none is cut.
            seen.drain(..seen.len().saturating_sub(word.len() - 1));
        }
    }

    /// Packet counters by path, and drops by reason, in one map.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>> {
        let status = self.get("/status")?;
        let part = |key: &str| status["data_plane"][key].as_object().cloned().unwrap_or_default();
        let all = part("stats").into_iter().chain(part("drops"));
        Ok(all.map(|(name, n)| (name, n.as_u64().unwrap_or_default())).collect())
    }

    /// How much each counter grew while `work` ran.
    pub fn counted(&self, work: impl FnOnce() -> Result<()>) -> Result<BTreeMap<String, u64>> {
        let before = self.counters()?;
        work()?;
        let after = self.counters()?;
        Ok(after.into_iter().map(|(name, n)| (name.clone(), n - before.get(&name).copied().unwrap_or(0))).collect())
    }
}

/// Makes a namespace and attaches it as a container with `eth0` in `pool`.
pub fn attach(device: &Device, name: &str, pool: &str) -> Result<Container> {
    let ns = Namespace::new(name)?;
    let body = json!({"netns": ns.path(), "pool": pool}).to_string();
    let view = call(device, "PUT", &format!("/containers/{name}"), &body)?;
    Container::new(ns, view)
}

/// Sends one request to the daemon over its socket.
fn request(device: &Device, method: &str, path: &str, body: &str) -> Result<UnixStream> {
    let socket = device.file("run").join("api.sock");
    let mut stream = UnixStream::connect(socket).with_context(|| format!("{method} {path}"))?;
    stream.set_read_timeout(Some(patience(PATIENCE)))?;
    let head = format!("{method} {path} HTTP/1.1\r\nhost: pv-net\r\nconnection: close\r\n");
    let kind = "content-type: application/json\r\n";
    write!(stream, "{head}{kind}content-length: {}\r\n\r\n{body}", body.len())?;
    Ok(stream)
}

/// One request, and the whole answer.
fn call(device: &Device, method: &str, path: &str, body: &str) -> Result<Value> {
    let what = || format!("{method} {path}");
    let mut stream = request(device, method, path, body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(what)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{}: {answer:?}", what()))?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(!head.to_lowercase().contains("transfer-encoding"), "{}: answered in pieces: {head}", what());
    if !status.starts_with('2') {
        bail!("{}: {status}: {body}", what());
    }
    if body.is_empty() { Ok(Value::Null) } else { serde_json::from_str(body).with_context(what) }
}
