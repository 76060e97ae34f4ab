//! The programs that tests, demo and benchmarks run, and the Debian packages that contain them.

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
    need("dig", "bind9-dnsutils", "names over both families, UDP and TCP"),
    need("drill", "ldnsutils", "the same by another library"),
    need("musl-gcc", "musl-tools", "the same by another C library"),
    need("rdisc6", "ndisc6", "what routers advertise"),
    need("dhcpcd", "dhcpcd-base", "addresses by router advertisements and by DHCP"),
    need("dhclient", "isc-dhcp-client", "addresses by DHCP and DHCPv6"),
    need("traceroute", "traceroute", "ICMP errors through NAT"),
    need("/lib/systemd/systemd-networkd", "systemd", "a manager of links that leaves pv-net's alone"),
];

/// What `cargo xtask vm` starts.
pub const VM: &[Need] = &[
    need("qemu-system-x86_64", "qemu-system-x86", "machines with the kernels of distributions"),
    need("depmod", "kmod", "what the modules of a fetched kernel need"),
    need("xz", "xz-utils", "modules that are packed"),
    need("ip", "iproute2", "the wire between a machine's network cards"),
];

/// Needed in addition for `cargo xtask vm --arch aarch64` (a name with a slash is a file); installed only when that is
/// requested.
pub const VM_ARM: &[Need] = &[
    need("qemu-system-aarch64", "qemu-system-arm", "machines with an ARM processor"),
    need("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu", "linking for ARM"),
    need("/usr/aarch64-linux-gnu/lib/libc.a", "libc6-dev-arm64-cross", "the C library for ARM"),
];
