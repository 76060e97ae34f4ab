//! The files of a package, where they are on a device.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::run;

/// Files of the repository, and where they go.
const FILES: &[(&str, &str)] = &[
    ("packaging/pv-net.service", "usr/lib/systemd/system/pv-net.service"),
    ("packaging/pv-net-runner.service", "usr/lib/systemd/system/pv-net-runner.service"),
    ("packaging/networkd/05-pv-net.network", "usr/lib/systemd/network/05-pv-net.network"),
    ("packaging/NetworkManager/pv-net.conf", "usr/lib/NetworkManager/conf.d/pv-net.conf"),
    ("packaging/oci/pv-net.json", "usr/share/containers/oci/hooks.d/pv-net.json"),
    ("examples/device.json", "etc/pv-net/device.json"),
    ("examples/device.json", "usr/share/doc/pv-net/examples/device.json"),
    ("packaging/debian/copyright", "usr/share/doc/pv-net/copyright"),
    ("LICENSE-MIT", "usr/share/doc/pv-net/LICENSE-MIT"),
    ("LICENSE-APACHE", "usr/share/doc/pv-net/LICENSE-APACHE"),
    ("README.md", "usr/share/doc/pv-net/README.md"),
    ("CHANGELOG.md", "usr/share/doc/pv-net/CHANGELOG.md"),
];

/// Directories with all that is in them.
const DIRS: &[(&str, &str)] = &[
    ("examples/containers", "usr/share/doc/pv-net/examples/containers"),
    ("schemas", "usr/share/pv-net/schemas"),
    ("packaging/pantavisor", "usr/share/pv-net/pantavisor"),
];

/// Directories of made texts.
const TEXTS: &[(&str, &str)] = &[
    ("man", "usr/share/man/man1"),
    ("bash", "usr/share/bash-completion/completions"),
    ("zsh", "usr/share/zsh/vendor-completions"),
    ("fish", "usr/share/fish/vendor_completions.d"),
];

/// Lays the files out below `root`.
pub fn lay(root: &Path, program: &Path, texts: &Path) -> Result<()> {
    put(program, &root.join("usr/bin/pv-net"), 0o755)?;
    for (from, to) in FILES {
        put(&run::root().join(from), &root.join(to), 0o644)?;
    }
    for (from, to) in DIRS {
        put_all(&run::root().join(from), &root.join(to))?;
    }
    for (from, to) in TEXTS {
        put_all(&texts.join(from), &root.join(to))?;
    }
    open_dirs(root)
}

/// Makes directories readable for all, whatever the umask is.
fn open_dirs(dir: &Path) -> Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_dirs(&entry.path())?;
        }
    }
    Ok(())
}

fn put_all(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            put_all(&entry.path(), &to)?;
        } else {
            put(&entry.path(), &to, 0o644)?;
        }
    }
    Ok(())
}

/// Copies a file. Its mode is independent of the checkout's and the umask.
fn put(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let dir = to.parent().context("a file in a directory")?;
    fs::create_dir_all(dir)?;
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(mode))?)
}
