//! Network namespaces. They are made and entered in-process, as `ip netns` and `nsenter` would do it: a guest of `cargo
//! xtask vm` has neither program, and each start of a program costs it many milliseconds.

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::link;
use crate::process::output;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace with a name under `/run/netns`; removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with its loopback up. `role` is part of its name.
    ///
    /// # Errors
    /// When it cannot be made, which needs root.
    pub fn new(role: &str) -> Result<Self> {
        Self::named(&Self::free_name(role))
    }

    /// A name that no namespace has, with `role` in it.
    #[must_use]
    pub fn free_name(role: &str) -> String {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        format!("pvt-{}-{number}-{role}", std::process::id())
    }

    /// Makes a namespace of this name with its loopback up, as `ip netns add` does: first the file, then the mount on
    /// it.
    ///
    /// # Errors
    /// When it cannot be made, which needs root.
    pub fn named(name: &str) -> Result<Self> {
        share_folder().context(FOLDER)?;
        let made = Self { name: name.to_owned() };
        File::create(made.path()).with_context(|| made.name.clone())?;
        let path = made.path();
        // The thread ends; the mount keeps its namespace alive.
        let inside = || {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare")?;
            let own = Some("/proc/thread-self/ns/net");
            mount(own, &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("mount")?;
            loopback_up().context("lo")
        };
        let done = std::thread::scope(|scope| scope.spawn(inside).join());
        done.map_err(|_| anyhow::anyhow!("panic while it was made"))?.with_context(|| made.name.clone())?;
        Ok(made)
    }

    /// A namespace that somebody else made; it is not removed.
    ///
    /// # Errors
    /// When `path` does not lie in `/run/netns`.
    pub fn borrowed(path: &Path) -> Result<std::mem::ManuallyDrop<Self>> {
        let name = path.file_name().and_then(|name| name.to_str()).context("a name")?.to_owned();
        Ok(std::mem::ManuallyDrop::new(Self { name }))
    }

    /// Its name for `ip netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Self::place(&self.name)
    }

    /// The path of the file of a namespace with this name.
    #[must_use]
    pub fn place(name: &str) -> PathBuf {
        Path::new(FOLDER).join(name)
    }

    /// A program that runs inside the namespace. Unlike with `ip netns exec` it sees the file systems of the caller.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = CString::new(self.path().into_os_string().into_vec()).unwrap_or_default();
        let enter = move || {
            let namespace = nix::fcntl::open(path.as_c_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
            Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
        };
        // SAFETY: between fork and exec it makes two system calls and allocates nothing.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a command line inside the namespace and gives its standard output.
    ///
    /// # Errors
    /// When the command fails; the error has what it printed.
    pub fn sh(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command")?;
        output(self.command(program).args(words))
    }

    /// `ip LINE` on this namespace.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn ip(&self, line: &str) -> Result<String> {
        output(Command::new("ip").args(["-n", &self.name]).args(line.split_whitespace()))
    }

    /// Runs `work` on a thread inside. Sockets that it makes stay in the namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered; and those of `work`.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| self.name.clone())?;
        let inside = || {
            setns(&file, CloneFlags::CLONE_NEWNET).context("setns")?;
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join()).map_err(|_| anyhow::anyhow!("panic in {}", self.name))?
    }

    /// Connects this namespace's `here` with `other`'s `there` by a veth pair, both up, with the given addresses.
    ///
    /// # Errors
    /// When a link or an address cannot be made.
    pub fn connect(&self, here: (&str, &[&str]), other: &Self, there: (&str, &[&str])) -> Result<()> {
        link::pair(self, here.0, other, there.0)?;
        self.configure(here.0, here.1)?;
        other.configure(there.0, there.1)
    }

    /// Gives a link its addresses, usable at once, and sets it up.
    ///
    /// # Errors
    /// When an address or a flag cannot be set.
    pub fn configure(&self, link: &str, addresses: &[&str]) -> Result<()> {
        link::configure(self, link, addresses)
    }

    /// The MAC of a link.
    ///
    /// # Errors
    /// When it is not there.
    pub fn mac(&self, link: &str) -> Result<[u8; 6]> {
        // Done by rtnetlink and not by `ip`, which the emulated machines do not have.
        self.run(|| {
            let mut all = nix::ifaddrs::getifaddrs()?.filter(|found| found.interface_name == link);
            let mac = all.find_map(|found| found.address?.as_link_addr()?.addr());
            mac.with_context(|| format!("a MAC of {link}"))
        })
    }

    /// Waits until duplicate address detection has finished for every address: no address is used before.
    ///
    /// # Errors
    /// When an address is still tentative after a long time.
    pub fn settle(&self) -> Result<()> {
        crate::eventually(crate::SOON, || {
            let tentative = self.ip("-6 addr show tentative")?;
            ensure!(tentative.is_empty(), "{tentative}");
            Ok(())
        })
    }

    /// Waits until a program listens on this TCP port.
    ///
    /// # Errors
    /// When none does after a long time.
    pub fn listens(&self, port: u16) -> Result<()> {
        crate::eventually(crate::SOON, || {
            let said = self.sh(&format!("ss -Hltn sport = :{port}"))?;
            ensure!(!said.is_empty(), "nobody listens on port {port}");
            Ok(())
        })
    }

    /// Fails unless `count` pings to `target` are all answered.
    ///
    /// # Errors
    /// When one gets no answer.
    pub fn ping(&self, target: impl std::fmt::Display, count: u32) -> Result<()> {
        let said = self.sh(&format!("ping -n -q -c {count} -i 0.01 -W 2 {target}"))?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The mount does not exist when making the namespace failed half way.
        if let Err(why) = umount2(&self.path(), MntFlags::MNT_DETACH)
            && why != Errno::EINVAL
        {
            eprintln!("namespace {} stays behind: {why}", self.name);
        }
        if let Err(why) = std::fs::remove_file(self.path()) {
            eprintln!("{} stays behind: {why}", self.path().display());
        }
    }
}

/// Where `ip netns` keeps names.
const FOLDER: &str = "/run/netns";

/// Makes the folder a shared mount: an unmount here then also reaches programs with mount namespaces of their own.
fn share_folder() -> Result<()> {
    std::fs::create_dir_all(FOLDER)?;
    let share = || mount(None::<&str>, FOLDER, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        // EINVAL: the folder is not a mount yet.
        Err(Errno::EINVAL) => {
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(FOLDER), FOLDER, None::<&str>, bind, None::<&str>)?;
            Ok(share()?)
        }
        done => Ok(done?),
    }
}

/// Sets `lo` up in the calling thread's namespace.
fn loopback_up() -> Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: a C struct of integers and arrays; all zero is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP)?;
    // SAFETY: the request reads one ifreq.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })?;
    Ok(())
}
