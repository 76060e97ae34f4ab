//! Puts a unit's restrictions on a process as systemd would (`systemd.exec(5)`), without systemd.

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::Command;

/// The settings of `[Service]`.
pub struct Unit(BTreeMap<String, String>);

/// Settings that this module applies.
const APPLIED: [&str; 8] = [
    "CapabilityBoundingSet",
    "ReadOnlyPaths",
    "NoNewPrivileges",
    "ProtectSystem",
    "MemoryDenyWriteExecute",
    "RestrictNamespaces",
    "RestrictAddressFamilies",
    "SystemCallFilter",
];

/// Settings about when and how the unit starts, and settings whose effect the applied ones have already.
const OTHERS: [&str; 27] = [
    "Type",
    "ExecStart",
    "ExecReload",
    "Restart",
    "RestartSec",
    "RestartPreventExitStatus",
    "KillMode",
    "ConfigurationDirectory",
    "StateDirectory",
    "StateDirectoryMode",
    "RuntimeDirectory",
    "RuntimeDirectoryPreserve",
    "UMask",
    "Environment",
    "ProtectHome",
    "PrivateTmp",
    "PrivateDevices",
    "ProtectClock",
    "ProtectControlGroups",
    "ProtectHostname",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "LockPersonality",
    "RestrictRealtime",
    "RestrictSUIDSGID",
    "SystemCallArchitectures",
    "SystemCallErrorNumber",
];

impl Unit {
    /// Reads a unit. A setting that this module does not know is an error, so that none is forgotten.
    pub fn parse(text: &str) -> Result<Self> {
        let service = text.split("[Service]").nth(1).and_then(|rest| rest.split("\n[").next()).context("[Service]")?;
        let lines = service.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#'));
        let pairs: Option<BTreeMap<_, _>> =
            lines.map(|l| l.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))).collect();
        let unit = Self(pairs.context("a line that is no setting")?);
        for key in unit.0.keys() {
            ensure!(
                APPLIED.contains(&key.as_str()) || OTHERS.contains(&key.as_str()),
                "{key}: say here how it is tested"
            );
        }
        Ok(unit)
    }

    /// The words of a setting.
    pub fn words(&self, key: &str) -> Vec<&str> {
        self.0.get(key).map(|v| v.split_whitespace().collect()).unwrap_or_default()
    }
}

/// Everything that is needed to confine a process between fork and exec.
pub struct Confined {
    writable: CString,
    read_only: Vec<CString>,
    capabilities: Vec<libc::c_ulong>,
    filters: Vec<Vec<libc::sock_filter>>,
}

