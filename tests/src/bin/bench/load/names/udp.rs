//! By UDP. All clients share one socket, which chooses each one's link and address for every question: so many questions
//! go out with one system call, and the client's CPU is not what limits the rate.

use super::message::Message;
use super::{Asking, LOST, MOST, Tally};
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};
use std::mem::{size_of, zeroed};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Bytes for the control message with the link and the address.
const CONTROL: usize = 32;
const LARGEST: usize = 512;

/// A client with its question on the way.
#[derive(Clone, Copy)]
struct Slot {
    question: Message,
    asked: Instant,
    turn: u16,
    /// Whether it waits for an answer.
    waits: bool,
}

pub fn run(asking: &Asking<'_>, time: Duration) -> Result<Tally> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    setsockopt(&socket, RcvBufForce, &(4 << 20))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(LOST.as_millis() as i64))?;
    let froms = asking.clients.iter().map(|client| {
        let link = if_nametoindex(client.link.as_str()).with_context(|| client.link.clone())?;
        Ok(libc::in_pktinfo {
            ipi_ifindex: link as i32,
            ipi_spec_dst: libc::in_addr { s_addr: u32::from(client.address).to_be() },
            ipi_addr: libc::in_addr { s_addr: 0 },
        })
    });
    let froms: Vec<libc::in_pktinfo> = froms.collect::<Result<_>>()?;
    let now = Instant::now();
    let empty = Slot { question: asking.question(0), asked: now, turn: 0, waits: false };
    let mut slots = vec![empty; asking.at_a_time];
    let mut due: Vec<usize> = (0..slots.len()).collect();
    let (mut batch, mut turns) = (Batch::new(asking), 0);
    let mut tally = Tally::new();
    let end = tally.start + time;
    let mut looked = now;
    loop {
        let now = Instant::now();
        if now < end {
            for at in due.drain(..) {
                let slot = &mut slots[at];
                slot.turn = slot.turn.wrapping_add(1);
                slot.question = asking.question(slot.turn << 6 | at as u16);
                (slot.asked, slot.waits) = (now, true);
                batch.add(&slot.question, &froms[turns % froms.len()]);
                turns += 1;
            }
            batch.send(&socket)?;
        } else if slots.iter().all(|slot| !slot.waits) {
            return Ok(tally);
        }
        let came = batch.receive(&socket)?;
        for answer in batch.answers(came) {
            let Some(id) = answer.first_chunk().map(|id| u16::from_be_bytes(*id)) else { continue };
            let at = usize::from(id & 63);
            let Some(slot) = slots.get_mut(at).filter(|slot| slot.waits && slot.turn << 6 == id & !63) else {
                continue;
            };
            tally.count(&slot.question, answer, asking.expected, slot.asked)?;
            slot.waits = false;
            due.push(at);
        }
        if came == 0 || looked.elapsed() > LOST {
            looked = Instant::now();
            for (at, slot) in slots.iter_mut().enumerate().filter(|(_, s)| s.waits && s.asked.elapsed() > LOST) {
                tally.lost += 1;
                slot.waits = false;
                due.push(at);
            }
        }
    }
}

/// Room for as many messages as there are clients, in each direction.
struct Batch {
    to: Box<libc::sockaddr_in>,
    out: Vec<Message>,
    controls: Vec<[u64; CONTROL / 8]>,
    answers: Vec<[u8; LARGEST]>,
    lens: Vec<usize>,
}

impl Batch {
    fn new(asking: &Asking<'_>) -> Self {
        let to = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: asking.server.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from(*asking.server.ip()).to_be() },
            sin_zero: [0; 8],
        };
        let answers = vec![[0; LARGEST]; MOST];
        Self { to: Box::new(to), out: Vec::new(), controls: Vec::new(), answers, lens: Vec::new() }
    }

    fn add(&mut self, question: &Message, from: &libc::in_pktinfo) {
        let mut control = [0_u64; CONTROL / 8];
        let len = size_of::<libc::cmsghdr>() + size_of::<libc::in_pktinfo>();
        let head = libc::cmsghdr { cmsg_len: len, cmsg_level: libc::IPPROTO_IP, cmsg_type: libc::IP_PKTINFO };
        let place = control.as_mut_ptr();
        // SAFETY: the control message's header and data are 28 bytes, and begin where u64 may; the room is 32.
        unsafe {
            place.cast::<libc::cmsghdr>().write(head);
            place.cast::<u8>().add(size_of::<libc::cmsghdr>()).cast::<libc::in_pktinfo>().write_unaligned(*from);
        }
        self.out.push(*question);
        self.controls.push(control);
    }

    /// Sends what was added.
    fn send(&mut self, socket: &UdpSocket) -> Result<()> {
        let parts = self.out.iter().map(|question| libc::iovec {
            iov_base: question.bytes().as_ptr().cast_mut().cast(),
            iov_len: question.bytes().len(),
        });
        let mut parts: Vec<libc::iovec> = parts.collect();
        let heads = parts.iter_mut().zip(&mut self.controls).map(|(part, control)| {
            // SAFETY: all of its fields may be zero.
            let mut head: libc::mmsghdr = unsafe { zeroed() };
            head.msg_hdr.msg_name = (&raw mut *self.to).cast();
            head.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
            (head.msg_hdr.msg_iov, head.msg_hdr.msg_iovlen) = (part, 1);
            head.msg_hdr.msg_control = control.as_mut_ptr().cast();
            head.msg_hdr.msg_controllen = CONTROL;
            head
        });
        let mut heads: Vec<libc::mmsghdr> = heads.collect();
        let mut at = 0;
        while at < heads.len() {
            let left = &mut heads[at..];
            // SAFETY: what the headers point to lives until the call returns.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), left.as_mut_ptr(), left.len() as u32, 0) };
            at += Errno::result(sent).context("send")? as usize;
        }
        self.out.clear();
        self.controls.clear();
        Ok(())
    }

    /// Waits for an answer, and reads all that are there; 0 when none comes.
    fn receive(&mut self, socket: &UdpSocket) -> Result<usize> {
        let parts = self.answers.iter_mut().map(|a| libc::iovec { iov_base: a.as_mut_ptr().cast(), iov_len: LARGEST });
        let mut parts: Vec<libc::iovec> = parts.collect();
        let heads = parts.iter_mut().map(|part| {
            // SAFETY: all of its fields may be zero.
            let mut head: libc::mmsghdr = unsafe { zeroed() };
            (head.msg_hdr.msg_iov, head.msg_hdr.msg_iovlen) = (part, 1);
            head
        });
        let mut heads: Vec<libc::mmsghdr> = heads.collect();
        let (flags, none) = (libc::MSG_WAITFORONE, std::ptr::null_mut());
        let count = heads.len() as u32;
        // SAFETY: what the headers point to lives until the call returns.
        let came = unsafe { libc::recvmmsg(socket.as_raw_fd(), heads.as_mut_ptr(), count, flags, none) };
        self.lens.clear();
        match Errno::result(came) {
            Ok(came) => self.lens.extend(heads.iter().take(came as usize).map(|head| head.msg_len as usize)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(why) => return Err(why).context("receive"),
        }
        Ok(self.lens.len())
    }

    fn answers(&self, count: usize) -> impl Iterator<Item = &[u8]> {
        self.answers.iter().zip(&self.lens).take(count).map(|(answer, len)| &answer[..*len])
    }
}
