//! When a look at the kernel fails, or a step of a repair, the daemon keeps what it knows of pools and uplinks.

use anyhow::{Result, ensure};
use harness::{Device, SOON, configs, eventually};
use serde_json::Value;
use std::fs;
use std::time::Duration;

fn known(device: &Device) -> Result<(Value, Value)> {
    Ok((device.json(&["pools"])?, device.json(&["status"])?["uplinks"].clone()))
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn one_that_fails_leaves_what_is_known() -> Result<()> {
    let mut device = Device::new(&configs::masqueraded())?;
    let host = device.outside(configs::UPLINK, &configs::DEVICE, &configs::HOST)?;
    device.start()?;
    let a = device.attach("a", "internal")?;
    let works = || -> Result<()> {
        for (far, _) in configs::HOSTS {
            eventually(SOON, || a.ns.ping(far, 1))?;
        }
        Ok(())
    };
    works()?;
    let before = known(&device)?;
    // A pinned map replaces the directory with the uplinks' pins: nobody can list it, so each look at the kernel fails.
    let (dir, map) = (device.pins().join("links/pv_from_uplink"), device.pins().join("maps/stats"));
    let aside = dir.with_file_name("aside");
    fs::rename(&dir, &aside)?;
    device.ns.sh(&format!("bpftool map pin pinned {} {}", map.display(), dir.display()))?;
    for change in ["addr add 192.0.2.77/24 dev up0", "link set pvbr4 down", "link add x type veth peer name y"] {
        device.ns.ip(change)?;
        std::thread::sleep(Duration::from_millis(300));
        ensure!(known(&device)? == before, "{:#?} became {:#?}", before, known(&device)?);
        works()?;
    }
    let refused = device.cli(&["reload"]);
    ensure!(refused.code != Some(0) && refused.stderr.contains("pv_from_uplink"), "{refused:?}");
    ensure!(known(&device)? == before, "{:#?} became {:#?}", before, known(&device)?);
    works()?;
    // The failed work is done as soon as it can be.
    fs::remove_file(&dir)?;
    fs::rename(&aside, &dir)?;
    eventually(SOON, || {
        let shown = device.ns.ip("link show pvbr4")?;
        ensure!(shown.contains(",UP"), "{shown}");
        host.ping("192.0.2.77", 1)
    })?;
    device.cli(&["reload"]).ok()?;
    works()
}
