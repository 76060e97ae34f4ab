//! RCU grace periods: what the kernel waits for when a program is put on a link.
//!
//! `tcx_link_attach` calls `synchronize_rcu` while it holds the lock of all links (`tcx_entry_sync` in the kernel's
//! `include/net/tcx.h`, 6.6 and later): about 10 ms a program, in which nobody else can change a link either. With
//! `/sys/kernel/rcu_expedited` such waits take microseconds, for an interrupt on every CPU.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The switch (`kernel/ksysfs.c`), for the whole machine.
const SWITCH: &str = "/sys/kernel/rcu_expedited";
/// The administrator wants no expedited grace periods: the default of real-time kernels.
const NORMAL: &str = "/sys/kernel/rcu_normal";
/// CPUs that are not to be interrupted.
const QUIET: [&str; 2] = ["/sys/devices/system/cpu/isolated", "/sys/devices/system/cpu/nohz_full"];

/// The device's grace periods, as one daemon may change them.
#[derive(Debug)]
pub struct GracePeriods {
    /// There while the switch is on by this daemon: the next one turns it off after a kill.
    marker: PathBuf,
}

impl GracePeriods {
    /// Those of a daemon that may leave a file `marker`. What an earlier one left on is turned off.
    #[must_use]
    pub fn new(marker: PathBuf) -> Self {
        if marker.exists() {
            restore(&marker);
        }
        Self { marker }
    }

    /// Makes grace periods short until the answer is dropped. None when they are already, when somebody objects to
    /// them, or when `/sys` cannot be written: then it takes longer, and nothing else.
    #[must_use]
    pub fn expedite(&self) -> Option<Expedited> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        if !may_expedite(&read(SWITCH), &read(NORMAL), &QUIET.map(read)) {
            return None;
        }
        let begun = fs::write(&self.marker, []).and_then(|()| fs::write(SWITCH, "1"));
        let guard = Expedited { marker: self.marker.clone() };
        match begun {
            Ok(()) => Some(guard),
            Err(e) => {
                tracing::debug!(error = %e, "grace periods stay as they are");
                None
            }
        }
    }
}

/// Whether to: not when somebody has switched it on, has asked for normal ones, or keeps CPUs from being interrupted.
fn may_expedite(switch: &str, normal: &str, quiet: &[String]) -> bool {
    let no_cpu = |list: &String| matches!(list.trim(), "" | "(null)");
    switch.trim() == "0" && normal.trim() == "0" && quiet.iter().all(no_cpu)
}

/// Grace periods are short for as long as this is.
#[derive(Debug)]
pub struct Expedited {
    marker: PathBuf,
}

impl Drop for Expedited {
    fn drop(&mut self) {
        restore(&self.marker);
    }
}

fn restore(marker: &Path) {
    // The marker goes last: a kill between the two leaves what is turned off to be turned off again.
    let done = fs::write(SWITCH, "0").and_then(|()| fs::remove_file(marker));
    if let Err(e) = done
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(error = %e, switch = SWITCH, "grace periods could not be made normal again");
    }
}

#[cfg(test)]
mod tests {
    use super::may_expedite;

    #[test]
    fn only_where_nobody_objects() {
        let none = [String::from("\n"), String::from("(null)\n")];
        assert!(may_expedite("0\n", "0\n", &none));
        assert!(!may_expedite("1\n", "0\n", &none), "somebody else's");
        assert!(!may_expedite("0\n", "1\n", &none), "real-time");
        assert!(!may_expedite("", "0\n", &none), "no such switch");
        assert!(!may_expedite("0\n", "0\n", &[String::from("2-3\n"), String::new()]), "CPUs that are kept quiet");
    }
}
