//! A capture that verifies every checksum on a link, in both directions.

use crate::{Namespace, verify};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A running capture; it ends with `finish`.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Captured>>,
}

/// What was on a link.
#[derive(Debug, Default)]
pub struct Captured {
    /// What came in.
    pub received: Frames,
    /// What went out.
    pub sent: Frames,
}

/// Frames of one direction.
#[derive(Debug, Default)]
pub struct Frames {
    /// How many there were of each kind.
    pub kinds: BTreeMap<verify::Seen, u64>,
    /// Bytes of the largest, with its Ethernet header: that of a frame, or of several that the kernel handles as one.
    pub largest: usize,
}

impl Captured {
    /// How many frames of each kind there were, in both directions.
    #[must_use]
    pub fn kinds(self) -> BTreeMap<verify::Seen, u64> {
        let mut all = self.received.kinds;
        for (seen, count) in self.sent.kinds {
            *all.entry(seen).or_default() += count;
        }
        all
    }
}

/// `PACKET_AUXDATA` of packet(7), and its status bit that says: the checksum is left to the network card.
const AUXDATA: libc::c_int = 8;
const CHECKSUM_NOT_READY: u32 = 8;
/// Size of the queue in bytes: no packet may be missed.
const ROOM: libc::c_int = 64 << 20;

impl Capture {
    /// Listens on `link` inside `ns`; `quotes` as in [`verify::frame`].
    ///
    /// # Errors
    /// When the link is not there.
    pub fn start(ns: &Namespace, link: &str, quotes: bool) -> Result<Self> {
        let socket = ns.run(|| open(link).with_context(|| link.to_owned()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (flag, name) = (stop.clone(), format!("{} in {}", link, ns.name()));
        let thread = std::thread::spawn(move || read_all(&socket, &flag, quotes).with_context(|| name));
        Ok(Self { stop, thread })
    }

    /// Ends the capture and gives what was on the link.
    ///
    /// # Errors
    /// The first wrong checksum that was seen.
    pub fn finish(self) -> Result<Captured> {
        // The last packets that were sent are still on their way.
        std::thread::sleep(Duration::from_millis(100));
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the capture panicked"))?
    }
}

fn open(link: &str) -> Result<OwnedFd> {
    let index = libc::c_int::try_from(nix::net::if_::if_nametoindex(link)?)?;
    let protocol = u16::try_from(libc::ETH_P_ALL)?.to_be();
    // SAFETY: system calls on values that outlive them; the descriptor is owned as soon as it exists.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        ensure!(fd >= 0, "socket: {}", std::io::Error::last_os_error());
        let fd = OwnedFd::from_raw_fd(fd);
        let set = |level, name, value: *const libc::c_void, size: usize| -> Result<()> {
            let done = libc::setsockopt(fd.as_raw_fd(), level, name, value, libc::socklen_t::try_from(size)?);
            ensure!(done == 0, "option {name}: {}", std::io::Error::last_os_error());
            Ok(())
        };
        let (one, room) = (1 as libc::c_int, ROOM);
        let wait = libc::timeval { tv_sec: 0, tv_usec: 20_000 };
        set(libc::SOL_PACKET, AUXDATA, (&raw const one).cast(), size_of_val(&one))?;
        set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const room).cast(), size_of_val(&room))?;
        set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const wait).cast(), size_of_val(&wait))?;
        let mut at: libc::sockaddr_ll = std::mem::zeroed();
        (at.sll_family, at.sll_protocol, at.sll_ifindex) = (libc::AF_PACKET as u16, protocol, index);
        let size = libc::socklen_t::try_from(size_of_val(&at))?;
        ensure!(libc::bind(fd.as_raw_fd(), (&raw const at).cast(), size) == 0, "{}", std::io::Error::last_os_error());
        Ok(fd)
    }
}

fn read_all(socket: &OwnedFd, stop: &AtomicBool, quotes: bool) -> Result<Captured> {
    let mut all = Captured::default();
    let mut buffer = vec![0u8; 600_000];
    loop {
        // Read the flag before the queue: what came before the end is read.
        let last = stop.load(Ordering::Relaxed);
        while let Some(Next { size, partial, outgoing }) = next(socket, &mut buffer)? {
            let frames = if outgoing { &mut all.sent } else { &mut all.received };
            frames.largest = frames.largest.max(size);
            if let Some(seen) = verify::frame(&buffer[..size], partial, quotes)? {
                *frames.kinds.entry(seen).or_default() += 1;
            }
        }
        if last {
            break;
        }
    }
    ensure!(dropped(socket)? == 0, "packets were missed");
    Ok(all)
}

/// A frame that was read: its length, whether its checksum is left to the card, and its direction.
struct Next {
    size: usize,
    partial: bool,
    outgoing: bool,
}

/// The next frame in the queue.
fn next(socket: &OwnedFd, buffer: &mut [u8]) -> Result<Option<Next>> {
    let mut control = [0u64; 16];
    let mut data = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: a C struct of integers and pointers, filled in below; everything that it points to outlives the call. The
    // kernel's control data are read with the macros made for it.
    unsafe {
        let mut from: libc::sockaddr_ll = std::mem::zeroed();
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = libc::socklen_t::try_from(size_of_val(&from))?;
        (message.msg_iov, message.msg_iovlen) = (&raw mut data, 1);
        (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
        let size = libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0);
        let Ok(size) = usize::try_from(size) else {
            let why = std::io::Error::last_os_error();
            return match why.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                _ => Err(why.into()),
            };
        };
        let mut at = libc::CMSG_FIRSTHDR(&raw const message);
        while !at.is_null() {
            if ((*at).cmsg_level, (*at).cmsg_type) == (libc::SOL_PACKET, AUXDATA) {
                // `tp_status` is the first word of `struct tpacket_auxdata`.
                let status = libc::CMSG_DATA(at).cast::<u32>().read_unaligned();
                let outgoing = from.sll_pkttype == libc::PACKET_OUTGOING;
                return Ok(Some(Next { size, partial: status & CHECKSUM_NOT_READY != 0, outgoing }));
            }
            at = libc::CMSG_NXTHDR(&raw const message, at);
        }
        anyhow::bail!("a packet without PACKET_AUXDATA")
    }
}

/// `PACKET_STATISTICS`: how many packets did not fit into the socket's queue.
fn dropped(socket: &OwnedFd) -> Result<u32> {
    let mut both = [0u32; 2];
    let mut size = libc::socklen_t::try_from(size_of_val(&both))?;
    let at = both.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `size` bytes.
    let done = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_PACKET, 6, at, &raw mut size) };
    ensure!(done == 0, "{}", std::io::Error::last_os_error());
    Ok(both[1])
}
