//! The servers, each on a bridge of its own.

use super::clients::{PORTS, link};
use anyhow::Result;
use harness::{Device, Namespace, Process, configs};
use serde_json::{Value, json};
use std::any::Any;
use std::path::Path;
use std::process::{Command, Stdio};

/// The network, the server's address, and the first and last address for clients: a million, so that no round of a run
/// comes to the end of them.
const NET: &str = "10.0.0.0/12";
const GATEWAY: &str = "10.0.0.1";
const RANGE: [&str; 2] = ["10.1.0.0", "10.15.255.254"];
/// The same for IPv6.
const NET6: &str = "fd00:5056:0:3::/64";
const GATEWAY6: &str = "fd00:5056:0:3::1";
const RANGE6: [&str; 2] = ["fd00:5056:0:3::1:0", "fd00:5056:0:3::ffff:ffff"];
/// The kernel looks up the MAC of whom these servers answer, and remembers about a thousand; dnsmasq waits a tenth of a
/// second for that. So clients of DHCPv6 share some, as those of perfdhcp do, and these are known before anything is
/// measured. pv-net sends to the MAC that asked, and lets no MAC have many leases.
pub const SHARED_MACS: u32 = 16;

/// A server that runs, and its clients' side.
pub struct Server {
    /// The namespace of the clients.
    pub clients: Namespace,
    /// How many MACs clients of DHCPv6 have.
    pub macs: u32,
    _programs: Vec<Process>,
    _keep: Box<dyn Any>,
}

impl Server {
    /// pv-net. Each port of the bridge has no more than 1024 addresses, unless the configuration says so, as here.
    pub fn pv_net() -> Result<Self> {
        let mut pool = configs::pool(3);
        for (key, value) in [("subnet", NET), ("gateway", GATEWAY)] {
            pool[key] = json!(value);
        }
        pool["dhcp"] = json!({"range": RANGE, "leases_per_port": 65_536});
        pool["dhcp6"] = json!({"range": RANGE6, "leases_per_port": 65_536});
        let device = Device::started(&json!({"network": {"pools": {"internal": pool}}}))?;
        let clients = clients(&device.ns, "pvbr3")?;
        Ok(Self { clients, macs: u32::MAX, _programs: Vec::new(), _keep: Box::new(device) })
    }

    /// kea's servers, with their leases in files.
    pub fn kea() -> Result<Self> {
        let (ns, dir) = (bridge()?, tempfile::tempdir()?);
        let clients = clients(&ns, "br0")?;
        let mut programs = Vec::new();
        for (program, config) in [
            ("kea-dhcp4", kea("Dhcp4", "subnet4", NET, RANGE, dir.path())),
            ("kea-dhcp6", kea("Dhcp6", "subnet6", NET6, RANGE6, dir.path())),
        ] {
            let file = dir.path().join(program);
            std::fs::write(&file, config.to_string())?;
            let mut command = ns.command(program);
            command.arg("-c").arg(&file);
            for variable in ["KEA_PIDFILE_DIR", "KEA_LOCKFILE_DIR"] {
                command.env(variable, dir.path());
            }
            programs.push(quiet(&mut command)?);
        }
        Ok(Self { clients, macs: SHARED_MACS, _programs: programs, _keep: Box::new((ns, dir)) })
    }

    /// dnsmasq. It pings an address before it offers it, which takes three seconds; here it does not.
    pub fn dnsmasq() -> Result<Self> {
        let (ns, dir) = (bridge()?, tempfile::tempdir()?);
        let clients = clients(&ns, "br0")?;
        let mut command = ns.command("dnsmasq");
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file=", "--port=0"]);
        command.args(["--interface=br0", "--no-ping", "--dhcp-lease-max=2000000", "--quiet-dhcp", "--quiet-dhcp6"]);
        command.arg(format!("--dhcp-range={},{},255.240.0.0,1h", RANGE[0], RANGE[1]));
        command.arg(format!("--dhcp-range={},{},64,1h", RANGE6[0], RANGE6[1]));
        command.arg(format!("--dhcp-leasefile={}", dir.path().join("leases").display()));
        let programs = vec![quiet(&mut command)?];
        Ok(Self { clients, macs: SHARED_MACS, _programs: programs, _keep: Box::new((ns, dir)) })
    }
}

fn quiet(command: &mut Command) -> Result<Process> {
    Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()))
}

/// A bridge `br0` with the servers' addresses.
fn bridge() -> Result<Namespace> {
    let ns = Namespace::new("dev")?;
    ns.ip("link add br0 type bridge mcast_snooping 0")?;
    ns.ip(&format!("addr add {GATEWAY}/12 dev br0"))?;
    ns.ip(&format!("addr add {GATEWAY6}/64 dev br0 nodad"))?;
    ns.ip("link set br0 up")?;
    Ok(ns)
}

/// A namespace with a link to each of the ports that are added to `bridge`. A broadcast of one client reaches no other.
fn clients(ns: &Namespace, bridge: &str) -> Result<Namespace> {
    let clients = Namespace::new("clients")?;
    for port in 0..PORTS {
        let name = format!("p{port}");
        ns.connect((&name, &[]), &clients, (&link(port), &[]))?;
        ns.ip(&format!("link set {name} master {bridge}"))?;
        ns.ip(&format!("link set {name} type bridge_slave isolated on"))?;
    }
    clients.settle()?;
    ns.settle()?;
    Ok(clients)
}

fn kea(kind: &str, subnets: &str, net: &str, [first, last]: [&str; 2], dir: &Path) -> Value {
    let leases = dir.join(format!("{kind}.csv"));
    let mut config = json!({kind: {
        "interfaces-config": {"interfaces": ["br0"]},
        "lease-database": {"type": "memfile", "persist": true, "name": leases, "lfc-interval": 0},
        "valid-lifetime": 3600,
        subnets: [{"id": 1, "subnet": net, "interface": "br0", "pools": [{"pool": format!("{first} - {last}")}]}],
        "loggers": [{"name": "kea", "severity": "ERROR"}],
    }});
    if kind == "Dhcp6" {
        // Its identity would be kept in a folder of the machine.
        config[kind]["server-id"] = json!({"type": "LLT", "persist": false});
    }
    config
}
