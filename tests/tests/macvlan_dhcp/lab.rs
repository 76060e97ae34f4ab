//! A device with a macvlan pool whose addresses the LAN chooses, and servers on that LAN.

use anyhow::{Context, Result, ensure};
use harness::{Device, Namespace, Process, SOON, eventually};
use serde_json::{Value, json};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;
use std::time::Duration;

/// The LAN's router.
pub const LAN4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const LAN6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 1);
/// The device's own address there.
pub const OWN4: &str = "10.77.0.250/24";

/// A device whose link `wan0` leads to the host `lan`.
pub struct Lab {
    pub device: Device,
    pub lan: Namespace,
}

impl Lab {
    pub fn new(policies: &Value) -> Result<Self> {
        let pool = json!({"type": "macvlan", "parent": "wan0", "mode": "bridge", "ipam": "dhcp"});
        let mut device = Device::new(&json!({"network": {"pools": {"lan": pool}, "policies": policies}}))?;
        let lan = Namespace::new("lan")?;
        let (lan4, lan6) = (format!("{LAN4}/24"), format!("{LAN6}/64"));
        device.ns.connect(("wan0", &[OWN4]), &lan, ("eth0", &[&lan4, &lan6]))?;
        device.start()?;
        Ok(Self { device, lan })
    }

    /// dnsmasq, which gives addresses from 10.77.0.`first` to 10.77.0.`last` and advertises fd00:77::/64.
    pub fn dnsmasq(&self, first: u8, last: u8, more: &[&str]) -> Result<Process> {
        let leases = self.device.file("dnsmasq.leases");
        let _ = fs::remove_file(&leases);
        let server = Process::start(
            self.lan
                .command("dnsmasq")
                .args(["-k", "--conf-file=/dev/null", "--user=root", "--pid-file=", "--port=0", "--bind-interfaces"])
                .args(["--interface=eth0", "--no-ping", "--dhcp-authoritative", "--domain=lan.example", "--enable-ra"])
                .args([&format!("--dhcp-leasefile={}", leases.display())])
                .args([&format!("--dhcp-range=10.77.0.{first},10.77.0.{last},255.255.255.0,1h")])
                .args(["--dhcp-range=fd00:77::,ra-only", "--dhcp-option=6,10.77.0.1", "--dhcp-option=3,10.77.0.1"])
                .args(more)
                .stderr(Stdio::null()),
        )?;
        self.is_there(67)?;
        Ok(server)
    }

    /// busybox's server with leases of 10 seconds, from 10.77.0.`first` to 10.77.0.`last`.
    pub fn udhcpd(&self, first: u8, last: u8) -> Result<Process> {
        self.udhcpd_in("10.77.0", first, last)
    }

    /// The same in the network `net`, which is named by its first three numbers.
    pub fn udhcpd_in(&self, net: &str, first: u8, last: u8) -> Result<Process> {
        let (file, leases) = (self.device.file("udhcpd.conf"), self.device.file("udhcpd.leases"));
        let text = format!(
            "start {net}.{first}\nend {net}.{last}\ninterface eth0\nlease_file {leases}\npidfile {leases}.pid\n\
             min_lease 1\noption subnet 255.255.255.0\noption router {net}.1\noption lease 10\n",
            leases = leases.display()
        );
        fs::write(&file, text)?;
        fs::write(&leases, "")?;
        let mut command = self.lan.command("busybox");
        let server = Process::start(command.arg("udhcpd").arg("-f").arg(&file).stderr(Stdio::null()))?;
        self.is_there(67)?;
        Ok(server)
    }

    fn is_there(&self, port: u16) -> Result<()> {
        eventually(SOON, || {
            let sockets = harness::output(self.lan.command("ss").args(["-Hlnu"]))?;
            ensure!(sockets.contains(&format!(":{port} ")), "nobody listens: {sockets}");
            Ok(())
        })
    }

    /// Attaches a namespace as a container.
    pub fn attach(&self, ns: &Namespace, name: &str, ports: &[&str]) -> Result<Value> {
        let file = self.device.file(&format!("run-{name}.json"));
        fs::write(&file, json!({"name": name, "network": {"pool": "lan", "ports": ports}}).to_string())?;
        let (path, file) = (ns.path().display().to_string(), file.display().to_string());
        self.device.json(&["attach", name, "--netns", &path, "--run", &file])
    }

    /// The lease of the only interface of the only container.
    pub fn lease(&self) -> Result<Value> {
        let leases = self.device.json(&["leases"])?;
        Ok(leases.get(0).context("no lease")?.clone())
    }

    /// Waits until the lease is what `is_right` wants.
    pub fn until(&self, secs: u64, is_right: impl Fn(&Value) -> bool) -> Result<Value> {
        eventually(Duration::from_secs(secs), || {
            let lease = self.lease()?;
            ensure!(is_right(&lease), "{lease}");
            Ok(lease)
        })
    }
}

/// Both addresses of a container.
pub fn addresses(view: &Value) -> Result<[IpAddr; 2]> {
    let of =
        |key: &str| -> Result<IpAddr> { Ok(view[key].as_str().with_context(|| format!("{key}: {view}"))?.parse()?) };
    Ok([of("ipv4_address")?, of("ipv6_address")?])
}
