use super::lxc::{self, Told};
use super::oci::{self, Attach, NAME, POOL, Patch, State};
use super::{Call, InTheWay};
use crate::model::ContainerName;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

fn call(flags: &[&str]) -> Call {
    Call { program: "/usr/bin/pv-net".into(), flags: flags.iter().map(|flag| (*flag).to_owned()).collect() }
}

fn web() -> ContainerName {
    "web".parse().expect("a name")
}

fn lxc_lines() -> String {
    lxc::lines(&call(&[]), &web(), "www", Some(Path::new("/run/pv-net/resolv/web.conf")))
}

#[test]
fn lxc_is_told_to_make_an_empty_namespace_and_to_call_pv_net_in_it() {
    let expected = "\
# pv-net: begin (written by pv-net lxc config; changes here are lost)
lxc.net =
lxc.net.0.type = empty
lxc.namespace.share.net =
lxc.uts.name = www
lxc.hook.start-host = /usr/bin/pv-net hook lxc web
lxc.mount.entry = /run/pv-net/resolv/web.conf etc/resolv.conf none bind,ro,create=file,optional 0 0
# pv-net: end
";
    assert_eq!(lxc_lines(), expected);
    let lines = lxc::lines(&call(&["--run-dir=/run/it's here"]), &web(), "web", None);
    assert!(lines.contains(r"= /usr/bin/pv-net '--run-dir=/run/it'\''s here' hook lxc web"), "{lines}");
    assert!(!lines.contains("resolv"), "{lines}");
}

#[test]
fn lines_are_put_in_place_of_those_before_and_nothing_else_changes() {
    let lines = lxc_lines();
    for before in ["", "lxc.rootfs.path = dir:/x\n", "# lxc.net.0.type = veth\n\nlxc.arch = x86_64"] {
        let once = lxc::place(before, &lines).expect("placed");
        assert!(once.starts_with(before) && once.ends_with(&lines), "{once}");
        assert_eq!(lxc::place(&once, &lines).expect("placed"), once);
        let more = format!("{once}lxc.tty.max = 4\n");
        let other = lines.replace("www", "other");
        assert_eq!(lxc::place(&more, &other).expect("placed"), more.replace("www", "other"));
    }
}

#[test]
fn addresses_in_a_configuration_of_lxc_are_found() {
    let found = |config: &str| -> Vec<String> {
        lxc::addresses(config).into_iter().map(|(name, address)| format!("{name} {address}")).collect()
    };
    for (what, config, wanted) in [
        ("none", "lxc.rootfs.path = dir:/x\nlxc.net.0.type = veth\n", &[][..]),
        (
            "both families",
            "lxc.net.0.ipv4.address = 10.0.3.9/24\nlxc.net.0.ipv6.address=fd00::9/64",
            &["eth0 10.0.3.9", "eth0 fd00::9"],
        ),
        ("a broadcast address", "lxc.net.1.ipv4.address = 10.0.3.9/24 10.0.3.255", &["eth1 10.0.3.9"]),
        ("quotes, blanks, no prefix length", "\t lxc.net.7.ipv4.address\t=  '10.0.3.9' ", &["eth7 10.0.3.9"]),
        (
            "several, and a name behind them",
            "lxc.net.0.ipv4.address = 10.0.3.9/24\n\
          lxc.net.0.ipv4.address = 10.0.3.8/24\nlxc.net.0.name = lan",
            &["lan 10.0.3.9", "lan 10.0.3.8"],
        ),
        ("a name that is none", "lxc.net.0.name = a/b\nlxc.net.0.ipv4.address = 10.0.3.9/24", &["eth0 10.0.3.9"]),
        ("a comment", "#lxc.net.0.ipv4.address = 10.0.3.9/24", &[]),
        ("taken back", "lxc.net.0.ipv4.address = 10.0.3.9/24\nlxc.net.0.ipv4.address =\n", &[]),
        (
            "all taken back",
            "lxc.net.0.ipv6.address = fd00::9\nlxc.net =\nlxc.net.0.ipv4.address = 10.0.3.7",
            &["eth0 10.0.3.7"],
        ),
        ("no address", "lxc.net.0.ipv4.address = dhcp\nlxc.net.0.ipv6.address = 10.0.3.9", &[]),
        (
            "other keys",
            "lxc.net.0.ipv4.gateway = 10.0.3.1\nlxc.net.x.ipv4.address = 10.0.3.9\nlxc.net.-1.ipv4.address = 10.0.3.9",
            &[],
        ),
    ] {
        assert_eq!(found(config), wanted, "{what}");
    }
    assert!(lxc::addresses(&lxc_lines()).is_empty());
}

