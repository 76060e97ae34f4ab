//! Kernels of Debian's suites, in the flavour for clouds: it has a quarter of the size and everything that a guest
//! needs, except drivers for physical network cards. One series is the flavour for PCs, for these drivers.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt::{Apt, Suite, said};
use super::arch::Arch;
use crate::fault::misuse;
use crate::signals;

/// A kernel that is unpacked.
pub struct Kernel {
    /// `6.1`.
    pub series: String,
    /// `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// Its image.
    pub image: PathBuf,
    /// Its modules: the folder that `modules.dep` is in.
    pub modules: PathBuf,
    /// The configuration that it was built with.
    pub config: PathBuf,
}

const BULLSEYE: Suite = Suite { name: "bullseye", security: false };
const BOOKWORM: Suite = Suite { name: "bookworm", security: true };
const BACKPORTS: Suite = Suite { name: "trixie-backports", security: false };

/// The machines for which a kernel is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flavour {
    /// Virtual machines.
    Cloud,
    /// All machines.
    Full,
}

impl Flavour {
    /// The end of the release's name.
    fn end(self, arch: Arch) -> String {
        match self {
            Self::Cloud => format!("-cloud-{}", arch.debian()),
            Self::Full => format!("-{}", arch.debian()),
        }
    }
}

/// The suite of each series, and which flavour is used.
const SERIES: [(&str, Suite, Flavour); 5] = [
    ("5.10", BULLSEYE, Flavour::Cloud),
    ("6.1", BOOKWORM, Flavour::Full),
    ("6.12", BOOKWORM, Flavour::Cloud),
    ("6.18", BACKPORTS, Flavour::Cloud),
    ("7.3", BACKPORTS, Flavour::Cloud),
];

/// Fails when the series is unknown, before anything is installed or built for it.
pub fn check(series: &str) -> Result<()> {
    place(series).map(drop)
}

fn place(series: &str) -> Result<(Suite, Flavour)> {
    let found = SERIES.iter().find(|(name, ..)| *name == series).map(|(_, suite, flavour)| (*suite, *flavour));
    found.ok_or_else(|| {
        let all: Vec<&str> = SERIES.iter().map(|(series, ..)| *series).collect();
        misuse(format!("kernel {series}: no such series"), format!("one of {}", all.join(", ")))
    })
}

/// Fetches the newest kernel of a series, or takes the one that an earlier run has fetched.
pub fn get(cache: &Path, series: &str, arch: Arch) -> Result<Kernel> {
    let (suite, mut flavour) = place(series)?;
    if arch == Arch::Arm {
        // This architecture has no flavour with PC drivers.
        flavour = Flavour::Cloud;
    }
    let from = (suite, flavour);
    let dir = cache.join("kernels").join(arch.name()).join(series);
    // A kernel fetched by an older xtask may have no configuration, or another flavour.
    let got = std::fs::read_to_string(dir.join("release")).is_ok_and(|release| is_of(&release, flavour, arch));
    if !(got && dir.join("config").exists())
        && let Err(why) = fetch(cache, &dir, series, from, arch)
    {
        signals::check()?;
        let help = "it is fetched once, and that needs the network";
        bail!("kernel {series} for {}: not fetched: {why:#}\nhelp: {help}", arch.name());
    }
    let release = std::fs::read_to_string(dir.join("release"))?;
    let file = |name: &str| dir.join(name);
    let (image, modules, config) = (file("vmlinuz"), file("modules"), file("config"));
    Ok(Kernel { series: series.to_owned(), release, image, modules, config })
}

