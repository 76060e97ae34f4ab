//! The alias of a link: a lease can be learned again from it, whatever the names in it.

use super::own;
use pv_net::kernel::netlink::alias::{bridge_pool, is_ours, of_attachment, of_bridge, to_attachment};
use pv_net::model::{Attachment, Mac, PoolName};

/// `IFALIASZ` minus the final zero byte (`if_link.h`).
const LONGEST: usize = 255;

/// Target `alias`. The input is used as an alias, and as lines with the parts of one.
pub fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Some(attachment) = to_attachment("pvweb-0123456", &text) {
        assert!(is_ours(Some(&text)));
        comes_back(&attachment);
    }
    if let Some(pool) = bridge_pool(&text) {
        assert!(is_ours(Some(&text)));
        bridge_comes_back(&pool);
    }
    if let Some(attachment) = from_lines(&text) {
        comes_back(&attachment);
        bridge_comes_back(&attachment.pool);
    }
}

fn comes_back(attachment: &Attachment) {
    let alias = of_attachment(attachment);
    assert!(alias.len() <= LONGEST, "{alias} has {} bytes", alias.len());
    assert!(is_ours(Some(&alias)), "{alias}");
    assert_eq!(to_attachment(attachment.host_if.as_str(), &alias).as_ref(), Some(attachment), "{alias}");
    assert_eq!(bridge_pool(&alias), None, "{alias}");
}

fn bridge_comes_back(pool: &PoolName) {
    let alias = of_bridge(pool);
    assert!(alias.len() <= LONGEST && is_ours(Some(&alias)), "{alias}");
    assert_eq!(bridge_pool(&alias).as_ref(), Some(pool), "{alias}");
    assert_eq!(to_attachment("pvweb-0123456", &alias), None, "{alias}");
}

/// Container, interface, pool, link, and then bits: which families there are, and the default route.
fn from_lines(text: &str) -> Option<Attachment> {
    let mut lines = text.split('\n');
    let (container, interface) = (lines.next()?.parse().ok()?, lines.next()?.parse().ok()?);
    let (pool, host_if) = (lines.next()?.parse().ok()?, lines.next()?.parse().ok()?);
    let bits = lines.next()?.as_bytes().first().copied().unwrap_or_default();
    Some(Attachment {
        container,
        interface,
        pool,
        host_if,
        mac: Mac([0x02, bits, 0, 0, 0, 1]),
        ipv4: (bits & 1 != 0).then_some([10, 0, 3, bits].into()),
        ipv6: (bits & 2 != 0).then_some(std::net::Ipv6Addr::from([bits; 16])),
        default_route: [None, Some(true), Some(false), None][usize::from(bits >> 2 & 3)],
        network: None,
    })
}

/// Keys and signs of an alias.
pub fn words() -> Vec<Vec<u8>> {
    own(&[
        "pv-net:",
        "pool=",
        "container=",
        "if=",
        "mac=",
        "v4=",
        "v6=",
        "gw",
        "bridge=",
        ";",
        "=",
        "%3b",
        "%",
        ";gw",
        "02:00:0a:00:03:07",
        "10.0.3.7",
        "fd00::7",
        "\n",
        "web",
        "eth0",
        "internal",
        "ü",
        "\u{202e}",
    ])
}
