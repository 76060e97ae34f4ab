//! `pv-net doctor`: what the device offers, what is missing, what that costs and what to do about it; and which
//! privileges the running daemon has.

use super::privileges::{self, Held};
use super::table;
use crate::daemon::Paths;
use crate::kernel::bpf::{Probe, probe};
use crate::kernel::link::knows_netkit;
use crate::kernel::managers::Manager;
use crate::kernel::netfilter;
use crate::kernel::netlink::{Net, alias};
use crate::plan::kept_by_firewall;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

/// Prints the findings. The exit code is 0 when nothing is missing that pv-net needs.
pub(crate) async fn run(paths: &Paths, json: bool) -> ExitCode {
    let mut probes = vec![Probe {
        name: "root",
        ok: nix::unistd::geteuid().is_root(),
        required: true,
        lost: "everything: links and programs are root's",
        remedy: "run pv-net as root",
    }];
    probes.extend(probe());
    probes.push(bpffs(paths));
    probes.push(Probe {
        name: "cgroup2",
        ok: statfs(&paths.cgroup).is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC),
        required: false,
        lost: "socket hooks: the device does not reach ports that containers publish by its own addresses, and takes ports of theirs",
        remedy: "mount -t cgroup2 none DIR, and name it with --cgroup",
    });
    probes.push(Probe {
        name: "netkit links",
        // Without root nobody can tell, and that is missing anyway.
        ok: knows_netkit().unwrap_or(false),
        required: false,
        lost: "pools with \"link\": \"netkit\"; others have veth links, which do the same",
        remedy: "nothing to do; kernel 6.12 or later with CONFIG_NETKIT has them",
    });
    probes.push(firewall(paths));
    probes.extend(managers(&own_links().await));
    let usable = probes.iter().all(|p| p.ok || !p.required);
    let processes = privileges::held(paths);
    if json {
        println!("{:#}", json!({"usable": usable, "probes": probes, "processes": processes}));
    } else {
        println!("{}", report(&probes, &processes, usable));
    }
    if usable { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether the host's firewall may drop traffic of pools; `pv-net status` names the chains.
fn firewall(paths: &Paths) -> Probe {
    let pools = crate::config::load::device(&paths.config, paths.form()).map(|device| device.pools).unwrap_or_default();
    let bridges: BTreeSet<&str> = pools.values().filter_map(|p| p.bridge()).map(|b| b.as_str()).collect();
    // A firewall that cannot be read counts as none.
    let kept = netfilter::dropping().map(|(chains, rules)| {
        kept_by_firewall(&chains, netfilter::bridged(), &bridges, |chain, bridge| rules.name(chain, bridge))
    });
    Probe {
        name: "the host's firewall knows the pools' bridges",
        ok: !kept.is_ok_and(|kept| !kept.is_empty()),
        required: false,
        lost: "neighbour discovery, DHCP or DNS where a chain drops by policy: `pv-net status` names it",
        remedy: "nft insert rule FAMILY TABLE CHAIN iifname BRIDGE accept; or sysctl net.bridge.bridge-nf-call-iptables=0 \
                 net.bridge.bridge-nf-call-ip6tables=0",
    }
}

/// Whether the programs that manage the device's links leave pv-net's links alone.
fn managers(links: &[u32]) -> [Probe; 2] {
    let probe = |manager: Manager, name, remedy| Probe {
        name,
        ok: manager.leaves_alone(Path::new("/"), links),
        required: false,
        lost: "pv-net's links to itself: another program gives them addresses, routes or settings, or sets them down",
        remedy,
    };
    [
        probe(
            Manager::Networkd,
            "systemd-networkd leaves pv-net's links alone",
            "install packaging/networkd/05-pv-net.network in /etc/systemd/network, with bridges that are not called pv*, and \
             run networkctl reload",
        ),
        probe(
            Manager::NetworkManager,
            "NetworkManager leaves pv-net's links alone",
            "install packaging/NetworkManager/pv-net.conf in /etc/NetworkManager/conf.d, with bridges that are not called \
             pv*, and run nmcli general reload",
        ),
    ]
}

/// Indexes of pv-net's links, as far as they can be listed.
async fn own_links() -> Vec<u32> {
    let links = async { Net::here()?.links().await }.await.unwrap_or_default();
    links.iter().filter(|l| alias::is_ours(l.alias.as_deref())).map(|l| l.index).collect()
}

fn bpffs(paths: &Paths) -> Probe {
    let existing = paths.bpffs.ancestors().find(|p| p.exists());
    Probe {
        name: "BPF file system",
        ok: existing.is_some_and(|p| statfs(p).is_ok_and(|s| s.filesystem_type() == BPF_FS_MAGIC)),
        required: true,
        lost: "everything: programs and maps are pinned there",
        remedy: "mount -t bpf bpf /sys/fs/bpf, or name a directory on one with --bpffs",
    }
}

fn report(probes: &[Probe], processes: &[Held], usable: bool) -> String {
    let mut lines = Vec::new();
    for p in probes {
        let mark = match (p.ok, p.required) {
            (true, _) => "ok      ",
            (false, true) => "MISSING ",
            (false, false) => "missing ",
        };
        lines.push(format!("{mark}{}", p.name));
        if !p.ok {
            lines.push(format!("        lost: {}", p.lost));
            lines.push(format!("        help: {}", p.remedy));
        }
    }
    lines.extend(processes.iter().map(|held| format!("holds   {}", held.line())));
    if processes.is_empty() {
        lines.push("no daemon runs here that could be asked what it holds".to_owned());
    }
    let missing = probes.iter().filter(|p| !p.ok).count();
    let end = if usable { "pv-net can run here" } else { "pv-net cannot run here" };
    lines.push(format!("{end}; {} missing", table::count(missing, "thing")));
    lines.join("\n")
}