const CAPABILITIES: [(&str, libc::c_ulong); 9] = [
    ("CAP_SETPCAP", 8),
    ("CAP_NET_BIND_SERVICE", 10),
    ("CAP_NET_ADMIN", 12),
    ("CAP_NET_RAW", 13),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_SYS_RESOURCE", 24),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];
const LAST_CAPABILITY: libc::c_ulong = 40;
const FAMILIES: [(&str, libc::c_int); 5] = [
    ("AF_UNIX", libc::AF_UNIX),
    ("AF_NETLINK", libc::AF_NETLINK),
    ("AF_PACKET", libc::AF_PACKET),
    ("AF_INET", libc::AF_INET),
    ("AF_INET6", libc::AF_INET6),
];

impl Confined {
    /// Prepares the restrictions of `unit`; `writable` stands for the directories that the unit may write, and `configured`
    /// for what it may only read below `/etc/pv-net`.
    pub fn new(unit: &Unit, writable: PathBuf, configured: [PathBuf; 2]) -> Result<Self> {
        for (key, value) in [
            ("NoNewPrivileges", "yes"),
            ("ProtectSystem", "strict"),
            ("MemoryDenyWriteExecute", "yes"),
            ("RestrictNamespaces", "net"),
            ("ReadOnlyPaths", "/etc/pv-net"),
        ] {
            ensure!(unit.words(key) == [value], "{key} is not {value}");
        }
        let capabilities = numbers(&unit.words("CapabilityBoundingSet"), &CAPABILITIES)?;
        let families = numbers(&unit.words("RestrictAddressFamilies"), &FAMILIES)?;
        let calls = system_calls(&unit.words("SystemCallFilter"))?;
        Ok(Self {
            writable: c_string(writable)?,
            read_only: configured.into_iter().map(c_string).collect::<Result<_>>()?,
            capabilities,
            filters: vec![only_calls(&calls), only_families(&families), only_net_namespaces()],
        })
    }

    /// Confines the calling process, and checks that it is confined.
    pub fn enter(&self) -> io::Result<()> {
        self.read_only()?;
        for capability in (0..=LAST_CAPABILITY).filter(|c| !self.capabilities.contains(c)) {
            done(prctl(libc::PR_CAPBSET_DROP, capability))?;
        }
        done(prctl(libc::PR_SET_NO_NEW_PRIVS, 1))?;
        // Kernels before 6.3 do not have PR_SET_MDWE.
        if prctl(libc::PR_SET_MDWE, libc::PR_MDWE_REFUSE_EXEC_GAIN.into()) < 0 && Errno::last() != Errno::EINVAL {
            return Err(io::Error::last_os_error());
        }
        for filter in &self.filters {
            let program = libc::sock_fprog {
                len: u16::try_from(filter.len()).map_err(|_| Errno::E2BIG)?,
                filter: filter.as_ptr().cast_mut(),
            };
            // SAFETY: the kernel copies the program, whose length is in it.
            done(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) })?;
        }
        for family in [libc::AF_ALG, libc::AF_BLUETOOTH, libc::AF_VSOCK] {
            // SAFETY: no memory is involved.
            if unsafe { libc::socket(family, libc::SOCK_DGRAM, 0) } >= 0 || Errno::last() != Errno::EAFNOSUPPORT {
                return Err(Errno::EISCONN.into());
            }
        }
        Ok(())
    }

    /// `ProtectSystem=strict`: a private mount namespace that is read-only except for /dev, /proc, /sys and the
    /// directories; and `ReadOnlyPaths`.
    fn read_only(&self) -> io::Result<()> {
        // SAFETY: the strings outlive the calls; the other arguments are numbers.
        unsafe {
            done(libc::unshare(libc::CLONE_NEWNS))?;
            let (none, root) = (std::ptr::null(), c"/".as_ptr());
            done(libc::mount(none, root, none, libc::MS_SLAVE | libc::MS_REC, std::ptr::null()))?;
            let own = self.writable.as_ptr();
            done(libc::mount(own, own, none, libc::MS_BIND | libc::MS_REC, std::ptr::null()))?;
            set_read_only(root, true)?;
            for writable in [c"/dev".as_ptr(), c"/proc".as_ptr(), c"/sys".as_ptr(), own] {
                set_read_only(writable, false)?;
            }
            for path in self.read_only.iter().map(|path| path.as_ptr()) {
                done(libc::mount(path, path, none, libc::MS_BIND, std::ptr::null()))?;
                set_read_only(path, true)?;
            }
        }
        Ok(())
    }
}

fn c_string(path: PathBuf) -> Result<CString> {
    Ok(CString::new(path.into_os_string().into_vec())?)
}

