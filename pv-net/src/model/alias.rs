//! The `ifalias` of pv-net's links. It marks a link as pv-net's, and has enough information to learn a lease from the
//! link alone. Pure.

use super::{Attachment, IfName, PoolName};
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;

const MARK: &str = "pv-net:";
/// The suffix of the alias while the attach of a container's link is not finished. One byte, since the longest alias
/// leaves room for no more.
const UNFINISHED: &str = ";";

/// The alias of a container's host-side link. The limits of the names keep it within 255 bytes (`IFALIASZ`).
#[must_use]
pub fn of_attachment(a: &Attachment) -> String {
    let interface = escape(a.interface.as_str());
    let mut text = format!("{MARK}pool={};container={};if={interface};mac={}", a.pool, a.container, a.mac);
    if let Some(v4) = a.ipv4 {
        text.push_str(&format!(";v4={v4}"));
    }
    if let Some(v6) = a.ipv6 {
        text.push_str(&format!(";v6={v6}"));
    }
    match a.default_route {
        Some(true) => text.push_str(";gw"),
        Some(false) => {}
        None => text.push_str(";g"),
    }
    text
}

/// The attachment that [`of_attachment`] wrote to link `host_if`; `None` for any other alias.
#[must_use]
pub fn to_attachment(host_if: &str, alias: &str) -> Option<Attachment> {
    let fields = fields(alias)?;
    let optional = |key: &str| fields.get(key).copied();
    Some(Attachment {
        container: optional("container")?.parse().ok()?,
        interface: unescape(optional("if")?).parse().ok()?,
        pool: optional("pool")?.parse().ok()?,
        host_if: host_if.parse().ok()?,
        mac: optional("mac")?.parse().ok()?,
        ipv4: optional("v4").map(str::parse).transpose().ok()?,
        ipv6: optional("v6").map(str::parse).transpose().ok()?,
        default_route: match (optional("gw"), optional("g")) {
            (Some(_), _) => Some(true),
            (None, Some(_)) => None,
            (None, None) => Some(false),
        },
        network: None,
    })
}

/// The alias of a container's link until its attach is finished. The mark is on the link itself, so that it is there
/// after a crash without a write to disk for each attach.
#[must_use]
pub fn unfinished(alias: &str) -> String {
    format!("{alias}{UNFINISHED}")
}

/// Whether the attach of the link with this alias is unfinished.
#[must_use]
pub fn is_unfinished(alias: &str) -> bool {
    is_ours(Some(alias)) && alias.ends_with(UNFINISHED)
}

/// The alias after the attach.
#[must_use]
pub fn finished(alias: &str) -> &str {
    alias.strip_suffix(UNFINISHED).unwrap_or(alias)
}

/// The alias of a bridge that pv-net made for `pool`.
#[must_use]
pub fn of_bridge(pool: &PoolName) -> String {
    format!("{MARK}bridge={pool}")
}

/// The pool named in the alias of a bridge; `None` if pv-net did not make the bridge.
#[must_use]
pub fn bridge_pool(alias: &str) -> Option<PoolName> {
    fields(alias)?.get("bridge")?.parse().ok()
}

/// The alias of the device's own interface beside the macvlan interfaces of containers on `parent`.
#[must_use]
pub fn of_device_if(parent: &IfName) -> String {
    format!("{MARK}device={}", escape(parent.as_str()))
}

/// Whether a link with this alias is the device's own interface on a parent.
#[must_use]
pub fn is_device_if(alias: Option<&str>) -> bool {
    alias.and_then(fields).is_some_and(|fields| fields.contains_key("device") && !fields.contains_key("container"))
}

/// Whether pv-net made the link with this alias.
#[must_use]
pub fn is_ours(alias: Option<&str>) -> bool {
    alias.is_some_and(|a| a.starts_with(MARK))
}

/// Characters that are escaped in interface names. Other names can contain neither.
const ESCAPED: [(&str, &str); 2] = [("%", "%25"), (";", "%3b")];

fn escape(name: &str) -> String {
    ESCAPED.iter().fold(name.to_owned(), |name, (sign, code)| name.replace(sign, code))
}

fn unescape(text: &str) -> String {
    ESCAPED.iter().rev().fold(text.to_owned(), |text, (sign, code)| text.replace(code, sign))
}

fn fields(alias: &str) -> Option<BTreeMap<&str, &str>> {
    let rest = alias.strip_prefix(MARK)?;
    Some(rest.split(';').map(|f| f.split_once('=').unwrap_or((f, ""))).collect())
}

/// An address that pv-net added to a bridge that it did not make, and has to remove later.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct BorrowedAddress {
    /// The bridge.
    pub link: IfName,
    /// The address.
    pub address: IpNetwork,
}

/// A `forwarding` sysctl that pv-net switched on for a bridge that it did not make, and has to switch off later.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BorrowedForwarding {
    /// The bridge.
    pub link: IfName,
    /// `ipv4` or `ipv6`.
    pub family: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attachment(
        container: &str,
        pool: &str,
        interface: &str,
        v4: [u8; 4],
        v6: [u8; 16],
        gw: Option<bool>,
    ) -> Attachment {
        Attachment {
            container: container.parse().expect("name"),
            interface: interface.parse().expect("name"),
            pool: pool.parse().expect("name"),
            host_if: "pvx".parse().expect("name"),
            mac: "02:00:0a:00:03:07".parse().expect("mac"),
            ipv4: Some(v4.into()),
            ipv6: Some(v6.into()),
            default_route: gw,
            network: None,
        }
    }

    proptest! {
        #[test]
        fn an_alias_says_it_all(c in "[a-z0-9][a-zA-Z0-9._-]{0,62}", p in "[a-z0-9][a-z0-9._-]{0,31}",
                                i in "[a-z%;][a-z0-9.;=%]{0,14}", v4: [u8; 4], v6: [u8; 16], gw: Option<bool>) {
            let a = attachment(&c, &p, &i, v4, v6, gw);
            let alias = of_attachment(&a);
            let begun = unfinished(&alias);
            prop_assert!(is_unfinished(&begun) && !is_unfinished(&alias));
            prop_assert!(finished(&begun) == alias && finished(&alias) == alias);
            prop_assert_eq!(to_attachment("pvx", &begun), Some(a.clone()));
            prop_assert_eq!(to_attachment("pvx", &alias), Some(a));
        }

        #[test]
        fn foreign_aliases_are_nothing(text in ".{0,80}") {
            prop_assume!(!text.starts_with(MARK));
            prop_assert_eq!(to_attachment("pvx", &text), None);
            prop_assert!(!is_ours(Some(&text)));
        }

        #[test]
        fn no_alias_panics(text in ".{0,80}") {
            let _ = to_attachment("pvx", &format!("{MARK}{text}"));
        }
    }

    #[test]
    fn the_longest_names_fit() {
        for interface in ["i", ";", "%"] {
            let name = interface.repeat(15);
            let longest = attachment(&"c".repeat(63), &"p".repeat(32), &name, [255; 4], [0xab; 16], None);
            assert!(unfinished(&of_attachment(&longest)).len() <= 255);
        }
    }
}
