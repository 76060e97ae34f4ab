//! Containers whose links are netkit pairs.

use super::forwarding::talks;
use super::kinds;
use crate::icmp;
use crate::lab::{self, Lab, call};
use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, TryStreamExt};
use harness::Namespace;
use harness::forger::{Forger, Victims};
use nix::sys::signal::Signal;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoNetkit, LinkAttribute, LinkInfo, LinkMessage, NetkitMode, NetkitPolicy, NetkitScrub,
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkNetkit};
use serde_json::json;

/// A pool that is given netkit links: containers that run keep their veth links, those that start get netkit ones, and
/// both reach each other. On a kernel without netkit no container is attached to it, with the reason; the pool's containers
/// go on.
pub fn chosen(lab: &mut Lab) -> Result<()> {
    let mut config = lab::config();
    config["network"]["pools"]["internal"]["link"] = json!("netkit");
    let before = counts(lab)?;
    lab.reload(&config)?;
    let done = if kinds::has("netkit")? { both_kinds(lab) } else { refused(lab) };
    lab.reload(&lab::config())?;
    done?;
    let said = lab.get("/status")?["conditions"].to_string();
    ensure!(!said.contains("netkit"), "a condition is left: {said}");
    ensure!(counts(lab)? == before, "{:?} instead of {before:?}", counts(lab)?);
    Ok(())
}

/// How many links the device has, and how many leases.
fn counts(lab: &Lab) -> Result<(usize, usize)> {
    let links = lab.device.ns.run(|| Ok(nix::net::if_::if_nameindex()?.iter().count()))?;
    Ok((links, lab.get("/leases")?.as_array().context("leases")?.len()))
}

/// The kind of the container's link, as the daemon says, and as the kernel does.
fn kind_of(lab: &Lab, container: &str) -> Result<String> {
    let view = lab.get(&format!("/containers/{container}"))?;
    let said = view["interfaces"][0]["link"].as_str().with_context(|| format!("no link: {view}"))?;
    let host_if = view["interfaces"][0]["host_if"].as_str().context("no host_if")?;
    let is_netkit = netkit_data(&message_of(&lab.device.ns, host_if)?).is_some();
    ensure!(is_netkit == (said == "netkit"), "{container}: {said:?} is said");
    Ok(said.to_owned())
}

fn both_kinds(lab: &Lab) -> Result<()> {
    let said = lab.get("/status")?["conditions"].to_string();
    ensure!(!said.contains("netkit"), "{said}");
    let new = lab::attach(&lab.device, "new", "internal")?;
    ensure!(kind_of(lab, "a")? == "veth" && kind_of(lab, "new")? == "netkit", "{}", lab.get("/containers")?);
    talks(&lab.a, &new, 7650)?;
    talks(&new, &lab.a, 7651)?;
    // What runs keeps its link, whichever it is.
    lab.reload(&lab::config())?;
    ensure!(kind_of(lab, "new")? == "netkit", "{}", lab.get("/containers")?);
    talks(&lab.a, &new, 7652)?;
    lab.device.cli(&["detach", "new"]).ok()?;
    Ok(())
}

fn refused(lab: &Lab) -> Result<()> {
    let said = lab.get("/status")?["conditions"].to_string();
    ensure!(said.contains("pool internal: link: this kernel has no netkit links"), "{said}");
    let Err(why) = lab::attach(&lab.device, "new", "internal") else { bail!("attached without netkit") };
    let why = format!("{why:#}");
    ensure!(why.contains("this kernel has no netkit links") && why.contains("CONFIG_NETKIT"), "{why}");
    ensure!(kind_of(lab, "a")? == "veth", "{}", lab.get("/containers")?);
    talks(&lab.a, &lab.b, 7650)
}

/// All containers have netkit links, as pv-net wants them: in mode L2, with the primary end on the device, letting packets
/// pass, and taking marks off them.
pub fn links(lab: &mut Lab) -> Result<()> {
    for pool in lab.get("/pools")?.as_array().context("pools")? {
        ensure!(pool["link"] == "netkit", "{pool}");
    }
    let all = lab.get("/containers")?;
    let interfaces = all.as_array().context("containers")?.iter().map(|c| &c["interfaces"][0]);
    let names: Vec<&str> = interfaces.filter_map(|i| i["host_if"].as_str()).collect();
    ensure!(names.len() == 6, "{all}");
    for name in names {
        let message = message_of(&lab.device.ns, name)?;
        let data = netkit_data(&message).with_context(|| format!("{name}: {message:?}"))?;
        for wanted in [
            InfoNetkit::Primary(true),
            InfoNetkit::Mode(NetkitMode::L2),
            InfoNetkit::Policy(NetkitPolicy::Pass),
            InfoNetkit::PeerPolicy(NetkitPolicy::Pass),
        ] {
            ensure!(data.contains(&wanted), "{name}: no {wanted:?} in {data:?}");
        }
        // Kernels before 6.13 always take them off.
        let keeps = [InfoNetkit::Scrub(NetkitScrub::None), InfoNetkit::PeerScrub(NetkitScrub::None)];
        ensure!(!keeps.iter().any(|keep| data.contains(keep)), "{name}: {data:?}");
    }
    Ok(())
}

