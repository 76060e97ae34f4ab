//! How containers are started.

use super::{Case, container, expect};
use crate::config::parse_run;
use crate::model::{LxcSpec, OciSpec, RuntimeSpec, Start, Startable};
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
