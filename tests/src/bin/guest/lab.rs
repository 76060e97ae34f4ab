//! The device under test: a daemon, four pools, six containers, a host beyond an uplink, and requests to the daemon
//! that need no other program.

use anyhow::{Context, Result, bail, ensure};
use futures_util::TryStreamExt;
use harness::configs::{self, DEVICE, HOST};
pub use harness::configs::{HOSTS, UPLINK};
use harness::{Container, Device, Namespace, patience};
use rtnetlink::packet_route::tc::{TcAttribute, TcMessage};
use rtnetlink::{Handle, RouteMessageBuilder};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::IpAddr;
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
    /// In pool `internal`, with port 80 published as 8080.
    pub web: Container,
    /// A host on the uplink [`UPLINK`].
    pub outside: Namespace,
    /// Queueing disciplines of the device's links before the daemon started.
    pub qdiscs: Vec<String>,
}

/// Two closed pools, one of them masqueraded, and two open ones.
pub fn config() -> Value {
    let mut config = configs::masqueraded();
    for (name, number) in [("left", 5), ("right", 6)] {
        let mut pool = configs::pool(number);
        pool["isolated"] = json!(false);
        config["network"]["pools"][name] = pool;
    }
    // One container may use the whole flow table, as `floor::full_table` does.
    config["network"]["pools"]["internal"]["max_flows"] = json!(8192);
    config
}

impl Lab {
    /// Starts the daemon and attaches the containers.
    pub fn start() -> Result<Self> {
        let mut device = Device::new(&config())?;
        let outside = device.outside(UPLINK, &DEVICE, &HOST)?;
        let qdiscs = qdiscs(&device.ns)?;
        device.start()?;
        let attach = |name: &str, pool: &str| attach(&device, name, pool);
        let (a, b) = (attach("a", "internal")?, attach("b", "internal")?);
        let c = attach("c", "management")?;
        let (d, e) = (attach("d", "left")?, attach("e", "right")?);
        let network = json!({"pool": "internal", "ports": ["8080:80/tcp", "8080:80/udp"]});
        let web = put(&device, "web", &json!({"run": {"name": "web", "network": network}}))?;
        Ok(Self { device, a, b, c, d, e, web, outside, qdiscs })
    }

    /// Puts another configuration in force.
    pub fn reload(&self, config: &Value) -> Result<()> {
        self.device.configure(config)?;
        call(&self.device, "POST", "/reload", "").map(drop)
    }

    /// `GET path` of the API.
    pub fn get(&self, path: &str) -> Result<Value> {
        call(&self.device, "GET", path, "")
    }

    /// How often `word` occurs in the answer to `GET path`. The answer is not kept, since it may be many megabytes.
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
            // The kept end is shorter than the word, so no occurrence is cut or counted twice.
            seen.drain(..seen.len().saturating_sub(word.len() - 1));
        }
    }

    /// Packet counters by path, and drops by reason, in one map.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>> {
        Ok(harness::counters(&self.get("/status")?))
    }

    /// How much each counter grew while `work` ran.
    pub fn counted(&self, work: impl FnOnce() -> Result<()>) -> Result<BTreeMap<String, u64>> {
        harness::counted(|| self.counters(), work)
    }
}

/// Makes a namespace and attaches it as a container with `eth0` in `pool`.
pub fn attach(device: &Device, name: &str, pool: &str) -> Result<Container> {
    put(device, name, &json!({"pool": pool}))
}

/// As [`attach`], with these ports published.
pub fn attach_with(device: &Device, name: &str, pool: &str, ports: &[&str]) -> Result<Container> {
    put(device, name, &json!({"run": {"name": name, "network": {"pool": pool, "ports": ports}}}))
}

/// Makes a namespace and attaches it by this request.
fn put(device: &Device, name: &str, request: &Value) -> Result<Container> {
    let ns = Namespace::new(name)?;
    let mut body = request.clone();
    body["netns"] = json!(ns.path());
    let view = call(device, "PUT", &format!("/containers/{name}"), &body.to_string())?;
    Container::new(ns, view)
}

