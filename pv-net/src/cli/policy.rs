//! `pv-net policy list` and `pv-net policy explain`.

use super::Ended;
use super::client::call;
use super::output::{escaped, pretty, say};
use super::table;
use crate::daemon::Paths;
use crate::failure::{Failure, Kind};
use hyper::Method;
use serde_json::Value;

pub(crate) async fn list(paths: &Paths, json: bool) -> Result<(), Ended> {
    let value = call(paths, Method::GET, "/policies", None).await?;
    if json {
        say(&pretty(&value));
        return Ok(());
    }
    let rows: Vec<Value> = value.as_array().into_iter().flatten().map(row).collect();
    say(&table::render(table::POLICIES, &rows));
    Ok(())
}

/// A rule with its selectors and ports as words.
fn row(rule: &Value) -> Value {
    let mut row = rule.clone();
    row["rule"] = if rule["name"].is_null() { rule["path"].clone() } else { rule["name"].clone() };
    for key in ["from", "to"] {
        row[key] = selector(&rule[key]).into();
    }
    let ports: Vec<&str> = rule["ports"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    row["ports"] = if ports.is_empty() { "all".into() } else { ports.join(", ").into() };
    row
}

fn selector(value: &Value) -> String {
    let pair = value.as_object().and_then(|o| o.iter().next());
    match pair {
        Some((key, name)) if key == "cidr" => text(name).to_owned(),
        Some((key, name)) => format!("{key} {}", text(name)),
        None => text(value).to_owned(),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// `tcp/80` as the API's `proto` and `port`.
fn traffic(words: &str) -> Result<String, Failure> {
    let Some((proto, port)) = words.split_once('/') else { return Ok(format!("proto={}", escaped(words))) };
    let port: u16 = port.parse().ok().filter(|p| *p > 0 && !port.starts_with('+')).ok_or_else(|| {
        let why = format!("traffic {words:?}: {port:?} is not a port from 1 to 65535");
        Failure::new(Kind::Usage, why).help("write it as tcp/5432, udp/53 or icmp")
    })?;
    Ok(format!("proto={}&port={port}", escaped(proto)))
}

pub(crate) async fn explain(paths: &Paths, from: &str, to: &str, words: &str, json: bool) -> Result<(), Ended> {
    let traffic = traffic(words)?;
    let path = format!("/policy/verdict?from={}&to={}&{traffic}", escaped(from), escaped(to));
    let value = call(paths, Method::GET, &path, None).await?;
    say(&if json { pretty(&value) } else { sentence(&value) });
    Ok(())
}

/// The answer for people: the verdict, what decided, and where that is written.
fn sentence(value: &Value) -> String {
    let end = |end: &Value| match (end["container"].as_str(), end["pool"].as_str()) {
        (Some(name), _) => format!("{name} ({})", text(&end["address"])),
        (None, Some(pool)) => format!("{} in pool {pool}", text(&end["address"])),
        (None, None) => text(&end["address"]).to_owned(),
    };
    let port = value["port"].as_u64().filter(|p| *p != 0).map(|p| format!("/{p}")).unwrap_or_default();
    let via = value["via"].as_str().map(|via| format!(" by {via} of the device")).unwrap_or_default();
    let traffic = format!("{}{port}{via}", text(&value["proto"]));
    let mut lines = vec![
        format!("{}: {} to {}, {traffic}", text(&value["verdict"]), end(&value["from"]), end(&value["to"])),
        format!("why: {}", text(&value["reason"])),
    ];
    if let (Some(file), Some(path)) = (value["file"].as_str(), value["path"].as_str()) {
        lines.push(format!("where: {file}: {path}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_answer_says_what_decided_and_where() {
        let value = json!({
            "verdict": "deny", "reason": "rule no-lan says deny", "proto": "tcp", "port": 22,
            "file": "/etc/pv-net/device.json", "path": "network.policies[1]",
            "from": {"address": "10.0.3.2", "container": "web", "pool": "internal"},
            "to": {"address": "192.0.2.9", "container": null, "pool": null},
        });
        assert_eq!(
            sentence(&value),
            "deny: web (10.0.3.2) to 192.0.2.9, tcp/22\nwhy: rule no-lan says deny\n\
             where: /etc/pv-net/device.json: network.policies[1]"
        );
    }

    #[test]
    fn an_answer_says_which_published_port_leads_there() {
        let value = json!({
            "verdict": "allow", "reason": "no rule applies: the port is published", "proto": "tcp", "port": 80,
            "file": null, "path": null, "via": "0.0.0.0:8080",
            "from": {"address": "192.0.2.9", "container": null, "pool": null},
            "to": {"address": "10.0.3.2", "container": "web", "pool": "internal"},
        });
        assert_eq!(
            sentence(&value),
            "allow: 192.0.2.9 to web (10.0.3.2), tcp/80 by 0.0.0.0:8080 of the device\n\
             why: no rule applies: the port is published"
        );
    }

    #[test]
    fn traffic_is_a_protocol_and_a_port() {
        assert_eq!(traffic("tcp/80"), Ok("proto=tcp&port=80".to_owned()));
        assert_eq!(traffic("icmp"), Ok("proto=icmp".to_owned()));
        for wrong in ["tcp/", "tcp/0", "tcp/+1", "tcp/80-90", "tcp/65536"] {
            assert!(traffic(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn selectors_are_words() {
        assert_eq!(selector(&json!({"container": "web"})), "container web");
        assert_eq!(selector(&json!({"cidr": "10.0.0.0/8"})), "10.0.0.0/8");
        assert_eq!(selector(&json!("host")), "host");
    }
}
