//! Names outside the device, which other servers answer.

use super::*;

/// A device with a DNS server on the host beyond its uplink, and a container.
pub fn outside(config: &Value) -> Result<(Device, Namespace, Nameserver, Container)> {
    let mut device = Device::new(config)?;
    let host = device.outside(UPLINK, &DEVICE, &HOST)?;
    let server = Nameserver::start(&host, &[HOSTS[0].0])?;
    fs::write(device.file("resolv.conf"), "nameserver 192.0.2.9\n")?;
    device.start()?;
    let web = device.attach("web", "internal")?;
    Ok((device, host, server, web))
}

#[test]
fn other_names_are_asked_of_the_devices_servers() -> Result<()> {
    let (device, _host, server, web) = outside(&masqueraded())?;
    let (ns, gateway) = (&web.ns, GATEWAYS[0]);
    // A server that answers late, on a busy machine, may be asked twice for one question.
    let mut asked = 0;
    for (gateway, words) in [(GATEWAYS[0], ""), (GATEWAYS[1], "+tcp")] {
        let said = dig(ns, gateway, &format!("long.example.net {words}"))?;
        ensure!(said.contains("NOERROR") && said.contains("198.51.100.7"), "{said}: {}", device.log());
        ensure!(!said.contains("flags: qr aa"), "{said}");
        let before = std::mem::replace(&mut asked, server.count("long.example.net"));
        ensure!(asked > 0 && (before == 0 || before == asked), "not kept: {:?}", server.asked());
    }
    // The time to live becomes shorter.
    std::thread::sleep(Duration::from_millis(1100));
    let said = dig(ns, gateway, "LONG.example.net +noall +answer")?;
    let ttl: u32 = said.split_whitespace().nth(1).context("a time to live")?.parse()?;
    ensure!((3000..3600).contains(&ttl) && said.starts_with("LONG.example.net."), "{said}");
    // Also where the very same question is asked again and again.
    let left = || -> Result<u32> {
        let said = dig(ns, gateway, "long.example.net +nocookie +noall +answer")?;
        Ok(said.split_whitespace().nth(1).context("a time to live")?.parse()?)
    };
    let mut times = Vec::new();
    for _ in 0..3 {
        times.extend([left()?, left()?, left()?]);
        std::thread::sleep(Duration::from_millis(1100));
    }
    ensure!(times.is_sorted_by(|a, b| a >= b) && times[0] > times[3] && times[3] > times[6], "{times:?}");
    // A negative answer is kept too.
    says(ns, gateway, "nothing.example.net", &["NXDOMAIN", "AUTHORITY: 1"])?;
    let asked = server.count("nothing.example.net");
    says(ns, gateway, "nothing.example.net", &["NXDOMAIN", "AUTHORITY: 1"])?;
    ensure!(server.count("nothing.example.net") == asked, "{:?}", server.asked());
    // A truncated answer is fetched by TCP, and truncated again for a client that asks by UDP.
    says(ns, gateway, "big.example.net +ignore", &["flags: qr tc rd ra"])?;
    ensure!(short(ns, gateway, "big.example.net")?.len() == 200);
    ensure!(server.asked().iter().any(|a| a.name == "big.example.net" && a.by_tcp));
    // The DNSSEC bits of the question and of the answer.
    says(ns, gateway, "signed.example.net +dnssec +cd", &["flags: qr rd ra ad cd", "RRSIG", "flags: do"])?;
    let asked = server.asked().into_iter().rfind(|a| a.name == "signed.example.net").context("asked")?;
    ensure!(asked.bits == [true, true, true], "{asked:?}");
    let plain = dig(ns, gateway, "signed.example.net +noad")?;
    ensure!(!plain.contains("RRSIG") && plain.contains("flags: qr rd ra;"), "{plain}");
    says(ns, gateway, "signed.example.net +ad", &["flags: qr rd ra ad;"])?;
    // Private addresses from an outside server.
    says(ns, gateway, "private.example.net", &["NOERROR", "ANSWER: 0", "EDE: 15"])?;
    // No server is asked about names of the device, and about names that exist nowhere.
    for words in ["nobody.pv.local", "x.local", "-x 10.99.0.1", "web", "x.onion"] {
        dig(ns, gateway, words)?;
    }
    let asked = server.asked();
    let leaked = asked.iter().find(|a| !a.name.ends_with("example.net"));
    ensure!(leaked.is_none(), "{leaked:?}");
    // `resolve` shows the device's answer; the metrics count the results.
    let view = device.json(&["resolve", "long.example.net", "--from", "web", "--type", "A"])?;
    ensure!(
        view["answers"][0]["source"] == "cache" && view["answers"][0]["records"][0]["data"] == "198.51.100.7",
        "{view}"
    );
    let said = device.cli(&["resolve", "web"]).ok()?;
    ensure!(said.contains("web.pv.local 5 A ") && said.contains("(from this device)"), "{said}");
    let metrics = metrics(&device)?;
    for part in ["pv_net_dns_queries_total{type=\"A\",result=\"cache\"}", "pv_net_dns_upstream_seconds_bucket"] {
        ensure!(metrics.contains(part), "no {part} in {metrics}");
    }
    Ok(())
}

