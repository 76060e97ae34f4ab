//! The sockets of the device, and which process has them.

use crate::model::Transport;
use procfs::net::{TcpState, UdpNetEntry};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

/// The port of the DNS service.
const NAMES: u16 = 53;

/// A socket that receives what comes to its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// TCP or UDP.
    pub transport: Transport,
    /// The address that it is bound to.
    pub addr: SocketAddr,
    /// Its inode, by which its process is found.
    pub(super) inode: u64,
}

/// All listening TCP sockets and all bound, unconnected UDP sockets of the daemon's namespace. A table that cannot be
/// read, for example without IPv6, counts as empty.
#[must_use]
pub fn all() -> Vec<Listener> {
    let tcp = [procfs::net::tcp(), procfs::net::tcp6()].into_iter().flatten().flatten();
    let udp = [procfs::net::udp(), procfs::net::udp6()].into_iter().flatten().flatten();
    let unconnected = |e: &UdpNetEntry| e.remote_address.port() == 0;
    let tcp = tcp.filter(|e| e.state == TcpState::Listen).map(|e| Listener {
        transport: Transport::Tcp,
        addr: e.local_address,
        inode: e.inode,
    });
    let udp =
        udp.filter(unconnected).map(|e| Listener { transport: Transport::Udp, addr: e.local_address, inode: e.inode });
    without_names(tcp.chain(udp).collect())
}

/// Removes the sockets of pv-net's own DNS service, over which a published port takes precedence.
fn without_names(mut sockets: Vec<Listener>) -> Vec<Listener> {
    if sockets.iter().any(|s| s.addr.port() == NAMES) {
        let own = own_sockets();
        sockets.retain(|s| s.addr.port() != NAMES || !own.contains(&s.inode));
    }
    sockets
}

/// Inodes of the daemon's own sockets.
fn own_sockets() -> BTreeSet<u64> {
    let files = procfs::process::Process::myself().and_then(|process| process.fd());
    let inode = |file: procfs::process::FDInfo| match file.target {
        procfs::process::FDTarget::Socket(inode) => Some(inode),
        _ => None,
    };
    files.into_iter().flatten().flatten().filter_map(inode).collect()
}

/// Sockets of the daemon's namespace with a local port that `wanted` accepts, including connected ones. Sockets without
/// a process, such as those in TIME_WAIT, are left out.
#[must_use]
pub fn holders(wanted: impl Fn(&Listener) -> bool) -> Vec<Listener> {
    let tcp = [procfs::net::tcp(), procfs::net::tcp6()].into_iter().flatten().flatten();
    let udp = [procfs::net::udp(), procfs::net::udp6()].into_iter().flatten().flatten();
    let socket = |transport, addr: SocketAddr, inode| {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        Listener { transport, addr, inode }
    };
    let tcp = tcp.map(|e| socket(Transport::Tcp, e.local_address, e.inode));
    let udp = udp.map(|e| socket(Transport::Udp, e.local_address, e.inode));
    without_names(tcp.chain(udp).filter(|s| s.inode != 0).filter(wanted).collect())
}

/// The socket that conflicts with publishing `ports` on `host` (`None`: on every address of both families).
#[must_use]
pub fn conflict<'a>(
    listeners: &'a [Listener],
    transport: Transport,
    host: Option<IpAddr>,
    ports: &RangeInclusive<u16>,
) -> Option<&'a Listener> {
    let same_address = |bound: IpAddr| match host {
        None => true,
        Some(host) => {
            // A socket on `::` receives IPv4 too, unless it has IPV6_V6ONLY.
            let any = bound.is_unspecified() && (bound.is_ipv6() || host.is_ipv4());
            any || bound.to_canonical() == host || (host.is_unspecified() && bound.is_ipv4() == host.is_ipv4())
        }
    };
    listeners.iter().find(|l| l.transport == transport && ports.contains(&l.addr.port()) && same_address(l.addr.ip()))
}

/// The process that has the socket with this inode, as `NAME (PID)`, as far as the caller may see it.
#[must_use]
pub fn owner(inode: u64) -> Option<String> {
    let holds = |process: &procfs::process::Process| {
        process.fd().is_ok_and(|fds| {
            fds.flatten().any(|fd| matches!(fd.target, procfs::process::FDTarget::Socket(held) if held == inode))
        })
    };
    let process = procfs::process::all_processes().ok()?.flatten().find(holds)?;
    Some(format!("{} ({})", process.stat().ok()?.comm, process.pid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(addr: &str) -> Listener {
        Listener { transport: Transport::Tcp, addr: addr.parse().expect("address"), inode: 0 }
    }

    #[test]
    fn a_listener_is_in_the_way_where_it_would_take_the_packets() {
        let at = |text: &str| Some(text.parse::<IpAddr>().expect("address"));
        for (bound, host, ports, want) in [
            ("0.0.0.0:80", None, 80..=80, true),
            ("0.0.0.0:80", at("192.0.2.1"), 70..=90, true),
            ("0.0.0.0:80", at("2001:db8::1"), 80..=80, false),
            ("[::]:80", at("192.0.2.1"), 80..=80, true),
            ("127.0.0.1:80", at("192.0.2.1"), 80..=80, false),
            ("127.0.0.1:80", at("0.0.0.0"), 80..=80, true),
            ("192.0.2.1:80", at("192.0.2.1"), 81..=90, false),
        ] {
            let all = [listener(bound)];
            assert_eq!(conflict(&all, Transport::Tcp, host, &ports).is_some(), want, "{bound} {host:?} {ports:?}");
            assert!(conflict(&all, Transport::Udp, host, &ports).is_none());
        }
    }
}
