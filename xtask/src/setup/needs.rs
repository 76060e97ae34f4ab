//! The programs that the tests, the demo and the benchmarks run, and the Debian packages that have them.

/// Where Debian puts the LLVM that bpf-linker is built with.
pub const LLVM: &str = "/usr/lib/llvm-22/bin";

/// A program, its Debian package, and what it is for.
pub struct Need {
    /// The program's name in PATH.
    pub program: &'static str,
    /// The Debian package that has it.
    pub package: &'static str,
    /// What uses it.
    pub why: &'static str,
}

const fn need(program: &'static str, package: &'static str, why: &'static str) -> Need {
    Need { program, package, why }
}

/// Every program that a test, the demo or a benchmark starts.
pub const PROGRAMS: &[Need] = &[
    need("ip", "iproute2", "tests look at links, addresses and routes"),
    need("nsenter", "util-linux", "programs run in the tests' namespaces"),
    need("ping", "iputils-ping", "reachability over both families"),
    need("arping", "iputils-arping", "ARP behaviour"),
    need("iperf3", "iperf3", "TCP and UDP streams"),
    need("tcpdump", "tcpdump", "what is on the wire"),
    need("ethtool", "ethtool", "offloads on and off"),
    need("bpftool", "bpftool", "what is loaded and attached, seen from outside"),
    need("nft", "nftables", "other people's firewall rules; the peer in benchmarks"),
    need("iptables", "iptables", "the peer in benchmarks"),
    need("busybox", "busybox-static", "small clients and servers"),
    need("socat", "socat", "TCP and UDP clients and servers"),
    need("traceroute", "traceroute", "ICMP errors through NAT"),
];
