//! containerd, in namespaces that are there before the container starts: `ctr run --with-ns network:FILE`.

use crate::lab::{Lab, Runtime};
use crate::netns::Namespaces;
use crate::oci::Bundles;
use crate::story;
use anyhow::{Context, Result};
use harness::{Process, SOON, eventually, output};
use std::cell::RefCell;
use std::fs;
use std::process::{Command, Stdio};

/// containerd's shims listen below `/run/containerd`, whatever its configuration says: here that is in no other's view.
const OWN_RUN: &str = "mkdir -p /run/containerd; mount -t tmpfs tmpfs /run/containerd; exec containerd \"$@\"";

/// Containers of a containerd of the test's own.
#[derive(Default)]
struct Containerd {
    namespaces: Namespaces,
    daemon: RefCell<Option<Process>>,
}

impl Containerd {
    /// Starts containerd, unless it runs.
    fn daemon(&self, lab: &Lab) -> Result<()> {
        if self.daemon.borrow().is_some() {
            return Ok(());
        }
        let dir = lab.dir("containerd")?;
        let place = |name: &str| dir.join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n",
            place("root"),
            place("state"),
            place("sock")
        );
        fs::write(dir.join("config.toml"), config)?;
        let log = fs::File::create(dir.join("log"))?;
        let mut command = lab.runtime("sh");
        command.args(["-ec", OWN_RUN, "sh", "--config"]).arg(dir.join("config.toml"));
        *self.daemon.borrow_mut() = Some(Process::start(command.stderr(log.try_clone()?).stdout(log))?);
        eventually(SOON, || {
            let answers = output(Self::ctr(lab)?.arg("version"));
            answers.with_context(|| fs::read_to_string(dir.join("log")).unwrap_or_default())
        })?;
        Ok(())
    }

    fn ctr(lab: &Lab) -> Result<Command> {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(lab.dir("containerd")?.join("sock"));
        Ok(command)
    }
}

impl Runtime for Containerd {
    const TYPE: &'static str = "netns";
    // `ctr run` has no option for it.
    const HAS_HOST_NAME: bool = false;

    fn row(&self) -> &'static str {
        "containerd"
    }

    fn start(&self, lab: &Lab, name: &str) -> Result<()> {
        self.daemon(lab)?;
        self.namespaces.start(lab, name)?;
        let ns = self.namespaces.path(name)?;
        let resolv_conf = lab.device.file("run").join(format!("resolv/{name}.conf"));
        let mount = format!("type=bind,src={},dst=/etc/resolv.conf,options=rbind:ro", resolv_conf.display());
        let id = Bundles::id(lab, name);
        let mut run = Self::ctr(lab)?;
        run.args(["run", "--detach", "--null-io", "--env", "PATH=/bin", "--cap-add", "CAP_NET_RAW"]);
        // A group of its own at the top: containerd's own choice leaves the directory above it behind.
        run.args(["--cgroup", &format!("/{id}"), "--mount", &mount]);
        run.args(["--with-ns", &format!("network:{}", ns.display())]);
        output(run.arg("--rootfs").arg(lab.dir(name)?.join("rootfs")).args([&id, "/bin/sleep", "100000"]))?;
        Ok(())
    }

    fn exec(&self, lab: &Lab, name: &str, words: &[&str]) -> Command {
        let mut command = Self::ctr(lab).unwrap_or_else(|_| Command::new("false"));
        command.args(["tasks", "exec", "--fifo-dir"]).arg(lab.device.file("containerd/fifo"));
        // What is executed has a name of its own, too.
        command.args(["--exec-id", "pv-net-test"]).arg(Bundles::id(lab, name)).args(words);
        command
    }

    fn stop(&self, lab: &Lab, name: &str) -> Result<()> {
        let id = Bundles::id(lab, name);
        // Its exit status is the killed container's.
        let deleted = Self::ctr(lab)?.args(["tasks", "delete", "--force", &id]).stdin(Stdio::null()).output()?;
        let removed = output(Self::ctr(lab)?.args(["containers", "delete", &id]));
        let stopped = self.namespaces.stop(lab, name);
        removed.with_context(|| format!("{deleted:?}"))?;
        stopped
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_story_holds_for_containerd() -> Result<()> {
    story::holds(&Containerd::default())
}
