//! The network cards of the machine, which `cargo xtask vm` connects by a wire: one is the device's, the other one
//! belongs to a host beyond.

use crate::lab::{self, Lab};
use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use harness::{Namespace, SOON, eventually};
use nix::errno::Errno;
use pv_net::kernel::netlink::Net;
use rtnetlink::packet_route::link::{LinkAttribute, State};
use rtnetlink::{Handle, LinkUnspec};
use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// The device's card.
pub const LINK: &str = "card0";
/// The host's card.
pub const FAR: &str = "eth0";
/// The device's addresses; with the host's first IPv4 and last IPv6 address they are `Beyond::PAIRS`.
const DEVICE: [&str; 2] = ["198.51.100.1/24", "2001:db8:2::1/64"];
/// The host's addresses. It sends from the first of IPv4, and from the last of IPv6.
const HOST: [&str; 4] = ["198.51.100.9/24", "198.51.100.66/24", "2001:db8:2::66/64", "2001:db8:2::9/64"];
/// Addresses of the host that a filter denies.
pub const DENIED: [&str; 2] = ["198.51.100.66", "2001:db8:2::66"];
/// The MTU of the wire.
pub const WIRE_MTU: usize = 1500;
/// Environment variables: the drivers that this kernel has, and whether the wire passes on packets whose checksum or
/// segmentation is still to be done.
const CARDS: &str = "PV_NET_CARDS";
const WIRE: &str = "PV_NET_WIRE";
/// The machine's own namespace.
const OWN: &str = "/proc/1/ns/net";

/// A card's driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// The card of virtual machines: several queues, packets in several joined buffers, XDP.
    Virtio,
    /// A card of many PCs: no XDP.
    E1000e,
}

impl Driver {
    const fn module(self) -> &'static str {
        match self {
            Self::Virtio => "virtio_net",
            Self::E1000e => "e1000e",
        }
    }

    const fn mac(self) -> [u8; 6] {
        match self {
            Self::Virtio => mac(1),
            Self::E1000e => mac(2),
        }
    }
}

/// The MACs that `xtask/src/vm/wire.rs` gives the cards.
const fn mac(number: u8) -> [u8; 6] {
    [2, 0x50, 0x56, 0, 0, number]
}

/// The MAC of the host's card.
const FAR_MAC: [u8; 6] = mac(3);

/// A card as an uplink of the device, and a host at the other end of its wire.
pub struct Wire {
    /// The host.
    pub host: Namespace,
    driver: Driver,
}

impl Wire {
    /// Moves the cards to the device and to a new host; `None` when the kernel lacks the driver.
    pub fn connect(lab: &Lab, driver: Driver) -> Result<Option<Self>> {
        let cards = std::env::var(CARDS).context(CARDS)?;
        if !cards.split(',').any(|name| name == driver.module()) {
            let found = find(driver.mac())?;
            ensure!(found.is_none(), "its configuration does not say so, and the kernel has {}", driver.module());
            return Ok(None);
        }
        let host = Namespace::new("beyond")?;
        for (ns, name, mac, addresses) in
            [(&lab.device.ns, LINK, driver.mac(), &DEVICE[..]), (&host, FAR, FAR_MAC, &HOST)]
        {
            lend(mac, ns, name).with_context(|| name.to_owned())?;
            set_mtu(ns, name, u32::try_from(WIRE_MTU)?)?;
            ns.configure(name, addresses)?;
        }
        let wire = Self { host, driver };
        for (ns, name) in [(&lab.device.ns, LINK), (&wire.host, FAR)] {
            eventually(SOON, || carries(ns, name))?;
        }
        // The host must read packets as they were on the wire.
        wire.set(Offload::Gro, false)?;
        Ok(Some(wire))
    }

    /// Moves the cards back to the machine's own namespace.
    pub fn give_back(self, lab: &Lab) -> Result<()> {
        let lent = [(&lab.device.ns, LINK, self.driver.module()), (&self.host, FAR, "beyond")];
        let back = lent.map(|(ns, name, spare)| {
            let own = File::open(OWN)?;
            let back = lab::netlink(ns, async |handle| {
                let link = Net::here()?.link(name).await?.context("no such link")?;
                relocate(&handle, link.index, &own, spare).await
            });
            back.with_context(|| format!("{name} is not given back"))
        });
        back.into_iter().collect()
    }

    /// Whether the wire passes on packets whose checksum or segmentation the sending card has left undone.
    pub fn offloads() -> Result<bool> {
        Ok(std::env::var(WIRE).context(WIRE)? == "taps")
    }

    /// Switches an offload of the host's card on or off.
    pub fn set(&self, offload: Offload, on: bool) -> Result<()> {
        self.host.run(|| ethtool(FAR, offload, on)).with_context(|| format!("{offload:?}"))
    }
}

/// The index of a card in the machine's own namespace.
fn find(mac: [u8; 6]) -> Result<Option<u32>> {
    let links = lab::here(async |_| Ok(Net::here()?.links().await?))?;
    Ok(links.into_iter().find(|link| link.mac == Some(mac)).map(|link| link.index))
}

/// Moves a card from the machine's own namespace to `ns`.
fn lend(mac: [u8; 6], ns: &Namespace, name: &str) -> Result<()> {
    // Some drivers find their cards in a thread of their own, so the card may appear late.
    let index = eventually(SOON, || find(mac)?.context("no such card"))?;
    let to = File::open(ns.path())?;
    lab::here(async |handle| relocate(&handle, index, &to, name).await)
}

async fn relocate(handle: &Handle, index: u32, to: &File, name: &str) -> Result<()> {
    let change = LinkUnspec::new_with_index(index).name(name).setns_by_fd(to.as_raw_fd()).build();
    Ok(handle.link().set(change).execute().await?)
}

/// Fails unless the link carries packets.
fn carries(ns: &Namespace, name: &str) -> Result<()> {
    lab::netlink(ns, async |handle| {
        let link =
            handle.link().get().match_name(name.to_owned()).execute().try_next().await?.context("no such link")?;
        ensure!(link.attributes.contains(&LinkAttribute::OperState(State::Up)), "{name} does not carry");
        Ok(())
    })
}

/// Work that a card may do for the kernel. The values are the ethtool commands to switch it, of `linux/ethtool.h`.
#[derive(Clone, Copy, Debug)]
pub enum Offload {
    /// Checksums of sent packets; without them there is no segmentation either.
    SentChecksums = 0x17,
    /// Joining several received packets to one.
    Gro = 0x2c,
}

fn ethtool(link: &str, offload: Offload, on: bool) -> Result<()> {
    let socket = UdpSocket::bind("[::]:0")?;
    let mut value = [offload as u32, u32::from(on)];
    // SAFETY: a C struct of integers, arrays and pointers; all zero is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(link.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: the request reads one ifreq, and the two words that it points to; both outlive it.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })?;
    Ok(())
}

const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// Sets the MTU of a link.
pub fn set_mtu(ns: &Namespace, name: &str, mtu: u32) -> Result<()> {
    lab::netlink(ns, async |handle| {
        let link = Net::here()?.link(name).await?.context("no such link")?;
        Ok(handle.link().set(LinkUnspec::new_with_index(link.index).mtu(mtu).build()).execute().await?)
    })
    .with_context(|| format!("MTU of {name}"))
}
