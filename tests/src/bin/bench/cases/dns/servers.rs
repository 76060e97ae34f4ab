//! The servers, each on the gateway of a bridge with the same clients.

use super::{GATEWAY, LOCAL, OUTSIDE, PUBLIC, Served};
use crate::cases::scale::{crowd, wide_pool};
use crate::cpu::{self, Pin};
use crate::load::names::{self, Client, Responder};
use crate::nets::sysctl;
use anyhow::{Context, Result, anyhow, ensure};
use harness::{Device, Namespace, Process};
use serde_json::json;
use std::any::Any;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::Stdio;

/// Where Debian puts it.
pub const AARDVARK: &str = "/usr/lib/podman/aardvark-dns";
/// The server beyond the device.
const BEYOND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 9), 53);
const UPLINK: [&str; 1] = ["192.0.2.1/24"];
const HOST: [&str; 1] = ["192.0.2.9/24"];

/// A bridge with clients, without any server yet.
struct Net {
    device: Namespace,
    crowd: Namespace,
    clients: Vec<Client>,
    beyond: Namespace,
}

/// Each client answers ARP for its own link only, and takes answers by the link that it has asked by.
fn many_links(ns: &Namespace) -> Result<()> {
    for (name, value) in [("rp_filter", "0"), ("arp_ignore", "1"), ("arp_announce", "2")] {
        for what in ["all", "default"] {
            sysctl(ns, &format!("ipv4/conf/{what}/{name}"), value)?;
        }
    }
    Ok(())
}

/// Starts a server on its CPU, so that it makes as many threads as it has CPUs.
fn on_its_cpu<T: Send>(start: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let pinned = || {
        cpu::pin(0, &[Pin::Split.cpus().1])?;
        start()
    };
    std::thread::scope(|scope| scope.spawn(pinned).join()).map_err(|_| anyhow!("a server's start panics"))?
}

impl Net {
    fn new(n: usize) -> Result<Self> {
        let (device, crowd, beyond) = (Namespace::new("dev")?, Namespace::new("crowd")?, Namespace::new("out")?);
        many_links(&crowd)?;
        device.ip("link add br0 type bridge")?;
        device.ip("addr add 10.3.0.1/16 dev br0")?;
        device.ip("link set br0 up")?;
        for i in 0..n {
            let (port, address) = (format!("c{i}"), format!("10.3.0.{}/16", i + 2));
            device.connect((&port, &[]), &crowd, (&format!("e{i}"), &[&address]))?;
            device.ip(&format!("link set {port} master br0"))?;
        }
        device.connect(("up0", &UPLINK), &beyond, ("eth0", &HOST))?;
        let clients = names::clients(&crowd.path())?;
        ensure!(clients.len() == n, "{} clients, not {n}", clients.len());
        Ok(Self { device, crowd, clients, beyond })
    }

    fn own(&self) -> Ipv4Addr {
        self.clients.first().map_or(Ipv4Addr::UNSPECIFIED, |client| client.address)
    }

    /// The same with a server.
    fn with(self, processes: Vec<u32>, server: impl Any) -> Result<Served> {
        let Self { device, crowd, clients, beyond } = self;
        let responder = Some(Responder::start(&beyond.path(), BEYOND, PUBLIC)?);
        let (keep, threads) = (Box::new((server, device, beyond)), Vec::new());
        Ok(Served {
            crowd,
            clients,
            processes,
            threads,
            beyond: responder,
            has_cache: true,
            by_tcp: false,
            _keep: keep,
        })
    }

    /// The same with a program that serves, whose files are in `dir`.
    fn with_program(self, program: &str, args: &[String], dir: tempfile::TempDir) -> Result<Served> {
        let mut command = self.device.command(program);
        command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
        let server = on_its_cpu(|| Process::start(&mut command))?;
        self.with(vec![server.pid()], (server, dir))
    }
}

/// One thread, one UDP socket, one system call to read and one to write, and nothing to look up: what one socket can do.
pub fn plain(n: usize) -> Result<Served> {
    let net = Net::new(n)?;
    let server = Responder::start(&net.device.path(), GATEWAY, net.own())?;
    let threads = server.threads().to_vec();
    Ok(Served { threads, beyond: None, ..net.with(Vec::new(), server)? })
}

