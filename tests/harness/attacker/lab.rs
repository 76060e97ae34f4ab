//! The attacker's lab: a device with an uplink, and a pool on a bridge that has a LAN port, or a macvlan pool on the link
//! to that LAN.

use super::pool::{Link, PARENT};
use super::world::{self, Host, Policy, World};
use crate::configs::{DEVICE, HOST, HOSTS, UPLINK};
use crate::{Container, Device, Namespace, echo, link};
use anyhow::{Context, Result};
use pv_net_common::Ip;
use rtnetlink::packet_route::link::MacVlanMode;
use rtnetlink::{LinkBridge, LinkMacVlan};
use serde_json::json;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

/// The namespaces of the lab, and the containers in them.
pub(crate) struct Lab {
    /// The device.
    pub device: Device,
    /// Behind the uplink.
    pub out: Namespace,
    /// At a port of the bridge of `internal`, or on the LAN of its parent.
    pub lan: Namespace,
    /// In `internal`.
    pub a: Container,
    /// In `internal`, with published ports.
    pub b: Container,
    /// In `management`.
    pub c: Container,
    /// In `internal`, if that is a macvlan pool.
    pub d: Option<Container>,
    /// Where `a` has put the further macvlan that it has made, apart from its addresses: `eth0`.
    pub rogue: Option<Namespace>,
}

impl Lab {
    /// Starts a device under `policy`.
    ///
    /// # Errors
    /// When a part cannot be made.
    pub(crate) fn start(policy: &Policy) -> Result<Self> {
        let mut device = Device::new(&policy.config())?;
        let out = device.outside(UPLINK, &DEVICE, &HOST)?;
        let lan = Namespace::new("lan")?;
        if policy.link == Link::Bridge {
            // A bridge that the user has made, and that the pool borrows. It has a MAC of its own: without one it takes a
            // port's MAC, and keeps the link-local address that belongs to the MAC before.
            link::make(&device.ns, LinkBridge::new("pvbr3").address(vec![2, 0, 0, 0, 3, 1]).build())?;
            device.ns.connect((PARENT, &[]), &lan, ("eth0", &world::LAN))?;
            link::enslave(&device.ns, PARENT, "pvbr3")?;
        } else {
            device.ns.connect((PARENT, &world::PARENT), &lan, ("eth0", &world::LAN))?;
        }
        device.start()?;
        let run = |name: &str, network| device.attach_run(&json!({"name": name, "network": network}));
        let ports = |from: u16| ["tcp", "udp"].map(|proto| format!("{from}:{}/{proto}", world::SERVED));
        let (a, b, c, d) = if policy.link == Link::Bridge {
            let b = run("b", json!({"pool": "internal", "ports": ports(world::PUBLISHED)}))?;
            (run("a", json!({"pool": "internal"}))?, b, run("c", json!({"pool": "management"}))?, None)
        } else {
            // The LAN's router is no first address, so that containers say theirs.
            let on_lan = |name: &str, last: u8, ports: &[String]| {
                let interface = json!({"pool": "internal", "ipv4_address": format!("10.0.3.{last}"),
                    "ipv6_address": format!("fd00:5056:0:3::{last}")});
                run(name, json!({"interfaces": [interface], "ports": ports}))
            };
            let c = run("c", json!({"pool": "management", "ports": ports(world::PUBLISHED)}))?;
            let served = ports(world::SERVED);
            (on_lan("a", 2, &[])?, on_lan("b", 3, &served)?, c, Some(on_lan("d", 4, &served)?))
        };
        let rogue = d.is_some().then(|| further_macvlan(&a)).transpose()?;
        let lab = Self { device, out, lan, a, b, c, d, rogue };
        lab.make_ready()?;
        Ok(lab)
    }

