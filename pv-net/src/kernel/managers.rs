//! Programs that manage the device's links and might take over pv-net's: systemd-networkd and NetworkManager. They
//! write what they manage to files in `/run`.

use std::fs;
use std::path::{Path, PathBuf};

/// A program that manages links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// systemd-networkd.
    Networkd,
    /// NetworkManager.
    NetworkManager,
}

impl Manager {
    /// All managers.
    pub const ALL: [Self; 2] = [Self::Networkd, Self::NetworkManager];

    /// Where the manager writes what it manages, one file for each link.
    fn links(self, root: &Path) -> PathBuf {
        root.join(match self {
            Self::Networkd => "run/systemd/netif/links",
            Self::NetworkManager => "run/NetworkManager/devices",
        })
    }

    /// Where the file of pv-net's package may be that makes the manager leave pv-net's links alone.
    fn settings(self, root: &Path) -> [PathBuf; 3] {
        ["etc", "run", "usr/lib"].map(|dir| {
            root.join(dir).join(match self {
                Self::Networkd => "systemd/network/05-pv-net.network",
                Self::NetworkManager => "NetworkManager/conf.d/pv-net.conf",
            })
        })
    }

    /// Whether the contents of a link's file say that the manager manages the link.
    fn is_managing(self, said: &str) -> bool {
        said.lines().any(|line| match self {
            Self::Networkd => {
                matches!(line.strip_prefix("ADMIN_STATE="), Some("configuring" | "configured" | "failed" | "linger"))
            }
            Self::NetworkManager => line == "managed=true",
        })
    }

    /// Whether the manager leaves the links with these indexes alone: it does not run under `root`, or manages none of
    /// them. When `links` is empty: whether it was told to.
    #[must_use]
    pub fn leaves_alone(self, root: &Path, links: &[u32]) -> bool {
        let dir = self.links(root);
        if !dir.exists() {
            return true;
        }
        // A link that the manager has not seen yet has no file.
        let said = links.iter().filter_map(|index| fs::read_to_string(dir.join(index.to_string())).ok());
        let is_free = said.into_iter().all(|said| !self.is_managing(&said));
        is_free && (!links.is_empty() || self.settings(root).iter().any(|file| file.exists()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    #[test]
    fn who_manages_a_link_says_so() {
        let root = tempfile::tempdir().expect("a folder");
        let root = root.path();
        assert!(Manager::ALL.iter().all(|manager| manager.leaves_alone(root, &[]) && manager.leaves_alone(root, &[7])));
        write(root, "run/systemd/netif/links/7", "# private\nADMIN_STATE=unmanaged\nOPER_STATE=routable\n");
        write(root, "run/systemd/netif/links/8", "# private\nADMIN_STATE=configuring\n");
        write(root, "run/NetworkManager/devices/7", "[device]\nmanaged=false\n");
        write(root, "run/NetworkManager/devices/8", "[device]\nmanaged=true\nnm-owned=false\n");
        for manager in Manager::ALL {
            assert!(manager.leaves_alone(root, &[7]) && manager.leaves_alone(root, &[7, 9]));
            assert!(!manager.leaves_alone(root, &[7, 8]));
            // Without pv-net's settings file it is unknown what it would do with new links.
            assert!(!manager.leaves_alone(root, &[]));
        }
        write(root, "etc/systemd/network/05-pv-net.network", "");
        write(root, "usr/lib/NetworkManager/conf.d/pv-net.conf", "");
        assert!(Manager::ALL.iter().all(|manager| manager.leaves_alone(root, &[])));
    }
}
