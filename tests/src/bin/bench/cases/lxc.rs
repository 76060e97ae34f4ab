//! How long a container of LXC takes to start: without a network, with LXC's own veth pair on a bridge, and in a pool,
//! where LXC calls pv-net's hook. The network's part is what a start takes longer than one without a network.

use crate::case::{Candidate, Case, Metric, Path, Sample};
use crate::interrupt;
use crate::options::Options;
use crate::stats::quantile;
use anyhow::{Context, Result, ensure};
use harness::{Device, Process, SOON, configs, eventually, output};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, Instant};

/// The case.
pub struct Lxc;

/// How many starts a measurement has at least.
const LEAST: usize = 3;
/// A view with the links of its own namespace in `/sys`, where LXC looks for the bridge, and the machine's control groups.
const VIEW: &str = "mkdir \"$1/cgroup\"; mount --rbind /sys/fs/cgroup \"$1/cgroup\"; mount -t sysfs sysfs /sys
mount --rbind \"$1/cgroup\" /sys/fs/cgroup
if [ -d /sys/fs/cgroup/unified ]; then umount /sys/fs/cgroup/unified; fi
touch \"$1/ready\"; exec sleep 100000";
/// LXC's own network.
const OWN: &str = "lxc.net.0.type = veth\nlxc.net.0.link = docker0\nlxc.net.0.flags = up\nlxc.net.0.name = eth0
lxc.net.0.ipv4.address = 10.0.3.2/24\nlxc.net.0.ipv4.gateway = 10.0.3.1
lxc.net.0.ipv6.address = fd00:5056:0:3::2/64\nlxc.net.0.ipv6.gateway = fd00:5056:0:3::1\n";

impl Case for Lxc {
    fn name(&self) -> &'static str {
        "lxc"
    }

    fn about(&self) -> &'static str {
        "a container of LXC starts: without a network, with LXC's own, in a pool"
    }

    fn needs(&self) -> &'static [&'static str] {
        &["lxc-start", "busybox"]
    }

    fn paths(&self, _: &Options) -> Vec<Candidate> {
        vec![
            Candidate::new("LXC, no network", || Starts::new(Network::None)),
            Candidate::new("LXC, veth on a bridge", || Starts::new(Network::Own)),
            Candidate::new("pv-net, hook of LXC", || Starts::new(Network::Pool)),
        ]
    }

    fn metrics(&self, _: &Options) -> Vec<Metric> {
        vec![Metric::time("start", "ms until it runs")]
    }
}

/// What the container has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Network {
    None,
    /// By LXC itself.
    Own,
    Pool,
}

struct Starts {
    network: Network,
    // Its mount namespace is that of the runtime.
    view: Process,
    device: Device,
}

impl Starts {
    fn new(network: Network) -> Result<Self> {
        let mut config = configs::two_pools();
        config["network"]["pools"]["internal"]["nat"] = json!(true);
        let mut device = Device::new(&config)?;
        let dir = device.file("lxc/web");
        for name in ["bin", "dev", "proc", "sys"] {
            fs::create_dir_all(dir.join("rootfs").join(name))?;
        }
        fs::copy("/bin/busybox", dir.join("rootfs/bin/busybox"))?;
        symlink("busybox", dir.join("rootfs/bin/sleep"))?;
        let lines = format!(
            "lxc.rootfs.path = dir:{}\nlxc.apparmor.profile = unconfined\nlxc.tty.max = 0\nlxc.pty.max = 16\n",
            dir.join("rootfs").display()
        );
        let more = match network {
            Network::None => "lxc.net.0.type = empty\n",
            Network::Own => OWN,
            Network::Pool => "",
        };
        let file = dir.join("config");
        fs::write(&file, lines + more)?;
        match network {
            Network::None => {}
            Network::Own => {
                device.ns.ip("link add docker0 type bridge")?;
                device.ns.configure("docker0", &["10.0.3.1/24", "fd00:5056:0:3::1/64"])?;
            }
            Network::Pool => {
                let run = device.file("containers/web");
                fs::create_dir_all(&run)?;
                let text = json!({"name": "web", "type": "lxc", "network": {"pool": "internal"}}).to_string();
                fs::write(run.join("run.json"), text)?;
                device.start()?;
                device.cli(&["lxc", "config", "web", "--write", &file.display().to_string()]).ok()?;
            }
        }
        let mut view = device.ns.command("unshare");
        view.args(["--mount", "--propagation", "slave", "sh", "-ec", VIEW, "sh"]).arg(&dir);
        let mut view = Process::start(&mut view)?;
        eventually(SOON, || {
            ensure!(!view.has_ended()?, "no view for LXC");
            ensure!(dir.join("ready").exists(), "the view is not ready");
            Ok(())
        })?;
        Ok(Self { network, view, device })
    }

