//! Tests against the real kernel, each in a namespace of its own, and tests of names.

use super::*;
use crate::kernel::broker::Broker;
use crate::kernel::netlink::segments;
use crate::kernel::{Host, Kernel};
use crate::model::{Attachment, Mac, NetnsRef};
use crate::plan::{Borrowing, Bridge, Leg, Op};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::LinkVeth;
use std::collections::{BTreeSet, HashSet};

/// Runs `test` in a new namespace, which ends with the thread.
fn in_fresh_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let done = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may unshare");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test());
    });
    if let Err(panic) = done.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A second namespace in place of a container's. It exists as long as its thread.
struct Other {
    reference: NetnsRef,
    stop: Option<std::sync::mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Other {
    fn new() -> Self {
        let (stop, wait) = std::sync::mpsc::channel();
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may unshare");
            let me = nix::unistd::gettid();
            ready.send(format!("/proc/{}/task/{me}/ns/net", std::process::id())).expect("the test waits");
            let _ = wait.recv();
        });
        let path = started.recv().expect("the thread started");
        Self { reference: NetnsRef::Path(path.into()), stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn wanted() -> Bridge {
    Bridge {
        name: "pvtest0".parse().expect("name"),
        gateways: vec!["10.9.0.1/24".parse().expect("net"), "fd00:9::1/64".parse().expect("net")],
        mtu: 1400,
        mac: Mac([2, 0, 10, 9, 0, 1]),
        alias: alias::of_bridge(&"test".parse().expect("name")),
    }
}

/// Plans the bridge and carries the plan out in the kernel.
async fn ensure_bridge(net: &Net) -> LinkInfo {
    let (wanted, mut host) = (wanted(), Host { net, plane: None, rehearsal: None, repair: None });
    let before = host.observe().await.expect("observed");
    if wanted.link(&before).expect("a bridge").is_none() {
        host.apply(&Op::MakeBridge(Box::new(wanted.clone()))).await.expect("made");
    }
    let observed = host.observe().await.expect("observed");
    let link = wanted.link(&observed).expect("a bridge").expect("there");
    for op in wanted.steps(link, &observed, &BTreeSet::new()) {
        host.apply(&op).await.expect("a step");
    }
    net.link(wanted.name.as_str()).await.expect("list").expect("there")
}

async fn borrowed(net: &Net) -> Borrowing {
    let observed = Host { net, plane: None, rehearsal: None, repair: None }.observe().await.expect("observed");
    Borrowing::of(&wanted(), &observed)
}

fn spec_on(bridge: &LinkInfo) -> LinkSpec {
    let container = "web".parse().expect("name");
    let interface: crate::model::IfName = "eth0".parse().expect("name");
    let attachment = Attachment {
        host_if: host_if_name(&container, &interface),
        container,
        interface,
        pool: "test".parse().expect("name"),
        mac: Mac([2, 0, 10, 9, 0, 2]),
        ipv4: Some([10, 9, 0, 2].into()),
        ipv6: "fd00:9::2".parse().ok(),
        default_route: None,
        network: None,
    };
    LinkSpec {
        host_if: attachment.host_if.clone(),
        kind: LinkKind::Veth { bridge: bridge.index },
        container_if: attachment.interface.clone(),
        mac: attachment.mac,
        mtu: 1400,
        segment_bytes: segments::BIG_SEGMENT,
        addresses: vec!["10.9.0.2/24".parse().expect("net"), "fd00:9::2/64".parse().expect("net")],
        alias: alias::of_attachment(&attachment),
    }
}

/// A bridge, and a container's namespace for an interface on it.
struct Lab {
    net: Net,
    netns: Netns,
    bridge: LinkInfo,
    spec: LinkSpec,
    _other: Other,
}

impl Lab {
    async fn new() -> Self {
        let (net, other) = (Net::here().expect("netlink"), Other::new());
        let netns = Broker::on_threads().open(&other.reference).await.expect("open");
        let bridge = ensure_bridge(&net).await;
        Self { spec: spec_on(&bridge), net, netns, bridge, _other: other }
    }

    /// Its link, made and up at both ends.
    async fn raised(&self) -> LinkInfo {
        let link = self.spec.make(&self.net, &self.netns, None).await.expect("made");
        self.net.set_up(self.spec.host_if.as_str(), link.index).await.expect("up");
        self.spec.address_inside(&link, &self.netns).await.expect("addressed");
        self.spec.raise_inside(&link, &self.netns).await.expect("raised");
        link
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_bridge_is_made_once_and_adopted_after() {
    in_fresh_namespace(|| async {
        let net = Net::here().expect("netlink");
        let first = ensure_bridge(&net).await;
        let again = ensure_bridge(&net).await;
        assert_eq!(first, again);
        assert_eq!((first.mtu, first.mac, first.up), (1400, Some([2, 0, 10, 9, 0, 1]), true));
        let addresses = net.addresses().await.expect("list");
        for gateway in wanted().gateways {
            assert!(addresses.contains(&(first.index, gateway)), "{gateway} in {addresses:?}");
        }
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_foreign_bridge_is_used_and_what_was_added_is_said() {
    in_fresh_namespace(|| async {
        let net = Net::here().expect("netlink");
        net.handle.link().add(rtnetlink::LinkBridge::new("pvtest0").build()).execute().await.expect("made");
        let before = net.link("pvtest0").await.expect("list").expect("there");
        net.set_down("pvtest0", before.index).await.expect("down");
        let borrowing = borrowed(&net).await;
        assert_eq!((&borrowing.addresses, borrowing.raises), (&wanted().gateways, true));
        let link = ensure_bridge(&net).await;
        assert_eq!((link.mac, link.alias, link.up), (before.mac, None, true));
        let again = borrowed(&net).await;
        assert_eq!(again, Borrowing::default(), "nothing is left to change");
        // If the bridge's MAC were not set, it would follow its ports', and be zero after the last port has gone.
        net.handle.link().add(LinkVeth::new("port", "other").build()).execute().await.expect("made");
        let port = net.link("port").await.expect("list").expect("there");
        net.enslave("port", port.index, before.index).await.expect("enslaved");
        net.delete_link("port", port.index).await.expect("deleted");
        assert_eq!(net.link("pvtest0").await.expect("list").expect("there").mac, before.mac);
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_link_that_is_no_bridge_is_left_alone() {
    in_fresh_namespace(|| async {
        let net = Net::here().expect("netlink");
        net.handle.link().add(LinkVeth::new("pvtest0", "other").build()).execute().await.expect("made");
        let observed =
            Host { net: &net, plane: None, rehearsal: None, repair: None }.observe().await.expect("observed");
        let error = wanted().link(&observed).expect_err("no bridge").to_string();
        assert!(error.contains("veth") && error.contains("pvtest0"), "{error}");
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_container_gets_its_interface_and_keeps_it() {
    in_fresh_namespace(|| async {
        let Lab { net, netns, spec, bridge, .. } = Lab::new().await;
        let link = spec.make(&net, &netns, None).await.expect("made");
        assert_eq!((link.controller, link.up, link.mtu), (Some(bridge.index), false, 1400));
        net.set_up(spec.host_if.as_str(), link.index).await.expect("up");
        // Twice, as when another daemon has made the pair and did not finish it.
        for _ in 0..2 {
            spec.address_inside(&link, &netns).await.expect("addressed");
            spec.raise_inside(&link, &netns).await.expect("raised");
        }
        let again = spec.make(&net, &netns, None).await.expect("adopted");
        assert_eq!(again.index, link.index);
        let there = netns.net().expect("netlink");
        let inside = (there.link("eth0").await.expect("list"), there.addresses().await.expect("list"));
        let eth0 = inside.0.expect("eth0");
        assert_eq!((eth0.mac, eth0.up, eth0.mtu), (Some([2, 0, 10, 9, 0, 2]), true, 1400));
        for address in &spec.addresses {
            assert!(inside.1.contains(&(eth0.index, *address)), "{address} in {:?}", inside.1);
        }
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_taken_name_in_the_container_leaves_nothing_behind() {
    in_fresh_namespace(|| async {
        let Lab { net, netns, spec, .. } = Lab::new().await;
        spec.make(&net, &netns, None).await.expect("made");
        let before = net.links().await.expect("list");
        let second = LinkSpec { host_if: "pvsecond".parse().expect("name"), ..spec };
        let error = second.make(&net, &netns, None).await.expect_err("taken");
        assert!(matches!(error, KernelError::Net(NetError::InterfaceExists { .. })), "{error}");
        assert_eq!(before.len(), net.links().await.expect("list").len());
    });
}

/// What the kernel says that it has, it makes; what it lacks is refused, and nothing is left of it. Either way the question
/// makes no link.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn netkit_is_made_where_the_kernel_has_it() {
    in_fresh_namespace(|| async {
        let Lab { net, netns, spec, bridge, .. } = Lab::new().await;
        let before = net.links().await.expect("list");
        let known = knows_netkit().expect("asked");
        assert_eq!(net.links().await.expect("list"), before);
        let spec = LinkSpec { kind: LinkKind::Netkit { bridge: bridge.index }, ..spec };
        match spec.make(&net, &netns, None).await {
            Ok(link) => {
                assert!(known, "{link:?}");
                assert_eq!((link.kind.as_deref(), link.controller), (Some("netkit"), Some(bridge.index)));
                // It stays what it is when the pool's kind changes.
                let veth = LinkSpec { kind: LinkKind::Veth { bridge: bridge.index }, ..spec };
                assert_eq!(veth.make(&net, &netns, None).await.expect("adopted").index, link.index);
            }
            Err(e) => {
                assert!(!known && matches!(e, KernelError::Net(NetError::NoNetkit { .. })), "{known}: {e}");
                assert_eq!(net.links().await.expect("list"), before);
            }
        }
    });
}

#[test]
fn host_names_are_stable_short_and_distinct() {
    let eth0 = "eth0".parse().expect("name");
    let names: HashSet<_> = (0..10_000)
        .map(|i| {
            let name = host_if_name(&format!("container-{i}").parse().expect("name"), &eth0);
            assert!(name.as_str().len() <= 15, "{name}");
            name
        })
        .collect();
    assert_eq!(names.len(), 10_000);
    let web = "web".parse().expect("name");
    assert_eq!(host_if_name(&web, &eth0), host_if_name(&web, &eth0));
    assert_ne!(host_if_name(&web, &eth0), host_if_name(&web, &"eth1".parse().expect("name")));
}

/// A container makes a link that tells of itself what the end of ours does: its kind, its MAC, and the index of its other
/// end.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn only_the_end_of_our_own_link_is_found() {
    in_fresh_namespace(|| async {
        let Lab { net, netns, spec, .. } = Lab::new().await;
        let link = spec.make(&net, &netns, None).await.expect("made");
        let stranger = Other::new();
        let strange = Broker::on_threads().open(&stranger.reference).await.expect("open");
        // Both ends are the container's own: one has the index of the device's link.
        let there = strange.net().expect("netlink");
        let mut one = LinkVeth::new("one", "other").build();
        one.header.index = link.index;
        there.handle.link().add(one).execute().await.expect("made");
        let forged = there.link("other").await.expect("list").expect("there");
        assert_eq!((forged.kind.as_deref(), forged.other_end), (Some("veth"), Some(link.index)));
        assert!(!has_end_of(&net, &[link.index], &strange).await.expect("looked up"));
        assert_eq!(end_in(&net, link.index, &strange).await.expect("looked up"), None);
        let eth0 = netns.net().expect("netlink").link("eth0").await.expect("list").expect("there");
        assert_eq!(end_in(&net, link.index, &netns).await.expect("looked up"), Some(eth0.index));
        assert_eq!(end_in(&net, 9999, &netns).await.expect("looked up"), None);
    });
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_interface_that_the_container_has_renamed_is_adopted() {
    in_fresh_namespace(|| async {
        let Lab { net, netns, spec, .. } = Lab::new().await;
        let link = spec.make(&net, &netns, None).await.expect("made");
        let there = netns.net().expect("netlink");
        let eth0 = there.link("eth0").await.expect("list").expect("there");
        there.rename("eth0", eth0.index, &"lan".parse().expect("name")).await.expect("renamed");
        let again = spec.make(&net, &netns, None).await.expect("adopted");
        assert_eq!(again.index, link.index);
        net.set_up(spec.host_if.as_str(), link.index).await.expect("up");
        spec.address_inside(&again, &netns).await.expect("addressed");
        spec.raise_inside(&again, &netns).await.expect("raised");
        let lan = there.link("lan").await.expect("list").expect("there");
        assert_eq!((lan.index, lan.up), (eth0.index, true));
        let addresses = there.addresses().await.expect("list");
        assert!(spec.addresses.iter().all(|a| addresses.contains(&(lan.index, *a))), "{addresses:?}");
    });
}

fn leg(link: u32) -> Leg {
    Leg {
        link,
        addresses: vec!["10.9.0.2/24".parse().expect("net"), "fd00:9::2/64".parse().expect("net")],
        gateways: vec![[10, 9, 0, 1].into(), "fd00:9::1".parse().expect("gateway")],
        default4: true,
        default6: true,
        claims: false,
    }
}

/// A container has any number of rules of its own. Only the first are read, and it gets none then.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn very_many_rules_are_not_read() {
    in_fresh_namespace(|| async {
        let lab = Lab::new().await;
        let (link, netns) = (lab.raised().await, &lab.netns);
        let there = netns.net().expect("netlink");
        for number in 0..1500u32 {
            let rule = there.handle.rule().add().v4().priority(number + 1).table_id(number + 1);
            rule.action(rtnetlink::packet_route::rule::RuleAction::ToTable).execute().await.expect("added");
        }
        let inside = there.inside().await.expect("read");
        assert!(inside.keeps_out4 && inside.rules.is_empty(), "{inside:?}");
        let end = link.other_end.expect("a veth has another end");
        let failed = arrange(&[leg(end)], netns).await.expect("arranged");
        assert!(failed.is_empty(), "{failed:?}");
        let default = there.default_route_links().await.expect("listed");
        assert_eq!(default, [[end].into(), [end].into()]);
    });
}

/// An interface that is down cannot have routes.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn an_interface_that_cannot_have_routes_keeps_no_other_from_them() {
    in_fresh_namespace(|| async {
        let lab = Lab::new().await;
        let (link, netns) = (lab.raised().await, &lab.netns);
        let there = netns.net().expect("netlink");
        there.handle.link().add(LinkVeth::new("down", "peer").build()).execute().await.expect("made");
        let down = there.link("down").await.expect("list").expect("there").index;
        let unusable = Leg {
            addresses: vec!["10.8.0.2/24".parse().expect("net")],
            gateways: vec![[10, 8, 0, 1].into()],
            default4: false,
            default6: false,
            ..leg(down)
        };
        let end = link.other_end.expect("a veth has another end");
        let failed = arrange(&[unusable, leg(end)], netns).await.expect("arranged");
        assert_eq!(failed.keys().collect::<Vec<_>>(), [&down]);
        assert_eq!(there.default_route_links().await.expect("listed"), [[end].into(), [end].into()]);
    });
}
