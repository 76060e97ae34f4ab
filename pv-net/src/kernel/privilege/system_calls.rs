//! The system calls that are refused to a process, even if somebody takes it over (`seccomp(2)`).
//!
//! The list names dangerous calls instead of allowed ones, so that another C library or kernel does not break the
//! daemon by a call that nobody thought of. The packaged systemd unit has a list of allowed calls in addition.

use super::PrivilegeError;
#[cfg(target_arch = "x86_64")]
use seccompiler::sock_filter;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
use std::collections::BTreeMap;

/// What is refused in addition to `NEVER`.
pub struct Calls {
    /// System calls.
    more: &'static [libc::c_long],
    /// The socket families that the process uses; all others are refused.
    families: &'static [libc::c_int],
}

/// The daemon enters no namespace and executes no program.
pub const DAEMON_CALLS: Calls = Calls {
    more: &[libc::SYS_execve, libc::SYS_execveat, libc::SYS_setns],
    families: &[libc::AF_UNIX, libc::AF_NETLINK, libc::AF_PACKET, libc::AF_INET, libc::AF_INET6],
};

/// The broker enters namespaces; it executes no program and uses no BPF.
pub const BROKER_CALLS: Calls = Calls {
    more: &[libc::SYS_execve, libc::SYS_execveat, libc::SYS_bpf],
    families: &[libc::AF_UNIX, libc::AF_NETLINK],
};

/// A WebAssembly runtime makes threads, and may be a script that executes the runtime itself.
pub const MODULE_CALLS: Calls = Calls {
    more: &[libc::SYS_setns, libc::SYS_bpf],
    families: &[libc::AF_UNIX, libc::AF_NETLINK, libc::AF_INET, libc::AF_INET6],
};

/// Calls that none of these processes makes.
const NEVER: &[libc::c_long] = &[
    // Starting other kernels, and loading modules.
    libc::SYS_kexec_load,
    // On this architecture libc does not have its number.
    #[cfg(not(all(target_arch = "aarch64", target_env = "musl")))]
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    // Access to other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    // Making namespaces and changing mounts.
    libc::SYS_unshare,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_by_handle_at,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_acct,
    // Changing the device's clocks, names and logs.
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    // Parts of the kernel that often had vulnerabilities.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_vhangup,
    libc::SYS_personality,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// The flags by which `clone` makes namespaces.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

impl Calls {
    /// Refuses the calls to the calling thread and all threads that it makes from now on. If the kernel has no seccomp,
    /// the service manager's filter forbids it, or no filter exists for the processor, nothing is refused and a warning
    /// is logged.
    pub(super) fn refuse(&self) -> Result<(), PrivilegeError> {
        let Ok(target) = TargetArch::try_from(std::env::consts::ARCH) else {
            tracing::warn!("no filter of system calls (seccomp) is made for this kind of processor");
            return Ok(());
        };
        // A filter cannot read the arguments of `clone3`, which are in memory. With ENOSYS the C library falls back to
        // `clone`.
        let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        let mut programs = vec![
            compile(self.rules()?, libc::EPERM, target)?,
            // As for a family that the kernel does not have (socket(2)).
            compile(self.sockets()?, libc::EAFNOSUPPORT, target)?,
            compile(clone3, libc::ENOSYS, target)?,
        ];
        #[cfg(target_arch = "x86_64")]
        programs.push(without_x32());
        for program in &programs {
            match apply_filter(program) {
                Ok(()) => {}
                Err(seccompiler::Error::Prctl(e) | seccompiler::Error::Seccomp(e))
                    if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EPERM)) =>
                {
                    tracing::warn!(error = %e, "no filter of system calls (seccomp)");
                    return Ok(());
                }
                Err(e) => return Err(PrivilegeError::Filter(e.to_string())),
            }
        }
        Ok(())
    }

    fn rules(&self) -> Result<Rules, PrivilegeError> {
        let mut rules: Rules = NEVER.iter().chain(self.more).map(|call| (*call, Vec::new())).collect();
        let makes = |flag: libc::c_int| {
            let has = argument(SeccompCmpOp::MaskedEq(flag as u32 as u64), flag)?;
            SeccompRule::new(vec![has]).map_err(unmade)
        };
        rules.insert(libc::SYS_clone, NAMESPACES.into_iter().map(makes).collect::<Result<_, _>>()?);
        Ok(rules)
    }

    /// Sockets of other families.
    fn sockets(&self) -> Result<Rules, PrivilegeError> {
        let others = self.families.iter().map(|family| argument(SeccompCmpOp::Ne, *family));
        let strange = SeccompRule::new(others.collect::<Result<_, _>>()?).map_err(unmade)?;
        Ok(BTreeMap::from([(libc::SYS_socket, vec![strange])]))
    }
}

/// A condition on the system call's first argument.
fn argument(is: SeccompCmpOp, value: libc::c_int) -> Result<SeccompCondition, PrivilegeError> {
    SeccompCondition::new(0, SeccompCmpArgLen::Dword, is, u64::from(value as u32)).map_err(unmade)
}

/// Refuses system calls whose number has the bit of x32 (`__X32_SYSCALL_BIT`, `asm/unistd.h`). A kernel with x32 offers
/// the same calls a second time under such numbers with the same architecture value, and no rule above matches those.
#[cfg(target_arch = "x86_64")]
fn without_x32() -> BpfProgram {
    const X32: u32 = 0x4000_0000;
    let instruction = |code: u32, jt: u8, jf: u8, k: u32| sock_filter { code: code as u16, jt, jf, k };
    vec![
        // The first word of `seccomp_data` is the call's number.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, X32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

fn compile(rules: Rules, errno: libc::c_int, target: TargetArch) -> Result<BpfProgram, PrivilegeError> {
    let refused = SeccompAction::Errno(errno as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, target).map_err(unmade)?;
    filter.try_into().map_err(unmade)
}

fn unmade(e: seccompiler::BackendError) -> PrivilegeError {
    PrivilegeError::Filter(e.to_string())
}