#[test]
fn a_network_beside_the_pools_is_refused() {
    for (line, what) in [
        ("lxc.net.0.type = veth", "lxc.net.0.type = veth"),
        ("  lxc.net.0.ipv4.address=10.0.3.9/24", "lxc.net.0.ipv4.address = 10.0.3.9/24"),
        ("lxc.network.type = veth", "lxc.network.type = veth"),
        ("lxc.net.1.type = empty", "lxc.net.1.type = empty"),
        ("lxc.namespace.share.net = other", "lxc.namespace.share.net = other"),
        ("lxc.namespace.keep = user net", "lxc.namespace.keep = user net"),
        ("lxc.namespace.keep = \"net\"", "lxc.namespace.keep = net"),
        ("lxc.namespace.clone = pid mnt", "lxc.namespace.clone = pid mnt"),
    ] {
        for config in [format!("{line}\n"), format!("{}{line}\n", lxc_lines())] {
            let e = lxc::place(&config, &lxc_lines()).expect_err(line);
            assert_eq!(e.what, what);
        }
    }
    // A file that is read before: its networks are taken back.
    lxc::place("lxc.include = /x\n", &lxc_lines()).expect("before");
    // And hooks that are taken back before are none of pv-net's.
    for line in ["lxc.include = /x", "lxc.hook =", "lxc.hook.start-host = \"\""] {
        lxc::place(&format!("{line}\n"), &lxc_lines()).expect(line);
        lxc::place(&format!("{}{line}\n", lxc_lines()), &lxc_lines()).expect_err(line);
    }
    lxc::place(&format!("{}lxc.hook.start-host = /x\n", lxc_lines()), &lxc_lines()).expect("one more");
    for line in
        ["lxc.namespace.keep = user ipc", "lxc.namespace.clone = net mnt", "lxc.network", "#lxc.net.0.type = veth"]
    {
        lxc::place(&format!("{line}\n"), &lxc_lines()).expect(line);
    }
}

/// What is between half a pair of markers belongs to nobody knows whom.
#[test]
fn half_a_pair_of_markers_is_refused() {
    let lines = lxc_lines();
    let (begin, end) = (lines.lines().next().expect("lines"), "# pv-net: end");
    for config in [
        format!("a = b\n{begin}\n"),
        format!("{end}\na = b\n"),
        format!("{end}\n{begin}\n"),
        format!("{lines}{begin}\n"),
        format!("{lines}{lines}"),
        format!("{begin}\n{lines}"),
    ] {
        assert!(lxc::place(&config, &lines).is_err(), "{config}");
    }
}

#[test]
fn a_hook_of_lxc_is_told_by_its_environment() {
    let read = |all: &[(&str, &str)]| {
        let all: BTreeMap<String, String> = all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Told::read(|name| all.get(name).cloned(), &[])
    };
    let (kind, name, pid) = (("LXC_HOOK_TYPE", "start-host"), ("LXC_NAME", "box"), ("LXC_PID", "77"));
    assert_eq!(read(&[kind, name, pid]), Ok(Told { name: "box".to_owned(), pid: 77 }));
    // The hooks of version 0 are told their type by an argument.
    let of = |variable: &str| {
        ["LXC_NAME", "LXC_PID"].iter().position(|v| *v == variable).map(|at| ["box", "77"][at].to_owned())
    };
    let arguments = |last: &str| ["box".to_owned(), "lxc".to_owned(), last.to_owned()];
    assert_eq!(Told::read(of, &arguments("start-host")), Ok(Told { name: "box".to_owned(), pid: 77 }));
    assert!(Told::read(of, &arguments("stop")).is_err());
    for (all, what) in [
        (vec![name, pid], "LXC_HOOK_TYPE"),
        (vec![("LXC_HOOK_TYPE", "post-stop"), name, pid], "LXC_HOOK_TYPE"),
        (vec![kind, pid], "LXC_NAME"),
        (vec![kind, name], "LXC_PID"),
        (vec![kind, name, ("LXC_PID", "-1")], "LXC_PID"),
    ] {
        assert_eq!(read(&all).expect_err(what).what, what);
    }
}

fn patched(config: &Value, netns: Option<&str>, has_resolv_conf: bool) -> Result<Value, InTheWay> {
    let (call, name) = (call(&["--run-dir=/x"]), web());
    let own = Path::new("/run/pv-net/resolv/web.conf");
    let netns = netns.map(Path::new);
    Patch { call: &call, name: &name, hostname: "www", resolv_conf: own, has_resolv_conf, netns }.apply(config)
}

/// As `runc spec` writes it, shortened, with what pv-net knows nothing about.
fn bundle() -> Value {
    json!({
        "ociVersion": "1.0.2-dev",
        "process": {"args": ["sh"]},
        "hostname": "runc",
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "uts"}], "new": {"x": 1}},
        "hooks": {"createRuntime": [{"path": "/bin/other", "args": ["other", "hook"]}]},
        "x-unknown": [1.25],
    })
}

