//! The lab of most attacks: a device with an uplink and a host behind it, two containers in one pool and one in
//! another.

use anyhow::{Result, ensure};
use harness::configs::{self, DEVICE, HOST, UPLINK};
use harness::raw::RawSocket;
use harness::{Container, Device, Namespace, SOON, eventually, frame};
use pv_net_common::Ip;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

/// The port of `a` that [`published`] publishes.
pub const WEB: u16 = 80;
/// The port of the device at which [`WEB`] is published.
pub const PUBLISHED: u16 = 8080;
/// A port where the device and all others have a server.
pub const PORT: u16 = 7000;

/// Addresses of both families, IPv4 first.
pub type Both = [IpAddr; 2];

/// The namespaces of the lab and the containers in them.
pub struct Lab {
    /// 192.0.2.1 and 2001:db8:1::1 on `up0`; pools `internal` (pvbr3) and `management` (pvbr4).
    pub device: Device,
    /// 192.0.2.9 and 2001:db8:1::9 on `eth0`.
    pub out: Namespace,
    /// In `internal`.
    pub a: Container,
    /// In `internal`.
    pub b: Container,
    /// In `management`.
    pub c: Container,
}

/// A lab whose `internal` pool is masqueraded; `change` changes the configuration before the daemon starts.
pub fn lab(change: impl FnOnce(&mut Value)) -> Result<Lab> {
    Ok(prepared(change, |_| Ok(()), &[])?.0)
}

/// The same, with [`WEB`] of `a` published as [`PUBLISHED`] over TCP and UDP.
pub fn published(change: impl FnOnce(&mut Value)) -> Result<Lab> {
    Ok(prepared(change, |_| Ok(()), &["8080:80/tcp", "8080:80/udp"])?.0)
}

/// The same. `prepare` works on the device before the daemon starts, and these ports of `a` are published.
pub fn prepared<T>(
    change: impl FnOnce(&mut Value),
    prepare: impl FnOnce(&Device) -> Result<T>,
    ports: &[&str],
) -> Result<(Lab, T)> {
    let mut config = configs::masqueraded();
    change(&mut config);
    let mut device = Device::new(&config)?;
    let out = device.outside(UPLINK, &DEVICE, &HOST)?;
    let made = prepare(&device)?;
    device.start()?;
    let a = device.attach_run(&json!({"name": "a", "network": {"pool": "internal", "ports": ports}}))?;
    let b = device.attach("b", "internal")?;
    let c = device.attach("c", "management")?;
    Ok((Lab { device, out, a, b, c }, made))
}

/// A host with `addresses` at a port of a bridge from before pv-net: the link is `link` in the device, `eth0` in the
/// host.
pub fn lan_port(device: &Device, bridge: &str, link: &str, addresses: &[&str]) -> Result<Namespace> {
    let lan = Namespace::new("lan")?;
    device.ns.ip(&format!("link add {bridge} type bridge"))?;
    device.ns.connect((link, &[]), &lan, ("eth0", addresses))?;
    device.ns.ip(&format!("link set {link} master {bridge}"))?;
    Ok(lan)
}

/// Writes a file of `/proc/sys` in the namespace.
pub fn sysctl(ns: &Namespace, name: &str, value: &str) -> Result<()> {
    ns.run(|| Ok(std::fs::write(format!("/proc/sys/{name}"), value)?))
}

/// Makes the device forward packets, as other programs do.
pub fn forwarding(device: &Device) -> Result<()> {
    sysctl(&device.ns, "net/ipv4/ip_forward", "1")?;
    sysctl(&device.ns, "net/ipv6/conf/all/forwarding", "1")
}

/// The link-local address that is formed from a MAC.
pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    match IpAddr::from(Ip::link_local(mac)) {
        IpAddr::V6(addr) => addr,
        IpAddr::V4(addr) => addr.to_ipv6_mapped(),
    }
}

