//! What the kernel offers, for `pv-net doctor`.

use aya::util::KernelVersion;
use std::path::Path;

/// A kernel feature that pv-net uses.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Probe {
    /// Its name.
    pub name: &'static str,
    /// Whether it is there.
    pub ok: bool,
    /// Whether pv-net cannot run without it.
    pub required: bool,
    /// What does not work without it.
    pub lost: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

fn at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().is_ok_and(|v| v >= KernelVersion::new(major, minor, 0))
}

fn reads(path: &str, want: &str) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.trim() == want)
}

/// Tests for every feature; changes nothing.
#[must_use]
pub fn probe() -> Vec<Probe> {
    vec![
        Probe {
            name: "kernel 5.10 or later",
            ok: at_least(5, 10),
            required: true,
            lost: "bpf_redirect_peer: forwarding into a container",
            remedy: "use a kernel of 5.10 or later",
        },
        Probe {
            name: "BTF of the kernel",
            ok: Path::new("/sys/kernel/btf/vmlinux").exists(),
            required: false,
            lost: "names of fields in bpftool",
            remedy: "build the kernel with CONFIG_DEBUG_INFO_BTF=y",
        },
        Probe {
            name: "tcx links",
            ok: at_least(6, 6),
            required: false,
            lost: "pinned links; programs are attached as clsact filters instead",
            remedy: "nothing to do; kernel 6.6 or later has them",
        },
        Probe {
            name: "BIG TCP for IPv6",
            ok: at_least(5, 19),
            required: false,
            lost: "TCP segments above 64 KiB: more CPU for each byte between containers",
            remedy: "nothing to do; kernel 5.19 or later has it",
        },
        Probe {
            name: "BIG TCP for IPv4",
            ok: at_least(6, 3),
            required: false,
            lost: "TCP segments above 64 KiB: more CPU for each byte between containers",
            remedy: "nothing to do; kernel 6.3 or later has it",
        },
        Probe {
            name: "BPF JIT",
            ok: !reads("/proc/sys/net/core/bpf_jit_enable", "0"),
            required: false,
            lost: "several times the CPU for each packet",
            remedy: "sysctl net.core.bpf_jit_enable=1",
        },
        Probe {
            name: "IPv6",
            ok: Path::new("/proc/sys/net/ipv6").exists(),
            required: false,
            lost: "IPv6 in pools",
            remedy: "boot without ipv6.disable=1, or leave subnet6 out of the pools",
        },
    ]
}