#[test]
fn a_bundle_gets_hooks_name_and_servers_once() {
    let once = patched(&bundle(), None, true).expect("patched");
    let hook = json!({"path": "/usr/bin/pv-net", "args": ["pv-net", "--run-dir=/x", "hook", "oci", "web"]});
    assert_eq!(once["hooks"]["createRuntime"], json!([{"path": "/bin/other", "args": ["other", "hook"]}, hook]));
    assert_eq!((&once["hostname"], &once["x-unknown"]), (&json!("www"), &json!([1.25])));
    assert_eq!(
        (&once["linux"]["namespaces"], &once["linux"]["new"]),
        (&bundle()["linux"]["namespaces"], &json!({"x": 1}))
    );
    assert_eq!(once["mounts"][1]["source"], "/run/pv-net/resolv/web.conf");
    assert_eq!(patched(&once, None, true).expect("patched"), once);
    // With a namespace that is there, hooks have nothing to do.
    let pinned = patched(&once, Some("/run/netns/web"), false).expect("patched");
    assert_eq!(pinned["linux"]["namespaces"][1], json!({"type": "network", "path": "/run/netns/web"}));
    assert_eq!((&pinned["hooks"], &pinned["mounts"]), (&bundle()["hooks"], &bundle()["mounts"]));
    assert_eq!(patched(&pinned, Some("/run/netns/web"), false).expect("patched"), pinned);
}

/// What the bundle mounts there itself is replaced by what pv-net has, and kept while pv-net has nothing.
#[test]
fn a_bundles_own_servers_stay_while_there_are_no_others() {
    let mut own = bundle();
    let mount = json!({"destination": "/etc/resolv.conf", "type": "bind", "source": "/etc/resolv.conf"});
    own["mounts"].as_array_mut().expect("an array").push(mount.clone());
    assert_eq!(patched(&own, None, false).expect("patched")["mounts"][1], mount);
    let replaced = patched(&own, None, true).expect("patched");
    assert_eq!(replaced["mounts"].as_array().map(Vec::len), Some(2));
    assert_eq!(replaced["mounts"][1]["source"], "/run/pv-net/resolv/web.conf");
}

/// A host name belongs to all that live in its namespace.
#[test]
fn a_host_name_that_is_others_stays() {
    let mut shared = bundle();
    shared["linux"]["namespaces"][2]["path"] = json!("/proc/1/ns/uts");
    assert_eq!(patched(&shared, None, false).expect("patched")["hostname"], "runc");
}

#[test]
fn a_bundle_that_cannot_be_is_refused() {
    let with = |change: fn(&mut Value)| {
        let mut config = bundle();
        change(&mut config);
        patched(&config, None, false)
    };
    assert_eq!(patched(&json!([]), None, false).expect_err("no object").what, "config.json");
    assert_eq!(
        with(|c| drop(c.as_object_mut().map(|c| c.remove("ociVersion")))).expect_err("no bundle").what,
        "config.json"
    );
    assert_eq!(with(|c| c["linux"] = json!(1)).expect_err("no object").what, "linux");
    assert_eq!(with(|c| c["hooks"]["createRuntime"] = json!({})).expect_err("no array").what, "hooks.createRuntime");
    let shared = |c: &mut Value| c["linux"]["namespaces"][1]["path"] = json!("/proc/1/ns/net");
    assert_eq!(with(shared).expect_err("another's").what, "linux.namespaces");
    // A container without namespaces of its own for them keeps the device's host name, and gets a network.
    let bare = with(|c| c["linux"] = json!({})).expect("patched");
    assert_eq!((&bare["hostname"], &bare["linux"]["namespaces"]), (&json!("runc"), &json!([{"type": "network"}])));
}

#[test]
fn a_hook_of_an_oci_runtime_does_what_the_state_asks_for() {
    let state = |status: &str, pid: u32, annotations: &[(&str, &str)]| State {
        id: "abc".to_owned(),
        status: status.to_owned(),
        pid,
        annotations: annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    };
    let attach = |name: &str, pool: Option<&str>, annotated| {
        Ok(Some(Attach { name: name.to_owned(), pid: 7, pool: pool.map(str::to_owned), annotated }))
    };
    assert_eq!(oci::attach(&state("creating", 7, &[]), None), attach("abc", None, false));
    assert_eq!(oci::attach(&state("created", 7, &[(NAME, "web")]), None), attach("web", None, true));
    let both = state("created", 7, &[(NAME, "web"), (POOL, "p")]);
    assert_eq!(oci::attach(&both, Some("box")), attach("box", Some("p"), true));
    // An annotation that does not count changes nothing.
    assert_eq!(oci::attach(&state("created", 7, &[(NAME, "web")]), Some("box")), attach("box", None, false));
    for annotation in [NAME, POOL] {
        assert_eq!(oci::attach(&state("stopped", 0, &[(annotation, "web")]), None), Ok(None));
    }
    assert!(oci::attach(&state("creating", 0, &[]), None).is_err());
    // As long as podman's.
    let long = State { id: "0123456789abcdef".repeat(4), ..state("creating", 7, &[(POOL, "p")]) };
    assert_eq!(oci::attach(&long, None), attach("0123456789ab", Some("p"), true));
    let read: State =
        serde_json::from_str(r#"{"ociVersion": "1.0.2", "id": "x", "status": "stopped", "bundle": "/b"}"#)
            .expect("read");
    assert_eq!((read.pid, read.annotations.len()), (0, 0));
}
