//! Limits what a process may do: it keeps the capabilities that it needs and gives up the others for good.
//!
//! Each thread has its own capabilities, and a new thread inherits its maker's. So a process is confined before it has
//! a second thread.

mod system_calls;

pub use system_calls::{BROKER_CALLS, Calls, DAEMON_CALLS, MODULE_CALLS};

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};
use std::io;

/// The daemon's capabilities: `NET_ADMIN` for links, addresses, routes, sysctls and programs on links; `BPF` for maps
/// and programs; `PERFMON` for verifier features that need it; `NET_RAW` for packet sockets
/// ([`challenge_ack`](super::challenge_ack)) and raw sockets for router advertisements; and `NET_BIND_SERVICE` for ports
/// 53 and 547 of the pools' gateways, also of pools that a reload adds.
pub const DAEMON: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// The broker's capabilities: `SYS_ADMIN` for entering namespaces, `SYS_PTRACE` for opening `/proc/PID/ns/net` and
/// `/proc/PID/fd` of other processes, and `NET_ADMIN` because a netlink socket has at most the rights of its maker.
pub const BROKER: CapabilitySet =
    CapabilitySet::SYS_ADMIN.union(CapabilitySet::SYS_PTRACE).union(CapabilitySet::NET_ADMIN);

/// Why a process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// A system call failed.
    #[error("{op}: {source}")]
    Call {
        /// The operation.
        op: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
    /// The process still has capabilities that it should not have.
    #[error("it still has the capabilities {}", names(*.0).join(" "))]
    TooMany(CapabilitySet),
    /// The seccomp filter could not be compiled.
    #[error("filter of system calls: {0}")]
    Filter(String),
}

fn failed(op: &'static str) -> impl FnOnce(rustix::io::Errno) -> PrivilegeError {
    move |e| PrivilegeError::Call { op, source: e.into() }
}

/// Gives up every capability except `wanted`, the ways to get more, and the system calls that `calls` refuses.
/// Capabilities that the process does not have are not added. Must be called before there is a second thread.
///
/// # Errors
/// When the kernel refuses, or the process still has more than `wanted`.
pub fn confine(wanted: CapabilitySet, calls: &Calls) -> Result<(), PrivilegeError> {
    keep_only(wanted)?;
    calls.refuse()
}

/// Gives up every capability except `wanted`, and the ways to get more. Must be called before there is a second thread.
///
/// # Errors
/// When the kernel refuses, or the process still has more than `wanted`.
pub fn keep_only(wanted: CapabilitySet) -> Result<(), PrivilegeError> {
    narrow_bounding_set(wanted)?;
    clear_ambient_capability_set().map_err(failed("clear the ambient capabilities"))?;
    let held = capabilities(None).map_err(failed("read the capabilities"))?;
    let kept = held.permitted & wanted;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(failed("give up capabilities"))?;
    set_no_new_privs(true).map_err(failed("set no_new_privs"))?;
    let held = capabilities(None).map_err(failed("read the capabilities"))?;
    let rest = (held.permitted | held.effective | held.inheritable).difference(wanted);
    if rest.is_empty() { Ok(()) } else { Err(PrivilegeError::TooMany(rest)) }
}

/// Reduces the bounding set, so that an executed program cannot get other capabilities. Without `CAP_SETPCAP` the set
/// stays as it is, and `no_new_privs` alone prevents that.
///
/// # Errors
/// When the kernel refuses otherwise.
pub fn narrow_bounding_set(wanted: CapabilitySet) -> Result<(), PrivilegeError> {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if wanted.contains(one) {
            continue;
        }
        match remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // The kernel has no capability of this number.
            Err(rustix::io::Errno::INVAL) => break,
            Err(rustix::io::Errno::PERM) => {
                tracing::debug!("no CAP_SETPCAP: the bounding set stays as it is");
                break;
            }
            Err(e) => return Err(failed("narrow the bounding set")(e)),
        }
    }
    Ok(())
}

/// Names of capabilities as in `capabilities(7)`, in the kernel's order; the number for one without a name.
#[must_use]
pub fn names(set: CapabilitySet) -> Vec<String> {
    let known = |one: CapabilitySet| one.iter_names().next().map(|(name, _)| format!("CAP_{name}"));
    let each = (0..u64::BITS).map(|n| (n, CapabilitySet::from_bits_retain(1 << n)));
    let held = each.filter(|(_, one)| set.contains(*one));
    held.map(|(n, one)| known(one).unwrap_or_else(|| format!("capability {n}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::no_new_privs;

    #[test]
    fn capabilities_have_the_names_of_the_manual() {
        assert_eq!(names(DAEMON), ["CAP_NET_BIND_SERVICE", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON", "CAP_BPF"]);
        assert_eq!(names(BROKER), ["CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]);
        assert_eq!(names(CapabilitySet::from_bits_retain(1 << 60)), ["capability 60"]);
    }

    /// On a thread of its own, since only the calling thread is confined.
    #[test]
    fn what_is_given_up_is_gone() {
        let confined = std::thread::spawn(|| {
            keep_only(CapabilitySet::NET_ADMIN).expect("confined");
            // The filter sets that too, where there is one.
            assert!(no_new_privs().expect("read"));
            confine(CapabilitySet::NET_ADMIN, &DAEMON_CALLS).expect("confined");
            let held = capabilities(None).expect("read");
            assert!(CapabilitySet::NET_ADMIN.contains(held.permitted | held.effective | held.inheritable));
            // The call is refused to everybody, so EPERM comes from the filter.
            // SAFETY: the call is refused before the kernel looks at its argument.
            let done = unsafe { libc::syscall(libc::SYS_unshare, 0) };
            assert_eq!((done, nix::errno::Errno::last()), (-1, nix::errno::Errno::EPERM));
            // A kernel without x32 would answer ENOSYS, so EPERM comes from the filter.
            #[cfg(target_arch = "x86_64")]
            for call in [libc::SYS_unshare, libc::SYS_getpid] {
                // SAFETY: the call is refused before it looks at its arguments.
                let done = unsafe { libc::syscall(0x4000_0000 | call, 0) };
                assert_eq!((done, nix::errno::Errno::last()), (-1, nix::errno::Errno::EPERM));
            }
            std::fs::read("/proc/self/status").expect("all else goes on");
            // SAFETY: a call with three numbers; it is refused before a socket is made.
            let strange = unsafe { libc::socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0) };
            assert_eq!((strange, nix::errno::Errno::last()), (-1, nix::errno::Errno::EAFNOSUPPORT), "without use");
            std::net::UdpSocket::bind("127.0.0.1:0").expect("a family that it uses");
        });
        confined.join().expect("no panic");
    }
}