/// Major and minor number of the running kernel.
pub fn kernel() -> Result<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map_while(|part| part.parse().ok());
    numbers.next().zip(numbers.next()).context(release.clone())
}

/// Every queueing discipline of a namespace's links: link and kind, sorted. Read by netlink, since a guest has no `tc`.
pub fn qdiscs(ns: &Namespace) -> Result<Vec<String>> {
    let messages: Vec<TcMessage> =
        netlink(ns, async |handle| Ok(handle.qdisc().get().execute().try_collect().await?))?;
    let line = |m: &TcMessage| {
        let kind = m.attributes.iter().find_map(|a| match a {
            TcAttribute::Kind(kind) => Some(kind.as_str()),
            _ => None,
        });
        format!("link {}: {}", m.header.index, kind.unwrap_or_default())
    };
    let mut lines: Vec<String> = messages.iter().map(line).collect();
    lines.sort();
    Ok(lines)
}

/// How many filters are at the ingress of a link.
pub fn filters(ns: &Namespace, link: u32) -> Result<usize> {
    let link = i32::try_from(link)?;
    let messages: Vec<TcMessage> =
        netlink(ns, async |handle| Ok(handle.traffic_filter(link).get().ingress().execute().try_collect().await?))?;
    // The kernel also lists the head of each chain, which has no handle.
    Ok(messages.iter().filter(|m| u32::from(m.header.handle) != 0).count())
}

/// Deletes a link.
pub fn delete_link(ns: &Namespace, name: &str) -> Result<()> {
    let index = ns.run(|| Ok(nix::net::if_::if_nametoindex(name)?))?;
    netlink(ns, async |handle| Ok(handle.link().del(index).execute().await?)).with_context(|| name.to_owned())
}

/// A route of the main table to one host on link `link`.
pub fn route(ns: &Namespace, host: IpAddr, link: u32) -> Result<()> {
    add_route(ns, host, |route| Ok(route.output_interface(link)))
}

/// A route of the main table to one host by `router`.
pub fn route_by(ns: &Namespace, host: IpAddr, router: IpAddr) -> Result<()> {
    add_route(ns, host, |route| Ok(route.gateway(router)?))
}

type Route = RouteMessageBuilder<IpAddr>;

fn add_route(ns: &Namespace, host: IpAddr, how: impl FnOnce(Route) -> Result<Route>) -> Result<()> {
    let prefix = if host.is_ipv4() { 32 } else { 128 };
    let route = how(Route::new().destination_prefix(host, prefix)?)?.build();
    netlink(ns, async |handle| Ok(handle.route().add(route.clone()).execute().await?)).with_context(|| host.to_string())
}

/// Runs `work` with a netlink handle in the namespace.
pub fn netlink<T: Send>(ns: &Namespace, work: impl AsyncFnOnce(Handle) -> Result<T> + Send) -> Result<T> {
    ns.run(|| here(work))
}

/// As [`netlink`], in the calling thread's namespace.
pub fn here<T>(work: impl AsyncFnOnce(Handle) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        work(handle).await
    })
}

/// Sends a request to the daemon over its socket.
fn request(device: &Device, method: &str, path: &str, body: &str) -> Result<UnixStream> {
    let socket = device.file("run").join("api.sock");
    let mut stream = UnixStream::connect(socket).with_context(|| format!("{method} {path}"))?;
    stream.set_read_timeout(Some(patience(PATIENCE)))?;
    let head = format!("{method} {path} HTTP/1.1\r\nhost: pv-net\r\nconnection: close\r\n");
    let kind = "content-type: application/json\r\n";
    write!(stream, "{head}{kind}content-length: {}\r\n\r\n{body}", body.len())?;
    Ok(stream)
}

/// Sends a request, and gives the whole answer.
pub fn call(device: &Device, method: &str, path: &str, body: &str) -> Result<Value> {
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