    /// Sets routes and fixed neighbour entries. Forged ARP cannot change fixed entries: what it does to a kernel's
    /// neighbour table is not what this lab tests.
    fn make_ready(&self) -> Result<()> {
        let device = &self.device.ns;
        for (host, _) in HOSTS {
            link::default_route(device, UPLINK, host)?;
        }
        let known = |bridge: &str, ns: &Namespace, addresses: &[IpAddr]| -> Result<()> {
            let (_, mac) = link::of_name(ns, "eth0")?;
            let (index, _) = link::of_name(device, bridge)?;
            addresses.iter().try_for_each(|addr| link::neighbour(device, index, *addr, mac))
        };
        known(UPLINK, &self.out, &HOSTS.map(|(host, _)| host))?;
        known("pvbr4", &self.c.ns, &self.c.addresses())?;
        if self.d.is_none() {
            for container in [&self.a, &self.b] {
                known("pvbr3", &container.ns, &container.addresses())?;
            }
        } else {
            known(PARENT, &self.lan, &[world::LAN_HOST.0.into(), world::LAN_HOST.1.into()])?;
        }
        // Servers that answer, so that flows become established.
        for (ns, port) in [(&self.b.ns, 80), (&self.b.ns, 7000), (&self.c.ns, 7000), (&self.out, 7000)] {
            echo::serve(ns, Ipv6Addr::UNSPECIFIED.into(), port)?;
        }
        Ok(())
    }

    /// Puts another policy in force by a reload.
    ///
    /// # Errors
    /// When it is refused.
    pub(crate) fn reload(&self, policy: &Policy) -> Result<()> {
        self.device.configure(&policy.config())?;
        self.device.cli(&["reload"]).ok().map(drop)
    }

    /// The addresses and MACs of all parties, under `policy`.
    ///
    /// # Errors
    /// When a link is not there.
    pub(crate) fn world(&self, policy: Policy) -> Result<World> {
        let container = |of: &Container| Ok::<_, anyhow::Error>(host(link::of_name(&of.ns, "eth0")?.1, of.v4, of.v6));
        let mac = |name: &str| Ok::<_, anyhow::Error>(link::of_name(&self.device.ns, name)?.1);
        let gateway = mac(if policy.link == Link::Bridge { "pvbr3" } else { PARENT })?;
        let management = mac("pvbr4")?;
        let device_if = policy.link.has_device_if().then(|| self.device_if()).transpose()?;
        let pool = |n: u16| Ipv6Addr::new(0xfd00, 0x5056, 0, n, 0, 0, 0, 1);
        let (uplink, out) = (link::of_name(&self.device.ns, UPLINK)?.1, link::of_name(&self.out, "eth0")?.1);
        let outer = |mac, last: u8| {
            host(mac, Ipv4Addr::new(192, 0, 2, last), Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, last.into()))
        };
        Ok(World {
            policy,
            a: container(&self.a)?,
            b: container(&self.b)?,
            c: container(&self.c)?,
            d: self.d.as_ref().map(container).transpose()?,
            lan: host(link::of_name(&self.lan, "eth0")?.1, world::LAN_HOST.0, world::LAN_HOST.1),
            out: outer(out, 9),
            gateways: [
                host(gateway, Ipv4Addr::new(10, 0, 3, 1), pool(3)),
                host(management, Ipv4Addr::new(10, 0, 4, 1), pool(4)),
            ],
            device_if,
            rogue: self
                .rogue
                .as_ref()
                .map(|ns| Ok::<_, anyhow::Error>(host(link::of_name(ns, "eth0")?.1, self.a.v4, self.a.v6)))
                .transpose()?,
            uplink: outer(uplink, 1),
        })
    }

    /// The MAC of the device's own interface beside those of the macvlan pool's containers.
    fn device_if(&self) -> Result<[u8; 6]> {
        let name = self.device.ns.run(|| {
            let mut all = nix::ifaddrs::getifaddrs()?.map(|found| found.interface_name);
            all.find(|name| name.starts_with("pvdev-")).context("the device has no interface beside its containers")
        })?;
        Ok(link::of_name(&self.device.ns, &name)?.1)
    }
}

/// Makes a further macvlan on the interface of a container, and moves it to a namespace without addresses: there the kernel
/// answers nobody.
fn further_macvlan(of: &Container) -> Result<Namespace> {
    let (under, _) = link::of_name(&of.ns, "eth0")?;
    let to = Namespace::new("rogue")?;
    let file = File::open(to.path())?;
    let message = LinkMacVlan::new("eth0", under, MacVlanMode::Bridge).setns_by_fd(file.as_raw_fd());
    link::make(&of.ns, message.build())?;
    to.configure("eth0", &[])?;
    Ok(to)
}

fn host(mac: [u8; 6], v4: Ipv4Addr, v6: Ipv6Addr) -> Host {
    let link_local = Ipv6Addr::from(Ip::link_local(mac).octets());
    Host { mac, v4, v6, link_local }
}
