//! The device: a namespace with the daemon in it.

use crate::{Container, Namespace, Process, eventually, output};
use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long the daemon may take to start or stop; long, since tests run beside each other.
const PATIENCE: Duration = Duration::from_secs(120);

/// A device with its own files, BPF file system and daemon.
pub struct Device {
    // The fields are dropped in this order: the daemon, the sysctl that it left changed, the namespace, the mount, the
    // files.
    daemon: Option<Process>,
    _grace: GracePeriods,
    /// The device's namespace.
    pub ns: Namespace,
    bpffs: BpfFs,
    dir: tempfile::TempDir,
    /// Whether the daemon attaches its programs as on a kernel without tcx.
    pub clsact: bool,
}

/// What a command answered.
#[derive(Debug)]
pub struct Reply {
    /// Exit status; none after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Resets `rcu_expedited`, which holds for the whole machine. A daemon that a test kills while it has set it leaves a
/// marker file.
struct GracePeriods {
    marker: PathBuf,
}

impl Drop for GracePeriods {
    fn drop(&mut self) {
        if self.marker.exists()
            && let Err(why) = std::fs::write("/sys/kernel/rcu_expedited", "0")
        {
            eprintln!("grace periods stay short: {why}");
        }
    }
}

struct BpfFs(PathBuf);

impl BpfFs {
    fn mount(dir: PathBuf) -> Result<Self> {
        std::fs::create_dir(&dir)?;
        mount(Some("bpf"), &dir, Some("bpf"), MsFlags::empty(), None::<&str>).context("mount bpffs")?;
        Ok(Self(dir))
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        if let Err(why) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("{} stays mounted: {why}", self.0.display());
        }
    }
}

/// The program that [`with_binary`] runs in place of the daemon's.
static OTHER_BINARY: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Runs `work` with another build of the daemon, if `program` is given: every daemon that any thread starts meanwhile
/// is of that build.
pub fn with_binary<T>(program: Option<&Path>, work: impl FnOnce() -> T) -> T {
    let set = |to| *OTHER_BINARY.lock().unwrap_or_else(PoisonError::into_inner) = to;
    set(program.map(Path::to_owned));
    let done = work();
    set(None);
    done
}

/// The daemon's program: that of [`with_binary`], else `PV_NET_BIN`, else the one that was built beside this test.
///
/// # Errors
/// When there is no such file.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = OTHER_BINARY.lock().unwrap_or_else(PoisonError::into_inner).clone() {
        return Ok(path);
    }
    if let Some(path) = std::env::var_os("PV_NET_BIN") {
        return Ok(path.into());
    }
    let me = std::env::current_exe()?;
    let beside = me.ancestors().skip(1).take(2).map(|dir| dir.join("pv-net")).find(|file| file.is_file());
    beside.context("no pv-net was built: run the tests with `cargo xtask test`")
}

