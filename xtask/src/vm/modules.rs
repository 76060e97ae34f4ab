//! The modules that a guest needs, and the order in which it must load them, since it has no `modprobe`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// What pv-net uses and what a kernel may have as a module: the config option, and the module.
const NEEDED: [(&str, &str); 8] = [
    ("CONFIG_BRIDGE", "bridge"),
    ("CONFIG_VETH", "veth"),
    ("CONFIG_NET_SCH_INGRESS", "sch_ingress"),
    ("CONFIG_NET_CLS_BPF", "cls_bpf"),
    ("CONFIG_IPV6", "ipv6"),
    ("CONFIG_PACKET", "af_packet"),
    ("CONFIG_DUMMY", "dummy"),
    // The bus of virtio cards.
    ("CONFIG_VIRTIO_PCI", "virtio_pci"),
];

/// What a machine with a disk needs beside that. Nothing says that ext4 needs checksums, which it asks for when it is
/// mounted.
const DISK: [(&str, &str); 3] =
    [("CONFIG_VIRTIO_BLK", "virtio_blk"), ("CONFIG_CRYPTO_CRC32C", "crc32c_generic"), ("CONFIG_EXT4_FS", "ext4")];

/// Kinds of links that not every kernel has: rtnetlink's name, config option, module.
const KINDS: [(&str, &str, &str); 5] = [
    ("vlan", "CONFIG_VLAN_8021Q", "8021q"),
    ("macvlan", "CONFIG_MACVLAN", "macvlan"),
    ("ipvlan", "CONFIG_IPVLAN", "ipvlan"),
    ("netkit", "CONFIG_NETKIT", "netkit"),
    ("vrf", "CONFIG_NET_VRF", "vrf"),
];

/// Drivers of network cards that not every kernel has: config option, module. Cloud kernels have virtio, PC kernels the
/// other.
const CARDS: [(&str, &str); 2] = [("CONFIG_VIRTIO_NET", "virtio_net"), ("CONFIG_E1000E", "e1000e")];

/// What a guest loads.
pub struct Modules {
    /// File names and contents, each behind the files that it depends on.
    pub files: Vec<(String, Vec<u8>)>,
    /// What the kernel supports with these modules.
    pub has: Has,
}

/// Features that not every kernel has.
pub struct Has {
    /// Kinds of links.
    pub kinds: Vec<&'static str>,
    /// Drivers of network cards.
    pub cards: Vec<&'static str>,
}

/// The contents of `modules.dep`: files by module name, and what each file depends on.
struct Dependencies {
    files: BTreeMap<String, String>,
    needs: BTreeMap<String, Vec<String>>,
}

/// The modules for a kernel with its modules in `dir` and its configuration in `config`.
pub fn of(dir: &Path, config: &Path, has_disk: bool) -> Result<Modules> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| path.display().to_string());
    let known = Dependencies::parse(&read(&dir.join("modules.dep"))?);
    let config = read(config)?;
    let mut order = Vec::new();
    // `modules.builtin` is not reliable: that of 7.3 lacks IPv6.
    let mut has = |option: &str, module: &str| match (setting(&config, option), known.files.get(module)) {
        (None, _) => Ok(false),
        (Some("m"), Some(file)) => {
            known.add(file, &mut order);
            Ok(true)
        }
        (Some("m"), None) => bail!("{}: no module {module}, and the configuration has {option}=m", dir.display()),
        (Some(_), _) => Ok(true),
    };
    for (option, module) in NEEDED.into_iter().chain(DISK.into_iter().filter(|_| has_disk)) {
        ensure!(has(option, module)?, "{}: a kernel without {option}", dir.display());
    }
    let mut kinds = Vec::new();
    for (kind, option, module) in KINDS {
        if has(option, module)? {
            kinds.push(kind);
        }
    }
    let mut cards = Vec::new();
    for (option, module) in CARDS {
        if has(option, module)? {
            cards.push(module);
        }
    }
    let read = |file: String| Ok((plain_name(&file), read_module(&dir.join(&file))?));
    Ok(Modules { files: order.into_iter().map(read).collect::<Result<_>>()?, has: Has { kinds, cards } })
}

/// `y` or `m`; `None` for an option that is not set or unknown.
fn setting<'a>(config: &'a str, option: &str) -> Option<&'a str> {
    config.lines().find_map(|line| line.strip_prefix(option)?.strip_prefix('='))
}

impl Dependencies {
    fn parse(text: &str) -> Self {
        let mut known = Self { files: BTreeMap::new(), needs: BTreeMap::new() };
        for (file, needs) in text.lines().filter_map(|line| line.split_once(':')) {
            known.files.insert(module_name(file), file.to_owned());
            known.needs.insert(file.to_owned(), needs.split_whitespace().map(str::to_owned).collect());
        }
        known
    }

    /// Adds `file` behind the files that it depends on.
    fn add(&self, file: &str, order: &mut Vec<String>) {
        if order.iter().any(|known| known == file) {
            return;
        }
        for need in self.needs.get(file).into_iter().flatten() {
            self.add(need, order);
        }
        order.push(file.to_owned());
    }
}

/// The module's name: `kernel/net/bridge/bridge.ko.xz` is `bridge`. Dashes count as underscores.
fn module_name(file: &str) -> String {
    let name = plain_name(file);
    name.trim_end_matches(".ko").replace('-', "_")
}

/// The file's name without the suffix of its compression.
fn plain_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.trim_end_matches(".xz").to_owned()
}

/// A module's bytes. Newer kernels have compressed modules; decompressing is faster here than in a guest.
fn read_module(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|end| end == "xz") {
        let done = Command::new("xz").arg("-dc").arg(file).output().context("xz could not be started")?;
        ensure!(done.status.success(), "xz -dc {}: {}", file.display(), String::from_utf8_lossy(&done.stderr));
        return Ok(done.stdout);
    }
    std::fs::read(file).with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::{Dependencies, setting};

    #[test]
    fn an_option_is_read_by_its_whole_name() {
        let config = "CONFIG_IPVLAN_L3S=y\nCONFIG_IPVLAN=m\n# CONFIG_NETKIT is not set\nCONFIG_MACVLAN=y\n";
        let all = ["CONFIG_IPVLAN", "CONFIG_NETKIT", "CONFIG_MACVLAN", "CONFIG_VLAN_8021Q"];
        assert_eq!(all.map(|option| setting(config, option)), [Some("m"), None, Some("y"), None]);
    }

    #[test]
    fn each_module_comes_after_what_it_needs_and_once() {
        let text = "n/bridge.ko.xz: n/stp.ko.xz n/llc.ko.xz\nn/stp.ko.xz: n/llc.ko.xz\nn/llc.ko.xz:\nd/cls-bpf.ko:\n";
        let known = Dependencies::parse(text);
        let mut order = Vec::new();
        known.add(&known.files["bridge"], &mut order);
        known.add(&known.files["stp"], &mut order);
        assert_eq!(order, ["n/llc.ko.xz", "n/stp.ko.xz", "n/bridge.ko.xz"]);
        assert_eq!(known.files["cls_bpf"], "d/cls-bpf.ko");
    }
}
