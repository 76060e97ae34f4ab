//! The daemon is started, killed, stopped, replaced by another build, and taken down.

use super::forwarding::talks;
use crate::lab::{self, Lab, UPLINK, kernel};
use crate::{icmp, programs};
use anyhow::{Context, Result, ensure};
use harness::forger::{Forger, Victims};
use harness::{Container, Namespace, echo};
use nix::sys::signal::Signal;
use pv_net_common::names;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

/// Containers of the lab.
const CONTAINERS: usize = 6;
/// Pools of the lab, each with a bridge.
const POOLS: usize = 4;

/// Every program is loaded, except those of a filter and of the policy probe, which are loaded when needed. Reports how
/// many instructions the verifier has processed.
pub fn programs(_: &mut Lab) -> Result<()> {
    let hooks = if has_cookies()? { names::PROG_SOCK.as_slice() } else { &[] };
    programs::are_loaded(programs::always().chain(hooks.iter().copied()))?;
    programs::tell()
}

/// Whether the kernel tells cgroup programs the namespace of a socket (SO_NETNS_COOKIE); without that none is attached.
fn has_cookies() -> Result<bool> {
    Ok(kernel()? >= (5, 14))
}

/// Programs are attached by tcx links where the kernel has them (6.6), elsewhere by filters of clsact.
pub fn hook(lab: &mut Lab) -> Result<()> {
    let has_tcx = kernel()? >= (6, 6);
    let want = if has_tcx { "tcx" } else { "clsact" };
    let status = lab.get("/status")?;
    ensure!(status["hook"] == want, "{} instead of {want}", status["hook"]);
    let has_cookies = has_cookies()?;
    for (folder, count, there) in [
        (names::PROG_FROM_CONTAINER, CONTAINERS, has_tcx),
        (names::PROG_TO_CONTAINER, CONTAINERS, has_tcx),
        (names::PROG_FROM_UPLINK, 1, has_tcx),
        (names::PROG_FROM_BRIDGE, POOLS, has_tcx),
        ("sockets", names::PROG_SOCK.len(), has_cookies),
    ] {
        let pinned = std::fs::read_dir(lab.device.pins().join("links").join(folder)).context(folder)?.count();
        ensure!(pinned == if there { count } else { 0 }, "{pinned} links of {folder} are pinned");
    }
    let conditions = status["conditions"].as_array().context("conditions")?;
    // There is a condition for what the kernel lacks, and no other one.
    let about_cookies = |c: &serde_json::Value| c.as_str().is_some_and(|c| c.contains("SO_NETNS_COOKIE"));
    ensure!(conditions.len() == usize::from(!has_cookies) && conditions.iter().all(about_cookies), "{conditions:?}");
    let filters = clsact_links(lab)?;
    ensure!(filters == if has_tcx { 0 } else { CONTAINERS + POOLS + 1 }, "{filters} links have clsact");
    Ok(())
}

/// How many links of the device have the clsact qdisc.
fn clsact_links(lab: &Lab) -> Result<usize> {
    Ok(lab::qdiscs(&lab.device.ns)?.iter().filter(|line| line.ends_with(": clsact")).count())
}

/// A TCP connection of `a` to an echo of `b`.
fn connection(a: &Container, b: &Container, port: u16) -> Result<TcpStream> {
    echo::serve(&b.ns, b.v6.into(), port)?;
    greeted(&a.ns, SocketAddr::new(b.v6.into(), port))
}

/// A TCP connection out of `from` to the echo at `server`, whose first line is read.
pub fn greeted(from: &Namespace, server: SocketAddr) -> Result<TcpStream> {
    let mut stream = echo::connect(from, server)?;
    let mut byte = [0u8];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).context("the server's first line")?;
    }
    exchange(&mut stream, b"before")?;
    Ok(stream)
}

/// Sends a word and expects it back.
pub fn exchange(stream: &mut TcpStream, word: &[u8]) -> Result<()> {
    stream.write_all(word)?;
    let mut echoed = vec![0u8; word.len()];
    stream.read_exact(&mut echoed).context("the echo")?;
    ensure!(echoed == word, "{echoed:?} came back for {word:?}");
    Ok(())
}

