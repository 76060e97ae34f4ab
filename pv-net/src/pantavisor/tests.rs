//! Answers as the documents and the code of Pantavisor show them.

use super::message::{error, is_about, list, value};
use super::{Action, Revision, message};
use proptest::prelude::*;
use std::os::unix::fs::symlink;

/// From `docs/reference/pvcontrol.md`, and with the fields of `PLATFORM.md`.
const LIST: &[u8] = br#"[
    {"name":"pv-example-app","group":"root","status":"STARTED","status_goal":"STARTED","restart_policy":"container",
     "roles":["mgmt"],"user_stopped":"false"},
    {"name":"my-container","status":"STOPPED","status_goal":"STARTED","pid":1234,"uptime_secs":3600,
     "restart_policy":"system","auto_recovery":{"type":"on-failure","max_retries":5,"current_retries":0},
     "provides":[{"name":"my-api","type":"rest","socket":"/run/my.sock"}],"consumes":[]}
]"#;

#[test]
fn a_list_of_containers() {
    let all = list(LIST).expect("a list");
    assert_eq!(all.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["pv-example-app", "my-container"]);
    assert_eq!(all.iter().map(|c| c.status.as_str()).collect::<Vec<_>>(), ["STARTED", "STOPPED"]);
    assert_eq!(all[0].group.as_deref(), Some("root"));
    assert_eq!((all[0].pid, all[1].pid), (None, Some(1234)));
    assert_eq!(all[0].restart_policy.as_deref(), Some("container"));
    assert!(list(b"{}").is_err() && list(b"").is_err() && list(b"[{\"name\":\"x\"}]").is_err());
}

#[test]
fn refusals() {
    assert_eq!(
        error(br#"{"Error":"Signal not expected from this platform"}"#),
        "Signal not expected from this platform"
    );
    assert_eq!(error(b"<html>no</html>"), "<html>no</html>");
    assert_eq!(error(b""), "refused");
    assert_eq!(error(b"a\nb\x1b[2J"), "a b [2J");
}

#[test]
fn requests() {
    // As in `docs/reference/pantavisor-commands.md`.
    assert_eq!(message::ready(), r#"{"type":"ready","payload":""}"#);
    for (action, text) in [(Action::Start, "start"), (Action::Stop, "stop"), (Action::Restart, "restart")] {
        assert_eq!(message::action(action), format!(r#"{{"action":"{text}"}}"#));
    }
}

#[test]
fn what_is_noted_is_about_one_revision() {
    let text = value("locals/2", "pool a: \"x\"\nis wrong", 4096);
    let all = serde_json::json!({"pv-net.error": text, "interfaces": {}}).to_string();
    assert!(is_about(all.as_bytes(), "pv-net.error", "locals/2"));
    for other in ["locals/1", "locals/", "locals/22", ""] {
        assert!(!is_about(all.as_bytes(), "pv-net.error", other), "{other}");
    }
    assert!(!is_about(b"[]", "pv-net.error", "locals/2"));
    assert_eq!(value("1", &"ä".repeat(4096), 4096).len(), 4095);
}

#[test]
fn a_revision_has_the_name_of_its_link() {
    let dir = tempfile::tempdir().expect("a directory");
    let link = dir.path().join("current");
    let revision = Revision { dir: link.clone(), control: "/x".into() };
    assert_eq!(revision.name(), None);
    let plain = Revision { dir: dir.path().to_owned(), ..revision.clone() };
    assert_eq!(plain.name(), Some(dir.path().display().to_string()));
    for (target, name) in [("7", "7"), ("locals/lab", "locals/lab"), ("/storage/trails/locals/lab", "locals/lab")] {
        symlink(target, &link).expect("a link");
        assert_eq!(revision.name().as_deref(), Some(name));
        std::fs::remove_file(&link).expect("removed");
    }
}

proptest! {
    #[test]
    fn no_answer_panics(bytes in any::<Vec<u8>>(), text in any::<String>(), longest in 0usize..100) {
        for bytes in [&bytes[..], text.as_bytes()] {
            let _ = list(bytes);
            let line = error(bytes);
            prop_assert!(!line.contains(char::is_control));
            let _ = is_about(bytes, "pv-net.error", &text);
        }
        prop_assert!(value(&text, &text, longest).len() <= longest);
    }
}
