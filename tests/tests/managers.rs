//! Programs that manage all links of a device leave pv-net's links alone, thanks to settings files in the package.

use anyhow::{Context, Result, ensure};
use harness::{Container, Device, Namespace, Process, SOON, configs, eventually, output};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

/// A manager of links: how it is started in a namespace, and how it shows its links.
struct Manager {
    program: &'static str,
    /// A script that prepares directories for the manager and then becomes it.
    script: &'static str,
    /// The package's settings file for the manager.
    settings: &'static str,
    /// A script that prints what the manager shows of the link with name `$1` and index `$2`.
    ask: &'static str,
    takes: &'static [&'static str],
    leaves: &'static str,
    /// The program by which `pv-net doctor` recognises the manager.
    probe: &'static str,
}

const NETWORKD: Manager = Manager {
    program: "/lib/systemd/systemd-networkd",
    script: "
        mount -t tmpfs tmpfs /run
        mount -t tmpfs tmpfs /etc/systemd/network
        mount -t sysfs -o ro sysfs /sys
        mkdir -p /run/systemd/netif/links /run/systemd/netif/leases
        chown -R systemd-network /run/systemd/netif
        printf '[Match]\\nName=*\\n[Network]\\nDHCP=yes\\nAddress=198.51.100.7/24\\n' > /etc/systemd/network/90-all.network
        [ -z \"$1\" ] || cp \"$1\" /etc/systemd/network/
        exec /lib/systemd/systemd-networkd",
    settings: "networkd/05-pv-net.network",
    ask: "cat /run/systemd/netif/links/$2",
    takes: &["ADMIN_STATE=configuring", "ADMIN_STATE=configured"],
    leaves: "ADMIN_STATE=unmanaged",
    probe: "systemd-networkd leaves pv-net's links alone",
};

#[cfg(feature = "network-manager")]
const NETWORK_MANAGER: Manager = Manager {
    program: "/usr/sbin/NetworkManager",
    script: "
        mount -t tmpfs tmpfs /run
        mount -t tmpfs tmpfs /etc/NetworkManager
        mount -t tmpfs tmpfs /var/lib/NetworkManager
        mount -t sysfs -o ro sysfs /sys
        mkdir -p /run/dbus /etc/NetworkManager/conf.d /etc/NetworkManager/system-connections
        printf '[main]\\nplugins=keyfile\\ndhcp=internal\\n[keyfile]\\nunmanaged-devices=none\\n' \
            > /etc/NetworkManager/NetworkManager.conf
        [ -z \"$1\" ] || cp \"$1\" /etc/NetworkManager/conf.d/
        cat > /run/dbus/conf <<-'END'
        <busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
        <policy context='default'><allow own='*'/><allow send_destination='*'/><allow eavesdrop='true'/></policy></busconfig>
END
        # As root: one that becomes another user does not end with its parent.
        setpriv --pdeathsig KILL dbus-daemon --config-file=/run/dbus/conf --nofork --nopidfile &
        while ! [ -S /run/dbus/system_bus_socket ]; do sleep 0.05; done
        exec /usr/sbin/NetworkManager --no-daemon",
    settings: "NetworkManager/pv-net.conf",
    ask: "nmcli -g GENERAL.STATE device show $1",
    takes: &["(connecting", "(connected", "(disconnected"],
    leaves: "(unmanaged)",
    probe: "NetworkManager leaves pv-net's links alone",
};

struct Lab<'a> {
    manager: &'a Manager,
    device: Device,
    _host: Namespace,
    process: Process,
    a: Container,
}

impl Manager {
    /// A device on which the manager manages everything, with or without the package's settings, and a container.
    fn lab(&self, with_settings: bool) -> Result<Lab<'_>> {
        let mut device = Device::new(&configs::two_pools())?;
        let host = device.outside(configs::UPLINK, &configs::DEVICE, &configs::HOST)?;
        let mut command = device.ns.command("unshare");
        command.args(["--mount", "sh", "-ec", self.script, "sh"]).stdout(Stdio::null()).stderr(Stdio::null());
        if with_settings {
            command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(self.settings));
        }
        let process = Process::start(&mut command)?;
        device.start()?;
        let a = device.attach("a", "internal")?;
        Ok(Lab { manager: self, device, _host: host, process, a })
    }
}

impl Lab<'_> {
    /// What the manager shows of a link.
    fn said_of(&self, link: &str) -> Result<String> {
        let index = self.device.ns.run(|| Ok(nix::net::if_::if_nametoindex(link)?))?;
        let pid = self.process.pid().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid, "--mount", "--net", "sh", "-c", self.manager.ask, "sh", link]);
        output(command.arg(index.to_string()))
    }

    fn takes(&self, link: &str) -> Result<()> {
        eventually(SOON, || {
            let said = self.said_of(link)?;
            let is_taken = self.manager.takes.iter().any(|words| said.contains(words));
            ensure!(is_taken, "{} says of {link}: {said}", self.manager.program);
            Ok(())
        })
    }

    fn leaves(&self, link: &str) -> Result<()> {
        eventually(SOON, || {
            let said = self.said_of(link)?;
            let is_left = said.contains(self.manager.leaves);
            ensure!(is_left, "{} says of {link}: {said}", self.manager.program);
            Ok(())
        })
    }

    /// Whether `pv-net doctor` has no complaint about the manager.
    fn doctor_is_content(&self) -> Result<bool> {
        let pid = self.process.pid().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid, "--mount", "--net"]).arg(harness::binary()?).args(["--json", "doctor"]);
        // The exit status is not looked at: `doctor` misses file systems that are not mounted there.
        let report: Value = serde_json::from_slice(&command.output()?.stdout)?;
        let probes = report["probes"].as_array().context("probes")?;
        let probe = probes.iter().find(|p| p["name"] == self.manager.probe).context("the probe")?;
        probe["ok"].as_bool().context("ok")
    }
}

fn check(manager: &Manager) -> Result<()> {
    let lab = manager.lab(true)?;
    // The manager works: it takes a link that is not pv-net's.
    lab.takes(configs::UPLINK)?;
    let (host_if, bridge) = (lab.a.host_if().to_owned(), "pvbr3");
    lab.leaves(&host_if)?;
    lab.leaves(bridge)?;
    ensure!(lab.doctor_is_content()?, "pv-net doctor is not content");
    for to in ["10.0.3.1", "fd00:5056:0:3::1"] {
        lab.a.ns.ping(to, 1)?;
    }
    let shown = lab.device.ns.ip(&format!("addr show {host_if}"))?;
    ensure!(!shown.contains("inet"), "{shown}");
    drop(lab);
    // Without the settings files the manager takes pv-net's links, and `doctor` says so.
    let lab = manager.lab(false)?;
    lab.takes(lab.a.host_if())?;
    ensure!(!lab.doctor_is_content()?, "pv-net doctor is content");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn systemd_networkd_leaves_the_links_alone() -> Result<()> {
    check(&NETWORKD)
}

/// Runs only where NetworkManager is installed. `cargo xtask setup` does not install it, since it would then manage the
/// links of the machine.
#[cfg(feature = "network-manager")]
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn network_manager_leaves_the_links_alone() -> Result<()> {
    check(&NETWORK_MANAGER)
}
