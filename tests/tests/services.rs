//! A service panics: the daemon goes on, reports it, and starts the service again.

use anyhow::{Context, Result, ensure};
use harness::{Device, Namespace, SOON, configs, eventually};
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};

/// How long a service must run until its condition goes.
const SETTLED: Duration = Duration::from_secs(10);

fn conditions(device: &Device) -> Result<Vec<String>> {
    let status = device.json(&["status"])?;
    let all = status["conditions"].as_array().context("a list")?;
    Ok(all.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// Waits until the only condition is that the service panicked, and then until there is none.
fn said_and_over(device: &Device, service: &str) -> Result<()> {
    let begun = Instant::now();
    let said = format!("service {service}: it panicked: PV_NET_PANIC_AT asks for it: it is started anew");
    eventually(SOON, || {
        let now = conditions(device)?;
        ensure!(now == [said.clone()], "{now:?}");
        Ok(())
    })?;
    ensure!(device.cli(&["status"]).ok()?.contains(&said), "only as JSON");
    eventually(SETTLED + SOON, || {
        let now = conditions(device)?;
        ensure!(now.is_empty(), "{now:?}");
        Ok(())
    })?;
    ensure!(begun.elapsed() > SETTLED / 2, "gone after {:?}", begun.elapsed());
    Ok(())
}

#[test]
fn the_service_of_declared_containers_comes_back_and_attaches_them() -> Result<()> {
    let mut device = Device::new(&configs::two_pools())?;
    let place = Namespace::free_name("web");
    let run =
        json!({"name": "web", "type": "netns", "netns": Namespace::place(&place), "network": {"pool": "internal"}});
    let dir = device.file("containers").join("web");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("run.json"), run.to_string())?;
    device.start_with_panic("declared:2")?;
    // The controller and the data plane go on in any case.
    let (a, b) = (device.attach("a", "internal")?, device.attach("b", "internal")?);
    let web = Namespace::named(&place)?;
    eventually(SOON, || web.ping("10.0.3.1", 1))?;
    for to in b.addresses() {
        a.ns.ping(to, 1)?;
    }
    said_and_over(&device, "declared")?;
    device.cli(&["detach", "web"]).ok()?;
    device.down()
}

#[test]
fn the_api_comes_back_at_its_socket() -> Result<()> {
    let mut device = Device::new(&configs::two_pools())?;
    // The harness waits until the daemon answers.
    device.start_with_panic("api:2")?;
    device.attach("a", "internal")?.ns.ping("10.0.3.1", 1)?;
    said_and_over(&device, "api")?;
    device.down()
}

#[test]
fn every_service_that_panics_leaves_the_others_at_work() -> Result<()> {
    for service in ["events", "sweep", "ra", "dhcp6"] {
        let mut device = Device::new(&configs::two_pools())?;
        device.start_with_panic(&format!("{service}:1"))?;
        device.attach("a", "internal")?.ns.ping("10.0.3.1", 1)?;
        said_and_over(&device, service)?;
        device.down()?;
    }
    Ok(())
}

/// The threads that answer questions for names are not the service's own, and one of them ends.
#[test]
fn a_thread_for_names_that_ends_is_noticed_and_replaced() -> Result<()> {
    let mut device = Device::new(&configs::two_pools())?;
    device.start_with_panic("names:1")?;
    let said = "service dns: a thread that answers questions has ended: it is started anew";
    eventually(SOON, || {
        let now = conditions(&device)?;
        ensure!(now == [said], "{now:?}");
        Ok(())
    })?;
    let web = device.attach("web", "internal")?;
    // Each question comes from another port, and so to any of the threads.
    for _ in 0..16 {
        let asked = ["@10.0.3.1", "+short", "+tries=1", "+time=2", "web.pv.local", "A"];
        let answer = harness::output(web.ns.command("dig").args(asked))?;
        ensure!(web.addresses()[0].to_string() == answer.trim(), "{answer}");
    }
    device.down()
}