fn netkit_data(message: &LinkMessage) -> Option<&Vec<InfoNetkit>> {
    let parts =
        message.attributes.iter().find_map(|a| if let LinkAttribute::LinkInfo(i) = a { Some(i) } else { None })?;
    parts.iter().find_map(|part| if let LinkInfo::Data(InfoData::Netkit(data)) = part { Some(data) } else { None })
}

fn message_of(ns: &Namespace, link: &str) -> Result<LinkMessage> {
    let ask = async |handle: Handle| {
        handle.link().get().match_name(link.to_owned()).execute().try_next().await?.context("no answer")
    };
    lab::netlink(ns, ask).with_context(|| link.to_owned())
}

/// A container cannot change the pair by its end, with all rights that root has in its namespace. The device can by its
/// own.
pub fn own_end(lab: &mut Lab) -> Result<()> {
    let view = lab.get("/containers/a")?;
    let host_if = view["interfaces"][0]["host_if"].as_str().context("host_if")?;
    let ours = changed(&lab.device.ns, host_if, InfoNetkit::Policy(NetkitPolicy::Pass))?;
    ensure!(ours == 0, "the device's end: errno {ours}");
    for change in [
        InfoNetkit::Policy(NetkitPolicy::Drop),
        InfoNetkit::PeerPolicy(NetkitPolicy::Drop),
        InfoNetkit::Policy(NetkitPolicy::Pass),
    ] {
        let errno = changed(&lab.a.ns, "eth0", change.clone())?;
        ensure!(errno == libc::EACCES, "the container's end, {change:?}: errno {errno}");
    }
    links(lab)?;
    talks(&lab.a, &lab.b, 7660)
}

/// Asks the kernel to change a setting of a pair by this end, and gives the errno of its answer. A message to set a link
/// (`RTM_SETLINK`) ignores what is special to its kind.
fn changed(ns: &Namespace, link: &str, change: InfoNetkit) -> Result<i32> {
    let mut change = LinkMessageBuilder::<LinkNetkit>::new_with_info_kind(InfoKind::Netkit)
        .set_info_data(InfoData::Netkit(vec![change]))
        .build();
    change.header.index = message_of(ns, link)?.header.index;
    lab::netlink(ns, async |mut handle| {
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewLink(change.clone()));
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        // The acknowledgement of a change that was made is not passed on.
        match handle.request(message)?.next().await.map(|answer| answer.payload) {
            None => Ok(0),
            Some(NetlinkPayload::Error(answer)) => Ok(answer.raw_code().abs()),
            Some(other) => bail!("{other:?}"),
        }
    })
}

/// The daemon is killed before writes of an attach, while the new container forges. Nothing of that arrives, and the next
/// daemon attaches it or makes it whole.
pub fn killed_in_an_attach(lab: &mut Lab) -> Result<()> {
    let before = counts(lab)?;
    let ns = Namespace::new("k")?;
    let victims = Victims::listen(&lab.device, &[], &[&lab.b.ns])?;
    let forger = Forger::start(vec![lab.a.ns.path(), ns.path()], lab.b.mac()?)?;
    let body = json!({"pool": "internal", "netns": ns.path()}).to_string();
    let mut deaths = 0;
    // Two starts take ten seconds in an emulated machine, so only some writes are tried.
    for point in (1..).step_by(10) {
        lab.device.stop(Signal::SIGKILL)?;
        ensure!(lab.device.start_to_die(&format!("attach:{point}"))?, "died at its start");
        let answer = call(&lab.device, "PUT", "/containers/k", &body);
        let has_died = lab.device.has_died()?;
        if has_died {
            ensure!(answer.is_err(), "{point}: answered, and dead");
            deaths += 1;
            lab.device.start()?;
        }
        call(&lab.device, "PUT", "/containers/k", &body).with_context(|| format!("after {point}"))?;
        ensure!(kind_of(lab, "k")? == "netkit", "{point}");
        for address in lab.b.addresses() {
            icmp::ping(&ns, address, 2).with_context(|| format!("after {point}"))?;
        }
        lab.device.cli(&["detach", "k"]).ok()?;
        ensure!(counts(lab)? == before, "{point}: {:?} instead of {before:?}", counts(lab)?);
        if !has_died {
            break;
        }
    }
    ensure!(deaths > 2, "only {deaths} deaths");
    forger.has_sent(100)?;
    drop(forger);
    victims.heard_nothing()
}