fn fetch(cache: &Path, dir: &Path, series: &str, (suite, flavour): (Suite, Flavour), arch: Arch) -> Result<()> {
    let apt = Apt::open(cache, suite, arch)?;
    let release = newest(&apt.names(&format!("linux-image-{series}."))?, flavour, arch)
        .with_context(|| format!("Debian {} has none", suite.name))?;
    println!("vm: fetching kernel {release}");
    // From 6.19 on, linux-image-* only depends on other packages: image, modules, and `base` with their descriptions.
    let parts = ["binary", "modules", "base"].map(|part| format!("linux-{part}-{release}"));
    let split = !apt.names(&parts[0])?.is_empty();
    let packages = if split { parts.to_vec() } else { vec![format!("linux-image-{release}")] };
    // It gets its final name when it is complete, so that the rest of an interrupted run is never used as a kernel.
    let part = dir.with_extension("part");
    remove(&part)?;
    apt.unpack(&packages, &part.join("root"))?;
    let root = part.join("root");
    let modules = [root.join("usr/lib/modules"), root.join("lib/modules")];
    let modules = modules.iter().map(|m| m.join(&release)).find(|m| m.is_dir()).context("no modules in the package")?;
    let images = [root.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
    let image = images.iter().find(|i| i.is_file()).context("no image in the package")?;
    let configs = [root.join("boot").join(format!("config-{release}")), modules.join("config")];
    let config = configs.iter().find(|c| c.is_file()).context("no configuration in the package")?;
    std::fs::rename(image, part.join("vmlinuz"))?;
    std::fs::rename(config, part.join("config"))?;
    std::fs::rename(&modules, part.join("modules"))?;
    if !part.join("modules/modules.dep").exists() {
        depmod(&part.join("modules"), &release)?;
    }
    remove(&root)?;
    remove(dir)?;
    std::fs::write(part.join("release"), &release)?;
    remove(dir)?;
    Ok(std::fs::rename(part, dir)?)
}

/// Packages do not contain `modules.dep`, which is made at installation.
fn depmod(modules: &Path, release: &str) -> Result<()> {
    // depmod needs the directory layout of the installed system.
    let root = modules.with_file_name("depmod");
    let place = root.join("lib/modules");
    std::fs::create_dir_all(&place)?;
    std::fs::rename(modules, place.join(release))?;
    let program = crate::run::find("depmod").context("depmod: not found\nhelp: cargo xtask setup")?;
    said(Command::new(program).arg("-b").arg(&root).arg(release))?;
    std::fs::rename(place.join(release), modules)?;
    Ok(std::fs::remove_dir_all(root)?)
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    Ok(())
}

/// The newest release among names of packages.
fn newest(names: &[String], flavour: Flavour, arch: Arch) -> Option<String> {
    let releases = names.iter().filter_map(|n| n.strip_prefix("linux-image-")).filter(|n| is_of(n, flavour, arch));
    releases.max_by(|a, b| by_version(a, b)).map(str::to_owned)
}

/// Whether a release is of this flavour: the part before the flavour's suffix must be a plain version, without a word
/// such as `rt`.
fn is_of(release: &str, flavour: Flavour, arch: Arch) -> bool {
    release.strip_suffix(&flavour.end(arch)).is_some_and(|version| {
        let last = version.rsplit(['-', '+']).next().unwrap_or_default();
        !["cloud", "rt"].contains(&last)
    })
}

/// Compares the numbers in two versions: 6.1.0-9 is before 6.1.0-56.
fn by_version(a: &str, b: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b))
}

#[cfg(test)]
mod tests {
    use super::{Arch, Flavour, newest};

    #[test]
    fn the_newest_is_by_number_and_of_the_right_flavour() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-55-amd64",
            "linux-image-6.1.0-57-rt-amd64",
            "linux-image-6.1.0-57-cloud-amd64-unsigned",
            "linux-image-6.1.0-58-cloud-arm64",
        ];
        let names = names.map(str::to_owned);
        let of = |flavour, arch| newest(&names, flavour, arch);
        assert_eq!(of(Flavour::Cloud, Arch::X86).as_deref(), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(of(Flavour::Full, Arch::X86).as_deref(), Some("6.1.0-55-amd64"));
        assert_eq!(of(Flavour::Full, Arch::Arm), None);
        assert_eq!(newest(&names[..1], Flavour::Cloud, Arch::Arm), None);
    }
}
