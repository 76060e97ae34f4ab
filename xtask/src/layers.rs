//! Which modules may know which others: a test reads the imports of each file and compares them with the layers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The layers: deciding code is pure, and acting code gets its instructions from above. Each entry lists modules of
/// `pv-net/src`, the modules that they must not know, and why.
const FORBIDDEN: &[(&[&str], &[&str], &str)] = &[
    (
        &["model", "config", "ipam", "policy", "plan"],
        &["kernel", "failure", "snapshot", "events", "command", "supervisor", "services"],
        "what decides is pure",
    ),
    (&["model"], &["config", "ipam", "policy", "plan"], "it is what all others are made of"),
    (
        &["bus"],
        &["model", "config", "ipam", "lease", "policy", "plan", "kernel", "snapshot", "command", "events", "dns"],
        "it carries what others say, and does not know what",
    ),
    (
        &["dbus"],
        &[
            "model", "config", "ipam", "lease", "policy", "plan", "kernel", "snapshot", "command", "events", "dns",
            "services",
        ],
        "it is the form of messages, and does not know who sends which",
    ),
    (
        &["kernel"],
        &["config", "ipam", "lease", "failure", "snapshot", "events", "command", "supervisor", "services"],
        "it does what it is told and decides nothing",
    ),
    (
        &["model", "config", "ipam", "lease", "policy", "plan", "kernel", "failure", "snapshot", "command", "events"],
        &["daemon", "control", "api", "cli", "app"],
        "they are below all that runs",
    ),
    (&["dns"], &["lease"], "it answers by a snapshot, and asks other servers"),
    (
        &["runtime"],
        &["kernel", "config", "lease", "snapshot", "command", "events", "daemon", "control", "services", "api", "cli"],
        "what runtimes are told, and what they tell, is text",
    ),
    (
        &["runner"],
        &[
            "ipam",
            "lease",
            "snapshot",
            "command",
            "events",
            "dns",
            "control",
            "services",
            "supervisor",
            "api",
            "cli",
            "app",
        ],
        "it starts containers, and knows nothing of who asks",
    ),
    (
        &["pantavisor"],
        &[
            "config", "ipam", "lease", "policy", "plan", "kernel", "failure", "snapshot", "command", "events",
            "daemon", "control", "services", "api", "cli", "app",
        ],
        "it is a client of a socket, and does not know who asks",
    ),
    (
        &["dns", "ra", "dhcp", "dhcp6", "dhcp_client"],
        &["kernel", "config", "command", "events", "daemon", "control", "services", "supervisor", "api", "cli", "app"],
        "what is said follows from messages, the time, a snapshot and leases",
    ),
    (&["dhcp_client"], &["ipam", "lease", "snapshot"], "it asks for one interface, and does not know which"),
    (&["daemon"], &["api", "cli", "app", "services", "supervisor", "events"], "it is the controller's inside"),
    (
        &["control"],
        &["daemon", "api", "cli", "app", "services", "supervisor"],
        "it drives a `Core`, and is asked by all",
    ),
    (
        &["api", "services", "supervisor"],
        &["daemon", "control", "cli", "app"],
        "they read snapshots and ask by `Commands`; only `app.rs` knows them and the controller",
    ),
    (&["services"], &["api", "supervisor"], "each has its own"),
    (&["api"], &["services", "supervisor"], "it is one of those that are run"),
    (&["cli"], &["control", "services", "supervisor"], "it asks by the API, or does without a daemon"),
];

/// Known exceptions: the file, the module that it knows, and why.
const EXCEPTIONS: &[(&str, &str, &str)] =
    &[("ipam/store.rs", "kernel", "it is the state on disk, not a decision, and moves to a place of its own")];

