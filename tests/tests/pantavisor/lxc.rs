//! Starts a container as LXC does by its `lxc.container.conf`: mounts, root directory, namespaces and hooks.

use crate::double::Shared;
use anyhow::{Context, Result, bail, ensure};
use harness::{Namespace, Process, output};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Settings that mean nothing here.
const IGNORED: [&str; 6] =
    ["lxc.tty.max", "lxc.pty.max", "lxc.cgroup.devices.allow", "lxc.mount.auto", "lxc.signal.halt", "lxc.rootfs.path"];
/// Directories of the machine that a program needs which is not static: tests run the build that they find.
const LIBRARIES: [&str; 3] = ["lib", "lib64", "usr/lib"];

pub struct Container<'a> {
    shared: &'a Shared,
    name: String,
    /// Its own root directory, when it has one.
    root: Option<PathBuf>,
    init: Vec<String>,
    environment: Vec<String>,
    mounts: Vec<String>,
    before_start: Vec<String>,
    started: Vec<String>,
    has_net: bool,
}

impl<'a> Container<'a> {
    /// Reads the configuration, and makes what Pantavisor mounts: the root directory and the volumes.
    pub fn read(shared: &'a Shared, name: &str, dir: &Path, run: &Value) -> Result<Self> {
        let volumes = shared.host.join("volumes").join(name);
        for volume in run["storage"].as_object().into_iter().flatten().map(|(volume, _)| volume) {
            fs::create_dir_all(volumes.join(volume))?;
        }
        let image = dir.join("root.squashfs");
        let root = volumes.join("root.squashfs");
        if image.exists() && !root.exists() {
            output(Command::new("unsquashfs").args(["-quiet", "-no-progress", "-d"]).arg(&root).arg(&image))?;
        }
        let mut container = Self {
            shared,
            name: name.to_owned(),
            root: image.exists().then_some(root),
            init: Vec::new(),
            environment: Vec::new(),
            mounts: Vec::new(),
            before_start: Vec::new(),
            started: Vec::new(),
            has_net: true,
        };
        let text = fs::read_to_string(dir.join(run["config"].as_str().context("no config")?))?;
        for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            let (key, value) = line.split_once('=').map(|(k, v)| (k.trim(), v.trim())).context("no setting")?;
            container.set(key, value)?;
        }
        ensure!(!container.init.is_empty(), "{name}: no lxc.init.cmd");
        Ok(container)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let owned = value.to_owned();
        match key {
            "lxc.init.cmd" => self.init = value.split(' ').map(|word| word.trim_matches('"').to_owned()).collect(),
            "lxc.environment" => self.environment.push(owned),
            "lxc.mount.entry" => self.mounts.push(owned),
            "lxc.hook.pre-start" => self.before_start.push(owned),
            "lxc.hook.start-host" => self.started.push(owned),
            "lxc.namespace.keep" => self.has_net = !value.split(' ').any(|kept| kept == "net"),
            "lxc.net.0.type" => ensure!(value == "empty", "{}: {key} = {value}", self.name),
            // Only LXC itself would give it.
            "lxc.net.0.ipv4.address" | "lxc.net.0.ipv6.address" => {}
            _ if IGNORED.contains(&key) => {}
            _ => bail!("{}: {key} = {value}", self.name),
        }
        Ok(())
    }

    /// The hooks before anything is mounted. They see the BPF file system of this Pantavisor, not that of the machine.
    pub fn before_start(&self) -> Result<()> {
        for hook in &self.before_start {
            let line = format!("mount --bind {} /sys/fs/bpf; exec sh -c \"$0\"", self.shared.bpffs.display());
            let called = format!("exec {hook} {} lxc pre-start", self.name);
            let mut command = self.shared.device.command("unshare");
            output(command.args(["--mount", "--propagation", "private", "sh", "-ec", &line, &called]))?;
        }
        Ok(())
    }

    /// Its first process, and its namespace if it has one of its own.
    pub fn start(&self) -> Result<(Process, Option<Namespace>)> {
        let ns = if self.has_net { Some(Namespace::new(&self.name)?) } else { None };
        let place = ns.as_ref().unwrap_or(&self.shared.device);
        let log = fs::File::options().create(true).append(true).open(&self.shared.log)?;
        let mut command = match &self.root {
            Some(root) => {
                let mut command = place.command("unshare");
                command.args(["--mount", "--propagation", "private", "sh", "-ec", &self.script(root)?, "sh"]);
                command.args(&self.init);
                command
            }
            None => {
                let (program, arguments) = self.init.split_first().context("no program")?;
                let mut command = place.command(program);
                command.args(arguments);
                command
            }
        };
        let process = Process::start(command.stderr(log.try_clone()?).stdout(log))?;
        Ok((process, ns))
    }

    /// Mounts what the container sees, and becomes its first process.
    fn script(&self, root: &Path) -> Result<String> {
        let at = |path: &str| root.join(path).display().to_string();
        let mut lines = vec![
            format!("mount -t proc proc {}", at("proc")),
            format!("mount -t sysfs sysfs {}", at("sys")),
            format!("mount --bind /dev {}", at("dev")),
            format!("mount --bind {} {}", self.shared.host.join("pantavisor").display(), at("pantavisor")),
        ];
        for library in LIBRARIES.iter().filter(|library| Path::new("/").join(library).exists()) {
            lines.push(format!("mkdir -p {0}; mount --bind /{library} {0}", at(library)));
        }
        for entry in &self.mounts {
            let fields: Vec<&str> = entry.split_whitespace().collect();
            let [source, target, kind, options, "0", "0"] = fields[..] else { bail!("{}: {entry}", self.name) };
            let target = at(target);
            if options.contains("create=dir") {
                lines.push(format!("mkdir -p {target}"));
            }
            let is_read_only = options.split(',').any(|option| option == "ro");
            match kind {
                "none" => {
                    let how = if options.contains("rbind") { "rbind" } else { "bind" };
                    lines.push(format!("mount --{how} {} {target}", self.on_host(source)));
                    lines.extend(is_read_only.then(|| format!("mount -o remount,bind,ro {target}")));
                }
                "tmpfs" => lines.push(format!("mount -t tmpfs tmpfs {target}")),
                _ => bail!("{}: {entry}", self.name),
            }
        }
        let environment = self.environment.join(" ");
        lines.push(format!(
            "exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin {environment} chroot {} \"$@\"",
            root.display()
        ));
        Ok(lines.join("\n"))
    }

    /// A path of Pantavisor's, where it is on this machine.
    fn on_host(&self, path: &str) -> String {
        match path {
            "/sys/fs/bpf" => self.shared.bpffs.display().to_string(),
            "/sys/fs/cgroup" => path.to_owned(),
            _ => self.shared.host.join(path.trim_start_matches('/')).display().to_string(),
        }
    }

    /// The hooks when its namespaces exist and its own program does not run yet.
    pub fn started(&self, pid: u32) -> Result<()> {
        let volumes = self.shared.host.join("volumes");
        for hook in &self.started {
            let line = hook.replace("/volumes/", &format!("{}/", volumes.display()));
            let mut command = self.shared.device.command("sh");
            command.arg("-c").arg(format!("exec {line} {} lxc start-host", self.name));
            output(command.env("LXC_PID", pid.to_string()).env("LXC_NAME", &self.name))?;
        }
        Ok(())
    }
}
