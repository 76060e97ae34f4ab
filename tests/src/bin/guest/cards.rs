//! The machine's network cards, that `cargo xtask vm` connects by a wire: one for the device, and one for a host beyond.

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
/// The host's.
pub const FAR: &str = "eth0";
/// The device's addresses; with those by which the host speaks they are `Beyond::PAIRS`.
const DEVICE: [&str; 2] = ["198.51.100.1/24", "2001:db8:2::1/64"];
/// Those of the host. It speaks by the first of IPv4, and by the last of IPv6.
const HOST: [&str; 4] = ["198.51.100.9/24", "198.51.100.66/24", "2001:db8:2::66/64", "2001:db8:2::9/64"];
/// Addresses of the host that a filter denies.
pub const DENIED: [&str; 2] = ["198.51.100.66", "2001:db8:2::66"];
/// What the wire carries.
pub const WIRE_MTU: usize = 1500;
/// The drivers that this kernel has, and whether the wire passes on what cards leave to be done.
const CARDS: &str = "PV_NET_CARDS";
const WIRE: &str = "PV_NET_WIRE";
/// The machine's own namespace.
const OWN: &str = "/proc/1/ns/net";

/// A driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Of virtual machines: several queues, packets of several segments in buffers that are joined, XDP.
    Virtio,
    /// Of many PCs: no XDP.
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

/// Those of `xtask/src/vm/wire.rs`.
const fn mac(number: u8) -> [u8; 6] {
    [2, 0x50, 0x56, 0, 0, number]
}

/// The host's.
const FAR_MAC: [u8; 6] = mac(3);

/// A card as an uplink of the device, and a host at the other end of its wire.
pub struct Wire {
    /// The host.
    pub host: Namespace,
    driver: Driver,
}

impl Wire {
    /// Lends the device its card, and a host the other; none when the kernel lacks the driver.
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
        // What the host reads is what was on the wire.
        wire.set(Offload::Gro, false)?;
        Ok(Some(wire))
    }

    /// Gives the machine its cards back.
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

    /// Whether cards leave to the next one what that can do.
    pub fn offloads() -> Result<bool> {
        Ok(std::env::var(WIRE).context(WIRE)? == "taps")
    }

    /// Has the host's card do this, or the host's kernel.
    pub fn set(&self, offload: Offload, on: bool) -> Result<()> {
        self.host.run(|| ethtool(FAR, offload, on)).with_context(|| format!("{offload:?}"))
    }
}

/// A card of the machine's own namespace.
fn find(mac: [u8; 6]) -> Result<Option<u32>> {
    let links = lab::here(async |_| Ok(Net::here()?.links().await?))?;
    Ok(links.into_iter().find(|link| link.mac == Some(mac)).map(|link| link.index))
}

/// Moves a card of the machine's own to `ns`.
fn lend(mac: [u8; 6], ns: &Namespace, name: &str) -> Result<()> {
    // Some drivers look for their cards in a thread of their own.
    let index = eventually(SOON, || find(mac)?.context("no such card"))?;
    let to = File::open(ns.path())?;
    lab::here(async |handle| relocate(&handle, index, &to, name).await)
}

async fn relocate(handle: &Handle, index: u32, to: &File, name: &str) -> Result<()> {
    let change = LinkUnspec::new_with_index(index).name(name).setns_by_fd(to.as_raw_fd()).build();
    Ok(handle.link().set(change).execute().await?)
}

/// Fails unless packets can be sent by a link.
fn carries(ns: &Namespace, name: &str) -> Result<()> {
    lab::netlink(ns, async |handle| {
        let link =
            handle.link().get().match_name(name.to_owned()).execute().try_next().await?.context("no such link")?;
        ensure!(link.attributes.contains(&LinkAttribute::OperState(State::Up)), "{name} does not carry");
        Ok(())
    })
}

/// What a card does, or a kernel for it. The values are those that switch it, of `linux/ethtool.h`.
#[derive(Clone, Copy, Debug)]
pub enum Offload {
    /// Checksums of what is sent; without them, no segmentation either.
    SentChecksums = 0x17,
    /// Several received packets become one.
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
