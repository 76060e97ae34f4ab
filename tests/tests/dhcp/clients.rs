//! `udhcpc`, `dhclient` and `dhcpcd`, as they come.

use crate::{RANGE, SERVER, Stranger, config, is_in_range, lease_of};
use anyhow::{Context, Result, ensure};
use harness::{Device, Namespace, Process, SOON, eventually};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;

/// Programs that ask for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Udhcpc,
    Dhclient,
    Dhcpcd,
}

pub const ALL: [Program; 3] = [Program::Udhcpc, Program::Dhclient, Program::Dhcpcd];

/// A program that runs, and what it says to its script.
pub struct Client {
    _process: Process,
    dir: tempfile::TempDir,
}

/// Sets the address, and writes down each event: its name, the address, and all that the program knows.
const SCRIPT: &str = r#"#!/bin/sh
event="${1:-$reason}"
address="${ip:-$new_ip_address}"
case "$event" in
bound|renew|BOUND|RENEW|REBIND|REBOOT)
    ip addr replace "$address/24" dev "$interface"
    env > "$DIR/env.new" && mv "$DIR/env.new" "$DIR/env"
    ;;
esac
echo "$event $address" >> "$DIR/log"
exit 0
"#;

const DHCLIENT: &str = r#"
option rfc3442-classless-static-routes code 121 = array of unsigned integer 8;
send host-name "NAME";
request subnet-mask, broadcast-address, routers, domain-name, domain-name-servers, domain-search, host-name,
    ntp-servers, interface-mtu, rfc3442-classless-static-routes;
"#;

const DHCPCD: &str = "hostname NAME\nduid\noption domain_name_servers, domain_name, domain_search, host_name
option classless_static_routes, ntp_servers, interface_mtu\nallowinterfaces *\n";

