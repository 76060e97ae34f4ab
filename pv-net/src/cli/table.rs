//! The API's answers as text for people.

use serde_json::Value;

/// A column: its title, and the field that it shows.
pub type Column = (&'static str, &'static str);

pub const POOLS: &[Column] = &[
    ("POOL", "name"),
    ("TYPE", "type"),
    ("BRIDGE", "bridge"),
    ("LINK", "link"),
    ("IPAM", "ipam"),
    ("SUBNET", "subnet"),
    ("SUBNET6", "subnet6"),
    ("ISOLATED", "isolated"),
    ("MTU", "mtu"),
    ("USED", "used"),
    ("SIZE", "size"),
];

pub const CONTAINERS: &[Column] = &[
    ("CONTAINER", "container"),
    ("STATE", "state"),
    ("RUNS", "runs"),
    ("SINCE", "since"),
    ("EXIT", "exit"),
    ("IF", "name"),
    ("POOL", "pool"),
    ("IPV4", "ipv4_address"),
    ("IPV6", "ipv6_address"),
    ("MAC", "mac_address"),
    ("DEFAULT VIA", "default_gateways"),
    ("HOST LINK", "host_if"),
    ("KIND", "link"),
    ("FLOWS", "flows"),
    ("MOST", "max_flows"),
];

pub const LEASES: &[Column] = &[
    ("POOL", "pool"),
    ("CONTAINER", "container"),
    ("IF", "interface"),
    ("IPV4", "ipv4_address"),
    ("IPV6", "ipv6_address"),
    ("MAC", "mac_address"),
    ("STATIC", "static"),
    ("NAME", "hostname"),
    ("EXPIRES", "expires"),
    ("STATE", "state"),
    ("FROM", "from"),
];

pub const PORTS: &[Column] = &[
    ("CONTAINER", "container"),
    ("PROTO", "proto"),
    ("DEVICE ADDRESS", "host_address"),
    ("PORT", "host_port"),
    ("TO", "host_port_end"),
    ("CONTAINER ADDRESS", "container_address"),
    ("PORT", "container_port"),
];

pub const SERVICES: &[Column] = &[
    ("SERVICE", "name"),
    ("CONTAINER", "container"),
    ("TYPE", "type"),
    ("PROTO", "proto"),
    ("PORT", "port"),
    ("ADDRESSES", "addresses"),
    ("NAME", "dns_name"),
    ("SRV", "srv_name"),
];

pub const FLOWS: &[Column] = &[
    ("PROTO", "proto"),
    ("SOURCE", "src"),
    ("PORT", "sport"),
    ("DESTINATION", "dst"),
    ("PORT", "dport"),
    ("FROM", "container"),
    ("DIRECTION", "direction"),
    ("STATE", "state"),
    ("PACKETS", "packets"),
    ("BYTES", "bytes"),
    ("AGE", "age"),
];

pub const POLICIES: &[Column] = &[
    ("RULE", "rule"),
    ("FROM", "from"),
    ("TO", "to"),
    ("PORTS", "ports"),
    ("ACTION", "action"),
    ("GENERATION", "generation"),
    ("IN FORCE", "in_force"),
];

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(s) => s.clone(),
        Value::Array(all) if all.is_empty() => "-".to_owned(),
        Value::Array(all) => all.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Bool(b) => if *b { "yes" } else { "no" }.to_owned(),
        other => other.to_string(),
    }
}

