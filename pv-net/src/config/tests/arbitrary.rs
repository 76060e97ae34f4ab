//! No text makes the parsers panic.

use crate::config::{parse_device, parse_run, parse_services};
use proptest::prelude::*;
use serde_json::json;

proptest! {
    #[test]
    fn no_bytes_panic(text in any::<String>()) {
        let _ = parse_device("f", &text);
        let _ = parse_run("f", &text);
        let _ = parse_services("f", &text);
    }

    #[test]
    fn no_json_panics(subnet in "[0-9a-f:./]{0,20}", gateway in "[0-9a-f:./]{0,20}", n in any::<i64>(), name in ".{0,20}") {
        let value = json!({"network": {"pools": {name.clone(): {
            "subnet": subnet, "subnet6": subnet, "gateway": gateway, "gateway6": gateway, "mtu": n,
            "dhcp": {"range": [gateway, subnet]},
        }}, "uplinks": [name, n]}});
        let _ = parse_device("f", &value.to_string());
    }
}
