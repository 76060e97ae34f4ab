//! Packages for Debian, archives, and checksums of all.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{done, version};
use crate::run;
use crate::vm::said;

/// Scripts that dpkg runs.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// A `.deb` of the files below `root`.
pub fn debian(dist: &Path, root: &Path, arch: &str) -> Result<PathBuf> {
    let from = run::root().join("packaging/debian");
    let control = root.join("DEBIAN");
    fs::create_dir_all(&control)?;
    let size = said(Command::new("du").args(["-sk", "--apparent-size"]).arg(root))?;
    let size = size.split_whitespace().next().context("du said nothing")?;
    let text = fs::read_to_string(from.join("control")).context("control")?;
    let text = text.replace("@VERSION@", version()).replace("@ARCH@", arch).replace("@SIZE@", size);
    fs::write(control.join("control"), text)?;
    fs::copy(from.join("conffiles"), control.join("conffiles"))?;
    for script in SCRIPTS {
        fs::copy(from.join(script), control.join(script)).with_context(|| script.to_owned())?;
        fs::set_permissions(control.join(script), fs::Permissions::from_mode(0o755))?;
    }
    // dpkg refuses other modes for this directory, and the umask may give it one.
    fs::set_permissions(&control, fs::Permissions::from_mode(0o755))?;
    let file = dist.join(format!("pv-net_{}_{arch}.deb", version()));
    done(Command::new("dpkg-deb").args(["--root-owner-group", "-Zxz", "--build"]).arg(root).arg(&file))?;
    fs::remove_dir_all(&control)?;
    Ok(file)
}

/// A `.tar.gz` of the files below `root`, to be unpacked in `/`. The device's configuration is not in it, only the example
/// among the documents: unpacking asks nobody, and would replace it.
pub fn archive(dist: &Path, root: &Path, arch: &str) -> Result<PathBuf> {
    let file = dist.join(format!("pv-net-{}-linux-{arch}.tar.gz", version()));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--gzip", "--owner=0", "--group=0", "--numeric-owner", "--sort=name", "--mtime=@0"]);
    done(tar.arg("--file").arg(&file).arg("--directory").arg(root).arg("usr"))?;
    Ok(file)
}

/// `SHA256SUMS` of `files`, which are in `dist`.
pub fn checksums(dist: &Path, files: &[PathBuf]) -> Result<PathBuf> {
    let names = files.iter().filter_map(|file| file.file_name());
    let sums = said(Command::new("sha256sum").arg("--").args(names).current_dir(dist))?;
    let file = dist.join("SHA256SUMS");
    fs::write(&file, sums)?;
    Ok(file)
}
