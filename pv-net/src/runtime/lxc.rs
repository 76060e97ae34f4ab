//! LXC: the lines of a container's configuration (lxc.container.conf(5)), and its hooks.

use super::{Call, InTheWay};
use crate::model::{ContainerName, IfName};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::str::FromStr;

/// The line before those of pv-net.
const BEGIN: &str = "# pv-net: begin (written by pv-net lxc config; changes here are lost)";
const END: &str = "# pv-net: end";
/// What is looked for: the text behind it may be another one in a later version.
const BEGINS_WITH: &str = "# pv-net: begin";

/// The lines for a container, between two markers. LXC makes an empty namespace, and calls pv-net in it.
///
/// The hook is told the container's name, since LXC may know it by another one. `resolv_conf` is mounted as the
/// container's own; it has a path relative to the container's root.
#[must_use]
pub fn lines(call: &Call, name: &ContainerName, hostname: &str, resolv_conf: Option<&Path>) -> String {
    let words = std::iter::once(call.program.display().to_string()).chain(call.flags.iter().cloned());
    let called: Vec<String> = words.map(|word| quoted(&word)).collect();
    let mut lines = vec![
        BEGIN.to_owned(),
        // Without a value it takes back the networks that an included file has.
        "lxc.net =".to_owned(),
        "lxc.net.0.type = empty".to_owned(),
        // Nor does the container share the namespace that an included file names.
        "lxc.namespace.share.net =".to_owned(),
        format!("lxc.uts.name = {hostname}"),
        format!("lxc.hook.start-host = {} hook lxc {name}", called.join(" ")),
    ];
    if let Some(path) = resolv_conf {
        // In this file a blank ends a field, as in fstab(5).
        let path = path.display().to_string().replace(' ', "\\040");
        lines.push(format!("lxc.mount.entry = {path} etc/resolv.conf none bind,ro,create=file,optional 0 0"));
    }
    lines.push(END.to_owned());
    lines.join("\n") + "\n"
}

/// A word for `sh`, which LXC has run the hook's line.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A container's configuration with `lines` in place of those that an earlier call put there, else behind all others.
/// Everything else is kept to the byte.
///
/// # Errors
/// For a network of its own in the configuration, or a marker without the other.
pub fn place(config: &str, lines: &str) -> Result<String, InTheWay> {
    let (before, after) = match outside(config)? {
        (before, Some(after)) => (before.to_owned(), after),
        (before, None) if before.is_empty() || before.ends_with('\n') => (before.to_owned(), ""),
        (before, None) => (format!("{before}\n"), ""),
    };
    if let Some(clash) = before.lines().chain(after.lines()).find_map(clash).or_else(|| after.lines().find_map(behind))
    {
        return Err(clash);
    }
    Ok(before + lines + after)
}

/// What is before and behind pv-net's lines; nothing behind if there are none.
fn outside(config: &str) -> Result<(&str, Option<&str>), InTheWay> {
    let half = |what: &str| InTheWay {
        what: what.to_owned(),
        why: "this marker stands without the other".to_owned(),
        help: "remove the lines that pv-net has written, and call it again",
    };
    let at = |marker: &str, from: usize| {
        let mut start = from;
        config.get(from..)?.split_inclusive('\n').find_map(|line| {
            let range = start..start + line.len();
            start = range.end;
            line.starts_with(marker).then_some(range)
        })
    };
    match (at(BEGINS_WITH, 0), at(END, 0)) {
        (None, None) => Ok((config, None)),
        (None, Some(_)) => Err(half(END)),
        (Some(begin), _) => {
            let end = at(END, begin.end).ok_or_else(|| half(BEGINS_WITH))?;
            if at(BEGINS_WITH, begin.end).is_some() || at(END, end.end).is_some() {
                return Err(half(BEGINS_WITH));
            }
            let (before, after) = (config.get(..begin.start), config.get(end.end..));
            Ok((before.unwrap_or_default(), after))
        }
    }
}

/// A key and its value, without the quotes that LXC removes, too.
fn setting(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once('=').map(|(key, value)| (key.trim(), value.trim()))?;
    let bare = ['"', '\''].into_iter().find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
    (!key.starts_with('#')).then_some((key, bare.unwrap_or(value)))
}

/// A line that must not be behind pv-net's: it reads another file, which may have networks of its own, or takes back
/// pv-net's hook, without which the container would start unattached.
fn behind(line: &str) -> Option<InTheWay> {
    let (key, value) = setting(line)?;
    let why = match key {
        "lxc.include" => "it is behind the lines of pv-net, which its networks would be added to",
        "lxc.hook" | "lxc.hook.start-host" if value.is_empty() => {
            "it is behind the lines of pv-net, and removes its hook"
        }
        _ => return None,
    };
    Some(InTheWay {
        what: format!("{key} = {value}"),
        why: why.to_owned(),
        help: "move this line before those of pv-net",
    })
}