/// Moves the containers' interfaces into one namespace, where one socket asks for all of them.
fn gathered(containers: &[Namespace]) -> Result<Namespace> {
    let crowd = Namespace::new("crowd")?;
    many_links(&crowd)?;
    for ns in containers {
        for client in names::clients(&ns.path())? {
            ns.ip(&format!("link set {} netns {}", client.link, crowd.name()))?;
            crowd.configure(&client.link, &[&format!("{}/16", client.address)])?;
        }
    }
    Ok(crowd)
}

/// pv-net, whose clients are containers. Its limits for each container are those that it has by itself.
pub fn pv_net(n: usize) -> Result<Served> {
    let mut config = wide_pool();
    config["network"]["pools"]["internal"]["dns"] = json!({"upstream": [BEYOND.ip()]});
    let mut device = Device::new(&config)?;
    let beyond = device.outside("up0", &UPLINK, &HOST)?;
    on_its_cpu(|| device.start())?;
    let containers = crowd(&device, n)?;
    let crowd = gathered(&containers)?;
    let clients = names::clients(&crowd.path())?;
    ensure!(clients.len() == n, "{} clients, not {n}", clients.len());
    let processes = vec![device.daemon()?.pid()];
    let responder = Some(Responder::start(&beyond.path(), BEYOND, PUBLIC)?);
    let (keep, threads) = (Box::new((containers, device, beyond)), Vec::new());
    Ok(Served { crowd, clients, processes, threads, beyond: responder, has_cache: true, by_tcp: false, _keep: keep })
}

pub fn dnsmasq(n: usize) -> Result<Served> {
    let (net, dir) = (Net::new(n)?, tempfile::tempdir()?);
    let args = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-hosts",
        "--no-resolv",
        "--bind-interfaces",
        "--user=root",
        "--pid-file=",
        "--cache-size=10000",
        &format!("--listen-address={}", GATEWAY.ip()),
        &format!("--server={}", BEYOND.ip()),
        &format!("--host-record={LOCAL},{}", net.own()),
    ]
    .map(str::to_owned);
    net.with_program("dnsmasq", &args, dir)
}

pub fn unbound(n: usize) -> Result<Served> {
    let (net, dir) = (Net::new(n)?, tempfile::tempdir()?);
    let file = dir.path().join("unbound.conf");
    let config = format!(
        "server:\n num-threads: 1\n interface: {}\n access-control: 0.0.0.0/0 allow\n do-daemonize: no\n \
         username: \"\"\n chroot: \"\"\n directory: \"{}\"\n pidfile: \"\"\n use-syslog: no\n verbosity: 0\n \
         module-config: \"iterator\"\n incoming-num-tcp: 128\n outgoing-range: 512\n do-ip6: no\n \
         local-zone: \"pv.local.\" static\n local-data: \"{LOCAL}. A {}\"\n\
         forward-zone:\n name: \".\"\n forward-addr: {}\n",
        GATEWAY.ip(),
        dir.path().display(),
        net.own(),
        BEYOND.ip(),
    );
    std::fs::write(&file, config)?;
    net.with_program("unbound", &["-d".to_owned(), "-c".to_owned(), file.display().to_string()], dir)
}

/// It takes its upstream server from `/etc/resolv.conf`, and goes to the background: a namespace of its own for processes
/// ends with the shell.
pub fn aardvark(n: usize) -> Result<Served> {
    let (net, dir) = (Net::new(n)?, tempfile::tempdir()?);
    let name = LOCAL.split('.').next().unwrap_or_default();
    let write = |file: &Path, text: &str| std::fs::write(file, text).with_context(|| file.display().to_string());
    let (config, resolv) = (dir.path().join("config"), dir.path().join("resolv.conf"));
    std::fs::create_dir(&config)?;
    let id = "0".repeat(64);
    write(&config.join("podman"), &format!("{}\n{id} {}  {name}\n", GATEWAY.ip(), net.own()))?;
    write(&resolv, &format!("nameserver {}\nsearch {OUTSIDE}\n", BEYOND.ip()))?;
    let line = format!(
        "mount --bind {} /etc/resolv.conf && {AARDVARK} -c {} -p 53 -f .pv.local run && exec sleep infinity",
        resolv.display(),
        config.display(),
    );
    let args = ["-m", "-p", "-f", "--kill-child", "sh", "-c", &line].map(str::to_owned);
    Ok(Served { has_cache: false, ..net.with_program("unshare", &args, dir)? })
}
