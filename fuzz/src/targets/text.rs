//! The small texts in files, arguments and `/proc`: the printed form of a value must parse to the same value.

use super::own;
use pv_net::kernel::cgroup::mount_point;
use pv_net::model::{ContainerName, IfName, Mac, PoolName, PortMapping, PortMatch, RuleName};
use pv_net::plan::PortSet;
use std::fmt::{Debug, Display};
use std::str::FromStr;

/// Target `text`.
pub fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    comes_back::<PortMapping>(&text);
    comes_back::<PortMatch>(&text);
    comes_back::<Mac>(&text);
    // A name must be printed exactly as it was written.
    for name in [
        comes_back::<PoolName>(&text),
        comes_back::<ContainerName>(&text),
        comes_back::<RuleName>(&text),
        comes_back::<IfName>(&text),
    ] {
        assert!(name.is_none_or(|name| name == text && is_harmless(&name)), "{text:?}");
    }
    if let Some(ports) = comes_back::<PortMapping>(&text).and_then(|t| t.parse::<PortMapping>().ok()) {
        let more = ports.host_ports.end() - ports.host_ports.start();
        assert!(*ports.host_ports.start() > 0 && ports.container_port > 0, "{ports}");
        assert!(ports.container_port.checked_add(more).is_some(), "{ports}");
    }
    if let Some(ports) = PortSet::parse(&text) {
        assert_eq!(PortSet::parse(&ports.to_string()), Some(ports), "{text:?}");
    }
    for line in text.lines() {
        let Some(path) = mount_point(line) else { continue };
        assert!(line.contains(" - cgroup2"), "{line:?}");
        assert!(!path.as_os_str().to_string_lossy().contains(' '), "{line:?}");
    }
}

/// The printed form of what `text` parses to; it must parse to the same value again.
fn comes_back<T: FromStr + Display + PartialEq + Debug>(text: &str) -> Option<String>
where
    T::Err: Debug,
{
    let value: T = text.parse().ok()?;
    let shown = value.to_string();
    assert_eq!(shown.parse::<T>().ok().as_ref(), Some(&value), "{text:?} is shown as {shown:?}");
    Some(shown)
}

/// Whether a name is safe in a path, a log line and a terminal.
fn is_harmless(name: &str) -> bool {
    !matches!(name, "." | "..") && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
}

/// Parts of what is parsed.
pub fn words() -> Vec<Vec<u8>> {
    own(&[
        "8080",
        ":80",
        "/tcp",
        "/udp",
        "tcp/",
        "udp/",
        "icmp",
        "-",
        "[::1]:",
        "127.0.0.1:",
        "65535",
        "02:00:0a:00:03:07",
        " - cgroup2 ",
        "32 24 0:27 / /sys/fs/cgroup rw",
        ".",
        "..",
        "/",
        "ü",
        "\u{202e}",
        "all",
        "default",
    ])
}
