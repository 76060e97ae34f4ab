//! Containers whose root is nobody on the device: LXC with `lxc.idmap`, started by root.

use crate::lab::{Lab, Runtime, said};
use crate::lxc::{self, Lxc};
use crate::story;
use anyhow::{Context, Result, ensure};
use harness::output;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// The first of the ids that the container's users have on the device, and how many there are.
const FIRST: u32 = 100_000;
const COUNT: u32 = 65_536;
/// Where newuidmap is installed, LXC lets root use only ids that these files reserve for it.
const RESERVED: &str = "for file in /etc/subuid /etc/subgid; do if [ -e $file ]; then mount --bind \"$1\" $file; fi; done
shift; exec \"$@\"";

struct Unprivileged;

impl Runtime for Unprivileged {
    const TYPE: &'static str = "lxc";

    fn row(&self) -> &'static str {
        "LXC, unprivileged"
    }

    fn start(&self, lab: &Lab, name: &str) -> Result<()> {
        let dir = lab.dir(&format!("lxc/{name}"))?;
        let (log, config, reserved) = (dir.join("log"), dir.join("config"), dir.join("ids"));
        if !config.exists() {
            let text = fs::read_to_string(lxc::configured(lab, name)?)?;
            let map = ["u", "g"].map(|kind| format!("lxc.idmap = {kind} 0 {FIRST} {COUNT}\n"));
            fs::write(&config, text + &map.concat())?;
            fs::write(&reserved, format!("root:{FIRST}:{COUNT}\n"))?;
            lab.device.cli(&["lxc", "config", name, "--write", &config.display().to_string()]).ok()?;
            output(Command::new("chown").args(["-R", &format!("{FIRST}:{FIRST}")]).arg(dir.join("rootfs")))?;
            // Its root has to reach the files that are mounted, as it would below `/var/lib/lxc` and `/run`.
            fs::set_permissions(lab.device.file(""), fs::Permissions::from_mode(0o711))?;
        }
        let mut start = lab.runtime("sh");
        start.args(["-ec", RESERVED, "sh"]).arg(&reserved).args(["lxc-start", "-P"]).arg(lab.dir("lxc")?);
        start.args(["-n", name, "-d", "-l", "DEBUG", "-o"]).arg(&log).args(["--", "/bin/sleep", "100000"]);
        output(&mut start).with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        // It is what it is called.
        let map = said(lab, self, name, &["cat", "/proc/self/uid_map"])?;
        let words: Vec<&str> = map.split_whitespace().collect();
        ensure!(words == ["0", &FIRST.to_string(), &COUNT.to_string()], "{map}");
        Ok(())
    }

    fn exec(&self, lab: &Lab, name: &str, words: &[&str]) -> Command {
        Lxc.exec(lab, name, words)
    }

    fn stop(&self, lab: &Lab, name: &str) -> Result<()> {
        Lxc.stop(lab, name)
    }
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn the_story_holds_for_unprivileged_containers_of_lxc() -> Result<()> {
    story::holds(&Unprivileged)
}
