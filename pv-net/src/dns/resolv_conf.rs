//! `resolv.conf` (resolv.conf(5)): reads the servers in the device's file, and writes the text of a container's. Pure.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Addresses of systemd-resolved itself. The servers that it asks are in [`RESOLVED`].
const STUBS: [IpAddr; 2] =
    [IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 54))];
/// Where systemd-resolved writes the servers that it asks.
pub const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
/// Most servers that are read; glibc uses three.
const MOST: usize = 8;
/// How many servers glibc and musl use.
const MOST_OF_CONTAINER: usize = 3;

/// The servers that a `resolv.conf` names. `index` returns the index of a link by its name, which follows a link-local
/// address behind a `%`.
#[must_use]
pub fn servers(text: &str, index: impl Fn(&str) -> Option<u32>) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    let mut found = Vec::new();
    for server in named.filter_map(|word| server(word, &index)) {
        if !found.contains(&server) && found.len() < MOST {
            found.push(server);
        }
    }
    found
}

fn server(word: &str, index: &impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    if let Some((addr, link)) = word.split_once('%') {
        let scope = link.parse().ok().or_else(|| index(link))?;
        return Some(SocketAddrV6::new(addr.parse::<Ipv6Addr>().ok()?, super::PORT, 0, scope).into());
    }
    Some(SocketAddr::new(word.parse().ok()?, super::PORT))
}

/// Whether these are systemd-resolved itself, on its loopback addresses.
#[must_use]
pub fn is_stub(servers: &[SocketAddr]) -> bool {
    !servers.is_empty() && servers.iter().all(|s| STUBS.contains(&s.ip()))
}

/// The text of the `resolv.conf` of a container that asks `servers`, and looks for names in `domains`.
#[must_use]
pub fn of_container(name: &str, domains: &[&str], servers: &[IpAddr]) -> String {
    let mut text = format!("# Made by pv-net for container {name}.\n");
    if !domains.is_empty() {
        let _ = writeln!(text, "search {}", domains.join(" "));
    }
    for server in servers.iter().take(MOST_OF_CONTAINER) {
        let _ = writeln!(text, "nameserver {server}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_libc_reads_them() {
        let index = |name: &str| (name == "eth0").then_some(7);
        let text = "# nameserver 192.0.2.1\nnameserver 192.0.2.2 # one\n\tnameserver\t2001:db8::1\nnameserver\n\
            nameserver nonsense\nnameserver 192.0.2.2\nnameserver fe80::1%eth0\nnameserver fe80::1%nope\n\
            nameservers 192.0.2.9\nsearch example\noptions edns0";
        let got: Vec<_> = servers(text, index).iter().map(ToString::to_string).collect();
        assert_eq!(got, ["192.0.2.2:53", "[2001:db8::1]:53", "[fe80::1%7]:53"]);
        let many: String = (0..20).map(|n| format!("nameserver 192.0.2.{n}\n")).collect();
        assert_eq!(servers(&many, index).len(), MOST);
    }

    #[test]
    fn a_stub_is_not_a_server() {
        for (text, want) in [
            ("nameserver 127.0.0.53", true),
            ("nameserver 127.0.0.53\nnameserver 192.0.2.1", false),
            ("nameserver 127.0.0.1", false),
            ("", false),
        ] {
            assert_eq!(is_stub(&servers(text, |_| None)), want, "{text}");
        }
    }

    #[test]
    fn a_container_gets_what_its_libc_reads() {
        let all = ["10.0.3.1", "fd00::1", "10.0.4.1", "fd00:4::1"].map(|a| a.parse().expect("address"));
        assert_eq!(
            of_container("web", &["pv.local"], &all),
            "# Made by pv-net for container web.\nsearch pv.local\nnameserver 10.0.3.1\nnameserver fd00::1\n\
             nameserver 10.0.4.1\n"
        );
    }
}
