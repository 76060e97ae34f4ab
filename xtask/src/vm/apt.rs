//! Fetches packages of another Debian suite or architecture, with apt's state in a directory of its own, so that the
//! machine's is not changed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::arch::Arch;
use crate::run::{find, show};
use crate::signals;

/// The keys that sign Debian's suites.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Used unless the machine's own sources name another mirror.
const MIRROR: &str = "http://deb.debian.org/debian";
const SECURITY: &str = "http://deb.debian.org/debian-security";

/// A suite, and whether its security updates are included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suite {
    /// `bookworm`, `trixie-backports`, …
    pub name: &'static str,
    /// With `NAME-security`.
    pub security: bool,
}

/// apt for one suite and processor.
pub struct Apt {
    dir: PathBuf,
    suite: Suite,
    arch: Arch,
}

impl Apt {
    /// Reads the suite's index, once; it stays under `cache`.
    pub fn open(cache: &Path, suite: Suite, arch: Arch) -> Result<Self> {
        for program in ["apt-get", "dpkg-deb"] {
            ensure!(
                find(program).is_some(),
                "{program}: not found: kernels are fetched from Debian on a Debian machine"
            );
        }
        let dir = cache.join("apt").join(format!("{}-{}", suite.name, arch.debian()));
        let apt = Self { dir, suite, arch };
        if !apt.dir.join("updated").exists() {
            apt.update().with_context(|| format!("the index of Debian {}", suite.name))?;
        }
        Ok(apt)
    }

    fn update(&self) -> Result<()> {
        for dir in ["lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(self.dir.join(dir))?;
        }
        let (mirror, security) = mirrors();
        let line = |url: &str, suite: &str| format!("deb [signed-by={KEYRING}] {url} {suite} main\n");
        let mut sources = line(&mirror, self.suite.name);
        if self.suite.security {
            sources += &line(&security, &format!("{}-security", self.suite.name));
        }
        std::fs::write(self.dir.join("sources.list"), sources)?;
        // Without this option apt would use the remains of a failed update as an index.
        said(self.command("apt-get").args(["-o", "APT::Update::Error-Mode=any", "update", "-qq"]))?;
        Ok(std::fs::write(self.dir.join("updated"), "")?)
    }

    /// Names of packages that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let text = said(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Unpacks `packages` into `to`.
    pub fn unpack(&self, packages: &[String], to: &Path) -> Result<()> {
        std::fs::create_dir_all(to)?;
        let debs = to.join("debs");
        std::fs::create_dir_all(&debs)?;
        said(self.command("apt-get").args(["download", "-qq"]).args(packages).current_dir(&debs))?;
        for deb in std::fs::read_dir(&debs)? {
            said(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(to))?;
        }
        Ok(std::fs::remove_dir_all(&debs)?)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let dir = |name: &str| self.dir.join(name).display().to_string();
        let arch = self.arch.debian();
        for option in [
            format!("Dir::Etc::sourcelist={}", dir("sources.list")),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}", dir("lists")),
            format!("Dir::Cache={}", dir("cache")),
            format!("APT::Architecture={arch}"),
            format!("APT::Architectures={arch}"),
            // apt's own user may not enter the directory.
            "APT::Sandbox::User=root".to_owned(),
            // Suites that are not maintained any more are still in use on devices.
            "Acquire::Check-Valid-Until=false".to_owned(),
            "Acquire::Retries=3".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }
}

/// What a program printed; a failure is an error with what it said.
pub fn said(command: &mut Command) -> Result<String> {
    let done = command.output().with_context(|| format!("{} could not be started", show(command)))?;
    signals::check()?;
    if !done.status.success() {
        let why = String::from_utf8_lossy(&done.stderr).trim().replace('\n', "; ");
        bail!("{}: {}: {why}", command.get_program().to_string_lossy(), done.status);
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// The mirrors of Debian, and of its security updates, that this machine uses itself.
pub fn mirrors() -> (String, String) {
    let files = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    let text: String = files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).collect();
    let lines = text.lines().filter(|line| line.starts_with("URIs:") || line.starts_with("deb "));
    let urls: Vec<&str> = lines.filter_map(|line| line.split_whitespace().find(|w| w.starts_with("http"))).collect();
    let pick = |security: bool, usual: &str| {
        let found = urls.iter().find(|u| u.contains("debian") && u.contains("security") == security);
        found.map_or(usual, |u| u.trim_end_matches('/')).to_owned()
    };
    (pick(false, MIRROR), pick(true, SECURITY))
}