/// A line that gives the container another network than that of its pools.
fn clash(line: &str) -> Option<InTheWay> {
    let (key, value) = setting(line)?;
    let why = match key {
        "lxc.net" | "lxc.network" => "it makes interfaces beside those of the container's pools",
        _ if key.starts_with("lxc.net.") || key.starts_with("lxc.network.") => {
            "it makes interfaces beside those of the container's pools"
        }
        "lxc.namespace.share.net" => "the container has the namespace of another, and no interfaces of its own",
        "lxc.namespace.keep" if value.split_whitespace().any(|kept| kept == "net") => {
            "the container has the device's namespace, and no interfaces of its own"
        }
        "lxc.namespace.clone" if !value.split_whitespace().any(|made| made == "net") => {
            "the container gets no namespace of its own for its network"
        }
        _ => return None,
    };
    Some(InTheWay {
        what: format!("{key} = {value}"),
        why: why.to_owned(),
        help: "remove this line, or the container's interfaces from its run.json (\"mode\": \"host\" or \"none\")",
    })
}

/// The addresses that a configuration gives to interfaces itself, by `lxc.net.N.ipv4.address` and `ipv6.address`, each with
/// the interface's name: `lxc.net.N.name`, or `ethN`. Values that are no addresses are left out: LXC does not start such a
/// container. Files that it includes are not read.
#[must_use]
pub fn addresses(config: &str) -> Vec<(IfName, IpAddr)> {
    let mut nics: BTreeMap<u32, Nic> = BTreeMap::new();
    for (key, value) in config.lines().filter_map(setting) {
        if key == "lxc.net" && value.is_empty() {
            // It takes back all networks before it.
            nics.clear();
        }
        let Some((number, what)) = key.strip_prefix("lxc.net.").and_then(|rest| rest.split_once('.')) else { continue };
        let Ok(number) = number.parse() else { continue };
        let nic = nics.entry(number).or_default();
        match what {
            "name" => nic.name = value.parse().ok(),
            "ipv4.address" => address(&mut nic.ipv4, value),
            "ipv6.address" => address(&mut nic.ipv6, value),
            _ => {}
        }
    }
    let named = |(number, nic): (u32, Nic)| {
        let name = nic.name.or_else(|| format!("eth{number}").parse().ok());
        let all = nic.ipv4.into_iter().map(IpAddr::V4).chain(nic.ipv6.into_iter().map(IpAddr::V6));
        name.into_iter().flat_map(move |name| all.clone().map(move |address| (name.clone(), address)))
    };
    nics.into_iter().flat_map(named).collect()
}

/// What a configuration says of an interface.
#[derive(Default)]
struct Nic {
    name: Option<IfName>,
    ipv4: Vec<Ipv4Addr>,
    ipv6: Vec<Ipv6Addr>,
}

/// Adds an address with a prefix length, behind which there may be a broadcast address. Without a value it takes back
/// those before it.
fn address<T: FromStr>(all: &mut Vec<T>, value: &str) {
    match value.split_whitespace().next() {
        None => all.clear(),
        Some(word) => all.extend(word.split('/').next().and_then(|address| address.parse::<T>().ok())),
    }
}

/// What LXC tells its hooks: in their environment, and the type of the hook as the last of their arguments unless
/// `lxc.hook.version` is 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The container's name in LXC.
    pub name: String,
    /// The container's first process.
    pub pid: u32,
}

impl Told {
    /// Reads the environment by `of`, and the arguments that LXC has added.
    ///
    /// # Errors
    /// For a variable that is missing, or cannot be.
    pub fn read(of: impl Fn(&str) -> Option<String>, arguments: &[String]) -> Result<Self, InTheWay> {
        let wrong = |what: &str, why: &str| InTheWay {
            what: what.to_owned(),
            why: why.to_owned(),
            help: "let LXC call this, by the lines of `pv-net lxc config NAME`",
        };
        let get = |name: &str| of(name).ok_or_else(|| wrong(name, "not in the environment"));
        let hook = of("LXC_HOOK_TYPE").or_else(|| arguments.last().cloned());
        let hook = hook.ok_or_else(|| wrong("LXC_HOOK_TYPE", "not in the environment"))?;
        if hook != "start-host" {
            return Err(wrong("LXC_HOOK_TYPE", &format!("{hook:?} is not start-host, where the namespace is there")));
        }
        let pid = get("LXC_PID")?;
        let pid = pid.parse().map_err(|_| wrong("LXC_PID", &format!("{pid:?} is not the id of a process")))?;
        Ok(Self { name: get("LXC_NAME")?, pid })
    }
}
