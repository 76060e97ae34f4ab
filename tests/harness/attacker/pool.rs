//! What connects the containers of pool `internal`, and what follows from it for its network.

use serde_json::{Value, json};
use std::net::IpAddr;

/// The kind of links that pool `internal` has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Host-side links on a bridge, which has a port to a LAN.
    Bridge,
    /// Interfaces on the device's link to that LAN, which is an uplink too.
    Macvlan(Mode),
}

/// The mode of a macvlan pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Containers and the device reach each other.
    Bridge,
    /// Containers reach only other hosts.
    Private,
    /// What containers send to each other goes to the switch.
    Vepa,
}

/// The device's link to the LAN.
pub(crate) const PARENT: &str = "lan0";

impl Link {
    /// Whether the pool's containers are hosts on the LAN.
    pub(crate) fn is_macvlan(self) -> bool {
        self != Self::Bridge
    }

    /// Whether the pool's containers are hosts on the LAN, and the device has an interface of its own beside theirs.
    pub(crate) fn has_device_if(self) -> bool {
        self == Self::Macvlan(Mode::Bridge)
    }

    /// Makes the pool `internal` of a configuration such a pool. `management` is masqueraded in its place.
    pub(crate) fn put_into(self, config: &mut Value) {
        let Self::Macvlan(mode) = self else { return };
        let mode = match mode {
            Mode::Bridge => "bridge",
            Mode::Private => "private",
            Mode::Vepa => "vepa",
        };
        let network = &mut config["network"];
        network["uplinks"] = json!([crate::configs::UPLINK, PARENT]);
        network["pools"]["management"]["nat"] = json!(true);
        network["pools"]["internal"] = json!({
            "type": "macvlan", "parent": PARENT, "mode": mode,
            "subnet": "10.0.3.0/24", "gateway": "10.0.3.200",
            "subnet6": "fd00:5056:0:3::/64", "gateway6": "fd00:5056:0:3::c8",
        });
    }

    /// The number of the pool whose network, which is behind no wire, an address is in: 3 is `internal`.
    pub(crate) fn pool_at(self, addr: IpAddr) -> Option<u16> {
        let number = network_of(addr)?;
        (number != 3 || self == Self::Bridge).then_some(number)
    }
}

/// The number of the pool that has this address in its subnet.
fn network_of(addr: IpAddr) -> Option<u16> {
    match addr {
        IpAddr::V4(v4) => match v4.octets() {
            [10, 0, n @ (3 | 4), _] => Some(n.into()),
            _ => None,
        },
        IpAddr::V6(v6) => match v6.segments() {
            [0xfd00, 0x5056, 0, n @ (3 | 4), ..] => Some(n),
            _ => None,
        },
    }
}

/// Whether an address is in the LAN's network.
pub(crate) fn is_on_lan(addr: IpAddr) -> bool {
    network_of(addr) == Some(3)
}
