//! Names for the device's own programs, and for containers that do not reach their gateway.

use super::upstream::outside;
use super::*;

/// The address of the server for the device's own programs.
const STUB: &str = "127.0.0.153";

#[test]
fn programs_of_the_device_find_containers() -> Result<()> {
    let mut config = masqueraded();
    let (device, _host, _server, web) = outside(&config)?;
    ensure!(dig(&device.ns, STUB, "web.pv.local +time=1").is_err(), "it answers unasked");
    config["network"]["dns_on_device"] = json!(true);
    device.configure(&config)?;
    device.cli(&["reload"]).ok()?;
    let [v4, v6] = own(&web);
    eventually(SOON, || {
        ensure!(short(&device.ns, STUB, "web.pv.local A +time=1")? == *std::slice::from_ref(&v4));
        Ok(())
    })?;
    ensure!(short(&device.ns, STUB, "web.pv.local AAAA +tcp")? == [v6]);
    ensure!(short(&device.ns, STUB, &format!("-x {v4}"))? == ["web.pv.local."]);
    // This resolv.conf names that server first; the servers behind it answer other names.
    fs::write(device.file("resolv.conf"), format!("nameserver {STUB}\nnameserver 192.0.2.9\n"))?;
    eventually(SOON, || {
        ensure!(short(&device.ns, STUB, "n1.example.net A +time=1")? == ["198.51.100.7"]);
        Ok(())
    })?;
    // Without other servers there is nobody to ask, and the server must not ask itself.
    fs::write(device.file("resolv.conf"), format!("nameserver {STUB}\n"))?;
    eventually(SOON, || says(&device.ns, STUB, "n2.example.net", &["SERVFAIL", "no server to ask"]))?;
    // The server answers the device only.
    ensure!(dig(&web.ns, STUB, "web.pv.local +time=1").is_err(), "it answers a container");
    config["network"]["dns_on_device"] = json!("::1");
    device.configure(&config)?;
    device.cli(&["reload"]).ok()?;
    eventually(SOON, || {
        ensure!(short(&device.ns, "::1", "web.pv.local A +time=1")? == *std::slice::from_ref(&v4));
        Ok(())
    })?;
    ensure!(dig(&device.ns, STUB, "web.pv.local +time=1").is_err(), "it still answers");
    let conditions = device.json(&["status"])?["conditions"].clone();
    ensure!(conditions == json!([]), "{conditions}");
    Ok(())
}

#[test]
fn who_does_not_reach_the_gateway_asks_the_pools_servers() -> Result<()> {
    let mut config = two_pools();
    config["network"]["pools"]["internal"]["host_access"] = json!("none");
    let lab = Lab::new(&config)?;
    let file = lab.device.file("run").join("resolv/web.conf");
    ensure!(!file.exists(), "{:?}", fs::read_to_string(&file));
    ensure!(dig(&lab.web.ns, GATEWAYS[0], "db.pv.local +time=1").is_err(), "the gateway answers");
    config["network"]["pools"]["internal"]["dns"] = json!({"upstream": ["192.0.2.53", "2001:db8::53"]});
    lab.device.configure(&config)?;
    lab.device.cli(&["reload"]).ok()?;
    eventually(SOON, || {
        let text = fs::read_to_string(&file)?;
        ensure!(text.ends_with("nameserver 192.0.2.53\nnameserver 2001:db8::53\n"), "{text}");
        Ok(())
    })
}