/// The link-local address that a link has.
pub fn link_local_of(ns: &Namespace, link: &str) -> Result<Ipv6Addr> {
    eventually(SOON, || {
        let said = ns.ip(&format!("-6 -o addr show dev {link} scope link"))?;
        ensure!(!said.contains("tentative"), "{said}");
        let addr = said.split_whitespace().nth(3).and_then(|a| a.split('/').next());
        Ok(addr.unwrap_or_default().parse()?)
    })
}

/// An address of each family.
pub fn both(v4: &str, v6: &str) -> Both {
    [v4.parse().expect("an IPv4 address"), v6.parse().expect("an IPv6 address")]
}

/// The addresses of the device in pool `n`.
pub fn gateway(n: u8) -> Both {
    both(&format!("10.0.{n}.1"), &format!("fd00:5056:0:{n}::1"))
}

/// The addresses of the device on its uplink.
pub fn uplink() -> Both {
    configs::HOSTS.map(|(_, device)| device)
}

/// The addresses of the host beyond the uplink.
pub fn host() -> Both {
    configs::HOSTS.map(|(host, _)| host)
}

/// A sender of frames: a socket, its MAC, and the MAC of its router.
pub struct Sender {
    /// The socket.
    pub socket: RawSocket,
    /// Its own MAC.
    pub mac: [u8; 6],
    /// Its router's MAC.
    pub router: [u8; 6],
}

impl Sender {
    /// Sends a packet to the router's MAC.
    pub fn send(&self, packet: &[u8]) -> Result<()> {
        self.send_to(self.router, packet)
    }

    /// Sends a packet to this MAC.
    pub fn send_to(&self, to: [u8; 6], packet: &[u8]) -> Result<()> {
        self.socket.send(&self.frame_to(to, packet))
    }

    /// The frame that [`Self::send_to`] sends.
    pub fn frame_to(&self, to: [u8; 6], packet: &[u8]) -> Vec<u8> {
        frame::ethernet(self.mac, to, frame::kind(packet), packet)
    }

    /// The frame that [`Self::send`] sends.
    pub fn frame(&self, packet: &[u8]) -> Vec<u8> {
        self.frame_to(self.router, packet)
    }
}

impl Lab {
    /// The device's MAC on its uplink.
    pub fn uplink_mac(&self) -> Result<[u8; 6]> {
        self.device.ns.mac(UPLINK)
    }

    /// The outside host's MAC.
    pub fn out_mac(&self) -> Result<[u8; 6]> {
        self.out.mac("eth0")
    }

    /// The MAC of the bridge of `internal`.
    pub fn gateway_mac(&self) -> Result<[u8; 6]> {
        self.device.ns.mac("pvbr3")
    }

    /// A sender at the host beyond the uplink.
    pub fn outsider(&self) -> Result<Sender> {
        Ok(Sender { socket: RawSocket::open(&self.out, "eth0")?, mac: self.out_mac()?, router: self.uplink_mac()? })
    }

    /// A sender at `eth0` of a container, or of another host at a bridge.
    pub fn sender(&self, ns: &Namespace, bridge: &str) -> Result<Sender> {
        Ok(Sender { socket: RawSocket::open(ns, "eth0")?, mac: ns.mac("eth0")?, router: self.device.ns.mac(bridge)? })
    }

    /// Adds routes to the pools to the host beyond the uplink.
    pub fn route_to_pools(&self) -> Result<()> {
        for n in [3, 4] {
            self.out.ip(&format!("route add 10.0.{n}.0/24 via 192.0.2.1"))?;
            self.out.ip(&format!("-6 route add fd00:5056:0:{n}::/64 via 2001:db8:1::1"))?;
        }
        Ok(())
    }
}

/// How much the counter `name` grew; 0 when the daemon has no such counter.
pub fn count(grown: &BTreeMap<String, u64>, name: &str) -> u64 {
    grown.get(name).copied().unwrap_or(0)
}

/// The result of [`Device::counted`] without the counters that did not grow.
pub fn grown(device: &Device, work: impl FnOnce() -> Result<()>) -> Result<BTreeMap<String, u64>> {
    Ok(device.counted(work)?.into_iter().filter(|(_, n)| *n > 0).collect())
}
