//! Files of revisions of Pantavisor.

use super::*;
use crate::config::revision::{self, Run};
use proptest::prelude::*;
use std::fs;
use std::path::Path;

/// A container of pv-net's own, as `pvr` makes it.
const EXAMPLE: &str = include_str!("../../../../packaging/pantavisor/run.json");

/// As `meta-pantavisor`'s `recipes-containers/pv-examples/files/device-ipam-2pools.json`, with what
/// `docs/reference/pantavisor-state-format-v2.md` of Pantavisor knows beside.
fn device() -> Value {
    json!({
        "disks": [{"name": "dm-data", "type": "dm-crypt-versatile", "path": "/storage/d.img,2,key", "mode": "mainline"}],
        "disks_v3": [],
        "groups": [{"name": "root", "status_goal": "STARTED", "restart_policy": "container", "timeout": 30}],
        "volumes": {"pv--devmeta": {"persistence": "permanent"}},
        "network": {"pools": {
            "internal": {"type": "bridge", "bridge": "pvbr0", "subnet": "10.0.5.0/24", "gateway": "10.0.5.1", "nat": true},
            "lab": {"type": "bridge", "bridge": "pvbr1", "subnet": "10.0.6.0/24", "gateway": "10.0.6.1", "nat": false},
        }},
    })
}

/// The example with what other containers have beside, and a network as in `docs/reference/pantavisor-ipam.md`.
fn run(name: &str, network: Value) -> Value {
    let mut run: Value = serde_json::from_str(EXAMPLE).expect("JSON");
    let more = json!({
        "name": name,
        "logs": [{"file": "/var/log/syslog", "maxsize": 102_485_760, "truncate": true, "name": "alpine-logger"}],
        "services": {"required": [{"name": "system-bus", "type": "dbus", "role": "operator", "target": "/run/bus"}],
                     "optional": [{"name": "x", "interface": "org.example.X"}]},
        "dev-log": true,
        "network": network,
    });
    run.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    run
}

fn read(run: &Value, dir: &str) -> Result<Option<Container>, Vec<ConfigError>> {
    Ok(revision::run("run.json", &run.to_string(), dir)?.map(|run| run.container))
}

fn whys(errors: &[ConfigError]) -> Vec<(&str, &str)> {
    errors.iter().map(|e| (e.path.as_str(), e.why.as_str())).collect()
}

#[test]
fn what_is_pantavisors_is_left_alone() {
    let pools = revision::device("device.json", &device().to_string()).expect("valid").pools;
    assert_eq!(pools.len(), 2);
    let file = run("web", json!({"mode": "pool", "pool": "internal"})).to_string();
    let Run { text, container: web, .. } = revision::run("run.json", &file, "web").expect("valid").expect("in a pool");
    assert_eq!((web.name.as_str(), web.kind), ("web", crate::model::ContainerKind::Lxc));
    // What the daemon keeps of it is a file of its own form.
    assert_eq!(parse_run("run.json", &text).expect("valid"), web);
    assert_eq!(web.inactive, [""; 0]);
    // The strict form refuses both files.
    assert!(parse_device("f", &device().to_string()).is_err());
    assert!(parse_run("f", &run("web", json!({"pool": "internal"})).to_string()).is_err());
}

#[test]
fn containers_without_a_pool_are_none_of_ours() {
    let mut without = run("web", json!(null));
    without.as_object_mut().expect("an object").remove("network");
    assert_eq!(read(&without, "web"), Ok(None));
    for mode in ["host", "none"] {
        let mut other = run("another name", json!({"mode": mode}));
        other["type"] = json!("a runtime of tomorrow");
        assert_eq!(read(&other, "web"), Ok(None));
    }
    // From `test/pvtx/resources/bsp_init_groups.json` of Pantavisor.
    let bsp = json!({"addons": [], "firmware": "firmware.squashfs", "fit": "pantavisor.fit", "initrd_config": ""});
    assert_eq!(read(&bsp, "bsp"), Ok(None));
}

