//! Containers whose root is nobody on the device: LXC with `lxc.idmap`, started by root, and runc, started by another
//! user.

use crate::lab::{Lab, Runtime, said};
use crate::lxc::{self, Lxc};
use crate::oci;
use crate::story::{self, published};
use anyhow::{Context, Result, ensure};
use harness::output;
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The first of the ids that the container's users have on the device, and how many there are.
const FIRST: u32 = 100_000;
const COUNT: u32 = 65_536;
/// Where newuidmap is installed, LXC lets root use only ids that these files reserve for it.
const RESERVED: &str =
    "for file in /etc/subuid /etc/subgid; do if [ -e $file ]; then mount --bind \"$1\" $file; fi; done
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

/// A user of the device who is nobody else.
const USER: &str = "12345";

/// A program of the user's, on the device.
fn as_user(lab: &Lab, program: &str) -> Result<Command> {
    let mut command = lab.runtime("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups", program]);
    command.env("XDG_RUNTIME_DIR", lab.device.file("user"));
    Ok(command)
}

/// Starts the user's container `web` by its bundle. The result has what runc has said.
fn run(lab: &Lab, dir: &Path) -> Result<()> {
    let log = dir.join("log");
    let mut run = as_user(lab, "runc")?;
    run.arg("--root").arg(dir.join("state")).args(["run", "--detach", "--bundle"]).arg(dir).arg("web");
    run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log)?);
    let status = run.status()?;
    ensure!(status.success(), "{}", fs::read_to_string(log)?);
    Ok(())
}

fn exec(lab: &Lab, dir: &Path, words: &[&str]) -> Result<String> {
    let mut exec = as_user(lab, "runc")?;
    output(exec.arg("--root").arg(dir.join("state")).args(["exec", "web"]).args(words))
}

/// A container of a user who is not root: its hook is refused, and says why; root attaches its namespace.
#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_container_of_another_user_is_attached_by_root_alone() -> Result<()> {
    let lab = Lab::new("oci")?;
    fs::set_permissions(lab.device.file(""), fs::Permissions::from_mode(0o711))?;
    let dir = lab.dir("user")?;
    lab.rootfs(&dir)?;
    output(Command::new("chown").args(["-R", &format!("{USER}:{USER}")]).arg(&dir))?;
    let path = dir.display().to_string();
    output(as_user(&lab, "runc")?.args(["spec", "--rootless"]).current_dir(&dir))?;
    let mut spec = oci::config(&path)?;
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["/bin/sleep", "100000"]);
    spec["process"]["rlimits"] = json!([]);
    for set in ["bounding", "effective", "permitted"] {
        let set = spec["process"]["capabilities"][set].as_array_mut().context("capabilities")?;
        set.extend([json!("CAP_NET_RAW"), json!("CAP_NET_ADMIN")]);
    }
    let namespaces = spec["linux"]["namespaces"].as_array_mut().context("namespaces")?;
    namespaces.push(json!({"type": "network"}));
    let config = dir.join("config.json");
    fs::write(&config, spec.to_string())?;
    // The hook, called by the user's runtime.
    lab.device.cli(&["oci", "patch", &path, "web"]).ok()?;
    let refused = run(&lab, &dir).err().context("it has started, although its hook may not ask the daemon")?;
    for part in ["api.sock: Permission denied", "help: only root may ask it"] {
        ensure!(format!("{refused}").contains(part), "no {part:?} in {refused}");
    }
    ensure!(lab.view("web")?["state"] != "attached", "{}", lab.view("web")?);
    // Nor by any other command.
    let mut attach = as_user(&lab, &harness::binary()?.display().to_string())?;
    attach.arg("--run-dir").arg(lab.device.file("run")).args(["attach", "web", "--pid", "1"]);
    let refused = attach.output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(3) && said.contains("only root may ask it"), "{said}");
    // Without the hook it starts, and has no network until root attaches it.
    fs::write(&config, spec.to_string())?;
    run(&lab, &dir)?;
    let attached = attached_by_root(&lab, &dir);
    let mut delete = as_user(&lab, "runc")?;
    output(delete.arg("--root").arg(dir.join("state")).args(["delete", "--force", "web"]))?;
    attached?;
    lab.no_links()
}

fn attached_by_root(lab: &Lab, dir: &Path) -> Result<()> {
    let links = exec(lab, dir, &["cat", "/proc/net/dev"])?;
    ensure!(!links.contains("eth0"), "{links}");
    let state = output(as_user(lab, "runc")?.arg("--root").arg(dir.join("state")).args(["state", "web"]))?;
    let state: serde_json::Value = serde_json::from_str(&state)?;
    let pid = state["pid"].as_u64().context("a process")?.to_string();
    lab.device.cli(&["attach", "web", "--pid", &pid]).ok()?;
    let addresses = lab.attached("web")?;
    exec(lab, dir, &["httpd", "-p", "[::]:80", "-h", "/"])?;
    published(lab)?;
    for gateway in ["10.0.3.1", "fd00:5056:0:3::1"] {
        exec(lab, dir, &["ping", "-c", "1", "-W", "5", gateway])?;
    }
    // Its user may do with its interface what root may do in any container, and is guarded as any.
    exec(lab, dir, &["ip", "addr", "add", "10.0.3.200/24", "dev", "eth0"])?;
    let ping = |from: &str| exec(lab, dir, &["ping", "-c", "1", "-W", "1", "-I", from, "10.0.3.1"]);
    ping(&addresses[0])?;
    let forged = ping("10.0.3.200");
    ensure!(forged.is_err(), "a foreign source address is let through: {forged:?}");
    ensure!(lab.attached("web")? == addresses, "another address");
    Ok(())
}