impl Device {
    /// A device with its configuration; its daemon does not run yet.
    ///
    /// # Errors
    /// When a namespace or file cannot be made.
    pub fn new(config: &Value) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("pv-net-test-").tempdir()?;
        std::fs::create_dir(dir.path().join("containers"))?;
        let bpffs = BpfFs::mount(dir.path().join("bpf"))?;
        let grace = GracePeriods { marker: dir.path().join("run/rcu-expedited") };
        let device = Self { daemon: None, _grace: grace, ns: Namespace::new("dev")?, bpffs, dir, clsact: false };
        device.configure(config)?;
        Ok(device)
    }

    /// A device with its daemon running.
    ///
    /// # Errors
    /// When the daemon does not start.
    pub fn started(config: &Value) -> Result<Self> {
        let mut device = Self::new(config)?;
        device.start()?;
        Ok(device)
    }

    /// Writes `device.json`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, config: &Value) -> Result<()> {
        Ok(std::fs::write(self.config(), config.to_string())?)
    }

    /// `device.json`.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("device.json")
    }

    /// A file or folder of this device: `state`, `run`, `containers`, `log`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the pins are.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.bpffs.0.join("pv-net")
    }

    /// Where a program's link to `link` is pinned.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn pin_of(&self, program: &str, link: &str) -> Result<PathBuf> {
        let index = self.ns.run(|| Ok(nix::net::if_::if_nametoindex(link)?)).with_context(|| link.to_owned())?;
        Ok(self.pins().join("links").join(program).join(index.to_string()))
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// When it ends instead, with what it logged.
    pub fn start(&mut self) -> Result<()> {
        if !self.try_start(None)? {
            bail!("the daemon ended: {}", self.log());
        }
        Ok(())
    }

    /// Starts a daemon that kills itself at `point`: `attach:7` is before the seventh write of an attach. True when the
    /// daemon has survived its start.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_to_die(&mut self, point: &str) -> Result<bool> {
        self.try_start(Some(("PV_NET_KILL_AT", point)))
    }

    /// Starts a daemon whose service panics at `point`: with `sweep:2` at each of its first two starts.
    ///
    /// # Errors
    /// When the daemon does not start.
    pub fn start_with_panic(&mut self, point: &str) -> Result<()> {
        ensure!(self.try_start(Some(("PV_NET_PANIC_AT", point)))?, "the daemon ended: {}", self.log());
        Ok(())
    }

    fn try_start(&mut self, point: Option<(&str, &str)>) -> Result<bool> {
        ensure!(self.daemon.is_none(), "a daemon is running");
        let log = File::options().create(true).append(true).open(self.file("log"))?;
        let mut command = self.command();
        command.arg("run").stderr(log.try_clone()?).stdout(log);
        command.envs(point);
        let mut daemon = Process::start(&mut command)?;
        let ready = eventually(PATIENCE, || {
            if daemon.has_ended()? {
                return Ok(false);
            }
            self.json(&["status"]).map(|_| true)
        })?;
        self.daemon = ready.then_some(daemon);
        Ok(ready)
    }

    /// Whether the daemon has ended by SIGKILL, during its start or later. A daemon that has ended is forgotten.
    ///
    /// # Errors
    /// When the daemon neither answers nor ends.
    pub fn has_died(&mut self) -> Result<bool> {
        use std::os::unix::process::ExitStatusExt;
        // A daemon that does not answer is about to end.
        let answers = self.json(&["status"]).is_ok();
        let Some(daemon) = self.daemon.as_mut().filter(|_| !answers) else { return Ok(!answers) };
        let status = eventually(PATIENCE, || daemon.ended()?.context("it neither answers nor ends"))?;
        self.daemon = None;
        Ok(status.signal() == Some(Signal::SIGKILL as i32))
    }

    /// What the daemons of this device have logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    /// The running daemon.
    ///
    /// # Errors
    /// When none runs.
    pub fn daemon(&self) -> Result<&Process> {
        self.daemon.as_ref().context("no daemon is running")
    }

    /// Ends the daemon by a signal and waits for its end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self, signal: Signal) -> Result<()> {
        let mut daemon = self.daemon.take().context("no daemon is running")?;
        daemon.signal(signal)?;
        eventually(PATIENCE, || {
            ensure!(daemon.has_ended()?, "the daemon did not end by {signal}");
            Ok(())
        })
    }

    /// Waits until the daemon ends by itself, and gives its exit status.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn ends(&mut self) -> Result<std::process::ExitStatus> {
        let mut daemon = self.daemon.take().context("no daemon is running")?;
        eventually(PATIENCE, || daemon.ended()?.context("the daemon goes on"))
    }

    /// Runs `pv-net down`, and waits until the daemon has ended.
    ///
    /// # Errors
    /// When the command fails, or the daemon does not end.
    pub fn down(&mut self) -> Result<()> {
        self.cli(&["down"]).ok()?;
        if let Some(mut daemon) = self.daemon.take() {
            eventually(PATIENCE, || {
                ensure!(daemon.has_ended()?, "the daemon goes on after `down`");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// `pv-net` with this device's files, in its namespace.
    #[must_use]
    pub fn command(&self) -> Command {
        let program = binary().unwrap_or_else(|_| "pv-net".into());
        let mut command = self.ns.command(&program.display().to_string());
        command.arg("--config").arg(self.config());
        for (flag, dir) in
            [("--containers", "containers"), ("--lxc-path", "lxc"), ("--state-dir", "state"), ("--run-dir", "run")]
        {
            command.arg(flag).arg(self.file(dir));
        }
        command.arg("--resolv-conf").arg(self.file("resolv.conf"));
        command.arg("--bpffs").arg(self.pins()).env("RUST_BACKTRACE", "1");
        // Not the machine's own bus: nobody is there unless the test starts one.
        command.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", self.file("bus").display()));
        if self.clsact {
            command.env("PV_NET_HOOK", "clsact");
        }
        command
    }

    /// Runs a `pv-net` command.
    #[must_use]
    pub fn cli(&self, words: &[&str]) -> Reply {
        let done = self.command().args(words).stdin(Stdio::null()).output();
        match done {
            Ok(done) => Reply {
                code: done.status.code(),
                stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
            },
            Err(why) => Reply { code: None, stdout: String::new(), stderr: why.to_string() },
        }
    }

    /// Runs a `pv-net` command with `--json` and gives its answer.
    ///
    /// # Errors
    /// When it fails.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let words: Vec<&str> = ["--json"].iter().chain(words).copied().collect();
        let said = self.cli(&words).ok()?;
        serde_json::from_str(&said).with_context(|| format!("{words:?}: {said}"))
    }

    /// Makes a namespace and attaches it as a container with `eth0` in `pool`.
    ///
    /// # Errors
    /// When the attach fails.
    pub fn attach(&self, name: &str, pool: &str) -> Result<Container> {
        let ns = Namespace::new(name)?;
        let path = ns.path().display().to_string();
        let view = self.json(&["attach", name, "--netns", &path, "--pool", pool])?;
        Container::new(ns, view)
    }

    /// Makes a namespace and attaches it with this `run.json`.
    ///
    /// # Errors
    /// When the attach fails.
    pub fn attach_run(&self, run: &Value) -> Result<Container> {
        let name = run["name"].as_str().context("run.json without a name")?;
        let ns = Namespace::new(name)?;
        let file = self.file(&format!("run-{name}.json"));
        std::fs::write(&file, run.to_string())?;
        let (path, file) = (ns.path().display().to_string(), file.display().to_string());
        let view = self.json(&["attach", name, "--netns", &path, "--run", &file])?;
        Container::new(ns, view)
    }

    /// A host beyond an uplink: `link` in the device, `eth0` in the host.
    ///
    /// # Errors
    /// When a link cannot be made.
    pub fn outside(&self, link: &str, device: &[&str], host: &[&str]) -> Result<Namespace> {
        let outside = Namespace::new("out")?;
        self.ns.connect((link, device), &outside, ("eth0", host))?;
        Ok(outside)
    }

    /// Packet counters by path, and drops by reason, in one map.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>> {
        Ok(counters(&self.json(&["status"])?))
    }

    /// How much each counter grew while `work` ran.
    ///
    /// # Errors
    /// Those of `work`, and when the daemon does not answer.
    pub fn counted(&self, work: impl FnOnce() -> Result<()>) -> Result<BTreeMap<String, u64>> {
        counted(|| self.counters(), work)
    }

    /// The names under the pins, as text that can be compared.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn pinned(&self) -> Result<String> {
        pinned(&self.bpffs.0)
    }
}