/// Rows under titles, in columns as wide as they need to be.
pub fn render(columns: &[Column], rows: &[Value]) -> String {
    let mut lines: Vec<Vec<String>> = vec![columns.iter().map(|(title, _)| (*title).to_owned()).collect()];
    lines.extend(rows.iter().map(|row| columns.iter().map(|(_, field)| cell(&row[*field])).collect()));
    let width = |i: usize| lines.iter().map(|l| l[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let line = |cells: &Vec<String>| {
        let padded = cells.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}", w = *w));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A time in the largest unit of which it has one or more: `5 s`, `3 min`, `2 h`, `4 d`.
pub fn age(secs: u64) -> String {
    match secs {
        0..60 => format!("{secs} s"),
        60..3600 => format!("{} min", secs / 60),
        3600..86_400 => format!("{} h", secs / 3600),
        _ => format!("{} d", secs / 86_400),
    }
}

/// `1 file`, `2 files`.
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// `GET /status` as text.
pub fn status(value: &Value) -> String {
    let adopted = &value["adopted"];
    let mut lines = vec![
        format!("pv-net {}, process {}", cell(&value["version"]), cell(&value["pid"])),
        format!(
            "adopted     {} containers, {} links, maps: {}, programs: {}",
            cell(&adopted["containers"]),
            cell(&adopted["links"]),
            cell(&adopted["maps"]),
            cell(&adopted["programs"])
        ),
        format!("hook        {}", cell(&value["hook"])),
        format!("generation  {}", cell(&value["generation"])),
        format!("uplinks     {}", uplinks(&value["uplinks"])),
        format!("pools       {}", cell(&value["pools"])),
        format!("containers  {}", cell(&value["containers"])),
    ];
    for (title, field, zeros) in [("packets", "stats", true), ("drops", "drops", false)] {
        let counters = value["data_plane"][field].as_object().cloned().unwrap_or_default();
        let shown: Vec<String> = counters
            .iter()
            .filter(|(_, n)| zeros || n.as_u64() != Some(0))
            .map(|(name, n)| format!("  {name:<20} {n}"))
            .collect();
        if !shown.is_empty() {
            lines.push(title.to_owned());
            lines.extend(shown);
        }
    }
    let conditions = value["conditions"].as_array().cloned().unwrap_or_default();
    if !conditions.is_empty() {
        lines.push("conditions".to_owned());
        lines.extend(conditions.iter().map(|c| format!("  {}", cell(c))));
    }
    lines.join("\n")
}

/// `POST /reload?dry_run` as text.
pub fn plan(value: &Value) -> String {
    /// How many flows are named; of more only the number is given.
    const NAMED: usize = 20;
    let texts = |value: &Value| -> Vec<String> { value.as_array().into_iter().flatten().map(cell).collect() };
    let mut lines = Vec::new();
    let mut list = |title: &str, entries: &[String]| {
        if !entries.is_empty() {
            lines.push(title.to_owned());
            lines.extend(entries.iter().map(|entry| format!("  {entry}")));
        }
    };
    for what in ["pools", "ports", "rules", "leases"] {
        for how in ["added", "removed", "changed"] {
            list(&format!("{what} {how}"), &texts(&value[what][how]));
        }
    }
    list("steps", &texts(&value["steps"]));
    let mut flows = texts(&value["flows"]);
    let more = flows.len().saturating_sub(NAMED);
    flows.truncate(NAMED);
    flows.extend((more > 0).then(|| format!("and {more} more")));
    list("flows that end", &flows);
    list("conditions", &texts(&value["conditions"]));
    if lines.is_empty() { "nothing changes".to_owned() } else { lines.join("\n") }
}

/// `GET /resolve` as text: a line for each record, and a line for each type without records.
pub fn answers(value: &Value) -> String {
    let mut lines = Vec::new();
    for answer in value["answers"].as_array().into_iter().flatten() {
        let source = source(answer);
        let records = answer["records"].as_array().map(Vec::as_slice).unwrap_or_default();
        for record in records {
            let words = ["name", "ttl_secs", "type", "data"].map(|key| cell(&record[key]));
            lines.push(printable(&format!("{}  (from {source})", words.join(" "))));
        }
        if records.is_empty() {
            let reason = answer["reason"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
            let what = format!("{} {}", cell(&value["name"]), cell(&answer["type"]));
            lines.push(printable(&format!("{what}: {}{reason}  (from {source})", cell(&answer["status"]))));
        }
    }
    lines.join("\n")
}

/// A line without control characters: names and data in DNS come from anybody, and a terminal obeys these.
fn printable(line: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    line.chars().map(shown).collect()
}

/// Where an answer comes from.
fn source(answer: &Value) -> String {
    let server = answer["server"].as_str().unwrap_or("another server");
    match answer["source"].as_str().unwrap_or_default() {
        "own" | "nodata" | "noname" => "this device".to_owned(),
        "cache" => format!("{server}, some time ago"),
        "stale" => format!("{server}, long ago: now none answers"),
        "upstream" | "blocked" => server.to_owned(),
        "failed" => "nobody".to_owned(),
        other => other.to_owned(),
    }
}

/// A question for a name and its answer as a line.
pub fn query(value: &Value) -> String {
    if let Some(n) = value.get("missed") {
        return format!("({n} questions missed)");
    }
    let client = match (value["container"].as_str(), value["pool"].as_str()) {
        (Some(container), _) => container.to_owned(),
        (None, Some(pool)) => format!("{} in {pool}", cell(&value["client"])),
        (None, None) => "device".to_owned(),
    };
    let data = |record: &Value| match record["type"] == value["type"] {
        true => cell(&record["data"]),
        false => format!("{} {}", cell(&record["type"]), cell(&record["data"])),
    };
    let records: Vec<String> = value["records"].as_array().into_iter().flatten().map(data).collect();
    let reason = value["reason"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
    let answer = if records.is_empty() { cell(&value["status"]) } else { records.join(", ") } + &reason;
    let line = format!(
        "{:.3} {client} {} {} → {answer} ({}, {:.3} ms)",
        value["time"].as_f64().unwrap_or_default(),
        cell(&value["type"]),
        cell(&value["name"]),
        source(value),
        value["took_secs"].as_f64().unwrap_or_default() * 1000.0
    );
    printable(&line)
}

/// `eth0, XDP native; eth1, XDP off`.
fn uplinks(value: &Value) -> String {
    let one = |u: &Value| format!("{}, XDP {}", cell(&u["name"]), cell(&u["xdp"]));
    let all: Vec<String> = value.as_array().into_iter().flatten().map(one).collect();
    if all.is_empty() { "none".to_owned() } else { all.join("; ") }
}

/// One event as a line.
pub fn event(value: &Value) -> String {
    if let Some(n) = value.get("missed") {
        return format!("({n} events missed)");
    }
    let end = |addr: &str, port: &str| match value[port].as_u64() {
        _ if value[addr].is_null() => "-".to_owned(),
        Some(0) | None => cell(&value[addr]),
        Some(port) if value[addr].as_str().is_some_and(|a| a.contains(':')) => {
            format!("[{}]:{port}", cell(&value[addr]))
        }
        Some(port) => format!("{}:{port}", cell(&value[addr])),
    };
    let time = value["time"].as_f64().unwrap_or_default();
    if let Some(change) = value["event"].as_str() {
        let subject = value["container"].as_str().unwrap_or("device");
        let text = value["text"].as_str().map(|text| format!(": {text}")).unwrap_or_default();
        return format!("{time:.3} {subject} {change}{text}");
    }
    if !value["program"].is_null() {
        return format!(
            "{time:.3} {} ({}) cannot bind {} {}: published by {}",
            cell(&value["program"]),
            cell(&value["pid"]),
            cell(&value["proto"]),
            end("address", "port"),
            cell(&value["container"])
        );
    }
    format!(
        "{time:.3} {} {} {} → {} dropped: {}",
        cell(&value["container"]),
        cell(&value["proto"]),
        end("src", "sport"),
        end("dst", "dport"),
        cell(&value["reason"])
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_line_up() {
        let rows = [json!({"a": "x", "b": null}), json!({"a": "longer", "b": true})];
        assert_eq!(render(&[("A", "a"), ("B", "b")], &rows), "A       B\nx       -\nlonger  yes");
    }

    #[test]
    fn a_time_has_one_unit() {
        let ages = [0, 59, 60, 3599, 3600, 86_399, 86_400, 10 * 86_400].map(age);
        assert_eq!(ages, ["0 s", "59 s", "1 min", "59 min", "1 h", "23 h", "1 d", "10 d"]);
    }

    #[test]
    fn an_event_names_the_container() {
        let line = event(&json!({"time": 1.5, "container": "web", "proto": "tcp", "src": "fd00::2", "sport": 4000,
            "dst": "fd00::3", "dport": 80, "reason": "pool-isolated"}));
        assert_eq!(line, "1.500 web tcp [fd00::2]:4000 → [fd00::3]:80 dropped: pool-isolated");
        let line = event(&json!({"time": 2.5, "container": "web", "proto": "udp", "address": "::", "port": 80,
            "program": "nginx", "pid": 77, "reason": "port-published"}));
        assert_eq!(line, "2.500 nginx (77) cannot bind udp [::]:80: published by web");
        let line = event(&json!({"time": 3.0, "event": "attached", "container": "web", "text": null}));
        assert_eq!(line, "3.000 web attached");
        let line = event(&json!({"time": 3.5, "event": "condition", "container": null, "text": "uplink eth0: gone"}));
        assert_eq!(line, "3.500 device condition: uplink eth0: gone");
    }

    #[test]
    fn a_question_says_who_asked_and_what_was_answered() {
        let record = |kind: &str, data: &str| json!({"name": "x", "type": kind, "ttl_secs": 5, "data": data});
        let asked = |more: Value| {
            let mut value = json!({"time": 1.5, "container": "web", "pool": "internal", "client": "10.0.3.2",
                "name": "db.pv.local", "type": "A", "status": "NOERROR", "source": "own", "server": null, "reason": null,
                "records": [], "took_secs": 0.0000215});
            value.as_object_mut().expect("an object").extend(more.as_object().cloned().expect("an object"));
            query(&value)
        };
        assert_eq!(
            asked(json!({"records": [record("A", "10.0.3.3")]})),
            "1.500 web A db.pv.local → 10.0.3.3 (this device, 0.022 ms)"
        );
        assert_eq!(
            asked(json!({"container": null, "status": "NXDOMAIN", "source": "noname"})),
            "1.500 10.0.3.2 in internal A db.pv.local → NXDOMAIN (this device, 0.022 ms)"
        );
        assert_eq!(
            asked(json!({"container": null, "pool": null, "status": "SERVFAIL", "source": "failed",
                "reason": "no server answers"})),
            "1.500 device A db.pv.local → SERVFAIL: no server answers (nobody, 0.022 ms)"
        );
        assert_eq!(
            asked(json!({"source": "cache", "server": "tls://192.0.2.1#dns.example",
                "records": [record("CNAME", "b.example."), record("A", "\u{1b}[31m")]})),
            "1.500 web A db.pv.local → CNAME b.example., \\u{1b}[31m (tls://192.0.2.1#dns.example, some time ago, 0.022 ms)"
        );
        assert_eq!(query(&json!({"missed": 7})), "(7 questions missed)");
        let answer = json!({"type": "CAA", "status": "NOERROR", "source": "upstream", "server": "192.0.2.1:53",
            "records": [{"name": "a\nb.example", "type": "CAA", "ttl_secs": 5, "data": "\u{1b}[31m\u{9b}"}]});
        let other = json!({"type": "A", "status": "NOERROR", "source": "upstream", "records": [], "reason": "\rx"});
        assert_eq!(
            answers(&json!({"name": "b.example", "answers": [answer, other]})),
            "a\\nb.example 5 CAA \\u{1b}[31m\\u{9b}  (from 192.0.2.1:53)\n\
             b.example A: NOERROR: \\rx  (from another server)"
        );
    }
}
