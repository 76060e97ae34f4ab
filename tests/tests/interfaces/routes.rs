//! Where packets of a container with several interfaces go.

use super::*;
use harness::configs::open_pools;

/// The hosts' own addresses.
const OUTSIDE: [&str; 2] = ["192.0.2.9", "2001:db8:1::9"];

#[test]
fn each_port_leads_to_its_interface_and_replies_come_back_by_it() -> Result<()> {
    let lab = lab()?;
    serve(&lab.device, &lab.web, &["eth0", "eth1"])?;
    ensure!(default_links(&lab.web.ns)? == ["eth0", "eth0"], "{:?}", default_links(&lab.web.ns)?);
    for (at, own) in AT.into_iter().zip(OUTSIDE) {
        for port in PORTS {
            let at = SocketAddr::new(at.parse()?, port);
            reaches(&lab.outside, at, own.parse()?).with_context(|| format!("{at} from outside"))?;
        }
        // Masqueraded: eth0's pool has "nat".
        lab.web.ns.ping(own, 2)?;
    }
    Ok(())
}

/// The client is in `eth0`'s own network, so without the rules the answer would leave by `eth0`.
#[test]
fn a_peer_of_one_pool_reaches_the_address_in_the_other() -> Result<()> {
    let lab = lab_of(open_pools(), &run())?;
    serve(&lab.device, &lab.web, &["eth0", "eth1"])?;
    let peers = [lab.device.attach("a", "internal")?, lab.device.attach("b", "management")?];
    for peer in &peers {
        for interface in ["eth0", "eth1"] {
            for (at, own) in addresses(&lab.device, "web", interface)?.into_iter().zip(peer.addresses()) {
                reaches(&peer.ns, SocketAddr::new(at, INNER), own).with_context(|| format!("{interface}: {at}"))?;
            }
        }
    }
    Ok(())
}

/// The rules are what brings replies back: without them there is no answer, and an attach puts them back.
#[test]
fn an_attach_restores_the_rules() -> Result<()> {
    let lab = lab()?;
    serve(&lab.device, &lab.web, &["eth1"])?;
    let whole = arranged(&lab.web.ns)?;
    ensure!(whole.lines().filter(|l| l.contains("lookup")).count() == 16, "{whole}");
    for (family, at) in [("-4", AT[0]), ("-6", AT[1])] {
        let address = addresses(&lab.device, "web", "eth1")?[usize::from(family == "-6")];
        for _ in 0..4 {
            lab.web.ns.ip(&format!("{family} rule del from {address}"))?;
        }
        let at = SocketAddr::new(at.parse()?, PORTS[1]);
        ensure!(echo::udp(&lab.outside, at, b"lost").is_err(), "{at} answers without a rule");
    }
    lab.web.ns.ip("route flush table 20003")?;
    let (path, file) = (lab.web.ns.path(), lab.device.file("run-web.json"));
    let words = ["attach", "web", "--netns", &path.display().to_string(), "--run", &file.display().to_string()];
    lab.device.cli(&words).ok()?;
    let now = arranged(&lab.web.ns)?;
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    ensure!(sorted(&now) == sorted(&whole), "{whole}became {now}");
    for (at, own) in AT.into_iter().zip(OUTSIDE) {
        reaches(&lab.outside, SocketAddr::new(at.parse()?, PORTS[1]), own.parse()?)?;
    }
    Ok(())
}

