//! How containers are started.

use super::{Case, container, expect};
use crate::config::parse_run;
use crate::model::{LxcSpec, OciSpec, Peer, RuntimeSpec, Selector, Sockets, Start, Startable, WasmCli};
use serde_json::{Value, json};
use std::time::Duration;

fn run(more: Value) -> Value {
    let mut run = json!({"name": "web", "network": {"pool": "p"}});
    if let (Some(run), Value::Object(more)) = (run.as_object_mut(), more) {
        run.extend(more);
    }
    run
}

fn startable(more: Value) -> Option<Startable> {
    container(run(more)).startable
}

#[test]
fn what_pv_net_starts_has_a_runtime() {
    assert_eq!(startable(json!({"type": "lxc"})), None);
    assert_eq!(startable(json!({"start": "manual", "stop_timeout": 3})), None);
    let lxc = RuntimeSpec::Lxc(LxcSpec { path: "/var/lib/lxc".into(), id: "web".to_owned() });
    let want = |start, runtime, secs, requires: &[&str]| {
        let requires = requires.iter().map(|name| (*name).to_owned()).collect();
        Some(Startable { start, runtime, stop_timeout: Duration::from_secs(secs), requires })
    };
    assert_eq!(startable(json!({"type": "lxc", "runtime": {}})), want(Start::Manual, lxc, 10, &[]));
    let oci = |program: &str, root: Option<&str>| {
        let root = root.map(Into::into);
        RuntimeSpec::Oci(OciSpec { program: program.into(), bundle: "/b".into(), id: "w".to_owned(), root })
    };
    let with = json!({
        "type": "oci", "start": "auto", "stop_timeout": 60,
        "runtime": {"program": "/usr/bin/crun", "bundle": "/b", "id": "w", "root": "/r"},
        "services": {"required": [{"name": "SQL"}, {"name": "cache", "type": "tcp"}]},
    });
    let expected = want(Start::Auto, oci("/usr/bin/crun", Some("/r")), 60, &["sql", "cache"]);
    assert_eq!(startable(with.clone()), expected);
    assert!(container(run(with)).inactive.is_empty());
    let short = json!({"type": "oci", "runtime": {"bundle": "/b", "id": "w"}});
    assert_eq!(startable(short), want(Start::Manual, oci("runc", None), 10, &[]));
}

fn wasm(runtime: Value, sockets: Value, ports: &[&str]) -> Value {
    let network = json!({"pool": "p", "sockets": sockets, "ports": ports});
    json!({"name": "web", "type": "wasm", "runtime": runtime, "network": network})
}

#[test]
fn a_module_has_the_sockets_that_are_granted() {
    let plain = container(json!({"name": "web", "type": "wasm", "network": {"pool": "p"}}));
    assert_eq!((plain.sockets, plain.startable), (Some(Sockets::default()), None), "somebody else starts it");
    let grant = json!({
        "listen": ["tcp/80", "udp/5000-5010"], "resolve": true,
        "connect": [{"to": {"container": "db"}, "ports": ["tcp/5432"]}, {"to": "world", "ports": ["udp"]}],
    });
    let runtime = json!({"cli": "wasmedge", "module": "/m", "args": ["-x", ""], "env": {"A": "b"}, "user": 7});
    let module = container(wasm(runtime, grant, &["8080:80", "5000-5001:5009-5010/udp"]));
    let port = |text: &str| text.parse().expect("ports");
    let want = Sockets {
        listen: vec![port("tcp/80"), port("udp/5000-5010")],
        connect: vec![
            Peer { to: Selector::Container("db".parse().expect("a name")), ports: vec![port("tcp/5432")] },
            Peer { to: Selector::World, ports: vec![port("udp")] },
        ],
        resolve: true,
    };
    assert_eq!(module.sockets, Some(want.clone()));
    let Some(RuntimeSpec::Wasm(spec)) = module.startable.map(|startable| startable.runtime) else {
        panic!("no module")
    };
    assert_eq!((spec.program.to_str(), spec.cli, spec.user), (Some("wasmedge"), WasmCli::Wasmedge, 7));
    assert_eq!((spec.args, spec.env.len(), spec.sockets), (vec!["-x".to_owned(), String::new()], 1, want));
    let short = container(wasm(json!({"module": "/m"}), json!({}), &[])).startable;
    let Some(RuntimeSpec::Wasm(spec)) = short.map(|startable| startable.runtime) else { panic!("no module") };
    assert_eq!((spec.program.to_str(), spec.user, spec.sockets.is_empty()), (Some("wasmtime"), 0x74b5_e57f, true));
}