/// Ends the daemon by `signal` and starts it again; connections go on all the time.
fn gone_and_back(lab: &mut Lab, signal: Signal, port: u16, meanwhile: fn(&Path) -> Result<bool>) -> Result<()> {
    let leases = lab.get("/leases")?;
    let mut stream = connection(&lab.a, &lab.b, port)?;
    lab.device.stop(signal)?;
    exchange(&mut stream, b"without a daemon")?;
    // New flows work too, since the data plane is in the kernel.
    talks(&lab.d, &lab.e, port + 1)?;
    let same_programs = meanwhile(&lab.device.pins().join("programs"))?;
    lab.device.start()?;
    exchange(&mut stream, b"with a new one")?;
    let adopted = &lab.get("/status")?["adopted"];
    ensure!(adopted["maps"] == true && adopted["containers"] == CONTAINERS, "adopted {adopted}");
    ensure!(adopted["programs"] == same_programs, "adopted {adopted}");
    // clsact filters are not taken over; each is replaced in one step.
    let links = if kernel()? >= (6, 6) { CONTAINERS } else { 0 };
    ensure!(adopted["links"] == links, "adopted {adopted}");
    ensure!(lab.get("/leases")? == leases, "the leases changed");
    talks(&lab.a, &lab.b, port + 2)
}

/// The daemon is killed (SIGKILL).
pub fn killed(lab: &mut Lab) -> Result<()> {
    gone_and_back(lab, Signal::SIGKILL, 7100, |_| Ok(true))
}

/// The daemon is stopped (SIGTERM).
pub fn stopped(lab: &mut Lab) -> Result<()> {
    gone_and_back(lab, Signal::SIGTERM, 7110, |_| Ok(true))
}

/// A daemon of another build loads its own programs and replaces the old ones by them.
pub fn replaced(lab: &mut Lab) -> Result<()> {
    gone_and_back(lab, Signal::SIGKILL, 7120, |programs| {
        let one = fs::read_dir(programs)?.next().context("no programs are pinned")??;
        fs::rename(one.path(), programs.join("0123456789abcdef"))?;
        Ok(false)
    })
}

/// A daemon with another map layout makes new maps beside the old ones, and switches to them. Forged frames that arrive
/// meanwhile reach nobody, with clsact filters too.
pub fn other_layout(lab: &mut Lab) -> Result<()> {
    let victims = Victims::listen(&lab.device, &[], &[&lab.b.ns])?;
    let forger = Forger::start(vec![lab.a.ns.path()], lab.b.mac()?)?;
    gone_and_back(lab, Signal::SIGKILL, 7130, |programs| {
        for map in [names::MAP_INTERFACES, names::MAP_UPLINKS, names::MAP_PORT_MAP] {
            fs::remove_file(programs.with_file_name("maps").join(map))?;
        }
        Ok(false)
    })?;
    forger.has_sent(0)?;
    drop(forger);
    victims.heard_nothing()
}

/// One container is detached, another one attached.
pub fn detach(lab: &mut Lab) -> Result<()> {
    lab.device.cli(&["detach", "b"]).ok()?;
    let links = lab.device.ns.run(|| Ok(nix::net::if_::if_nameindex()?.iter().count()))?;
    // `lo`, the uplink, four bridges, five containers.
    ensure!(links == 5 + CONTAINERS, "{links} links after a container was detached");
    icmp::silent(&lab.a.ns, lab.b.v4.into()).context("after it was detached")?;
    lab.b = lab::attach(&lab.device, "b", "internal")?;
    talks(&lab.a, &lab.b, 7200)
}

/// `down` leaves the namespace as it was before pv-net: only `lo`, and an uplink without programs; and no pins.
pub fn down(lab: &mut Lab) -> Result<()> {
    lab.device.down()?;
    let links = lab.device.ns.run(|| {
        let links = nix::net::if_::if_nameindex()?;
        Ok(links.iter().map(|l| l.name().to_string_lossy().into_owned()).collect::<Vec<_>>())
    })?;
    ensure!(links == ["lo", UPLINK], "left behind: {links:?}");
    let qdiscs = lab::qdiscs(&lab.device.ns)?;
    ensure!(qdiscs == lab.qdiscs, "{qdiscs:?} instead of {:?}", lab.qdiscs);
    ensure!(!lab.device.pins().exists(), "pins are left");
    let inside = lab.a.ns.run(|| Ok(nix::net::if_::if_nameindex()?.iter().count()))?;
    ensure!(inside == 1, "{inside} links are left in a container");
    let left = harness::eventually(std::time::Duration::from_secs(3), || {
        // The kernel frees programs some time after their links.
        let left = programs::instructions();
        ensure!(left.is_err(), "programs are left: {left:?}");
        Ok(())
    });
    left.context("after `down`")
}