#[test]
fn each_family_has_one_default_route() -> Result<()> {
    let mut config = configs::two_pools();
    for key in ["subnet6", "gateway6"] {
        config["network"]["pools"]["internal"].as_object_mut().context("a pool")?.remove(key);
    }
    let interfaces = |first: Value, second: Value| {
        let mut all = [json!({"pool": "internal"}), json!({"pool": "management"})];
        for (interface, extra) in all.iter_mut().zip([first, second]) {
            interface
                .as_object_mut()
                .into_iter()
                .for_each(|i| i.extend(extra.as_object().cloned().unwrap_or_default()));
        }
        json!({"name": "web", "network": {"interfaces": all}})
    };
    let device = Device::started(&config)?;
    let (yes, no) = (json!({"default_route": true}), json!({"default_route": false}));
    for (run, want) in [
        (interfaces(json!({}), json!({})), vec!["eth0", "eth1"]),
        (interfaces(yes.clone(), json!({})), vec!["eth0", "eth1"]),
        (interfaces(json!({}), yes), vec!["eth1", "eth1"]),
        (interfaces(no.clone(), json!({})), vec!["eth1", "eth1"]),
        (interfaces(json!({}), no.clone()), vec!["eth0"]),
        (interfaces(no.clone(), no), vec![]),
    ] {
        let web = device.attach_run(&run)?;
        ensure!(default_links(&web.ns)? == want, "{run}: {:?}, not {want:?}", default_links(&web.ns)?);
        let shown = view(&device, "web")?;
        for interface in shown["interfaces"].as_array().context("interfaces")? {
            let has = want.iter().any(|name| interface["name"] == *name);
            ensure!(interface["default_route"] == has, "{run}: {shown}");
        }
        device.cli(&["detach", "web"]).ok()?;
        ensure!(arranged(&web.ns)?.is_empty(), "left: {}", arranged(&web.ns)?);
    }
    Ok(())
}

/// A container that routes by rules of its own knows better; in the other family it still gets them.
#[test]
fn rules_of_the_container_are_left_alone() -> Result<()> {
    let device = Device::started(&configs::two_pools())?;
    let ns = Namespace::new("web")?;
    ns.ip("rule add fwmark 7 lookup 100")?;
    let before = ns.ip("-4 rule show")?;
    std::fs::write(device.file("web.json"), run().to_string())?;
    let (path, file) = (ns.path().display().to_string(), device.file("web.json").display().to_string());
    device.cli(&["attach", "web", "--netns", &path, "--run", &file]).ok()?;
    ensure!(ns.ip("-4 rule show")? == before, "{before}became {}", ns.ip("-4 rule show")?);
    ensure!(ns.ip("-6 rule show")?.contains("lookup 20003"), "{}", ns.ip("-6 rule show")?);
    device.cli(&["detach", "web"]).ok()?;
    ensure!(ns.ip("-4 rule show")? == before, "{before}became {}", ns.ip("-4 rule show")?);
    ensure!(!ns.ip("-6 rule show")?.contains("proto 112"), "{}", ns.ip("-6 rule show")?);
    Ok(())
}

/// Two interfaces in one pool have an address each, and each answers for its own.
#[test]
fn a_pool_twice() -> Result<()> {
    let run = json!({"name": "web", "network": {"interfaces": [{"pool": "internal"}, {"pool": "internal"}]}});
    let lab = lab_of(configs::two_pools(), &run)?;
    serve(&lab.device, &lab.web, &["eth0", "eth1"])?;
    let peer = lab.device.attach("a", "internal")?;
    ensure!(addresses(&lab.device, "web", "eth0")? != addresses(&lab.device, "web", "eth1")?, "one address for both");
    for interface in ["eth0", "eth1"] {
        for (at, own) in addresses(&lab.device, "web", interface)?.into_iter().zip(peer.addresses()) {
            reaches(&peer.ns, SocketAddr::new(at, INNER), own)?;
            lab.device.ns.ping(at, 2)?;
        }
    }
    Ok(())
}

/// The link by which a namespace sends packets to `to`, from `from` if that is given.
fn link_to(ns: &Namespace, to: &str, from: Option<IpAddr>) -> Result<String> {
    let from = from.map(|from| format!(" from {from}")).unwrap_or_default();
    let found = ns.ip(&format!("route get {to}{from}"))?;
    let mut words = found.split_whitespace().skip_while(|word| *word != "dev");
    words.nth(1).map(str::to_owned).with_context(|| found.clone())
}