#[test]
fn modules_and_sockets_that_are_wrong() {
    let module = || json!({"module": "/m"});
    let cases: Vec<Case> = vec![
        ("no module", wasm(json!({}), json!({}), &[]), &[("runtime", "no \"module\"")]),
        (
            "of other runtimes",
            wasm(json!({"module": "m", "bundle": "/b", "lxcpath": "/l", "id": "w", "cli": "wasmer"}), json!({}), &[]),
            &[
                ("runtime.bundle", "not this runtime's"),
                ("runtime.lxcpath", "not this runtime's"),
                ("runtime.id", "not this runtime's"),
                ("runtime.module", "no absolute path"),
                ("runtime.cli", "unknown variant"),
            ],
        ),
        (
            "of a module",
            run(json!({"type": "oci", "runtime": {"bundle": "/b", "module": "/m", "user": 7}})),
            &[("runtime.module", "not this runtime's"), ("runtime.user", "not this runtime's")],
        ),
        (
            "what no program can be given",
            wasm(json!({"module": "/m", "args": ["a\u{0}"], "env": {"A=B": "c"}, "user": u32::MAX}), json!({}), &[]),
            &[
                ("runtime.args[0]", "NUL"),
                ("runtime.env", "no name of a variable"),
                ("runtime.user", "stands for no user"),
            ],
        ),
        ("root", wasm(json!({"module": "/m", "user": 0}), json!({}), &[]), &[("runtime.user", "may not be root")]),
        (
            "sockets of another type",
            json!({"name": "web", "type": "oci", "network": {"pool": "p", "sockets": {}}}),
            &[("network.sockets", "only containers of \"type\" \"wasm\"")],
        ),
        (
            "a published port that is not granted",
            wasm(module(), json!({"listen": ["tcp/80", "udp/82"]}), &["80-81:80-81", "82:82"]),
            &[("network.ports[0]", "may not listen"), ("network.ports[1]", "may not listen")],
        ),
        (
            "what is no grant",
            wasm(
                module(),
                json!({"listen": ["icmp", "80"], "connect": [{"to": {"pool": "p"}}, {"ports": ["tcp"]}]}),
                &[],
            ),
            &[
                ("network.sockets.listen[0]", "no sockets of ICMP"),
                ("network.sockets.listen[1]", "not tcp"),
                ("network.sockets.connect[0]", "no \"ports\""),
                ("network.sockets.connect[1]", "no \"to\""),
            ],
        ),
        (
            "an empty list and a strange field",
            wasm(
                module(),
                json!({"listen": [], "connect": [{"to": {"cidr": "10.0.0.1/8"}, "ports": ["tcp"]}], "udp": 1}),
                &[],
            ),
            &[
                ("network.sockets.listen", "is empty"),
                ("network.sockets.connect[0].to.cidr", "host bits"),
                ("network.sockets.udp", "unknown field"),
            ],
        ),
    ];
    for (name, file, want) in cases {
        expect(name, parse_run("run.json", &file.to_string()), want);
    }
}

#[test]
fn starts_that_are_wrong() {
    let cases: Vec<Case> = vec![
        ("nothing to start it", run(json!({"start": "auto"})), &[("start", "no \"runtime\"")]),
        ("another word", run(json!({"start": "always"})), &[("start", "unknown variant")]),
        ("no type", run(json!({"runtime": {}})), &[("runtime", "no containers of this \"type\"")]),
        ("no bundle", run(json!({"type": "oci", "runtime": {}})), &[("runtime", "no \"bundle\"")]),
        (
            "paths from nowhere",
            run(json!({"type": "oci", "runtime": {"bundle": "b", "root": "r", "program": "./runc"}})),
            &[
                ("runtime.bundle", "no absolute path"),
                ("runtime.root", "no absolute path"),
                ("runtime.program", "no absolute path"),
            ],
        ),
        (
            "an option for a program",
            run(json!({"type": "oci", "runtime": {"bundle": "/b", "program": "-x", "id": "--force"}})),
            &[("runtime.program", "neither an absolute path"), ("runtime.id", "begins with a letter")],
        ),
        (
            "of the other runtime",
            run(json!({"type": "lxc", "runtime": {"bundle": "/b"}})),
            &[("runtime.bundle", "not this runtime's")],
        ),
        (
            "of the other runtime too",
            run(json!({"type": "oci", "runtime": {"bundle": "/b", "lxcpath": "/l"}})),
            &[("runtime.lxcpath", "not this runtime's")],
        ),
        ("no time", run(json!({"stop_timeout": 0})), &[("stop_timeout", "between 1 and 3600")]),
        ("too long", run(json!({"stop_timeout": 3601})), &[("stop_timeout", "between 1 and 3600")]),
        (
            "in no pool",
            json!({"name": "web", "type": "lxc", "network": {"mode": "host"}, "runtime": {}}),
            &[("runtime", "only containers in pools")],
        ),
        (
            "a command",
            run(json!({"type": "lxc", "runtime": {"command": "sh"}})),
            &[("runtime.command", "unknown field")],
        ),
    ];
    for (name, file, want) in cases {
        expect(name, parse_run("run.json", &file.to_string()), want);
    }
}
