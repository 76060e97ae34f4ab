//! Target `runtime`: what container runtimes are configured with. A change of a file twice is as once, and keeps what
//! is not pv-net's.

use super::own;
use pv_net::runtime::{Call, lxc, oci};
use serde_json::Value;
use std::path::Path;

/// The text as a configuration of LXC, or else as a bundle's or a container's state.
pub fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let call = Call { program: "/usr/bin/pv-net".into(), flags: Vec::new() };
    let name = "web".parse().expect("a name");
    match serde_json::from_str::<Value>(text) {
        Ok(document) => bundle(&document, &call, &name),
        Err(_) => config(text, &lxc::lines(&call, &name, "www", Some(Path::new("/run/web.conf")))),
    }
    if let Ok(state) = serde_json::from_str::<oci::State>(text)
        && let Ok(Some(attach)) = oci::attach(&state, None)
    {
        assert!(attach.pid == state.pid && attach.pid > 0, "{attach:?}");
        assert!(attach.annotated || (attach.pool.is_none() && state.id.starts_with(&attach.name)), "{attach:?}");
    }
}

fn config(text: &str, lines: &str) {
    let found = lxc::addresses(text);
    let keys = text.matches("lxc.net.").count();
    assert!(found.len() <= keys, "{found:?}");
    assert!(lxc::addresses(&format!("{text}\nlxc.net =\n")).is_empty());
    // One more interface adds its address, and takes none away.
    let more = lxc::addresses(&format!("{text}\nlxc.net.4294967295.ipv4.address = 192.0.2.1/24\n"));
    assert!(found.iter().all(|one| more.contains(one)) && more.len() == found.len() + 1, "{found:?} {more:?}");
    let Ok(once) = lxc::place(text, lines) else { return };
    assert_eq!(lxc::place(&once, lines).as_ref(), Ok(&once));
    let (before, after) = once.split_once(lines).expect("the lines are in it");
    assert!(text.starts_with(before.strip_suffix('\n').unwrap_or(before)), "{before:?}");
    assert!(text.ends_with(after), "{after:?}");
}

fn bundle(document: &Value, call: &Call, name: &pv_net::model::ContainerName) {
    for netns in [None, Some(Path::new("/run/netns/web"))] {
        let resolv_conf = Path::new("/run/web.conf");
        let patch = oci::Patch { call, name, hostname: "www", resolv_conf, has_resolv_conf: netns.is_some(), netns };
        let Ok(once) = patch.apply(document) else { continue };
        assert_eq!(patch.apply(&once).as_ref(), Ok(&once));
        let hooks = once["hooks"]["createRuntime"].as_array().map_or(0, Vec::len);
        assert!(netns.is_some() || hooks > 0, "{once}");
        for (key, value) in document.as_object().into_iter().flatten() {
            let is_changed = ["hooks", "hostname", "linux", "mounts"].contains(&key.as_str());
            assert!(is_changed || once[key] == *value, "{key}");
        }
    }
}

pub fn words() -> Vec<Vec<u8>> {
    own(&[
        "# pv-net: begin\n",
        "# pv-net: end\n",
        "lxc.net.0.type = empty\n",
        "lxc.net.0.ipv4.address = 10.0.3.9/24\n",
        "lxc.net.0.ipv6.address = fd00::9/64\n",
        "lxc.net.0.name = lan\n",
        "lxc.include = /x\n",
        "lxc.namespace.keep = net",
        "\"ociVersion\": \"1.0\"",
        "\"hooks\": {\"createRuntime\": [{\"args\": [\"pv-net\", \"hook\", \"oci\"]}]}",
        "\"linux\": {\"namespaces\": [{\"type\": \"network\", \"path\": \"/x\"}]}",
        "\"mounts\": [{\"destination\": \"/etc/resolv.conf\"}]",
        "\"pv-net.pool\"",
        "\"status\": \"stopped\"",
    ])
}
