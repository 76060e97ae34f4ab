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
    need("dnsmasq", "dnsmasq-base", "a server for names and addresses; the peer in benchmarks"),
    need("unbound", "unbound", "the peer in benchmarks"),
    need("/usr/lib/podman/aardvark-dns", "aardvark-dns", "the peer in benchmarks"),
    need("/usr/lib/podman/netavark", "netavark", "the peer in benchmarks"),
    need("/usr/lib/cni/bridge", "containernetworking-plugins", "the peer in benchmarks"),
    need("musl-gcc", "musl-tools", "names by another C library"),
    need("rdisc6", "ndisc6", "what routers advertise"),
    need("dhcpcd", "dhcpcd-base", "addresses by router advertisements and by DHCP"),
    need("dhclient", "isc-dhcp-client", "addresses by DHCP and DHCPv6"),
    need("kea-dhcp4", "kea-dhcp4-server", "a DHCP server; the peer in benchmarks"),
    need("kea-dhcp6", "kea-dhcp6-server", "a DHCPv6 server; the peer in benchmarks"),
    need("traceroute", "traceroute", "ICMP errors through NAT"),
    need("lxc-start", "lxc", "containers of LXC"),
    need("runc", "runc", "containers by OCI bundles"),
    need("crun", "crun", "the same by another runtime"),
    need("podman", "podman", "containers by podman and its hooks"),
    need("containerd", "containerd", "containers by containerd"),
    need("mksquashfs", "squashfs-tools", "the example container of Pantavisor"),
    need("conmon", "conmon", "what podman starts containers with"),
    need("mmdebstrap", "mmdebstrap", "unpacks WasmEdge"),
    need("python3", "python3", "what wasmtime's library is called by"),
    need(
        "/lib/systemd/systemd-networkd",
        "systemd",
        "a manager of links that leaves pv-net's alone; addresses by DHCP and DHCPv6",
    ),
];

/// A program that is unpacked beside what is built, in a directory of its own, and not installed.
pub struct Unpacked {
    /// The directory's name.
    pub name: &'static str,
    /// A file in that directory.
    pub program: &'static str,
    /// What uses it, and why it is not installed.
    pub why: &'static str,
    /// The shell's commands that fill the directory, in which they run. `$MIRROR` is Debian's mirror.
    pub script: &'static str,
}

/// Every program that is unpacked.
pub const UNPACKED: &[Unpacked] = &[
    Unpacked {
        name: "systemd-resolved",
        program: "lib/systemd/systemd-resolved",
        why: "a resolver of containers and of the device; its package replaces /etc/resolv.conf",
        script: "apt-get download -qq systemd-resolved && dpkg-deb -x systemd-resolved_*.deb . && rm systemd-resolved_*.deb",
    },
    Unpacked {
        name: "wasmedge",
        program: "bin/wasmedge",
        why: "containers of WebAssembly with WasmEdge's sockets; of Debian 13, with the libraries of that",
        script: "mmdebstrap --quiet --variant=extract --include=base-files,wasmedge trixie root \
                 \"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $MIRROR trixie main\" && \
                 mkdir bin && mv root/usr/lib/*-linux-gnu lib && mv root/usr/bin/wasmedge bin/ && rm -rf root",
    },
    Unpacked {
        name: "wasmtime",
        program: "wasmtime/__init__.py",
        why: "containers of WebAssembly with wasi:sockets; later wheels grant no sockets, and the command takes minutes to build",
        script: "python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
                 --only-binary=:all: --target . wasmtime==45.0.0",
    },
];

/// Where each of them is unpacked, in a directory with its name.
pub const UNPACKED_AT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/unpacked");

/// Packages that bring services which nobody has asked for. Tests start the programs by themselves.
pub const SERVICES: &[(&str, &[&str])] = &[
    ("unbound", &["unbound.service"]),
    ("kea-dhcp4-server", &["kea-dhcp4-server.service"]),
    ("kea-dhcp6-server", &["kea-dhcp6-server.service"]),
    ("lxc", &["lxc.service", "lxc-net.service"]),
    ("containerd", &["containerd.service"]),
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
