//! Networks made of the kernel's own parts, with which pv-net is compared.

use crate::load::{Ends, in_namespace};
use crate::wire::Wire;
use crate::witness::{Link, Witness};
use anyhow::{Context, Result};
use harness::Namespace;
use std::any::Any;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The port of servers.
pub const PORT: u16 = 7001;
/// The published port, by which a server is reached from outside.
pub const PUBLISHED: u16 = 8080;
/// The device's address on its uplink.
pub const UPLINK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The address of the host beyond the uplink.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The client container, or the only one.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 2);
/// The server container in the same network.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 3);
/// The server container in another network.
pub const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 4, 2);

/// The parts of a network: its ends, and the namespaces that keep it alive.
pub struct Net {
    /// Namespace of the client, and its address.
    pub client: (Namespace, IpAddr),
    /// Namespace of the server, and its address.
    pub server: (Namespace, IpAddr),
    /// The namespace between them, if there is one.
    pub device: Option<Namespace>,
}

impl Net {
    /// The path through this network. The client connects to the server's own address; both ends have a link `eth0`.
    pub fn wire(self, witness: Witness) -> Wire {
        let mut wire = between((&self.client.0, self.client.1), (&self.server.0, self.server.1), witness);
        wire.keep = Box::new(self);
        wire
    }

    /// The namespace between the ends.
    ///
    /// # Errors
    /// When there is none.
    pub fn device(&self) -> Result<&Namespace> {
        self.device.as_ref().context("no device")
    }
}

/// A path between two namespaces, both with `eth0`; the path does not keep them alive.
pub fn between(client: (&Namespace, IpAddr), server: (&Namespace, IpAddr), witness: Witness) -> Wire {
    let at = SocketAddr::new(server.1, PORT);
    Wire {
        ends: Ends { client: client.0.path(), server: server.0.path(), listen: at, connect: at },
        links: vec![Link::new(client.0, "eth0"), Link::new(server.0, "eth0")],
        witness,
        shares: Vec::new(),
        marks: Vec::new(),
        seen_as: client.1,
        carriers: Vec::new(),
        keep: Box::new(()) as Box<dyn Any>,
    }
}

/// Sets a sysctl of the namespace, by its path under `/proc/sys/net`.
pub fn sysctl(ns: &Namespace, name: &str, value: &str) -> Result<()> {
    let file = format!("/proc/sys/net/{name}");
    in_namespace(&ns.path(), || std::fs::write(&file, value).with_context(|| format!("{file}: {value}")))
}

/// Runs a program in the namespace with `rules` as its input, such as `nft -f` or `iptables-restore`.
pub fn feed(ns: &Namespace, program: &str, rules: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(&file, rules)?;
    ns.sh(&format!("{program} {}", file.path().display())).map(drop)
}

/// One veth pair: the most that veth can do.
pub fn direct() -> Result<Net> {
    let (client, server) = (Namespace::new("a")?, Namespace::new("b")?);
    client.connect(("eth0", &["10.0.3.2/24"]), &server, ("eth0", &["10.0.3.3/24"]))?;
    Ok(Net { client: (client, CLIENT.into()), server: (server, SERVER.into()), device: None })
}

/// A bridge `docker0` at `10.0.3.1/24`, with these containers on its ports `c0`, `c1`…
fn bridge(device: &Namespace, containers: &[(&Namespace, Ipv4Addr)]) -> Result<()> {
    device.ip("link add docker0 type bridge")?;
    device.ip("addr add 10.0.3.1/24 dev docker0")?;
    device.ip("link set docker0 up")?;
    // A new namespace has it on where the module is loaded; figures must not depend on that.
    bridge_netfilter(device, false)?;
    for (i, (ns, address)) in containers.iter().enumerate() {
        let port = format!("c{i}");
        device.connect((&port, &[]), ns, ("eth0", &[&format!("{address}/24")]))?;
        device.ip(&format!("link set {port} master docker0"))?;
        ns.ip("route add default via 10.0.3.1")?;
    }
    Ok(())
}