impl Client {
    /// Starts one on a link of `ns`. It says that its name is `name`.
    pub fn start(program: Program, ns: &Namespace, link: &str, name: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (script, settings) = (dir.path().join("script"), dir.path().join("settings"));
        // `dhclient` gives its script an environment of its own.
        let own = format!("DIR={}\n", dir.path().display());
        fs::write(&script, SCRIPT.replacen('\n', &format!("\n{own}"), 1))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        let (script, file) = (script.display(), settings.display());
        let path = dir.path().display();
        let line = match program {
            Program::Udhcpc => {
                let asks = "-O search -O ntpsrv -O mtu -O 121 -O domain";
                format!("exec busybox udhcpc -i {link} -f -t 20 -T 1 -A 1 -s {script} {asks} -x hostname:{name}")
            }
            Program::Dhclient => {
                fs::write(&settings, DHCLIENT.replace("NAME", name))?;
                format!("exec dhclient -4 -d -sf {script} -cf {file} -lf {path}/leases --no-pid {link}")
            }
            Program::Dhcpcd => {
                fs::write(&settings, DHCPCD.replace("NAME", name))?;
                // What it keeps is the machine's.
                let hide = "mkdir -p /var/lib/dhcpcd /run/dhcpcd; mount -t tmpfs none /var/lib/dhcpcd; \
                            mount -t tmpfs none /run/dhcpcd";
                format!("{hide}; exec dhcpcd -4 -B -d -A -c {script} -f {file} {link}")
            }
        };
        let mut command = ns.command("unshare");
        command.args(["-m", "sh", "-c", &line]);
        let said = fs::File::create(dir.path().join("said"))?;
        command.stdout(said.try_clone()?).stderr(said);
        Ok(Self { _process: Process::start(&mut command)?, dir })
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    /// Events so far, each with its address.
    pub fn events(&self) -> Vec<(String, Option<Ipv4Addr>)> {
        let log = self.read("log");
        let event = |line: &str| {
            let (name, address) = line.split_once(' ')?;
            Some((name.to_lowercase(), address.parse().ok()))
        };
        log.lines().filter_map(event).collect()
    }

    /// The addresses that it was given: the first time, and each time that it renewed.
    pub fn bounds(&self) -> Vec<Ipv4Addr> {
        let is_bound = |event: &str| ["bound", "renew", "rebind", "reboot"].contains(&event);
        self.events().into_iter().filter(|(event, _)| is_bound(event)).filter_map(|(_, address)| address).collect()
    }

    /// Waits until it was given an address for the `count`th time.
    pub fn bound(&self, count: usize) -> Result<Ipv4Addr> {
        eventually(2 * SOON, || {
            let given = self.bounds().get(count - 1).copied();
            given.with_context(|| format!("{:?}: {}", self.events(), self.read("said")))
        })
    }

    /// What it was told, by the names of its script's variables.
    pub fn told(&self) -> BTreeMap<String, String> {
        let env = self.read("env");
        let pairs = env.lines().filter_map(|line| line.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}

/// What each calls an option: mask, gateway, DNS, domain, search domains, name, time server, MTU, lease time, server.
fn names(program: Program) -> [&'static str; 9] {
    match program {
        Program::Udhcpc => ["subnet", "router", "dns", "domain", "search", "ntpsrv", "mtu", "lease", "serverid"],
        Program::Dhclient | Program::Dhcpcd => [
            "new_subnet_mask",
            "new_routers",
            "new_domain_name_servers",
            "new_domain_name",
            "new_domain_search",
            "new_ntp_servers",
            "new_interface_mtu",
            "new_dhcp_lease_time",
            "new_dhcp_server_identifier",
        ],
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn each_program_gets_an_address_and_all_that_it_asks_for() -> Result<()> {
    let settings = json!({"lease_time": "10m", "ntp": ["10.0.3.1"], "routes": {"10.9.0.0/16": "10.0.3.5"}});
    let device = Device::started(&config(settings))?;
    for (program, name) in ALL.into_iter().zip(["one", "two", "three"]) {
        let stranger = Stranger::new(&device, name)?;
        let client = Client::start(program, &stranger.ns, &stranger.link, &format!("Box-{name}"))?;
        let address = client.bound(1)?;
        ensure!(is_in_range(address), "{program:?}: {address}");
        let told = client.told();
        let right =
            ["255.255.255.0", "10.0.3.1", "10.0.3.1", "pv.local", "pv.local", "10.0.3.1", "1500", "600", "10.0.3.1"];
        for (key, value) in names(program).into_iter().zip(right) {
            // Some write a name with its last dot.
            let said = told.get(key).map(|said| said.trim_end_matches(['.', ' ']));
            // One with routes gives its router by them.
            let is_way = program == Program::Dhcpcd && key == "new_routers" && said.is_none();
            ensure!(is_way || said == Some(value), "{program:?}: {key} is {said:?}, not {value}: {told:?}");
        }
        let routes = told.iter().find(|(key, _)| key.ends_with("staticroutes") || key.ends_with("static_routes"));
        let (_, routes) = routes.with_context(|| format!("{program:?}: no routes in {told:?}"))?;
        let way_out = routes.contains("0.0.0.0/0 10.0.3.1") || routes.starts_with("0 10 0 3 1");
        ensure!(way_out && routes.contains("10"), "{program:?}: {routes}");
        let lease = lease_of(&device, &stranger.mac_text())?;
        ensure!(lease["ipv4_address"] == address.to_string(), "{lease}");
        ensure!(lease["hostname"] == format!("box-{name}"), "{lease}");
        stranger.ns.ping(SERVER, 1)?;
        // By its name, from another one of the pool.
        let [first, second] = [format!("box-{name}.pv.local"), format!("box-{name}.internal.pv.local")];
        for asked in [first, second] {
            let said = eventually(SOON, || {
                let said = stranger.ns.sh(&format!("dig @{SERVER} +short +tries=1 +time=6 {asked}"))?;
                ensure!(!said.is_empty(), "no {asked}");
                Ok(said)
            })?;
            ensure!(said.trim() == address.to_string(), "{asked} is {said}, not {address}");
        }
        let back = stranger.ns.sh(&format!("dig @{SERVER} +short -x {address}"))?;
        ensure!(back.trim() == format!("box-{name}.pv.local."), "{address} is {back}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn each_program_renews_before_the_end_and_keeps_its_address_over_a_kill() -> Result<()> {
    let mut device = Device::started(&config(json!({"lease_time": "10s"})))?;
    let strangers = ["one", "two", "three"].map(|name| Stranger::new(&device, name));
    let [one, two, three] = strangers;
    let strangers = [one?, two?, three?];
    let mut clients = Vec::new();
    for (program, stranger) in ALL.into_iter().zip(&strangers) {
        clients.push(Client::start(program, &stranger.ns, &stranger.link, "box")?);
    }
    let first: Vec<Ipv4Addr> = clients.iter().map(|client| client.bound(1)).collect::<Result<_>>()?;
    ensure!(first.iter().all(|a| is_in_range(*a)) && first[0] != first[1] && first[1] != first[2], "{first:?}");
    device.stop(nix::sys::signal::Signal::SIGKILL)?;
    let before: Vec<usize> = clients.iter().map(|client| client.bounds().len()).collect();
    device.start()?;
    for ((client, address), before) in clients.iter().zip(&first).zip(before) {
        client.bound(before + 2)?;
        ensure!(client.bounds().iter().all(|given| given == address), "it was {address}: {:?}", client.events());
    }
    for (stranger, address) in strangers.iter().zip(&first) {
        let lease = lease_of(&device, &stranger.mac_text())?;
        ensure!(lease["ipv4_address"] == address.to_string(), "{lease}");
    }
    // Two of one name: the first has it.
    eventually(SOON, || {
        let leases = crate::leases_of_clients(&device)?;
        ensure!(leases.iter().filter(|lease| lease["hostname"] == "box").count() == 1, "{leases:?}");
        Ok(())
    })
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_container_gets_just_what_it_has() -> Result<()> {
    let device = Device::started(&config(json!({"lease_time": "10s"})))?;
    let (web, db) = (device.attach("web", "internal")?, device.attach("db", "internal")?);
    for (program, name) in ALL.into_iter().zip(["one", "two", "three"]) {
        let client = Client::start(program, &web.ns, "eth0", name)?;
        ensure!(client.bound(1)? == web.v4, "{program:?}: {:?}", client.events());
        ensure!(client.bound(2)? == web.v4, "{program:?}: {:?}", client.events());
        let told = client.told();
        let (lease, server) = (names(program)[7], names(program)[8]);
        ensure!(told.get(lease).map(String::as_str) == Some("10"), "{told:?}");
        ensure!(told.get(server).map(String::as_str) == Some("10.0.3.1"), "{told:?}");
        drop(client);
    }
    web.ns.ping(SERVER, 1)?;
    let client = Client::start(Program::Udhcpc, &db.ns, "eth0", "web")?;
    ensure!(client.bound(1)? == db.v4, "{:?}", client.events());
    // Nothing of it is a lease of the range, and nobody took the other's name.
    ensure!(crate::leases_of_clients(&device)?.is_empty(), "{}", device.json(&["leases"])?);
    let said = web.ns.sh(&format!("dig @{SERVER} +short web.pv.local A"))?;
    ensure!(said.trim() == web.v4.to_string(), "{said}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_client_gets_the_same_again_and_the_first_that_is_free() -> Result<()> {
    let device = Device::started(&config(json!({})))?;
    let (one, two) = (Stranger::new(&device, "one")?, Stranger::new(&device, "two")?);
    let get = |stranger: &Stranger| -> Result<Ipv4Addr> {
        let client = Client::start(Program::Udhcpc, &stranger.ns, &stranger.link, "box")?;
        let address = client.bound(1)?;
        drop(client);
        stranger.ns.ip(&format!("addr flush dev {}", stranger.link))?;
        Ok(address)
    };
    let first = [get(&one)?, get(&two)?];
    ensure!(first == [RANGE[0], Ipv4Addr::new(10, 0, 3, 101)], "{first:?}");
    ensure!([get(&two)?, get(&one)?] == [first[1], first[0]], "another one than before");
    Ok(())
}
