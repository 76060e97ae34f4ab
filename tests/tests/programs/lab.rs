//! A data plane with four containers whose links lead nowhere: programs are run on frames in memory.

use anyhow::{Context, Result, ensure};
use harness::{Device, Namespace, frame};
use pv_net::kernel::bpf::{DataPlane, FlowState, Options, Ran, Reader};
use pv_net::plan::Entry;
pub use pv_net_common::ip_proto::{IPPROTO_TCP as TCP, IPPROTO_UDP as UDP};
use pv_net_common::{
    EndpointInfo, InterfaceInfo, Ip, LinkId,
    endpoint::{LOCAL_ADDRESS, POOL_HOST_SERVICES, POOL_OPEN},
};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const PASS: i32 = 0;
pub const SHOT: i32 = 2;
pub const REDIRECT: i32 = 7;

/// A container: its link and what it may send.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    pub ifindex: u32,
    pub mac: [u8; 6],
    pub gateway_mac: [u8; 6],
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub gateway4: Ipv4Addr,
    pub gateway6: Ipv6Addr,
}

impl Host {
    /// The address of the family that `like` is of.
    pub fn ip(&self, like: Family) -> IpAddr {
        match like {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    pub fn gateway(&self, like: Family) -> IpAddr {
        match like {
            Family::V4 => self.gateway4.into(),
            Family::V6 => self.gateway6.into(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    pub fn ethertype(self) -> u16 {
        if self == Self::V4 { frame::IPV4 } else { frame::IPV6 }
    }

    /// Bytes of the IP header without options.
    pub fn header(self) -> usize {
        if self == Self::V4 { 20 } else { 40 }
    }
}

/// The containers: `a` and `b` in one pool, `c` in a second, closed one; `d` and `e` in two open ones.
pub struct Lab {
    pub plane: DataPlane,
    reader: Reader,
    pub a: Host,
    pub b: Host,
    pub c: Host,
    pub d: Host,
    pub e: Host,
}

/// Runs `work` in a namespace with the links of a lab. Programs see only links of their runner's namespace.
pub fn lab(work: impl FnOnce(&mut Lab) -> Result<()> + Send) -> Result<()> {
    let device = Device::new(&json!({}))?;
    let far = Namespace::new("far")?;
    for n in 0..5 {
        device.ns.connect((&format!("h{n}"), &[]), &far, (&format!("c{n}"), &[]))?;
    }
    device.ns.run(|| {
        let (mut plane, _) = DataPlane::open(&Options { pin_dir: device.pins(), flow_entries: 4096 })?;
        plane.take_over()?;
        let host = |n: u8, pool: u8| -> Result<Host> {
            Ok(Host {
                ifindex: nix::net::if_::if_nametoindex(format!("h{n}").as_str()).context("a link")?,
                mac: [2, 0, 10, 0, pool, n + 2],
                gateway_mac: [2, 0, 10, 0, pool, 1],
                v4: Ipv4Addr::new(10, 0, pool, n + 2),
                v6: Ipv6Addr::new(0xfd00, 0x5056, 0, pool.into(), 0, 0, 0, u16::from(n) + 2),
                gateway4: Ipv4Addr::new(10, 0, pool, 1),
                gateway6: Ipv6Addr::new(0xfd00, 0x5056, 0, pool.into(), 0, 0, 0, 1),
            })
        };
        let reader = Reader::open(&device.pins())?;
        let (a, b, c, d, e) = (host(0, 3)?, host(1, 3)?, host(2, 4)?, host(3, 5)?, host(4, 6)?);
        let mut lab = Lab { plane, reader, a, b, c, d, e };
        for (host, pool_id, pool_flags) in
            [(lab.a, 3, 0), (lab.b, 3, 0), (lab.c, 4, 0), (lab.d, 5, POOL_OPEN), (lab.e, 6, POOL_OPEN)]
        {
            lab.add(host, pool_id, pool_flags | POOL_HOST_SERVICES)?;
        }
        let gateways = [lab.a, lab.c, lab.d, lab.e].into_iter();
        for addr in gateways.flat_map(|h| [Ip::from(h.gateway4), h.gateway6.into()]) {
            lab.plane.set_entry(&Entry::Local { addr, kind: LOCAL_ADDRESS })?;
        }
        work(&mut lab)
    })
}

impl Lab {
    fn add(&mut self, host: Host, pool_id: u32, pool_flags: u32) -> Result<()> {
        let interface = InterfaceInfo {
            addr4: host.v4.into(),
            addr6: host.v6.into(),
            link_local: Ip::link_local(host.mac),
            gateway4: host.gateway4.into(),
            gateway6: host.gateway6.into(),
            pool_id,
            pool_flags,
            identity: host.ifindex,
            mtu: 1500,
            mac: host.mac,
            gateway_mac: host.gateway_mac,
            ..InterfaceInfo::default()
        };
        let endpoint = EndpointInfo {
            link: LinkId::of_index(host.ifindex),
            pool_id,
            pool_flags,
            identity: host.ifindex,
            mac: host.mac,
            gateway_mac: host.gateway_mac,
            mtu: 1500,
        };
        self.plane.set_interface(LinkId::of_index(host.ifindex), &interface)?;
        self.plane.set_endpoint(host.v4.into(), &endpoint)?;
        Ok(self.plane.set_endpoint(host.v6.into(), &endpoint)?)
    }

    /// Runs one frame from `from`.
    pub fn run(&mut self, from: &Host, frame: &[u8]) -> Result<Ran> {
        Ok(self.plane.run_frame(from.ifindex, frame)?)
    }

    /// Every counter by its name.
    pub fn counters(&self) -> Result<BTreeMap<&'static str, u64>> {
        let drops = self.reader.drops()?.into_iter().map(|(r, n)| (r.label(), n));
        let stats = self.reader.stats()?.into_iter().map(|(s, n)| (s.label(), n));
        Ok(drops.chain(stats).collect())
    }

    /// Runs one frame; also which counters grew, each by one, in the order of their names.
    pub fn counted(&mut self, from: &Host, frame: &[u8]) -> Result<(Ran, Vec<&'static str>)> {
        let before = self.counters()?;
        let ran = self.run(from, frame)?;
        let mut grown = Vec::new();
        for (name, n) in self.counters()? {
            // Nobody reads the events here.
            if n > before[name] && name != "events-lost" {
                ensure!(n == before[name] + 1, "{name} grew by {}", n - before[name]);
                grown.push(name);
            }
        }
        Ok((ran, grown))
    }

    /// Fails unless the frame is dropped for `reason` and nothing else is counted.
    pub fn drops(&mut self, what: &str, from: &Host, frame: &[u8], reason: &str) -> Result<()> {
        let (ran, grown) = self.counted(from, frame)?;
        ensure!(ran.verdict == SHOT && grown == [reason], "{what}: verdict {}, {grown:?}", ran.verdict);
        Ok(())
    }

    /// Fails unless the frame goes on as it is, into the container.
    pub fn forwards(&mut self, what: &str, from: &Host, frame: &[u8]) -> Result<()> {
        let (ran, grown) = self.counted(from, frame)?;
        ensure!(ran.verdict == REDIRECT, "{what}: verdict {}, {grown:?}", ran.verdict);
        let path = |name: &&str| matches!(*name, "slow-path" | "fast-path" | "flows-created");
        ensure!(!grown.is_empty() && grown.iter().all(path), "{what}: {grown:?}");
        ensure!(ran.frame == frame, "{what}: changed to {:02x?}", ran.frame);
        Ok(())
    }

    /// How far the flow from `from` and its address `ip` is, and whether it has an age.
    pub fn flow_state(&mut self, from: &Host, ip: IpAddr) -> Result<Option<(FlowState, bool)>> {
        let mut flows = self.reader.flows()?;
        flows.retain(|f| f.key.link == LinkId::of_index(from.ifindex) && f.key.src == ip.into());
        ensure!(flows.len() <= 1, "more than one flow: {flows:?}");
        Ok(flows.first().map(|f| (f.state, f.age_secs.is_some())))
    }

    /// Ports of the flows that the kernel holds from `from`.
    pub fn flow_ports(&mut self, from: &Host) -> Result<Vec<(u16, u16)>> {
        let flows = self.reader.flows()?;
        let mine = flows.iter().filter(|f| f.key.link == LinkId::of_index(from.ifindex));
        Ok(mine.map(|f| (u16::from_be(f.key.sport_be), u16::from_be(f.key.dport_be))).collect())
    }
}

/// A frame from `from` to the address `to` of a container, by way of its MAC or the gateway's.
pub fn between(from: &Host, to_mac: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 6 { frame::IPV6 } else { frame::IPV4 };
    frame::ethernet(from.mac, to_mac, kind, packet)
}

/// Newer kernels do not run a program on a frame whose IP header is not whole.
pub fn may_be_refused(frame: &[u8]) -> bool {
    let header = match frame.get(12..14) {
        Some([0x08, 0x00]) => 20,
        Some([0x86, 0xdd]) => 40,
        _ => 0,
    };
    frame.len() < 14 + header
}

/// An IPv4 header's checksum made right again.
pub fn fix_ipv4(frame: &mut [u8]) {
    frame::fix_ipv4(&mut frame[14..]);
}
