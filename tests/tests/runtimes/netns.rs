//! Namespaces that somebody makes (type `netns`), which the daemon attaches when they are there.

use crate::lab::{Lab, Runtime};
use crate::story;
use anyhow::{Context, Result};
use harness::{Namespace, SOON, eventually, output};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Runs words below a root, with its `resolv.conf` and a host name.
const ENTER: &str = "mount --bind \"$2\" \"$1/etc/resolv.conf\"; mount -t sysfs sysfs \"$1/sys\"; hostname \"$3\"
root=\"$1\"; shift 3; exec chroot \"$root\" \"$@\"";

/// Containers that are no more than a namespace.
#[derive(Default)]
pub struct Namespaces(RefCell<BTreeMap<String, Namespace>>);

impl Namespaces {
    /// The file of a container's namespace.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let all = self.0.borrow();
        Ok(all.get(name).with_context(|| format!("{name} is not there"))?.path())
    }
}

impl Runtime for Namespaces {
    const TYPE: &'static str = "netns";

    fn row(&self) -> &'static str {
        "netns"
    }

    fn start(&self, lab: &Lab, name: &str) -> Result<()> {
        let dir = lab.dir(name)?;
        if !dir.join("rootfs").exists() {
            lab.rootfs(&dir)?;
        }
        let ns = Namespace::new(name)?;
        // Its path is another one at each start, as is its name.
        let file = lab.device.file("containers").join(name).join("run.json");
        let mut run: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
        run["netns"] = json!(ns.path());
        fs::write(&file, run.to_string())?;
        lab.device.cli(&["reload"]).ok()?;
        self.0.borrow_mut().insert(name.to_owned(), ns);
        eventually(SOON, || lab.attached(name).map(drop))
    }

    fn exec(&self, lab: &Lab, name: &str, words: &[&str]) -> Command {
        let all = self.0.borrow();
        let Some(ns) = all.get(name) else { return Command::new("false") };
        // With the names, files and host name that a container of it would have.
        let mut command = ns.command("unshare");
        let (resolv_conf, dir) = (lab.device.file("run").join(format!("resolv/{name}.conf")), lab.device.file(name));
        command.args(["--mount", "--uts", "sh", "-ec", ENTER, "sh"]).arg(dir.join("rootfs"));
        command.arg(resolv_conf).arg(format!("{name}-host")).args(words);
        command
    }

    fn stop(&self, _: &Lab, name: &str) -> Result<()> {
        let ns = self.0.borrow_mut().remove(name).with_context(|| format!("{name} is not there"))?;
        // A namespace lives on as long as something runs in it.
        for pid in output(Command::new("ip").args(["netns", "pids", ns.name()]))?.split_whitespace() {
            kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL)?;
        }
        Ok(())
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_story_holds_for_namespaces() -> Result<()> {
    story::holds(&Namespaces::default())
}
