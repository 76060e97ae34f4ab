use super::Advert;
use crate::config::parse_device;
use crate::model::Mac;
use crate::plan::PoolLink;
use crate::snapshot::{PoolStatus, Snapshot};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

fn snapshot(pool: &Value, has_way_out6: bool) -> Snapshot {
    let device = parse_device("device.json", &json!({"network": {"pools": {"p": pool}}}).to_string()).expect("valid");
    let link = PoolLink { index: 7, mac: Mac([2, 0, 0, 0, 0, 7]), mtu: 1420, id: 1, borrowed: false, on_parent: false };
    let status = PoolStatus { link: Some(link), conditions: Vec::new() };
    Snapshot {
        pools: Arc::new(device.pools.keys().map(|name| (name.clone(), status.clone())).collect()),
        device: Arc::new(device),
        has_way_out6,
        ..Snapshot::default()
    }
}

fn advert(pool: &Value, has_way_out6: bool) -> Option<Advert> {
    let snapshot = snapshot(pool, has_way_out6);
    snapshot.device.pools.values().find_map(|pool| Advert::of(&snapshot, pool))
}

/// The message in lines: its head, and an option each.
fn lines(message: &[u8]) -> Vec<String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (head, mut options) = message.split_at(16);
    let mut lines = vec![hex(head)];
    while let Some(units) = options.get(1) {
        let (option, rest) = options.split_at(usize::from(*units) * 8);
        lines.push(hex(option));
        options = rest;
    }
    lines
}

#[test]
fn an_advertisement_has_what_the_pool_says() {
    let ra = json!({"lifetime": "10m", "preference": "high", "routes": ["fd77::/16", "fd78:1:2:3:4::/80"]});
    let pool = json!({"subnet6": "fd00:5056::/64", "ra": ra});
    let all = advert(&pool, true).expect("it advertises");
    assert_eq!(
        lines(&all.encode()),
        [
            // Hop limit 64, high, 600 seconds.
            "86000000400802580000000000000000",
            "0101020000000007",
            "050100000000058c",
            // /64, on the link and for hosts to make addresses of.
            "030440c00000151800000a8c00000000fd005056000000000000000000000000",
            "1802100800000258fd77000000000000",
            "1803500800000258fd780001000200030004000000000000",
            "1903000000000258fd005056000000000000000000000001",
            "1f03000000000258027076056c6f63616c00000000000000",
        ]
    );
    // Nothing is behind the device, but names and networks are.
    let no_way_out = advert(&pool, false).expect("it advertises");
    assert_eq!(lines(&no_way_out.encode())[0], "86000000400000000000000000000000");
    assert_eq!(lines(&no_way_out.encode())[1..], lines(&all.encode())[1..]);
    // The last one of a daemon, and that of a network that goes.
    let last = lines(&all.clone().last().encode());
    assert_eq!(
        (last[0].as_str(), last[3].as_str()),
        ("86000000400000000000000000000000", "030440c00000151800000a8c00000000fd005056000000000000000000000000")
    );
    assert!(last[4..].iter().all(|option| option[8..16] == *"00000000"), "{last:?}");
    let withdrawn = lines(&all.withdrawn().encode());
    assert_eq!(withdrawn[3], "030440c0000015180000000000000000fd005056000000000000000000000000");
}

#[test]
fn hosts_are_told_how_to_come_by_addresses() {
    for (mode, head, flags) in
        [("slaac", "00", "c0"), ("stateless", "40", "c0"), ("stateful", "c0", "80"), ("route-only", "00", "80")]
    {
        let pool = json!({"subnet6": "fd00:5056::/64", "dns": false, "ra": {"mode": mode}});
        let lines = lines(&advert(&pool, true).expect("it advertises").encode());
        assert_eq!(lines[0], format!("8600000040{head}07080000000000000000"), "{mode}");
        assert_eq!(lines[3][6..8], *flags, "{mode}");
        assert_eq!(lines.len(), 4, "no names without a server: {mode}");
    }
}

#[test]
fn who_is_not_asked_to_says_nothing() {
    let pool = json!({"subnet6": "fd00:5056::/64", "ra": {}});
    assert!(advert(&json!({"subnet6": "fd00:5056::/64"}), true).is_none());
    let without = Snapshot { pools: Arc::new(BTreeMap::new()), ..snapshot(&pool, true) };
    assert!(without.device.pools.values().all(|pool| Advert::of(&without, pool).is_none()), "there is no bridge");
}
