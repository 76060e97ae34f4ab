//! Configurations that many tests use.

use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};

/// The uplink of most labs.
pub const UPLINK: &str = "up0";
/// The device's addresses on it, as [`crate::Device::outside`] takes them.
pub const DEVICE: [&str; 2] = ["192.0.2.1/24", "2001:db8:1::1/64"];
/// The addresses of the host beyond the uplink.
pub const HOST: [&str; 2] = ["192.0.2.9/24", "2001:db8:1::9/64"];
/// The host's address and the device's, a pair a family: those of [`HOST`] and [`DEVICE`].
pub const HOSTS: [(IpAddr, IpAddr); 2] = [
    (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9)), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
    (
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 9)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1)),
    ),
];

/// Whether pools have netkit links: see [`use_netkit`].
static NETKIT: AtomicBool = AtomicBool::new(false);

/// From now on the pools of [`pool`] have netkit links, so that the same checks can be made with them. This is for a
/// program that makes one check after the other; tests take the environment variable `PV_NET_LINK`, whose value is a
/// pool's `link`.
pub fn use_netkit() {
    NETKIT.store(true, Ordering::Relaxed);
}

/// A bridge pool in both families: `10.0.N.0/24` and `fd00:5056:0:N::/64` on `pvbrN`.
#[must_use]
pub fn pool(n: u8) -> Value {
    let mut pool = plain_pool(n);
    let link = std::env::var("PV_NET_LINK").ok();
    if let Some(link) = if NETKIT.load(Ordering::Relaxed) { Some("netkit".to_owned()) } else { link } {
        pool["link"] = json!(link);
    }
    pool
}

fn plain_pool(n: u8) -> Value {
    json!({
        "type": "bridge",
        "bridge": format!("pvbr{n}"),
        "subnet": format!("10.0.{n}.0/24"),
        "gateway": format!("10.0.{n}.1"),
        "subnet6": format!("fd00:5056:0:{n}::/64"),
        "gateway6": format!("fd00:5056:0:{n}::1"),
    })
}

/// Two pools, `internal` (3) and `management` (4), closed to each other.
#[must_use]
pub fn two_pools() -> Value {
    json!({"network": {"pools": {"internal": pool(3), "management": pool(4)}}})
}

/// The same two pools and [`UPLINK`]; `internal` is masqueraded behind it.
#[must_use]
pub fn masqueraded() -> Value {
    let mut config = two_pools();
    config["network"]["uplinks"] = json!([UPLINK]);
    config["network"]["pools"]["internal"]["nat"] = json!(true);
    config
}

/// The same two pools, open to each other.
#[must_use]
pub fn open_pools() -> Value {
    let mut config = two_pools();
    for name in ["internal", "management"] {
        config["network"]["pools"][name]["isolated"] = json!(false);
    }
    config
}