#[test]
fn the_network_is_checked_as_strictly_as_ever() {
    let wrong = read(&run("web", json!({"pool": "internal", "hostnam": "x"})), "web").expect_err("refused");
    assert_eq!(whys(&wrong), [("network.hostnam", "unknown field")]);
    for network in [json!(null), json!("internal"), json!([]), json!({"mode": "hots"}), json!({"interfaces": 1})] {
        assert!(read(&run("web", network.clone()), "web").is_err(), "{network}");
    }
    let mut pool = device();
    pool["network"]["pools"]["lab"]["gatway"] = json!("10.0.6.1");
    let wrong = revision::device("device.json", &pool.to_string()).expect_err("refused");
    assert_eq!(whys(&wrong), [("network.pools.lab.gatway", "unknown field")]);
    // The runtime is Pantavisor's business, but a container in a pool has one that is known here.
    let mut kind = run("web", json!({"pool": "internal"}));
    kind["type"] = json!("jail");
    assert_eq!(read(&kind, "web").expect_err("refused")[0].path, "type");
    // Another container's name, or another version of the form.
    assert!(read(&run("web", json!({"pool": "internal"})), "db").is_err());
    assert!(read(&run("web", json!({"pool": "internal"})), "no name").is_err());
    let mut spec = run("web", json!({"pool": "internal"}));
    spec["#spec"] = json!("service-manifest-run@2");
    assert_eq!(read(&spec, "web").expect_err("refused")[0].path, "#spec");
}

#[test]
fn a_misspelt_network_is_not_left_alone() {
    let mut misspelt = run("web", json!(null));
    let fields = misspelt.as_object_mut().expect("an object");
    fields.remove("network");
    fields.insert("netwrok".to_owned(), json!({"pool": "internal"}));
    let wrong = read(&misspelt, "web").expect_err("refused");
    assert_eq!(
        (whys(&wrong)[0], wrong[0].help.as_deref()),
        (("netwrok", "unknown field"), Some("did you mean \"network\"?"))
    );
    assert!(revision::device("f", &json!({"networks": {}}).to_string()).is_err());
}

#[test]
fn a_network_in_another_place_is_not_left_alone() {
    for (key, value) in [
        ("NETWORK", json!({"hostname": "web"})),
        ("NETWORK", json!({"pool": "internal"})),
        ("net", json!({"pool": "internal"})),
        ("ipam", json!({"Interfaces": [{"pool": "internal"}]})),
        ("pool", json!("internal")),
        ("interfaces", json!([])),
    ] {
        let mut file = run("web", json!(null));
        file.as_object_mut().expect("an object").remove("network");
        file[key] = value;
        assert_eq!(whys(&read(&file, "web").expect_err("refused")), [(key, "unknown field")]);
    }
    for (key, value) in [("Network", json!({})), ("pools", json!({"a": {}})), ("ipam", json!({"pools": {"a": {}}}))] {
        let wrong = revision::device("f", &json!({key: value}).to_string()).expect_err("refused");
        assert_eq!(whys(&wrong), [(key, "unknown field")]);
    }
    // Names of volumes are the user's.
    let mut file = run("web", json!({"mode": "host"}));
    file["storage"] = json!({"pool": {"persistence": "boot"}, "interfaces": {"persistence": "boot"}});
    assert_eq!(read(&file, "web"), Ok(None));
    assert!(revision::device("f", &json!({"volumes": {"pools": {"persistence": "boot"}}}).to_string()).is_ok());
}

#[test]
fn a_mode_without_a_pool_is_checked_too() {
    for mode in ["host", "none"] {
        for (network, path) in [
            (json!({"mode": mode, "pool": "internal"}), "network.pool"),
            (json!({"mode": mode, "interfaces": [{"pool": "internal"}]}), "network.interfaces"),
            (json!({"mode": mode, "ports": ["80:80"]}), "network.ports"),
            (json!({"mode": mode, "pol": "internal"}), "network.pol"),
        ] {
            assert_eq!(read(&run("web", network), "web").expect_err("refused")[0].path, path);
        }
    }
}

#[test]
fn an_address_may_have_a_prefix_length() {
    for (text, is_read) in [("10.0.5.7", true), ("10.0.5.7/24", true), ("10.0.5.7/33", false), ("10.0.5.7/", false)] {
        let run = run("web", json!({"pool": "internal", "interfaces": [{"ipv4_address": text}]}));
        let read = read(&run, "web").ok().flatten().map(|web| web.interfaces[0].ipv4);
        assert_eq!(read, is_read.then(|| "10.0.5.7".parse().ok()), "{text}");
    }
}

