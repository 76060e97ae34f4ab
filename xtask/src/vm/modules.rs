//! Which modules a guest needs, and in which order they are loaded: it has no `modprobe`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// What pv-net uses and a kernel may have as a module.
const NEEDED: [&str; 7] = ["bridge", "veth", "sch_ingress", "cls_bpf", "ipv6", "af_packet", "dummy"];

/// Kinds of links that a device may be connected by, and not every kernel has: rtnetlink's name, option, module.
const KINDS: [(&str, &str, &str); 4] = [
    ("vlan", "CONFIG_VLAN_8021Q", "8021q"),
    ("macvlan", "CONFIG_MACVLAN", "macvlan"),
    ("ipvlan", "CONFIG_IPVLAN", "ipvlan"),
    ("netkit", "CONFIG_NETKIT", "netkit"),
];

/// What a guest loads.
pub struct Modules {
    /// File names and contents, each after those that it needs.
    pub files: Vec<(String, Vec<u8>)>,
    /// Kinds of links that the kernel has with them.
    pub kinds: Vec<&'static str>,
}

/// `modules.dep`: files by the name of their module, and what each file needs.
struct Dependencies {
    files: BTreeMap<String, String>,
    needs: BTreeMap<String, Vec<String>>,
}

/// The modules for a kernel with these in `dir`, built as the file `config` says.
pub fn of(dir: &Path, config: &Path) -> Result<Modules> {
    let read =
        |name: &str| std::fs::read_to_string(dir.join(name)).with_context(|| format!("{}/{name}", dir.display()));
    let known = Dependencies::parse(&read("modules.dep")?);
    // Debian's 7.x packages do not have this list: what is no module is taken for built in then, and the guest shows it.
    let builtin = read("modules.builtin").ok().map(|text| text.lines().map(module_name).collect::<BTreeSet<_>>());
    let mut order = Vec::new();
    for name in NEEDED {
        match known.files.get(name) {
            Some(file) => known.add(file, &mut order),
            None if builtin.as_ref().is_none_or(|all| all.contains(name)) => {}
            None => bail!("{}: no module {name}, and it is not built in", dir.display()),
        }
    }
    let config = std::fs::read_to_string(config).with_context(|| config.display().to_string())?;
    let mut kinds = Vec::new();
    for (kind, option, module) in KINDS {
        match (setting(&config, option), known.files.get(module)) {
            (None, _) => continue,
            (Some("m"), Some(file)) => known.add(file, &mut order),
            (Some("m"), None) => bail!("{}: no module {module}, and the configuration has {option}=m", dir.display()),
            (Some(_), _) => {}
        }
        kinds.push(kind);
    }
    let read = |file: String| Ok((plain_name(&file), read_module(&dir.join(&file))?));
    Ok(Modules { files: order.into_iter().map(read).collect::<Result<_>>()?, kinds })
}

/// `y` or `m`; none for an option that is not set, or that this kernel does not know.
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

    /// Adds `file` after what it needs.
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

/// `kernel/net/bridge/bridge.ko.xz` is `bridge`; dashes and underscores are the same.
fn module_name(file: &str) -> String {
    let name = plain_name(file);
    name.trim_end_matches(".ko").replace('-', "_")
}

/// The file's name, unpacked.
fn plain_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.trim_end_matches(".xz").to_owned()
}

/// A module's bytes. Newer kernels have them packed, and unpacking is quicker here than in a guest.
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