/// An answer that is used often is fetched again before it ends.
#[test]
fn who_asks_often_does_not_wait() -> Result<()> {
    let (_device, _host, server, web) = outside(&masqueraded())?;
    let ns = &web.ns;
    for _ in 0..5 {
        ensure!(short(ns, GATEWAYS[0], "hot.example.net A")? == ["198.51.100.7"]);
    }
    let before = server.count("hot.example.net");
    // A tenth of its time is left: the client gets the old answer, and the server is asked again.
    std::thread::sleep(Duration::from_millis(9050));
    ensure!(short(ns, GATEWAYS[0], "hot.example.net A")? == ["198.51.100.7"]);
    eventually(SOON, || {
        ensure!(server.count("hot.example.net") > before, "not asked again: {:?}", server.asked());
        Ok(())
    })
}

#[test]
fn servers_are_those_of_the_pool_the_domain_or_the_moment() -> Result<()> {
    let mut config = masqueraded();
    config["network"]["pools"]["internal"]["dns"] =
        json!({"zones": {"corp.example": ["192.0.2.77"]}, "private_names": ["lan.example"]});
    let (device, host, server, web) = outside(&config)?;
    host.ip("address add 192.0.2.77/24 dev eth0")?;
    Nameserver::start(&host, &["192.0.2.77".parse()?])?;
    let (ns, gateway) = (&web.ns, GATEWAYS[0]);
    // Names in this domain may have private addresses.
    says(ns, gateway, "private.corp.example", &["10.9.9.9"])?;
    says(ns, gateway, "private.lan.example", &["10.9.9.9"])?;
    says(ns, gateway, "private.example", &["ANSWER: 0"])?;
    // The device changes to another network; the file is a symbolic link.
    let file = device.file("resolv.conf");
    fs::write(device.file("second"), "nameserver 2001:db8:1::9\n")?;
    fs::remove_file(&file)?;
    std::os::unix::fs::symlink(device.file("second"), &file)?;
    let second = Nameserver::start(&host, &["2001:db8:1::9".parse()?])?;
    eventually(SOON, || {
        dig(ns, gateway, "long.later.example")?;
        ensure!(second.count("long.later.example") > 0, "the old server is asked");
        Ok(())
    })?;
    // The file is changed in place.
    fs::write(device.file("second"), "nameserver 192.0.2.9\n")?;
    let before = server.asked().len();
    eventually(SOON, || {
        dig(ns, gateway, "n1.later.example")?;
        ensure!(server.asked().len() > before, "the old server is asked");
        Ok(())
    })?;
    // The file names no server: the answer comes at once, with a reason.
    fs::write(device.file("second"), "")?;
    std::thread::sleep(Duration::from_millis(600));
    let begun = Instant::now();
    says(ns, gateway, "n2.later.example", &["SERVFAIL", "EDE: 22", "no server to ask"])?;
    // Waiting for a server would take 4.5 seconds.
    ensure!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    says(ns, gateway, "web.pv.local", &["NOERROR"])?;
    says(ns, gateway, "private.corp.example", &["10.9.9.9"])
}

#[test]
fn a_server_that_is_silent_costs_little_and_old_answers_help() -> Result<()> {
    let (device, host, server, web) = outside(&masqueraded())?;
    let (ns, gateway) = (&web.ns, GATEWAYS[0]);
    // The first server is silent, the second one answers.
    host.ip("address add 192.0.2.200/24 dev eth0")?;
    let silent = Nameserver::silent(&host, "192.0.2.200".parse()?)?;
    fs::write(device.file("resolv.conf"), "nameserver 192.0.2.200\nnameserver 192.0.2.9\n")?;
    std::thread::sleep(Duration::from_millis(600));
    let begun = Instant::now();
    ensure!(short(ns, gateway, "short.example.net A")? == ["198.51.100.7"]);
    ensure!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    ensure!(silent.count("short.example.net") > 0, "{:?}", silent.asked());
    // The silent server is asked last for two seconds. A busy machine may take longer, so the test tries again.
    let mut numbers = 1000..;
    eventually(SOON, || {
        let name = format!("n{}.example.net", numbers.next().context("a number")?);
        ensure!(short(ns, gateway, &format!("{name} A"))? == ["198.51.100.7"]);
        ensure!(silent.count(&name) == 0, "the silent one is asked first: {:?}", silent.asked());
        Ok(())
    })?;
    says(ns, gateway, "fails.example.net", &["SERVFAIL"])?;
    // The kept answer is not valid any more, and no server has a new one.
    std::thread::sleep(Duration::from_millis(1100));
    host.ip("link set eth0 down")?;
    says(ns, gateway, "short.example.net A", &["NOERROR", "198.51.100.7", "EDE: 3", "\t30\tIN\tA"])?;
    let begun = Instant::now();
    says(ns, gateway, "short.example.net A", &["198.51.100.7", "EDE: 3"])?;
    ensure!(begun.elapsed() < Duration::from_millis(1500), "it waited again: {:?}", begun.elapsed());
    says(ns, gateway, "n4.example.net", &["SERVFAIL", "EDE: 22"])?;
    ensure!(server.count("n4.example.net") == 0);
    Ok(())
}
