//! Configurations that many tests use.

use serde_json::{Value, json};

/// A bridge pool in both families: `10.0.N.0/24` and `fd00:5056:0:N::/64` on `pvbrN`.
#[must_use]
pub fn pool(n: u8) -> Value {
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

/// The same two pools, open to each other.
#[must_use]
pub fn open_pools() -> Value {
    let mut config = two_pools();
    for name in ["internal", "management"] {
        config["network"]["pools"][name]["isolated"] = json!(false);
    }
    config
}
