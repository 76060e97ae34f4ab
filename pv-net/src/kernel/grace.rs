//! Shortens RCU grace periods, for which the kernel waits when a program is attached to a link.
//!
//! `tcx_link_attach` calls `synchronize_rcu` while it holds the RTNL lock (`tcx_entry_sync` in the kernel's
//! `include/net/tcx.h`, 6.6 and later). That takes about 10 ms a program, in which nobody else can change any link.
//! With `/sys/kernel/rcu_expedited` it takes microseconds, at the price of an interrupt on every CPU.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The switch for expedited grace periods (`kernel/ksysfs.c`), for the whole machine.
const SWITCH: &str = "/sys/kernel/rcu_expedited";
/// Set when the administrator wants no expedited grace periods, which is the default of real-time kernels.
const NORMAL: &str = "/sys/kernel/rcu_normal";
/// Lists of CPUs that are not to be interrupted.
const QUIET: [&str; 2] = ["/sys/devices/system/cpu/isolated", "/sys/devices/system/cpu/nohz_full"];

/// The switch, as one daemon may use it.
#[derive(Debug)]
pub struct GracePeriods {
    /// A file that exists while this daemon has the switch on, so that the next daemon turns it off after a kill.
    marker: PathBuf,
}

impl GracePeriods {
    /// Uses the file `marker`. If an earlier daemon left the switch on, it is turned off.
    #[must_use]
    pub fn new(marker: PathBuf) -> Self {
        if marker.exists() {
            restore(&marker);
        }
        Self { marker }
    }

    /// Shortens grace periods until the returned value is dropped. `None` when they are short already, when the
    /// administrator objects, or when `/sys` cannot be written: everything works then too, but slower.
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

/// Whether the switch may be used: not when it is on already, when normal grace periods are asked for, or when some
/// CPUs must not be interrupted.
fn may_expedite(switch: &str, normal: &str, quiet: &[String]) -> bool {
    let no_cpu = |list: &String| matches!(list.trim(), "" | "(null)");
    switch.trim() == "0" && normal.trim() == "0" && quiet.iter().all(no_cpu)
}

/// Grace periods are short as long as this exists.
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
    // The marker is removed last: after a kill in between, the next daemon turns off a switch that is off already,
    // which does no harm.
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