/// Folders without circular imports: no file may know, directly or by others, a file that knows it.
const NO_CIRCLES: &[(&str, &[&str])] = &[
    ("pv-net-ebpf/src", &["crate"]),
    ("pv-net/src/kernel/bpf", &["super", "crate::kernel::bpf"]),
    ("pv-net/src/kernel/netlink", &["super", "crate::kernel::netlink"]),
    ("pv-net/src/daemon", &["super", "crate::daemon"]),
    ("pv-net/src/plan", &["super", "crate::plan"]),
    ("pv-net/src/dns", &["super", "crate::dns"]),
    ("pv-net/src/dhcp", &["super", "crate::dhcp"]),
    ("pv-net/src/ra", &["super", "crate::ra"]),
    ("pv-net/src/dhcp6", &["super", "crate::dhcp6"]),
    ("pv-net/src/dhcp_client", &["super", "crate::dhcp_client"]),
    ("pv-net/src/runtime", &["super", "crate::runtime"]),
    ("pv-net/src/runner", &["super", "crate::runner"]),
    ("pv-net/src/api", &["super", "crate::api"]),
    ("pv-net/src/cli", &["super", "crate::cli"]),
];

/// The modules right below `root` that `code` names, in a `use` or in a path.
fn named(code: &str, root: &str) -> BTreeSet<String> {
    let prefix = format!("{root}::");
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(&prefix) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | ':' | '$')) {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(list) => found.extend(heads(list)),
            None => found.extend(head(rest)),
        }
    }
    found
}

/// The first name in `text`.
fn head(text: &str) -> Option<String> {
    let name: String = text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

/// The first names of the paths in a list, up to the brace that ends it.
fn heads(list: &str) -> Vec<String> {
    let (mut depth, mut start, mut found) = (1, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && c == ',') {
            found.extend(head(&list[start..at]));
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    found
}

/// A file's code without comments and without its tests, which are at its end.
fn code(text: &str) -> String {
    let lines = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]") || line.contains("fn "));
    // In a list of modules, `mod tests;` is followed by other modules.
    let is_end =
        |text: &str| text.lines().any(|line| line.starts_with("mod tests {") || line.starts_with("mod tests{"));
    let kept: Vec<&str> = if is_end(text) { lines.collect() } else { text.lines().collect() };
    kept.iter().map(|line| line.split_once("//").map_or(*line, |(code, _)| code)).collect::<Vec<_>>().join("\n")
}

/// Whether a file exists only for tests.
fn is_test(path: &str) -> bool {
    path.split('/').any(|part| matches!(part, "tests" | "tests.rs" | "fixture.rs" | "fake.rs"))
}

/// Every Rust file below `folder`, by its path from there, with its code.
fn files(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(folder.join(&at)).expect("a folder of the repository") {
            let entry = entry.expect("a file of the repository");
            let path = at.join(entry.file_name());
            let shown = path.to_str().expect("UTF-8").to_owned();
            if entry.path().is_dir() {
                folders.push(path);
            } else if shown.ends_with(".rs") && !is_test(&shown) {
                found.insert(shown, code(&std::fs::read_to_string(entry.path()).expect("UTF-8")));
            }
        }
    }
    found
}

/// The module of `pv-net/src` to which a file belongs.
fn module_of(path: &str) -> &str {
    let first = path.split('/').next().unwrap_or(path);
    first.strip_suffix(".rs").unwrap_or(first)
}

/// Everything that breaks the layers.
fn against_layers(files: &BTreeMap<String, String>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (path, code) in files {
        let module = module_of(path);
        let known = named(code, "crate");
        for (who, whom, why) in FORBIDDEN.iter().filter(|(who, ..)| who.contains(&module)) {
            for other in whom.iter().filter(|other| known.contains(**other)) {
                if !EXCEPTIONS.iter().any(|(file, known, _)| (*file, *known) == (path.as_str(), *other)) {
                    let others = who.join(", ");
                    wrong.push(format!("{path} imports crate::{other}, and none of {others} may: {why}"));
                }
            }
        }
        let sides = ["api", "services", "supervisor"];
        if module != "app" && known.contains("control") && sides.iter().any(|side| known.contains(*side)) {
            wrong.push(format!("{path} knows the controller and what is around it: only app.rs does"));
        }
    }
    wrong
}

