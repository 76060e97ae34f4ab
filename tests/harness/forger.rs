//! A container that sends forged packets all the time, and the receivers that must never get one.

use crate::raw::RawSocket;
use crate::{Device, Ear, Namespace, SOON, eventually, frame};
use anyhow::{Result, ensure};
use pv_net_common::Ip;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A MAC that nobody has: frames from it were forged.
pub const FORGED_MAC: [u8; 6] = [2, 0, 0xde, 0xad, 0, 0x11];
/// A mark in each forged packet that has room for it.
pub const MARK: &[u8] = b"forged by a container";
const ALL: [u8; 6] = [0xff; 6];

/// Frames that no container may send, of both families, from a container whose MAC is `mac`: with another MAC, with
/// another's address, as the router, and as a DHCP server.
///
/// # Errors
/// None in practice: the addresses are constants.
pub fn frames(mac: [u8; 6], to: [u8; 6]) -> Result<Vec<Vec<u8>>> {
    let (gateway4, stranger4) = (Ipv4Addr::new(10, 0, 3, 1), Ipv4Addr::new(10, 0, 3, 77));
    let (gateway6, stranger6): (Ipv6Addr, Ipv6Addr) = ("fd00:5056:0:3::1".parse()?, "fd00:5056:0:3::dead".parse()?);
    let (all4, all6): (IpAddr, Ipv6Addr) = (Ipv4Addr::BROADCAST.into(), "ff02::1".parse()?);
    let own: IpAddr = Ip::link_local(mac).into();
    let advertisement = [&[134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0; 3], MARK].concat();
    let udp = |src: IpAddr, sport, dst: IpAddr| frame::udp((src, sport), (dst, 9), MARK);
    let mut all = Vec::new();
    for src in [mac, FORGED_MAC] {
        for dst in [to, ALL] {
            let mut add = |kind, payload: &[u8]| all.push(frame::ethernet(src, dst, kind, payload));
            add(frame::ARP, &frame::arp(2, (FORGED_MAC, gateway4), (to, stranger4)));
            add(frame::ARP, &frame::arp(1, (FORGED_MAC, gateway4), ([0; 6], stranger4)));
            add(frame::IPV6, &frame::neighbour(136, gateway6, all6, gateway6, FORGED_MAC));
            add(frame::IPV6, &frame::icmp(own, all6.into(), &advertisement));
            add(frame::IPV4, &udp(stranger4.into(), 67, all4));
            add(frame::IPV4, &udp(stranger4.into(), 9, gateway4.into()));
            add(frame::IPV6, &udp(stranger6.into(), 547, gateway6.into()));
        }
    }
    Ok(all)
}

/// Whether a frame or a packet is a forged one.
#[must_use]
pub fn is_forged(heard: &[u8]) -> bool {
    let has = |what: &[u8]| heard.windows(what.len()).any(|w| w == what);
    has(MARK) || has(&FORGED_MAC)
}

/// Sends forged frames from a link of each namespace that has one, until this value is dropped.
pub struct Forger {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Forger {
    /// Starts to send from `eth0` of each of `namespaces`; `to` is the MAC of a victim.
    ///
    /// # Errors
    /// None in practice: the addresses are constants.
    pub fn start(namespaces: Vec<PathBuf>, to: [u8; 6]) -> Result<Self> {
        Self::start_on("eth0", namespaces, to)
    }

    /// Starts to send from `link` of each of `namespaces`; `to` is the MAC of a victim.
    ///
    /// # Errors
    /// None in practice: the addresses are constants.
    pub fn start_on(link: &'static str, namespaces: Vec<PathBuf>, to: [u8; 6]) -> Result<Self> {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counts) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                for path in &namespaces {
                    // The link does not exist before the attach and after the detach.
                    if let Ok(n) = forge(path, link, to) {
                        counts.fetch_add(n, Ordering::Relaxed);
                    }
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Ok(Self { stop, sent, thread: Some(thread) })
    }

    /// How many frames were sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until more than `frames` were sent: how fast that goes depends on the load of the machine.
    ///
    /// # Errors
    /// When fewer were sent within [`SOON`].
    pub fn has_sent(&self, frames: u64) -> Result<()> {
        eventually(SOON, || {
            ensure!(self.sent() > frames, "{} of {frames} frames were forged", self.sent());
            Ok(())
        })
    }
}

impl Drop for Forger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // How the thread ended does not matter, only the number of frames.
            let _ = thread.join();
        }
    }
}

fn forge(path: &std::path::Path, link: &str, to: [u8; 6]) -> Result<u64> {
    let ns = Namespace::borrowed(path)?;
    let (socket, mac) = (RawSocket::open(&ns, link)?, ns.mac(link)?);
    let mut sent = 0;
    for frame in frames(mac, to)? {
        // A link that is down refuses the frame.
        sent += u64::from(socket.send(&frame).is_ok());
    }
    Ok(sent)
}

/// All receivers that must not get a forged packet: a container, the device's stack, and the bridge of the pool.
pub struct Victims(Vec<Ear>);

impl Victims {
    /// Starts to record; `links` are links of the device.
    ///
    /// # Errors
    /// When a link does not exist.
    pub fn listen(device: &Device, links: &[&str], containers: &[&Namespace]) -> Result<Self> {
        let mut ears = vec![Ear::stack(&device.ns)?];
        for link in links {
            ears.push(Ear::link(&device.ns, link)?);
        }
        for container in containers {
            ears.push(Ear::link(container, "eth0")?);
        }
        Ok(Self(ears))
    }

    /// Fails when a forged packet has arrived since the last call.
    ///
    /// # Errors
    /// The packet that arrived, and where.
    pub fn heard_nothing(&self) -> Result<()> {
        for ear in &self.0 {
            let forged: Vec<_> = ear.heard()?.into_iter().filter(|heard| is_forged(heard)).collect();
            ensure!(forged.is_empty(), "{} heard {} forged, such as {:02x?}", ear.name(), forged.len(), forged[0]);
        }
        Ok(())
    }
}