/// A tunnel or a bridge of the container's own is reached from all its addresses; the pools' networks are reached by the
/// interface that has the address.
#[test]
fn networks_behind_the_container_are_reached() -> Result<()> {
    let lab = lab()?;
    let ns = &lab.web.ns;
    ns.ip("link add behind type veth peer name beyond")?;
    ns.ip("link set beyond up")?;
    ns.ip("link set behind up")?;
    ns.ip("addr add 172.20.0.1/16 dev behind")?;
    ns.ip("addr add fd00:20::1/64 dev behind nodad")?;
    ns.ip("route add 172.21.0.0/16 via 172.20.0.9")?;
    ns.ip("-6 route add fd00:21::/64 via fd00:20::9")?;
    for interface in ["eth0", "eth1"] {
        for own in addresses(&lab.device, "web", interface)? {
            let (behind, pools, beyond) = if own.is_ipv4() {
                (["172.20.0.5", "172.21.0.5"], ["10.0.3.77", "10.0.4.77"], "203.0.113.1")
            } else {
                (["fd00:20::5", "fd00:21::5"], ["fd00:5056:0:3::77", "fd00:5056:0:4::77"], "2001:db8:9::1")
            };
            for to in behind {
                ensure!(link_to(ns, to, Some(own))? == "behind", "{to} from {own}: {}", link_to(ns, to, Some(own))?);
            }
            for to in pools.into_iter().chain([beyond]) {
                ensure!(link_to(ns, to, Some(own))? == interface, "{to} from {own}: {}", link_to(ns, to, Some(own))?);
            }
        }
    }
    Ok(())
}

/// A default route that the container has added itself is left alone, unless an interface claims the default route; and
/// it is in force again when that interface goes.
#[test]
fn a_default_route_of_the_container() -> Result<()> {
    let lab = lab_of(configs::two_pools(), &json!({"name": "web", "network": {"pool": "internal"}}))?;
    let ns = &lab.web.ns;
    ns.ip("route replace default via 10.0.3.99 dev eth0 proto boot")?;
    ns.ip("-6 route replace default via fd00:5056:0:3::99 dev eth0 proto boot")?;
    let defaults = || anyhow::Ok(format!("{}{}", ns.ip("-4 route show default")?, ns.ip("-6 route show default")?));
    let before = defaults()?;
    ensure!(before.lines().count() == 2 && before.matches("99 dev eth0").count() == 2, "{before}");
    let add = ["attach", "web", "--interface", "eth1", "--pool", "management"];
    let remove = ["detach", "web", "--interface", "eth1"];
    lab.device.cli(&add).ok()?;
    ensure!(defaults()? == before, "{before}became {}", defaults()?);
    lab.device.cli(&remove).ok()?;
    ensure!(defaults()? == before, "{before}became {}", defaults()?);
    let claim = [&add[..], &["--default-route"]].concat();
    // Twice: the same again changes nothing.
    lab.device.cli(&claim).ok()?;
    let claimed = defaults()?;
    lab.device.cli(&claim).ok()?;
    ensure!(defaults()? == claimed && claimed.lines().count() == 4, "{claimed}became {}", defaults()?);
    for to in ["203.0.113.1", "2001:db8:9::1"] {
        ensure!(link_to(ns, to, None)? == "eth1", "{to} by {}: {claimed}", link_to(ns, to, None)?);
    }
    lab.device.cli(&remove).ok()?;
    ensure!(defaults()? == before, "{before}became {}", defaults()?);
    Ok(())
}

/// A default route that the container has for another interface, as its own network manager would set it, stays whatever
/// comes and goes.
#[test]
fn a_default_route_of_the_container_by_an_interface_without_pv_nets() -> Result<()> {
    let lab = lab()?;
    let ns = &lab.web.ns;
    ns.ip("route add default via 10.0.4.1 dev eth1 proto static metric 500")?;
    ns.ip("-6 route add default via fd00:5056:0:4::1 dev eth1 proto static metric 2000")?;
    let own = || {
        let all = format!("{}{}", ns.ip("-4 route show default")?, ns.ip("-6 route show default")?);
        anyhow::Ok(all.matches("proto static").count())
    };
    ensure!(own()? == 2, "{}", ns.ip("route show default")?);
    lab.device.cli(&["attach", "web", "--interface", "eth2", "--pool", "internal"]).ok()?;
    ensure!(own()? == 2, "an attach removed it");
    lab.device.cli(&["detach", "web", "--interface", "eth2"]).ok()?;
    ensure!(own()? == 2, "a detach removed it");
    again(&lab)?;
    ensure!(own()? == 2, "the same attach removed it");
    Ok(())
}