#[test]
fn the_prefix_length_is_that_of_the_pool() {
    let device = revision::device("device.json", &device().to_string()).expect("valid");
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("web")).expect("made");
    let wrong = |text: &str| {
        let network = json!({"pool": "internal", "interfaces": [{}, {"pool": "lab", "ipv4_address": text}]});
        fs::write(dir.path().join("web/run.json"), run("web", network).to_string()).expect("written");
        load::containers(dir.path(), Form::Revision).expect("readable")[0].errors(&device)
    };
    assert_eq!([wrong("10.0.6.7/24"), wrong("10.0.6.7")], [[], []]);
    for text in ["10.0.6.7/16", "10.0.6.7/32", "10.0.6.7/0"] {
        let wrong = wrong(text);
        let why = "the subnet of pool lab is 10.0.6.0/24";
        assert_eq!(whys(&wrong), [("network.interfaces[1].ipv4_address", why)]);
        assert!(wrong[0].to_string().contains(text), "{}", wrong[0]);
    }
}

#[test]
fn configurations_of_lxc_are_those_that_the_files_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, run: &Value| {
        fs::create_dir(dir.path().join(name)).expect("made");
        fs::write(dir.path().join(name).join("run.json"), run.to_string()).expect("written");
    };
    write("web", &run("web", json!({"pool": "internal"})));
    write("old", &json!({"config": "/other.conf"}));
    write("bsp", &json!({"fit": "pantavisor.fit"}));
    write("list", &json!({"config": ["x"]}));
    write("a name", &json!({"config": "lxc.container.conf"}));
    let found = load::lxc_configs(dir.path()).expect("readable");
    let below = |file: &Path| file.strip_prefix(dir.path()).expect("below").display().to_string();
    let found: Vec<(&str, String)> = found.iter().map(|(name, file)| (name.as_str(), below(file))).collect();
    assert_eq!(found, [("old", "old/other.conf".to_owned()), ("web", "web/lxc.container.conf".to_owned())]);
}

#[test]
fn services_of_buses_are_pantavisors() {
    // The first three are from `docs/reference/pantavisor-xconnect.md` of Pantavisor.
    let file = json!({"#spec": "service-manifest-xconnect@1", "services": [
        {"name": "network-manager", "type": "rest", "socket": "/run/network-manager/api.sock"},
        {"type": "dbus", "bus": "system-bus", "owns": "org.example.Foo", "role": "foo-service", "allow": ["operator"]},
        {"name": "raw", "type": "unix", "socket": "not absolute"},
        {"name": "page", "type": "http", "port": 80, "role": "any"},
    ]});
    let offers = revision::services("services.json", &file.to_string()).expect("valid");
    assert_eq!(offers.iter().map(|o| (o.name.as_str(), o.port)).collect::<Vec<_>>(), [("page", 80)]);
    // The older form is the list alone.
    assert_eq!(revision::services("services.json", &file["services"].to_string()).expect("valid"), offers);
    let wrong = json!([{"name": "page", "type": "http", "port": 0}]);
    assert!(revision::services("services.json", &wrong.to_string()).is_err());
}

