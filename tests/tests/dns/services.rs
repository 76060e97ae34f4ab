//! Services that containers offer, by the names in their `services.json`.

use super::*;

fn offer(device: &Device, container: &str, services: &Value) -> Result<()> {
    let dir = device.file("containers").join(container);
    fs::create_dir_all(&dir)?;
    let run = json!({"name": container, "type": "lxc", "network": {"pool": "internal"}});
    fs::write(dir.join("run.json"), run.to_string())?;
    Ok(fs::write(dir.join("services.json"), services.to_string())?)
}

#[test]
fn services_are_found_by_name() -> Result<()> {
    let lab = Lab::new(&two_pools())?;
    offer(&lab.device, "db", &json!([{"name": "store", "type": "tcp", "port": 5432}]))?;
    let services = json!([
        {"name": "api", "type": "http", "port": 8080}, {"name": "db", "type": "tcp", "port": 1},
        {"name": "bus", "type": "dbus", "socket": "/run/bus"},
    ]);
    offer(&lab.device, "web", &json!({"#spec": "service-manifest-xconnect@1", "services": services}))?;
    lab.device.cli(&["reload"]).ok()?;
    let (ns, [v4, v6]) = (&lab.db.ns, own(&lab.web));
    for gateway in GATEWAYS {
        eventually(SOON, || {
            ensure!(short(ns, gateway, "_api._tcp.pv.local SRV")? == ["0 0 8080 web.pv.local."]);
            Ok(())
        })?;
        let parts = [format!("web.pv.local.\t\t5\tIN\tA\t{v4}"), format!("web.pv.local.\t\t5\tIN\tAAAA\t{v6}")];
        says(ns, gateway, "_api._tcp.pv.local SRV", &["ANSWER: 1", "ADDITIONAL: 3", &parts[0], &parts[1]])?;
        ensure!(short(ns, gateway, "_api._tcp.pv.local TXT")? == ["\"type=http\""]);
        ensure!(short(ns, gateway, "api.pv.local AAAA")? == *std::slice::from_ref(&v6));
        ensure!(short(ns, gateway, "_store._tcp.pv.local SRV")? == ["0 0 5432 db.pv.local."]);
        // A service does not get a container's name, and a service on a socket has no name.
        ensure!(short(ns, gateway, "db.pv.local A")? == [own(&lab.db)[0].clone()]);
        says(ns, gateway, "_db._tcp.pv.local SRV", &["NXDOMAIN"])?;
        says(ns, gateway, "bus.pv.local", &["NXDOMAIN"])?;
    }
    for gateway in OTHERS {
        says(&lab.other.ns, gateway, "_api._tcp.pv.local SRV", &["NXDOMAIN"])?;
    }
    eventually(SOON, || {
        let conditions = lab.device.json(&["status"])?["conditions"].to_string();
        ensure!(conditions.contains("service db of container web has no name"), "{conditions}");
        Ok(())
    })?;
    // A wrong file is a condition, and removes only its own services.
    fs::write(lab.device.file("containers/web/services.json"), "[{\"name\": \"api\"}]")?;
    lab.device.cli(&["reload"]).ok()?;
    eventually(SOON, || says(ns, GATEWAYS[0], "_api._tcp.pv.local SRV", &["NXDOMAIN"]))?;
    ensure!(short(ns, GATEWAYS[0], "web.pv.local A")? == [v4]);
    let conditions = lab.device.json(&["status"])?["conditions"].to_string();
    ensure!(conditions.contains("web/services.json: services[0]"), "{conditions}");
    Ok(())
}
