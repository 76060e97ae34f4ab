//! What holds for the containers of every runtime.

use crate::lab::{Lab, Runtime, said};
use anyhow::{Context, Result, ensure};
use harness::{SOON, eventually};
use nix::sys::signal::Signal;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;

/// What the story shows of a runtime: the columns of the README's table.
pub const COLUMNS: [&str; 7] = [
    "names",
    "both families",
    "published port",
    "refused between pools",
    "daemon killed",
    "same address and MAC at the next start",
    "nothing left",
];
pub const README: &str = include_str!("../../../README.md");

/// The row of a runtime for which the whole story holds.
pub fn row(name: &str, cells: &[&str]) -> String {
    format!("| {name} | {} |\n", cells.join(" | "))
}

#[test]
fn the_readme_has_a_column_for_each_part_of_the_story() {
    let table = row("runtime", &COLUMNS) + &row("---", &["---"; COLUMNS.len()]).replace(' ', "");
    let rows = README.split_once(&table).expect("the table").1;
    let rows: Vec<&str> = rows.lines().take_while(|line| line.starts_with('|')).collect();
    // A row that no test makes would be a claim without proof.
    let names = ["LXC", "LXC, unprivileged", "runc", "crun", "podman", "containerd", "wasmtime", "wasmedge", "netns"];
    assert_eq!(rows, names.map(|name| row(name, &["yes"; COLUMNS.len()]).trim_end().to_owned()));
}

pub const PAGE: &str = "the page";

/// Two containers in a pool and a third one in another: names, both families, a published port, rules between pools,
/// restarts of container and daemon, and nothing left at the end.
pub fn holds<R: Runtime>(runtime: &R) -> Result<()> {
    let mut lab = Lab::new(R::TYPE)?;
    let names = ["web", "db", "other"];
    let started = names.iter().try_for_each(|name| runtime.start(&lab, name));
    let told = started.and_then(|()| tell(&lab, runtime));
    let ended = told.and_then(|()| outlives(&mut lab, runtime));
    // Runtimes keep containers, whatever became of the test.
    let stopped: Vec<_> = names.map(|name| runtime.stop(&lab, name)).into();
    ended?;
    stopped.into_iter().collect::<Result<Vec<()>>>()?;
    lab.no_links()?;
    // The leases are the declared containers' own.
    let leases = lab.device.json(&["leases"])?;
    ensure!(leases.to_string().matches("\"web\"").count() >= 1, "{leases}");
    let row = row(runtime.row(), &["yes"; COLUMNS.len()]);
    ensure!(README.contains(&row), "the README has not {row}");
    Ok(())
}

fn tell<R: Runtime>(lab: &Lab, runtime: &R) -> Result<()> {
    let web = lab.attached("web")?;
    let other = lab.attached("other")?;
    said(lab, runtime, "web", &["httpd", "-p", "[::]:80", "-h", "/"])?;
    if R::HAS_HOST_NAME {
        ensure!(said(lab, runtime, "web", &["hostname"])?.trim() == "web-host", "host name");
    }
    // Names, by the servers that are mounted.
    let answer = eventually(SOON, || said(lab, runtime, "db", &["nslookup", "web.pv.local"]))?;
    ensure!(web.iter().all(|address| answer.contains(address.as_str())), "{answer}");
    for address in &web {
        said(lab, runtime, "db", &["ping", "-c", "1", "-W", "5", address])?;
        // A static busybox without the C library's files cannot run its wget.
        let ask = |secs: u8| format!("printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n' | nc -w {secs} {address} 80");
        let page = said(lab, runtime, "db", &["sh", "-c", &ask(10)])?;
        ensure!(page.contains(PAGE), "{address}: {page}");
        // Another pool.
        let denied = said(lab, runtime, "other", &["sh", "-c", &ask(2)]);
        ensure!(!denied.as_ref().is_ok_and(|page| page.contains(PAGE)), "{address} from another pool: {denied:?}");
    }
    // That one's own way works, so what does not arrive was refused.
    for gateway in ["10.0.4.1", "fd00:5056:0:4::1"] {
        said(lab, runtime, "other", &["ping", "-c", "1", "-W", "5", gateway]).context("the third one's gateway")?;
    }
    for address in &other {
        let denied = said(lab, runtime, "db", &["ping", "-c", "1", "-W", "1", address]);
        ensure!(denied.is_err(), "{address} in another pool: {denied:?}");
    }
    published(lab)
}

/// The port that the device leads to the container, from outside.
pub fn published(lab: &Lab) -> Result<()> {
    for to in ["192.0.2.1:8080", "[2001:db8:1::1]:8080"] {
        let page = lab.outside.run(|| {
            let mut stream = TcpStream::connect(to)?;
            stream.set_read_timeout(Some(SOON))?;
            stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
            let mut page = String::new();
            stream.read_to_string(&mut page)?;
            Ok(page)
        });
        let page = page.context(to)?;
        ensure!(page.contains(PAGE), "{to}: {page}");
    }
    Ok(())
}

/// A killed daemon and a killed container change nothing for the others, and the container's next start gets what it had.
fn outlives<R: Runtime>(lab: &mut Lab, runtime: &R) -> Result<()> {
    lab.device.stop(Signal::SIGKILL)?;
    published(lab)?;
    lab.device.start()?;
    published(lab)?;
    let mac = |lab: &Lab| said(lab, runtime, "web", &["cat", "/sys/class/net/eth0/address"]);
    let (before, mac_before) = (lab.attached("web")?, mac(lab)?);
    runtime.stop(lab, "web")?;
    // It leaves names and ports, its lease stays.
    eventually(SOON, || {
        // nslookup prints why it fails beside the server's address.
        let answer = runtime.exec(lab, "db", &["nslookup", "web.pv.local"]).output()?;
        let said = String::from_utf8_lossy(&answer.stdout) + String::from_utf8_lossy(&answer.stderr);
        ensure!(said.contains("NXDOMAIN") && !said.contains(&before[0]), "still in DNS: {said}");
        Ok(())
    })?;
    runtime.start(lab, "web")?;
    ensure!((lab.attached("web")?, mac(lab)?) == (before, mac_before), "another address or MAC");
    said(lab, runtime, "web", &["httpd", "-p", "[::]:80", "-h", "/"])?;
    published(lab)?;
    let conditions = lab.device.json(&["status"])?["conditions"].clone();
    ensure!(conditions == json!([]), "{conditions}");
    Ok(())
}
