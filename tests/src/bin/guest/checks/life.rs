//! The daemon's life: loading, being killed, being stopped, going for good.

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
/// Its pools, each with a bridge.
const POOLS: usize = 4;

/// Every program is loaded, but for those of a filter and of the policy's probe, that are loaded later; how many
/// instructions the verifier went through.
pub fn programs(_: &mut Lab) -> Result<()> {
    let hooks = if has_cookies()? { names::PROG_SOCK.as_slice() } else { &[] };
    programs::are_loaded(programs::always().chain(hooks.iter().copied()))?;
    programs::tell()
}

/// Whether the kernel tells programs on a cgroup which namespace a socket is in: without it none are attached.
fn has_cookies() -> Result<bool> {
    Ok(kernel()? >= (5, 14))
}

/// Links of tcx where the kernel has them (6.6), filters of clsact elsewhere.
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
    // What the kernel lacks is said, and nothing else.
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

/// Says a word and hears the same.
pub fn exchange(stream: &mut TcpStream, word: &[u8]) -> Result<()> {
    stream.write_all(word)?;
    let mut echoed = vec![0u8; word.len()];
    stream.read_exact(&mut echoed).context("the echo")?;
    ensure!(echoed == word, "{echoed:?} came back for {word:?}");
    Ok(())
}

/// The daemon goes by `signal` and comes again; nothing that passes notices.
fn gone_and_back(lab: &mut Lab, signal: Signal, port: u16, meanwhile: fn(&Path) -> Result<bool>) -> Result<()> {
    let leases = lab.get("/leases")?;
    let mut stream = connection(&lab.a, &lab.b, port)?;
    lab.device.stop(signal)?;
    exchange(&mut stream, b"without a daemon")?;
    // New flows too: all that decides is in the kernel.
    talks(&lab.d, &lab.e, port + 1)?;
    let same_programs = meanwhile(&lab.device.pins().join("programs"))?;
    lab.device.start()?;
    exchange(&mut stream, b"with a new one")?;
    let adopted = &lab.get("/status")?["adopted"];
    ensure!(adopted["maps"] == true && adopted["containers"] == CONTAINERS, "adopted {adopted}");
    ensure!(adopted["programs"] == same_programs, "adopted {adopted}");
    // Filters of clsact are not adopted but replaced, in place.
    let links = if kernel()? >= (6, 6) { CONTAINERS } else { 0 };
    ensure!(adopted["links"] == links, "adopted {adopted}");
    ensure!(lab.get("/leases")? == leases, "the leases changed");
    talks(&lab.a, &lab.b, port + 2)
}

/// SIGKILL.
pub fn killed(lab: &mut Lab) -> Result<()> {
    gone_and_back(lab, Signal::SIGKILL, 7100, |_| Ok(true))
}

/// SIGTERM.
pub fn stopped(lab: &mut Lab) -> Result<()> {
    gone_and_back(lab, Signal::SIGTERM, 7110, |_| Ok(true))
}

/// A daemon of another build: it loads its programs beside those of the one before, and puts them in their place.
pub fn replaced(lab: &mut Lab) -> Result<()> {
    gone_and_back(lab, Signal::SIGKILL, 7120, |programs| {
        let one = fs::read_dir(programs)?.next().context("no programs are pinned")??;
        fs::rename(one.path(), programs.join("0123456789abcdef"))?;
        Ok(false)
    })
}

/// A daemon of another layout: it makes a set of maps beside the one in force, and puts that in its place. Who forges
/// meanwhile reaches nobody, with filters of clsact too.
pub fn other_layout(lab: &mut Lab) -> Result<()> {
    let victims = Victims::listen(&lab.device, &[], &[&lab.b.ns])?;
    let forger = Forger::start(vec![lab.a.ns.path()], lab.b.mac()?)?;
    gone_and_back(lab, Signal::SIGKILL, 7130, |programs| {
        for map in [names::MAP_INTERFACES, names::MAP_UPLINKS, names::MAP_PORT_MAP] {
            fs::remove_file(programs.with_file_name("maps").join(map))?;
        }
        Ok(false)
    })?;
    ensure!(forger.sent() > 0, "nothing was forged");
    drop(forger);
    victims.heard_nothing()
}

/// A container that goes and one that comes.
pub fn detach(lab: &mut Lab) -> Result<()> {
    lab.device.cli(&["detach", "b"]).ok()?;
    let links = lab.device.ns.run(|| Ok(nix::net::if_::if_nameindex()?.iter().count()))?;
    // `lo`, the uplink, four bridges, five containers.
    ensure!(links == 5 + CONTAINERS, "{links} links after a container was detached");
    icmp::silent(&lab.a.ns, lab.b.v4.into()).context("after it was detached")?;
    lab.b = lab::attach(&lab.device, "b", "internal")?;
    talks(&lab.a, &lab.b, 7200)
}

/// `down` leaves the namespace as it was found: `lo`, an uplink with nothing on it, and no pin.
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
        // Programs go once the kernel has let go of their links.
        let left = programs::instructions();
        ensure!(left.is_err(), "programs are left: {left:?}");
        Ok(())
    });
    left.context("after `down`")
}