    fn lxc(&self, program: &str) -> Command {
        let of = format!("/proc/{}/ns", self.view.pid());
        let mut command = Command::new("nsenter");
        command.args([format!("--mount={of}/mnt"), format!("--net={of}/net"), program.to_owned(), "-P".to_owned()]);
        command.arg(self.device.file("lxc")).args(["-n", "web"]);
        command
    }

    fn start(&self) -> Result<Duration> {
        let log = self.device.file("lxc/web/log");
        let mut start = self.lxc("lxc-start");
        start.args(["-d", "-o"]).arg(&log).args(["--", "/bin/sleep", "100000"]);
        let begin = Instant::now();
        output(&mut start).with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(begin.elapsed())
    }

    /// Fails unless the running container has just the network that the path is named after.
    fn has_its_network(&self) -> Result<()> {
        let pid = output(self.lxc("lxc-info").arg("-pH"))?;
        let said =
            output(Command::new("nsenter").arg(format!("--net=/proc/{}/ns/net", pid.trim())).args(["ip", "addr"]))?;
        let wanted = self.network != Network::None;
        let has = ["10.0.3.", "fd00:5056:0:3:"].map(|address| said.contains(address));
        ensure!(has == [wanted; 2], "its network: {said}");
        Ok(())
    }

    fn stop(&self) -> Result<()> {
        output(self.lxc("lxc-stop").arg("-k"))?;
        // The next start must not wait for the end of this one's links.
        eventually(SOON, || {
            let links = self.device.ns.ip("-o link show type veth")?;
            ensure!(links.is_empty(), "{links}");
            Ok(())
        })
    }
}

impl Path for Starts {
    fn verify(&mut self) -> Result<()> {
        self.start()?;
        let has = self.has_its_network();
        self.stop()?;
        has
    }

    fn measure(&mut self, _: &Metric, time: Duration) -> Result<Sample> {
        let mut times = Vec::new();
        let begin = Instant::now();
        while times.len() < LEAST || begin.elapsed() < time {
            interrupt::check()?;
            let took = self.start()?;
            let has = self.has_its_network();
            self.stop()?;
            has?;
            times.push(took.as_secs_f64() * 1000.0);
        }
        let share = |share| quantile(&times, share).context("no time was taken");
        Ok(Sample { value: share(0.5)?, extras: BTreeMap::from([("p99", share(0.99)?)]), ..Sample::default() })
    }
}

impl Drop for Starts {
    fn drop(&mut self) {
        // Fails when the container does not run, which is as good.
        let _ = self.lxc("lxc-stop").arg("-k").output();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root: run by cargo xtask test"]
    fn a_container_with_another_network_gives_no_figure() -> Result<()> {
        let mut path = Starts::new(Network::None)?;
        path.verify()?;
        path.network = Network::Own;
        let why = path.verify().err().context("it was taken for one with a network")?.to_string();
        ensure!(why.contains("its network"), "{why}");
        Ok(())
    }
}
