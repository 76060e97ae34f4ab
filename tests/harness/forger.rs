//! A container that forges all the time, and whoever must never hear of it.

use crate::raw::RawSocket;
use crate::{Device, Ear, Namespace, frame};
use anyhow::{Result, ensure};
use pv_net_common::Ip;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Nobody's MAC: what comes from it was forged.
pub const FORGED_MAC: [u8; 6] = [2, 0, 0xde, 0xad, 0, 0x11];
/// In each forged packet that has room for it.
pub const MARK: &[u8] = b"forged by a container";
const ALL: [u8; 6] = [0xff; 6];

/// Frames that no container may get through, of both families, from a container whose MAC is `mac`: as another MAC, another
/// address, the router, and the DHCP server.
///
/// # Errors
/// None in practice.
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

/// Whether a frame or a packet is one of those.
#[must_use]
pub fn is_forged(heard: &[u8]) -> bool {
    let has = |what: &[u8]| heard.windows(what.len()).any(|w| w == what);
    has(MARK) || has(&FORGED_MAC)
}

/// Sends forged frames from `eth0` of a namespace, whenever there is one, until it is dropped.
pub struct Forger {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Forger {
    /// Begins, with `eth0` of each of `namespaces`; `to` is the MAC of a victim.
    ///
    /// # Errors
    /// None in practice.
    pub fn start(namespaces: Vec<PathBuf>, to: [u8; 6]) -> Result<Self> {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counts) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                for path in &namespaces {
                    // There is none before the attach, and none after the detach.
                    if let Ok(n) = forge(path, to) {
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
}

impl Drop for Forger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it has sent counts, not how it ended.
            let _ = thread.join();
        }
    }
}

fn forge(path: &std::path::Path, to: [u8; 6]) -> Result<u64> {
    let ns = Namespace::borrowed(path)?;
    let (socket, mac) = (RawSocket::open(&ns, "eth0")?, ns.mac("eth0")?);
    let mut sent = 0;
    for frame in frames(mac, to)? {
        // A link that is down takes none.
        sent += u64::from(socket.send(&frame).is_ok());
    }
    Ok(sent)
}

/// All who must not hear anything forged: a container, the device's stack, and the bridge of the pool.
pub struct Victims(Vec<Ear>);

impl Victims {
    /// `links` are those of the device.
    ///
    /// # Errors
    /// When a link is not there.
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

    /// Fails when something forged was heard since the last time.
    ///
    /// # Errors
    /// What was heard, and by whom.
    pub fn heard_nothing(&self) -> Result<()> {
        for ear in &self.0 {
            let forged: Vec<_> = ear.heard()?.into_iter().filter(|heard| is_forged(heard)).collect();
            ensure!(forged.is_empty(), "{} heard {} forged, such as {:02x?}", ear.name(), forged.len(), forged[0]);
        }
        Ok(())
    }
}