#[test]
fn a_directory_of_a_revision() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |path: &str, value: &Value| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, value.to_string()).expect("written");
    };
    let pools = |dir: &Path| load::device(&dir.join("device.json"), Form::Revision).map(|device| device.pools.len());
    assert_eq!(pools(dir.path()), Ok(0), "a revision need not have device.json");
    let gone = pools(&dir.path().join("gone")).expect_err("refused");
    assert!(gone[0].why.contains("is no directory"), "{gone:?}");
    assert!(load::containers(&dir.path().join("gone"), Form::Revision).is_err());
    // What cannot be read is not missing.
    std::os::unix::fs::symlink("nowhere", dir.path().join("device.json")).expect("a link");
    assert!(pools(dir.path()).is_err());
    fs::remove_file(dir.path().join("device.json")).expect("removed");
    write("device.json", &device());
    write("bsp/run.json", &json!({"fit": "pantavisor.fit"}));
    write("_sigs/web.json", &json!({"#spec": "pvs@2"}));
    write("_config/web/etc/app.json", &json!([]));
    write(".pvr/json", &json!({"#spec": "pantavisor-service-system@1"}));
    write("web/run.json", &run("web", json!({"pool": "internal"})));
    write("web/services.json", &json!([{"name": "page", "type": "http", "port": 80}]));
    write("lost/run.json", &run("lost", json!({"pool": "nowhere"})));
    write("old/run.json", &run("old", json!({"mode": "host"})));
    assert_eq!(pools(dir.path()), Ok(2));
    let device = load::device(&dir.path().join("device.json"), Form::Revision).expect("valid");
    let all = load::containers(dir.path(), Form::Revision).expect("readable");
    let names: Vec<_> =
        all.iter().map(|d| d.path.strip_prefix(dir.path()).expect("below").display().to_string()).collect();
    assert_eq!(names, ["lost/run.json", "web/run.json"]);
    fs::create_dir(dir.path().join("bad")).expect("made");
    std::os::unix::fs::symlink("nowhere", dir.path().join("bad/run.json")).expect("a link");
    let with_bad = load::containers(dir.path(), Form::Revision).expect("readable");
    assert!(with_bad[0].container.is_err());
    assert_eq!(all[1].errors(&device), []);
    let wrong = all[0].errors(&device);
    assert_eq!(whys(&wrong), [("network.interfaces[0].pool", "no such pool")]);
}

#[test]
fn two_containers_do_not_ask_for_one_address() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, interface: Value| {
        let network = json!({"pool": "internal", "interfaces": [interface]});
        fs::create_dir(dir.path().join(name)).expect("made");
        fs::write(dir.path().join(name).join("run.json"), run(name, network).to_string()).expect("written");
    };
    write("a", json!({"ipv4_address": "10.0.5.7", "mac_address": "02:00:00:00:00:01"}));
    write("b", json!({"ipv4_address": "10.0.5.7/24"}));
    write("c", json!({"ipv4_address": "10.0.5.8", "mac_address": "02:00:00:00:00:01"}));
    write("d", json!({"pool": "lab", "mac_address": "02:00:00:00:00:01"}));
    let device = revision::device("device.json", &device().to_string()).expect("valid");
    let all = load::containers(dir.path(), Form::Revision).expect("readable");
    let wrong = load::revision_errors(&all, &device);
    let why = "container a has it already";
    assert_eq!(whys(&wrong), [("network.interfaces[0].ipv4_address", why), ("network.interfaces[0].mac_address", why)]);
}

proptest! {
    #[test]
    fn no_bytes_panic(text in any::<String>()) {
        let _ = revision::device("f", &text);
        let _ = revision::run("f", &text, &text);
        let _ = revision::services("f", &text);
    }

    /// Any value in any place, also where an object or a list belongs.
    #[test]
    fn no_json_panics(value in any_json(), key in "[a-z_#-]{0,12}") {
        for at in ["/network", "/network/interfaces", "/network/interfaces/0", "/type", "/name", "/network/mode"] {
            let mut file = run("web", json!({"pool": "internal", "interfaces": [{"name": "eth0"}], "mode": "pool"}));
            if let Some(place) = file.pointer_mut(at) {
                *place = value.clone();
            }
            file[&key] = value.clone();
            let read = revision::run("f", &file.to_string(), "web");
            // What is taken is a file of the strict form that means the same.
            if let Ok(Some(Run { text, container, .. })) = read {
                let name = container.name.clone();
                prop_assert_eq!(parse_run_named("f", &text, Some(&name)), Ok(container));
            }
        }
        for file in [json!({"network": value}), json!({"network": {"pools": value}}), json!({"services": value}), value.clone()] {
            let _ = revision::device("f", &file.to_string());
            let _ = revision::services("f", &file.to_string());
            let _ = revision::run("f", &file.to_string(), "web");
        }
    }
}

/// JSON of some depth, with names that the files have.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z0-9./:]{0,12}".prop_map(Value::from),
    ];
    let key = prop_oneof!["[a-z_]{0,10}", Just("mode".to_owned()), Just("pool".to_owned()), Just("port".to_owned())];
    leaf.prop_recursive(4, 32, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}
