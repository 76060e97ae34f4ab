//! Servers that are asked by TLS.

use super::upstream::outside;
use super::*;
use harness::certificates::Authority;
use harness::configs::masqueraded;
use std::net::TcpListener;

const NAME: &str = "dns.example";
/// The host beyond the uplink in both families, each with a port of its own.
const PLACES: [(&str, &str); 2] = [
    ("192.0.2.9:853", "tls://192.0.2.9#DNS.example"),
    ("[2001:db8:1::9]:8853", "tls://[2001:db8:1::9]:8853#dns.example"),
];

fn with(device: &Device, upstream: &str, ca_file: &std::path::Path) -> Value {
    let mut config = masqueraded();
    config["network"]["dns_ca_file"] = json!(ca_file);
    config["network"]["pools"]["internal"]["dns"] = json!({"upstream": [upstream]});
    device.configure(&config).expect("a file");
    config
}

#[test]
fn names_are_asked_by_tls_alone() -> Result<()> {
    // The host answers without TLS too, and must not be asked so.
    let (device, host, plain, web) = outside(&masqueraded())?;
    Nameserver::start(&host, &[HOSTS[1].0])?;
    let authority = Authority::new("authority")?;
    let ca_file = device.file("ca.pem");
    fs::write(&ca_file, authority.pem())?;
    let tls = authority.server(NAME, false)?;
    for (family, (at, upstream)) in PLACES.into_iter().enumerate() {
        let server = Nameserver::encrypted(&host, at.parse()?, &tls)?;
        with(&device, upstream, &ca_file);
        device.cli(&["reload"]).ok()?;
        let (ns, gateway) = (&web.ns, GATEWAYS[family]);
        let name = |label: &str| format!("{label}.f{family}.example.net");
        eventually(SOON, || {
            ensure!(short(ns, gateway, &format!("{} A", name("n1")))? == ["198.51.100.7"], "{}", device.log());
            Ok(())
        })?;
        // Many at a time, on one connection.
        let asks: Vec<_> = (2..30)
            .map(|n| {
                let mut dig = ns.command("dig");
                dig.arg(format!("@{gateway}")).args([name(&format!("n{n}")).as_str(), "+short", "+tries=1", "+time=6"]);
                dig.stdout(std::process::Stdio::piped());
                Process::start(&mut dig)
            })
            .collect::<Result<_>>()?;
        for ask in asks {
            ensure!(ask.finish(SOON)?.trim() == "198.51.100.7");
        }
        ensure!(server.connections() < 10, "{} connections", server.connections());
        // An answer that would not fit into a datagram.
        ensure!(short(ns, gateway, &format!("{} A", name("big")))?.len() == 200);
        says(ns, gateway, &name("nothing"), &["NXDOMAIN"])?;
        says(ns, gateway, &format!("{} +dnssec", name("signed")), &["RRSIG"])?;
        // The server ends the connection, and the next question gets another one.
        ensure!(short(ns, gateway, &format!("{} A", name("bye")))? == ["198.51.100.7"]);
        ensure!(short(ns, gateway, &format!("{} A", name("n100")))? == ["198.51.100.7"]);
        let odd = server.asked().into_iter().find(|asked| !asked.len.is_multiple_of(128));
        ensure!(odd.is_none(), "not padded: {odd:?}");
        let view = device.json(&["resolve", &name("n1"), "--from", "web", "--type", "A"])?;
        ensure!(view["answers"][0]["server"] == upstream.to_lowercase(), "{view}");
    }
    ensure!(plain.asked().is_empty(), "asked without TLS: {:?}", plain.asked());
    let conditions = device.json(&["status"])?["conditions"].clone();
    ensure!(conditions == json!([]), "{conditions}");
    Ok(())
}

#[test]
fn a_server_that_cannot_be_trusted_is_not_asked() -> Result<()> {
    let (device, host, plain, web) = outside(&masqueraded())?;
    Nameserver::start(&host, &[HOSTS[1].0])?;
    let (authority, stranger) = (Authority::new("authority")?, Authority::new("stranger")?);
    let (ca_file, none) = (device.file("ca.pem"), device.file("nowhere.pem"));
    fs::write(&ca_file, authority.pem())?;
    let good = Nameserver::encrypted(&host, "192.0.2.9:853".parse()?, &authority.server(NAME, false)?)?;
    let (ns, gateway) = (&web.ns, GATEWAYS[0]);
    let mut numbers = 1..;
    let mut refused = |upstream: &str, ca_file: &std::path::Path, why: &str| -> Result<()> {
        with(&device, upstream, ca_file);
        device.cli(&["reload"]).ok()?;
        eventually(SOON, || {
            let name = format!("n{}.example.net", numbers.next().context("a number")?);
            says(ns, gateway, &name, &["SERVFAIL", "EDE: 22", why])?;
            let conditions = device.json(&["status"])?["conditions"].to_string();
            ensure!(
                conditions.contains(&format!("server {upstream} is not asked: ")) && conditions.contains(why),
                "{conditions}"
            );
            Ok(())
        })
    };
    refused("tls://192.0.2.9#other.example", &ca_file, "its certificate is for another name")?;
    refused("tls://192.0.2.9#dns.example", &none, "the file with the certificates of authorities cannot be read")?;
    ensure!(good.asked().is_empty(), "{:?}", good.asked());
    let bad = [
        ("192.0.2.9:854", authority.server(NAME, true)?, "its certificate has expired"),
        ("[2001:db8:1::9]:855", stranger.server(NAME, false)?, "its certificate is of no known authority"),
    ];
    for (at, tls, why) in bad {
        let server = Nameserver::encrypted(&host, at.parse()?, &tls)?;
        refused(&format!("tls://{at}#{NAME}"), &ca_file, why)?;
        ensure!(server.asked().is_empty(), "{why}: {:?}", server.asked());
    }
    // Something else has the port.
    let other = host.run(|| Ok(TcpListener::bind("192.0.2.9:856")?))?;
    std::thread::spawn(move || {
        for mut stream in other.incoming().flatten() {
            let _ = stream.write_all(b"220 mail.example ready\r\n");
        }
    });
    refused(&format!("tls://192.0.2.9:856#{NAME}"), &ca_file, "it does not speak TLS")?;
    ensure!(plain.asked().is_empty(), "asked without TLS: {:?}", plain.asked());
    with(&device, "tls://192.0.2.9#dns.example", &ca_file);
    device.cli(&["reload"]).ok()?;
    eventually(SOON, || {
        ensure!(short(ns, gateway, "long.example.net A")? == ["198.51.100.7"]);
        let conditions = device.json(&["status"])?["conditions"].clone();
        ensure!(conditions == json!([]), "{conditions}");
        Ok(())
    })
}
