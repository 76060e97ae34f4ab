//! Mistakes in files and commands: each gives one clear error, and nothing is left half done.

mod attach;

use anyhow::{Result, ensure};
use harness::{Device, Reply, Snapshot, configs};
use serde_json::{Value, json};
use std::path::Path;

/// The text of a file, the path that the error names, and parts of the error and of its help.
struct Case {
    name: &'static str,
    text: Vec<u8>,
    path: &'static str,
    parts: &'static [&'static str],
}

fn case(name: &'static str, file: Value, path: &'static str, parts: &'static [&'static str]) -> Case {
    Case { name, text: file.to_string().into_bytes(), path, parts }
}

fn raw(name: &'static str, text: &[u8], parts: &'static [&'static str]) -> Case {
    Case { name, text: text.to_vec(), path: "", parts }
}

/// A device with pool `internal`, changed by `fields`.
fn device(fields: Value) -> Value {
    let mut file = json!({"network": {"pools": {"internal": configs::pool(3)}}});
    if let (Some(pool), Some(fields)) = (file["network"]["pools"]["internal"].as_object_mut(), fields.as_object()) {
        pool.extend(fields.clone());
    }
    file
}

fn bad_text() -> Vec<Case> {
    vec![
        raw("an empty file", b"", &["EOF", "JSON"]),
        raw("white space", b" \n", &["EOF", "JSON"]),
        raw("no JSON", b"network:\n  pools: {}\n", &["expected", "line 1", "JSON"]),
        raw("cut off", br#"{"network": {"pools": "#, &["EOF", "JSON"]),
        raw("a key twice", br#"{"network": {}, "network": {}}"#, &["\"network\" stands twice", "JSON"]),
        raw("not UTF-8", b"{\"network\": \"\xff\xfe\"}", &["is not UTF-8", "write the file in UTF-8"]),
        raw("zeros", &[0; 64], &["expected value", "JSON"]),
        raw("too large", &vec![b' '; (4 << 20) + 1], &["larger than 4194304 bytes", "right file"]),
    ]
}

fn bad_devices() -> Vec<Case> {
    let two = |a: Value, b: Value| json!({"network": {"pools": {"a": a, "b": b}}});
    vec![
        case(
            "an unknown field",
            device(json!({"gatway": "10.0.3.1"})),
            "network.pools.internal.gatway",
            &["\"10.0.3.1\"", "unknown field", "did you mean \"gateway\"?"],
        ),
        case("an unknown section", json!({"netwrok": {}}), "netwrok", &["unknown field", "\"network\""]),
        case(
            "letters in a network",
            device(json!({"subnet6": "fd00:pv::/64"})),
            "network.pools.internal.subnet6",
            &["\"fd00:pv::/64\"", "\"pv\" is not hexadecimal", "such as `fd00:5056::/64`"],
        ),
        case(
            "a number too large",
            device(json!({"subnet": "10.0.300.0/24"})),
            "network.pools.internal.subnet",
            &["\"10.0.300.0/24\"", "\"300\" is not a number from 0 to 255", "such as `10.0.3.0/24`"],
        ),
        case(
            "host bits",
            device(json!({"subnet": "10.0.3.7/24"})),
            "network.pools.internal.subnet",
            &["\"10.0.3.7/24\"", "the network is 10.0.3.0/24"],
        ),
        case(
            "a gateway outside",
            device(json!({"gateway": "10.0.9.1"})),
            "network.pools.internal.gateway",
            &["\"10.0.9.1\"", "outside the subnet 10.0.3.0/24", "the first unless set"],
        ),
        case(
            "pools that overlap",
            two(json!({"subnet": "10.0.0.0/16"}), json!({"subnet": "10.0.3.0/24"})),
            "network.pools.b.subnet",
            &["\"10.0.3.0/24\"", "overlaps 10.0.0.0/16 of pool a", "choose another subnet"],
        ),
        case(
            "pools that overlap in IPv6",
            two(json!({"subnet6": "fd00:1::/32"}), json!({"subnet6": "fd00:1:2::/48"})),
            "network.pools.b.subnet6",
            &["\"fd00:1:2::/48\"", "overlaps fd00:1::/32 of pool a", "choose another subnet"],
        ),
        case(
            "a bridge's name too long",
            device(json!({"bridge": "a-bridge-too-far-x"})),
            "network.pools.internal.bridge",
            &["\"a-bridge-too-far-x\"", "at most 15 characters, this has 18"],
        ),
        case(
            "a number for a text",
            device(json!({"subnet": 10})),
            "network.pools.internal.subnet",
            &["10: ", "expected a string", "such as `10.0.3.0/24`"],
        ),
        case("an MTU too small", device(json!({"mtu": 576})), "network.pools.internal.mtu", &["576", "1280 to 65535"]),
        case("pools in a list", json!({"network": {"pools": []}}), "network.pools", &["[]", "expected a map"]),
    ]
}

fn run(network: Value) -> Value {
    json!({"name": "web", "network": network})
}

fn bad_containers() -> Vec<Case> {
    vec![
        case(
            "two default routes",
            run(json!({"pool": "internal", "interfaces": [{"default_route": true}, {"default_route": true}]})),
            "network.interfaces[1].default_route",
            &["true", "network.interfaces[0] has the default route already"],
        ),
        case(
            "an interface's name too long",
            run(json!({"interfaces": [{"pool": "internal", "name": "interface-number-one"}]})),
            "network.interfaces[0].name",
            &["\"interface-number-one\"", "at most 15 characters", "1 to 15 characters"],
        ),
        case(
            "a bad MAC",
            run(json!({"interfaces": [{"pool": "internal", "mac_address": "02:00:0a:00:03"}]})),
            "network.interfaces[0].mac_address",
            &["\"02:00:0a:00:03\"", "six hexadecimal octets", "such as `02:00:0a:00:03:07`"],
        ),
        case(
            "a multicast MAC",
            run(json!({"interfaces": [{"pool": "internal", "mac_address": "01:00:5e:00:00:01"}]})),
            "network.interfaces[0].mac_address",
            &["\"01:00:5e:00:00:01\"", "multicast", "such as"],
        ),
        case(
            "a bad address",
            run(json!({"interfaces": [{"pool": "internal", "ipv4_address": "10.0.3"}]})),
            "network.interfaces[0].ipv4_address",
            &["\"10.0.3\"", "four numbers, this has 3"],
        ),
        case(
            "a bad port",
            run(json!({"pool": "internal", "ports": ["99999:80"]})),
            "network.ports[0]",
            &["\"99999:80\"", "PORTS:PORTS"],
        ),
        case("no pool", json!({"name": "web"}), "network", &["in no pool", "\"interfaces\""]),
        case("a bad name", json!({"name": "a/b", "network": {"pool": "internal"}}), "name", &["\"a/b\"", "'/'"]),
    ]
}

/// Fails unless the reply is one error with one help text, and both contain what they should.
fn one_error(case: &Case, file: &Path, reply: &Reply) -> Result<()> {
    let said = &reply.stderr;
    let place = if case.path.is_empty() { String::new() } else { format!("{}: ", case.path) };
    let begins = format!("error: {}: {place}", file.display());
    ensure!(reply.code == Some(2) && reply.stdout.is_empty(), "{}: {reply:?}", case.name);
    ensure!(said.starts_with(&begins), "{}: no {begins:?} in: {said}", case.name);
    let count = |word: &str| said.lines().filter(|l| l.starts_with(word)).count();
    let lines = said.lines().count();
    ensure!((count("error: "), count("help: "), lines) == (1, 1, 2), "{}: {said}", case.name);
    ensure!(!said.contains("panicked") && said.len() < 1000, "{}: {said}", case.name);
    for part in case.parts {
        ensure!(said.contains(part), "{}: no {part:?} in: {said}", case.name);
    }
    Ok(())
}

#[test]
fn check_names_what_is_wrong() -> Result<()> {
    let bench = Device::new(&json!({}))?;
    let before = Snapshot::of(&bench)?;
    for case in bad_text().iter().chain(&bad_devices()).chain(&bad_containers()) {
        let file = bench.file("wrong.json");
        std::fs::write(&file, &case.text)?;
        one_error(case, &file, &bench.cli(&["check", &file.display().to_string()]))?;
    }
    for (what, path) in [("no such file", bench.file("missing.json")), ("a directory", bench.file("containers"))] {
        let reply = bench.cli(&["check", &path.display().to_string()]);
        ensure!(reply.code == Some(2), "{what}: {reply:?}");
        ensure!(reply.stderr.starts_with(&format!("error: {}: ", path.display())), "{what}: {}", reply.stderr);
        ensure!(reply.stderr.contains("\nhelp: "), "{what}: {}", reply.stderr);
    }
    let changed = before.diff(&Snapshot::of(&bench)?);
    ensure!(changed.is_empty(), "`check` changed {changed}");
    ensure!(!bench.file("state").exists() && !bench.file("run").exists(), "`check` made directories");
    Ok(())
}

#[test]
fn check_shows_every_error_of_every_file() -> Result<()> {
    let bench = Device::new(&json!({}))?;
    let (one, two, fine) = (bench.file("one.json"), bench.file("two.json"), bench.file("fine.json"));
    let wrong = device(json!({"subnet": "x", "subnet6": "fd00:pv::/64", "mtu": -1, "bridge": "a/b", "nope": 1}));
    std::fs::write(&one, wrong.to_string())?;
    std::fs::write(&two, run(json!({"interfaces": [{"pool": "a b"}, {"mac_address": "?"}]})).to_string())?;
    let mut later = device(json!({"nat": true, "dhcp": {}}));
    later["network"]["backend"] = json!("cni");
    std::fs::write(&fine, later.to_string())?;
    let words = [&one, &fine, &two].map(|f| f.display().to_string());
    let reply = bench.cli(&["check", &words[0], &words[1], &words[2]]);
    ensure!(reply.code == Some(2), "{reply:?}");
    for (file, path) in [
        (&one, "network.pools.internal.subnet"),
        (&one, "network.pools.internal.subnet6"),
        (&one, "network.pools.internal.mtu"),
        (&one, "network.pools.internal.bridge"),
        (&one, "network.pools.internal.nope"),
        (&two, "network.interfaces[0].pool"),
        (&two, "network.interfaces[1]"),
        (&two, "network.interfaces[1].mac_address"),
    ] {
        let begins = format!("error: {}: {path}: ", file.display());
        ensure!(reply.stderr.lines().filter(|l| l.starts_with(&begins)).count() == 1, "{path}: {}", reply.stderr);
    }
    let errors = reply.stderr.lines().filter(|l| l.starts_with("error: ")).count();
    ensure!(errors == 8, "{errors} errors: {}", reply.stderr);

    // `check` reports a right file, and the parts that this version does not implement.
    let said = bench.cli(&["check", &words[1]]).ok()?;
    let line = format!("{}: network.backend: accepted, not acted on yet\n", fine.display());
    ensure!(said.contains(&line), "{said}");
    ensure!(said.ends_with("1 file checked: all right\n"), "{said}");
    let told = bench.json(&["check", &words[1]])?;
    ensure!(told["conditions"].as_array().map(Vec::len) == Some(1), "{told}");

    // The daemon reads a file as what its name says, whatever is in it.
    for (file, text, why) in
        [("device.json", "[]", "device.json: "), ("run.json", "[]", "run.json: "), ("run.json", "{}", "name")]
    {
        let path = bench.file(file);
        std::fs::write(&path, text)?;
        let reply = bench.cli(&["check", &path.display().to_string()]);
        ensure!(reply.code == Some(2) && reply.stderr.contains(why), "{file} with {text}: {reply:?}");
    }
    // Who reads the first line only.
    let script = format!("{} completions bash | head -1", harness::binary()?.display());
    let output = std::process::Command::new("sh").args(["-c", &script]).output()?;
    ensure!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn a_reload_refuses_a_network_of_an_uplink() -> Result<()> {
    let mut bench = Device::new(&json!({}))?;
    let outside = bench.outside("up0", &["10.0.3.77/24"], &["10.0.3.78/24"])?;
    outside.ping("10.0.3.77", 1)?;
    bench.start()?;
    let before = Snapshot::of(&bench)?;
    let mut overlaps = device(json!({}));
    overlaps["network"]["uplinks"] = json!(["up0"]);
    let uplink = case(
        "overlap with an uplink",
        overlaps,
        "network.pools.internal.subnet",
        &["\"10.0.3.0/24\"", "overlaps 10.0.3.0/24 of uplink up0", "choose another subnet"],
    );
    std::fs::write(bench.config(), &uplink.text)?;
    one_error(&uplink, &bench.config(), &bench.cli(&["reload"]))?;
    let changed = before.diff(&Snapshot::of(&bench)?);
    ensure!(changed.is_empty(), "{changed}");
    Ok(())
}

#[test]
fn a_daemon_does_not_start_from_a_wrong_file() -> Result<()> {
    let bench = Device::new(&json!({}))?;
    let before = Snapshot::of(&bench)?;
    for case in bad_text().iter().chain(&bad_devices()) {
        std::fs::write(bench.config(), &case.text)?;
        one_error(case, &bench.config(), &bench.cli(&["run"]))?;
        let changed = before.diff(&Snapshot::of(&bench)?);
        ensure!(changed.is_empty(), "{}: {changed}", case.name);
        ensure!(!bench.file("state").join("state.json").exists(), "{}: a state file", case.name);
        ensure!(!bench.file("run").join("api.sock").exists(), "{}: a socket", case.name);
    }
    Ok(())
}
