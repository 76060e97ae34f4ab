//! The first packets of a container in an empty pool, sent as soon as the attach is answered, on a busy device: none is
//! lost. A lost packet shows in a second solicitation for the gateway, even when this test itself runs late.

use anyhow::{Context, Result, ensure};
use harness::raw::RawSocket;
use harness::{Device, Namespace, configs, unix_http};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto, setsockopt, socket,
    sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The gateways of the pool `internal`.
const GATEWAYS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 0, 3, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x5056, 0, 3, 0, 0, 0, 1))];
const ROUNDS: usize = 48;

/// A socket that sends one ping. It is made before the attach, so that the packet is sent right after the answer.
struct Ping {
    to: IpAddr,
    fd: OwnedFd,
}

impl Ping {
    fn new(ns: &Namespace, to: IpAddr) -> Result<Self> {
        let (family, protocol) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let fd = ns.run(|| Ok(socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?))?;
        setsockopt(&fd, ReceiveTimeout, &TimeVal::seconds(10))?;
        Ok(Self { to, fd })
    }

    /// Sends an echo request, identifier 7, sequence 1; the kernel computes the checksum of ICMPv6.
    fn send(&self) -> Result<()> {
        let request: [u8; 8] =
            if self.to.is_ipv4() { [8, 0, 0xf7, 0xf7, 0, 7, 0, 1] } else { [128, 0, 0, 0, 0, 7, 0, 1] };
        let to = SockaddrStorage::from(SocketAddr::new(self.to, 0));
        sendto(self.fd.as_raw_fd(), &request, &to, MsgFlags::empty()).with_context(|| self.to.to_string())?;
        Ok(())
    }

    fn is_answered(&self) -> Result<bool> {
        let mut buffer = [0u8; 256];
        loop {
            let n = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(n) => n,
                Err(Errno::EAGAIN) => return Ok(false),
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(e.into()),
            };
            let reply = match self.to {
                IpAddr::V4(to) => n == 28 && buffer[12..16] == to.octets() && buffer[20] == 0,
                IpAddr::V6(_) => n == 8 && buffer[0] == 129,
            };
            if reply {
                return Ok(true);
            }
        }
    }
}

/// How often each gateway was solicited.
fn solicitations(seen: &RawSocket) -> Result<[usize; 2]> {
    let mut count = [0; 2];
    let is_one = |frame: &[u8]| asked_for(frame).is_some();
    while let Some(frame) = seen.receive(Duration::ZERO, is_one)? {
        let asked = asked_for(&frame);
        for (n, gateway) in count.iter_mut().zip(GATEWAYS) {
            *n += usize::from(asked == Some(gateway));
        }
    }
    Ok(count)
}

/// The address that an ARP request or a neighbour solicitation asks for.
fn asked_for(frame: &[u8]) -> Option<IpAddr> {
    match frame.get(12..14)? {
        [0x08, 0x06] if frame.get(20..22)? == [0, 1] => {
            let target: [u8; 4] = frame.get(38..42)?.try_into().ok()?;
            Some(target.into())
        }
        [0x86, 0xdd] if frame.get(20)? == &58 && frame.get(54)? == &135 => {
            let target: [u8; 16] = frame.get(62..78)?.try_into().ok()?;
            Some(target.into())
        }
        _ => None,
    }
}

/// Keeps two processors busy, and the kernel's lock for links: its workers then run late.
fn load(over: &AtomicBool) -> Result<()> {
    let (a, b) = (Namespace::new("busy")?, Namespace::new("busier")?);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let mut n = 0;
        while !over.load(Ordering::Relaxed) {
            a.connect((&format!("a{n}"), &[]), &b, (&format!("b{n}"), &[]))?;
            n += 1;
        }
        Ok(())
    })
}

fn round(device: &Device, number: usize) -> Result<()> {
    let ns = Namespace::new("new")?;
    let seen = RawSocket::open_all(&ns)?;
    let outside = configs::HOSTS.map(|(host, _)| host);
    let mut pings = Vec::new();
    for to in [GATEWAYS[1], GATEWAYS[0], outside[1], outside[0]] {
        pings.push(Ping::new(&ns, to)?);
    }
    // Each ping is the first one in every fourth round.
    pings.rotate_left(number % 4);
    let api = device.file("run").join("api.sock");
    unix_http::ask(&api, "PUT", "/containers/new", &json!({"pool": "internal", "netns": ns.path()}).to_string())?;
    for ping in &pings {
        ping.send()?;
    }
    for (nth, ping) in pings.iter().enumerate() {
        ensure!(ping.is_answered()?, "the ping to {}, {nth} others before it, is not answered", ping.to);
    }
    let asked = solicitations(&seen)?;
    ensure!(asked == [1, 1], "the gateways {GATEWAYS:?} were asked for {asked:?} times");
    unix_http::ask(&api, "DELETE", "/containers/new", "")?;
    if number.is_multiple_of(2) {
        // When the query for the link is answered, the kernel has noticed that the bridge has lost its last port.
        let bridge = device.ns.ip("link show pvbr3")?;
        ensure!(bridge.contains("NO-CARRIER"), "{bridge}");
    }
    Ok(())
}

#[test]
fn the_first_packets_of_an_empty_pool_are_not_lost() -> Result<()> {
    let mut device = Device::new(&configs::masqueraded())?;
    let _outside = device.outside(configs::UPLINK, &configs::DEVICE, &configs::HOST)?;
    device.start()?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| load(&over));
        let done = (0..ROUNDS).try_for_each(|number| round(&device, number).with_context(|| format!("round {number}")));
        over.store(true, Ordering::Relaxed);
        load.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
        done
    })
}