/// A path of imports from a file back to itself, if there is one.
fn circle(files: &BTreeMap<String, String>, roots: &[&str]) -> Option<Vec<String>> {
    let modules = files.iter().filter(|(path, _)| !matches!(path.as_str(), "mod.rs" | "main.rs"));
    let graph: BTreeMap<&str, BTreeSet<String>> = modules
        .filter(|(path, _)| !path.contains('/'))
        .map(|(path, code)| (module_of(path), roots.iter().flat_map(|root| named(code, root)).collect()))
        .collect();
    fn walk(graph: &BTreeMap<&str, BTreeSet<String>>, way: &mut Vec<String>, done: &mut BTreeSet<String>) -> bool {
        let at = way[way.len() - 1].clone();
        for next in graph.get(at.as_str()).into_iter().flatten().filter(|n| graph.contains_key(n.as_str())) {
            let seen = way.iter().position(|step| step == next);
            way.push(next.clone());
            if let Some(start) = seen {
                way.drain(..start);
                return true;
            }
            if !done.contains(next) && walk(graph, way, done) {
                return true;
            }
            way.pop();
        }
        done.insert(at);
        false
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|start| {
        let mut way = vec![(*start).to_owned()];
        (!done.contains(*start) && walk(&graph, &mut way, &mut done)).then_some(way)
    })
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member of the workspace")
}

#[test]
fn the_layers_hold() {
    let wrong = against_layers(&files(&repository().join("pv-net/src")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_files_know_each_other_in_a_circle() {
    for (folder, roots) in NO_CIRCLES {
        let circle = circle(&files(&repository().join(folder)), roots);
        assert_eq!(circle.map(|way| way.join(" → ")), None, "{folder}");
    }
}

#[test]
fn what_is_against_the_layers_is_found() {
    let planted = |path: &str, text: &str| against_layers(&[(path.to_owned(), code(text))].into()).len();
    for (name, path, text, want) in [
        ("a plan that acts", "plan/diff.rs", "use crate::kernel::netlink::Net;", 1),
        ("in a list", "plan/diff.rs", "use crate::{\n    model::{Pool, Port},\n    kernel::bpf,\n};", 1),
        ("in a path", "policy/mod.rs", "fn f() -> crate::daemon::Daemon {", 1),
        ("a model of the configuration", "model/pool.rs", "use crate::config::Field;", 1),
        ("a service inside the controller", "services/sweep.rs", "use crate::daemon::Daemon;", 1),
        ("advertisements with sockets", "ra/schedule.rs", "use crate::kernel::netlink::Net;", 1),
        ("names by the controller", "dns/zone.rs", "use crate::control::Core;", 1),
        ("a face inside the controller", "api/routes.rs", "use crate::control::Controller;", 1),
        ("who knows both", "snapshot/mod.rs", "use crate::control::Core;\nuse crate::services::sweep;", 2),
        ("what is known", "ipam/store.rs", "use crate::kernel::kill_point;", 0),
        ("another one there", "plan/source.rs", "use crate::daemon::Daemon;", 1),
        ("in a comment", "plan/diff.rs", "// unlike crate::kernel::netlink\n/// [`crate::daemon`]", 0),
        ("of another crate", "plan/diff.rs", "use other_crate::kernel::Net;", 0),
        ("in a test", "plan/diff.rs", "#[cfg(test)]\nmod tests {\n    use crate::kernel::fake;\n}", 0),
        ("the one that may", "app.rs", "use crate::control::Controller;\nuse crate::services;", 0),
        ("what may be", "plan/diff.rs", "use crate::model::Pool;\nuse crate::policy::Member;", 0),
    ] {
        assert_eq!(planted(path, text), want, "{name}");
    }
}

#[test]
fn a_circle_is_found() {
    let files: BTreeMap<String, String> = [
        ("maps.rs", "use crate::scratch::lend;"),
        ("scratch.rs", "use crate::{packet::{Kind, Packet}, verdict};"),
        ("packet.rs", "use crate::{verdict, maps::CONFIG};"),
        ("verdict.rs", ""),
        ("main.rs", "use crate::maps;"),
    ]
    .map(|(path, text)| (path.to_owned(), text.to_owned()))
    .into();
    assert_eq!(circle(&files, &["crate"]).map(|way| way.join(" ")), Some("maps scratch packet maps".to_owned()));
    let without = files.into_iter().filter(|(path, _)| path != "packet.rs").collect();
    assert_eq!(circle(&without, &["crate"]), None);
}