/// # Safety
/// `path` points to a string that ends with a zero byte.
unsafe fn set_read_only(path: *const libc::c_char, on: bool) -> io::Result<()> {
    let mut change = [0u64; 4];
    change[usize::from(!on)] = libc::MOUNT_ATTR_RDONLY;
    // SAFETY: the structure has four words: set, clear, propagation, namespace.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path,
            libc::AT_RECURSIVE,
            change.as_ptr(),
            size_of_val(&change),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn prctl(option: libc::c_int, value: libc::c_ulong) -> libc::c_int {
    // SAFETY: the options that are used take numbers.
    unsafe { libc::prctl(option, value, 0 as libc::c_ulong, 0 as libc::c_ulong, 0 as libc::c_ulong) }
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn numbers<N: Copy>(words: &[&str], known: &[(&str, N)]) -> Result<Vec<N>> {
    let number = |word: &&str| {
        let found = known.iter().find(|(name, _)| name == word);
        found.map(|(_, n)| *n).with_context(|| format!("{word}: say here what it is"))
    };
    words.iter().map(number).collect()
}

/// The numbers of the system calls that the words stand for: systemd knows its groups, the kernel's headers the
/// numbers.
fn system_calls(words: &[&str]) -> Result<Vec<u32>> {
    let mut wanted: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
    let mut names = Vec::new();
    while let Some(word) = wanted.pop() {
        if !word.starts_with('@') {
            names.push(word);
            continue;
        }
        let said =
            Command::new("systemd-analyze").args(["syscall-filter", &word]).output().context("systemd-analyze")?;
        let said = String::from_utf8(said.stdout)?;
        wanted.extend(
            said.lines().skip(1).map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(Into::into),
        );
    }
    let headers = [
        "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
        "/usr/include/aarch64-linux-gnu/asm/unistd_64.h",
        "/usr/include/asm-generic/unistd.h",
    ];
    let native = headers.iter().filter(|h| h.contains(std::env::consts::ARCH) || h.contains("generic"));
    let Some(text) = native.into_iter().find_map(|h| std::fs::read_to_string(h).ok()) else { bail!("no unistd_64.h") };
    let number = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix("#define __NR_")?.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|n| n.trim().parse().ok())
    };
    // Names without a number belong to other architectures.
    Ok(names.iter().filter_map(|name| number(name)).collect())
}

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
/// Offsets in `struct seccomp_data`: number, low words of the first arguments.
const NUMBER: u32 = 0;
const ARGUMENTS: [u32; 2] = [16, 24];

fn op(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

fn refuse(errno: libc::c_int) -> libc::sock_filter {
    op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32)
}

fn allow() -> libc::sock_filter {
    op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW)
}

fn only_calls(calls: &[u32]) -> Vec<libc::sock_filter> {
    let allowed = calls.iter().flat_map(|call| [op(EQUAL, 0, 1, *call), allow()]);
    [op(LOAD, 0, 0, NUMBER)].into_iter().chain(allowed).chain([refuse(libc::EPERM)]).collect()
}

fn only_families(families: &[libc::c_int]) -> Vec<libc::sock_filter> {
    let allowed = families.iter().flat_map(|family| [op(EQUAL, 0, 1, *family as u32), allow()]);
    let head =
        [op(LOAD, 0, 0, NUMBER), op(EQUAL, 1, 0, libc::SYS_socket as u32), allow(), op(LOAD, 0, 0, ARGUMENTS[0])];
    head.into_iter().chain(allowed).chain([refuse(libc::EAFNOSUPPORT)]).collect()
}

/// A seccomp filter cannot read the flags of `clone3`, which are in memory, so `clone3` fails and callers use `clone`.
fn only_net_namespaces() -> Vec<libc::sock_filter> {
    let others = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID;
    let mut filter = vec![op(LOAD, 0, 0, NUMBER), op(EQUAL, 0, 1, libc::SYS_clone3 as u32), refuse(libc::ENOSYS)];
    for (call, argument) in [(libc::SYS_unshare, 0), (libc::SYS_clone, 0), (libc::SYS_setns, 1)] {
        let zero = if call == libc::SYS_setns { refuse(libc::EPERM) } else { allow() };
        filter.extend([
            op(EQUAL, 0, 6, call as u32),
            op(LOAD, 0, 0, ARGUMENTS[argument]),
            op(EQUAL, 0, 1, 0),
            zero,
            op(ANY_BIT, 0, 1, others as u32),
            refuse(libc::EPERM),
            allow(),
        ]);
    }
    filter.push(allow());
    filter
}