/// Sets whether packets between a bridge's ports pass the host's rules.
fn bridge_netfilter(device: &Namespace, on: bool) -> Result<()> {
    if !on && !std::path::Path::new("/proc/sys/net/bridge").exists() {
        return Ok(());
    }
    for family in ["iptables", "ip6tables"] {
        let value = if on { "1" } else { "0" };
        sysctl(device, &format!("bridge/bridge-nf-call-{family}"), value)
            .context("no br_netfilter: load the module")?;
    }
    Ok(())
}

/// Two containers on a bridge. With `netfilter` packets between them pass the host's rules, as Docker has it when it
/// separates the containers of a bridge (`icc=false`).
pub fn bridged(netfilter: bool) -> Result<Net> {
    let (device, client, server) = (Namespace::new("dev")?, Namespace::new("a")?, Namespace::new("b")?);
    bridge(&device, &[(&client, CLIENT), (&server, SERVER)])?;
    sysctl(&device, "ipv4/ip_forward", "1")?;
    if netfilter {
        bridge_netfilter(&device, true)?;
    }
    Ok(Net { client: (client, CLIENT.into()), server: (server, SERVER.into()), device: Some(device) })
}

/// The ports of [`bridged`]: the sum of what both received is what entered the bridge.
pub fn bridge_ports(net: &Net) -> Result<Witness> {
    let device = net.device()?;
    let fdb = device.sh("bridge link show")?;
    anyhow::ensure!(fdb.matches("master docker0 state forwarding").count() == 2, "not two bridge ports: {fdb}");
    Ok(Witness::received("the bridge's ports", vec![Link::new(device, "c0"), Link::new(device, "c1")]))
}

/// Two containers, each in a network of its own, and a device that routes.
pub fn routed() -> Result<Net> {
    let (device, client, server) = (Namespace::new("dev")?, Namespace::new("a")?, Namespace::new("b")?);
    device.connect(("c0", &["10.0.3.1/24"]), &client, ("eth0", &["10.0.3.2/24"]))?;
    device.connect(("c1", &["10.0.4.1/24"]), &server, ("eth0", &["10.0.4.2/24"]))?;
    client.ip("route add default via 10.0.3.1")?;
    server.ip("route add default via 10.0.4.1")?;
    sysctl(&device, "ipv4/ip_forward", "1")?;
    Ok(Net { client: (client, CLIENT.into()), server: (server, OTHER.into()), device: Some(device) })
}

/// A host beyond the uplink `eth0` of a device that routes, and a container on `c0` or on a bridge.
pub struct Edge {
    /// The host beyond the uplink.
    pub outside: Namespace,
    /// The container.
    pub container: Namespace,
    /// The device.
    pub device: Namespace,
}

impl Edge {
    /// Makes the network. With `bridged` the container is on `docker0`, else it has a link of its own.
    ///
    /// # Errors
    /// When a link cannot be made.
    pub fn new(bridged: bool) -> Result<Self> {
        let edge =
            Self { outside: Namespace::new("out")?, container: Namespace::new("c")?, device: Namespace::new("dev")? };
        edge.device.connect(("eth0", &["192.0.2.1/24"]), &edge.outside, ("eth0", &["192.0.2.2/24"]))?;
        if bridged {
            bridge(&edge.device, &[(&edge.container, CLIENT)])?;
        } else {
            edge.device.connect(("c0", &["10.0.3.1/24"]), &edge.container, ("eth0", &["10.0.3.2/24"]))?;
            edge.container.ip("route add default via 10.0.3.1")?;
        }
        sysctl(&edge.device, "ipv4/ip_forward", "1")?;
        Ok(edge)
    }

    /// Routes the container's network from outside, without NAT.
    ///
    /// # Errors
    /// When the route cannot be made.
    pub fn open(self) -> Result<Self> {
        self.outside.ip("route add 10.0.3.0/24 via 192.0.2.1")?;
        Ok(self)
    }

    /// From outside to the container.
    pub fn inward(self) -> Net {
        Net {
            client: (self.outside, OUTSIDE.into()),
            server: (self.container, CLIENT.into()),
            device: Some(self.device),
        }
    }

    /// From the container to outside.
    pub fn outward(self) -> Net {
        Net {
            client: (self.container, CLIENT.into()),
            server: (self.outside, OUTSIDE.into()),
            device: Some(self.device),
        }
    }
}