/// Packet counters by path, and drops by reason, of what `status` answered.
#[must_use]
pub fn counters(status: &Value) -> BTreeMap<String, u64> {
    let part = |key: &str| status["data_plane"][key].as_object().cloned().unwrap_or_default();
    let all = part("stats").into_iter().chain(part("drops"));
    all.map(|(name, n)| (name, n.as_u64().unwrap_or_default())).collect()
}

/// How much each counter that `read` gives grew while `work` ran.
///
/// # Errors
/// Those of `read` and `work`.
pub fn counted(
    read: impl Fn() -> Result<BTreeMap<String, u64>>,
    work: impl FnOnce() -> Result<()>,
) -> Result<BTreeMap<String, u64>> {
    let before = read()?;
    work()?;
    let after = read()?;
    Ok(after.into_iter().map(|(name, n)| (name.clone(), n - before.get(&name).copied().unwrap_or(0))).collect())
}

fn pinned(bpffs: &Path) -> Result<String> {
    output(Command::new("find").arg(bpffs).args(["-mindepth", "1", "-not", "-name", "*.debug"]))
}

impl Reply {
    /// The standard output of a command that succeeded.
    ///
    /// # Errors
    /// When the command failed.
    pub fn ok(self) -> Result<String> {
        ensure!(self.code == Some(0), "exit status {:?}: {}{}", self.code, self.stdout, self.stderr);
        Ok(self.stdout)
    }
}
