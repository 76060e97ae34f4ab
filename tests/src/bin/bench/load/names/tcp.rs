//! By TCP, with a connection for each question, as clients have it whose answer was truncated.

use super::message::Message;
use super::{Asking, LOST, Tally};
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt::BindToDevice, sockopt::Linger,
    sockopt::TcpNoDelay,
};
use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

const LARGEST: usize = 512;

/// A connection with its question.
struct Talk {
    stream: TcpStream,
    question: Message,
    asked: Instant,
    is_sent: bool,
    answer: [u8; LARGEST],
    len: usize,
}

pub fn run(asking: &Asking<'_>, time: Duration) -> Result<Tally> {
    let mut talks: Vec<Talk> = Vec::new();
    let (mut turns, mut tally) = (0_usize, Tally::new());
    let end = tally.start + time;
    let patience = PollTimeout::try_from(LOST)?;
    loop {
        let goes_on = Instant::now() < end;
        while goes_on && talks.len() < asking.at_a_time {
            talks.push(Talk::begin(asking, turns)?);
            turns += 1;
        }
        if talks.is_empty() {
            return Ok(tally);
        }
        let watch = |talk: &Talk| if talk.is_sent { PollFlags::POLLIN } else { PollFlags::POLLOUT };
        let mut watched: Vec<PollFd<'_>> = talks.iter().map(|t| PollFd::new(t.stream.as_fd(), watch(t))).collect();
        match poll(&mut watched, patience) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(why) => return Err(why).context("poll"),
        }
        let ready: Vec<bool> = watched.iter().map(|one| one.any().unwrap_or(true)).collect();
        let mut ready = ready.into_iter();
        let mut wrong = Ok(());
        talks.retain_mut(|talk| match talk.advance(ready.next().unwrap_or(false)) {
            Ok(Some(len)) => {
                let counted = tally.count(&talk.question, &talk.answer[2..len], asking.expected, talk.asked);
                wrong = std::mem::replace(&mut wrong, Ok(())).and(counted);
                false
            }
            Ok(None) if talk.asked.elapsed() <= LOST => true,
            Ok(None) | Err(_) => {
                tally.lost += 1;
                false
            }
        });
        wrong?;
    }
}

impl Talk {
    fn begin(asking: &Asking<'_>, turn: usize) -> Result<Self> {
        let client = &asking.clients[turn % asking.clients.len()];
        let asked = Instant::now();
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd: OwnedFd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        setsockopt(&fd, BindToDevice, &OsString::from(&client.link))?;
        setsockopt(&fd, TcpNoDelay, &true)?;
        // The connection ends with a reset: so many in TIME_WAIT would leave no ports.
        setsockopt(&fd, Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        match connect(fd.as_raw_fd(), &SockaddrIn::from(asking.server)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(why) => return Err(why).context("connect"),
        }
        let question = asking.question(turn as u16);
        Ok(Self { stream: fd.into(), question, asked, is_sent: false, answer: [0; LARGEST], len: 0 })
    }

    /// Sends the question when the connection is there, and reads; the length when all of the answer has come.
    fn advance(&mut self, is_ready: bool) -> std::io::Result<Option<usize>> {
        if !is_ready {
            return Ok(None);
        }
        if !self.is_sent {
            let bytes = self.question.bytes();
            match self.stream.write(&[&(bytes.len() as u16).to_be_bytes(), bytes].concat()) {
                Ok(_) => self.is_sent = true,
                Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => return Ok(None),
                Err(why) => return Err(why),
            }
        }
        loop {
            match self.stream.read(&mut self.answer[self.len..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.len += read,
                Err(why) if why.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(why) => return Err(why),
            }
            let said = self.answer.first_chunk().map_or(0, |len| usize::from(u16::from_be_bytes(*len)));
            if self.len >= 2 && self.len >= 2 + said {
                return Ok(Some(2 + said));
            }
        }
    }
}
