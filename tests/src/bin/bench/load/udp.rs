//! Datagrams of 64 bytes in one direction: how many are received in a second.

use super::{Ends, Outcome, in_namespace, socket};
use crate::cpu::{self, Pin};
use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SIZE: usize = 64;
const BATCH: u64 = 32;
const MAGIC: u64 = 0x7076_2d6e_6574_0064;

/// Runs the load. On one CPU the ends take turns, 32 datagrams each; on two CPUs the client sends as fast as it can.
pub fn run(ends: &Ends, pin: Pin, time: Duration) -> Result<Outcome> {
    let any = SocketAddr::new(if ends.connect.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() }, 0);
    let out = in_namespace(&ends.client, || {
        let out = UdpSocket::bind(any)?;
        out.connect(ends.connect)?;
        Ok(out)
    })?;
    let input = in_namespace(&ends.server, || {
        let socket = UdpSocket::bind(ends.listen).with_context(|| format!("bind {}", ends.listen))?;
        setsockopt(&socket, RcvBufForce, &(4 << 20))?;
        Ok(socket)
    })?;
    let seen_as = open(&out, &input, ends)?;
    // A late answer must not be taken for one of the next load.
    let outcome = match pin {
        Pin::Same => in_turns(&out, &input, pin.cpus().0, time),
        Pin::Split => at_once(&out, &input, pin.cpus(), time),
    }?;
    ensure!(outcome.count > 0, "no datagram arrived");
    Ok(Outcome { seen_as: Some(seen_as), ..outcome })
}

fn datagram(number: u64) -> [u8; SIZE] {
    let mut bytes = [0x5a; SIZE];
    bytes[..8].copy_from_slice(&MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// Sends the first datagram, and waits for an answer: that opens the flow, and waits for ARP.
fn open(out: &UdpSocket, input: &UdpSocket, ends: &Ends) -> Result<IpAddr> {
    let mut buffer = [0u8; SIZE + 1];
    input.set_read_timeout(Some(Duration::from_millis(200)))?;
    out.set_read_timeout(Some(socket::PATIENCE))?;
    let start = Instant::now();
    let client = loop {
        // `send` reports an ICMP error about an earlier datagram.
        let sent = out.send(&datagram(u64::MAX));
        match input.recv_from(&mut buffer) {
            Ok((SIZE, client)) if buffer[..SIZE] == datagram(u64::MAX) => break client,
            Ok(_) => {}
            Err(e) if start.elapsed() > socket::PATIENCE => {
                let refused = sent.err().map(|e| format!(" ({e})")).unwrap_or_default();
                return Err(e).with_context(|| format!("no datagram for {} arrived{refused}", ends.connect));
            }
            Err(_) => {}
        }
    };
    input.send_to(b"hello", client)?;
    out.recv(&mut buffer).context("the answer to the first datagram")?;
    Ok(client.ip().to_canonical())
}

/// What the receiver has got so far.
#[derive(Default)]
struct Seen {
    count: u64,
    next: u64,
}

impl Seen {
    /// Checks a datagram: complete, of this load, one that was sent, and not a duplicate.
    fn take(&mut self, bytes: &[u8], sent: u64) -> Result<()> {
        let number: [u8; 8] = bytes.get(8..16).and_then(|b| b.try_into().ok()).unwrap_or([0xff; 8]);
        let number = u64::from_be_bytes(number);
        if number == u64::MAX {
            return Ok(());
        }
        ensure!(bytes == datagram(number), "datagram {} is not what was sent", self.count);
        ensure!(number < sent, "datagram {number} arrived before it was sent");
        ensure!(number >= self.next, "datagram {number} came twice or late: {} was expected", self.next);
        self.next = number + 1;
        self.count += 1;
        Ok(())
    }
}

fn outcome(count: u64, sent: u64, time: Duration) -> Outcome {
    let lost = Some(1.0 - count as f64 / sent.max(1) as f64);
    Outcome { rate: count as f64 / time.as_secs_f64(), count, lost, ..Outcome::default() }
}

fn in_turns(out: &UdpSocket, input: &UdpSocket, cpu: usize, time: Duration) -> Result<Outcome> {
    let turn = || {
        cpu::pin(0, &[cpu])?;
        input.set_nonblocking(false)?;
        // Longer than a packet stays in any queue. A packet that does not come was lost by the path.
        input.set_read_timeout(Some(Duration::from_millis(2)))?;
        let (mut sent, mut seen) = (0u64, Seen::default());
        let mut buffer = [0u8; SIZE + 1];
        let start = Instant::now();
        while start.elapsed() < time {
            for _ in 0..BATCH {
                out.send(&datagram(sent)).context("send")?;
                sent += 1;
            }
            while seen.next < sent {
                match input.recv(&mut buffer) {
                    Ok(n) => seen.take(&buffer[..n], sent)?,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) => return Err(e).context("receive"),
                }
            }
        }
        Ok(outcome(seen.count, sent, start.elapsed()))
    };
    std::thread::scope(|scope| scope.spawn(turn).join()).map_err(|_| anyhow!("the load's thread"))?
}

fn at_once(out: &UdpSocket, input: &UdpSocket, cpus: (usize, usize), time: Duration) -> Result<Outcome> {
    let (done, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    input.set_read_timeout(Some(Duration::from_millis(20)))?;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            cpu::pin(0, &[cpus.1])?;
            let mut seen = Seen::default();
            let mut buffer = [0u8; SIZE + 1];
            loop {
                match input.recv(&mut buffer) {
                    Ok(n) => seen.take(&buffer[..n], sent.load(Ordering::Acquire))?,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        if done.load(Ordering::Relaxed) {
                            return anyhow::Ok(seen.count);
                        }
                    }
                    Err(e) => return Err(e).context("receive"),
                }
            }
        });
        let sender = scope.spawn(|| {
            cpu::pin(0, &[cpus.0])?;
            let start = Instant::now();
            let mut number = 0;
            while start.elapsed() < time {
                for _ in 0..BATCH {
                    sent.store(number + 1, Ordering::Release);
                    // ENOBUFS means that a queue on the way is full, which is the path's limit: the datagram counts as
                    // lost.
                    match out.send(&datagram(number)) {
                        Ok(_) => {}
                        Err(e) if e.raw_os_error() == Some(nix::libc::ENOBUFS) => {}
                        Err(e) => return Err(e).context("send"),
                    }
                    number += 1;
                }
            }
            anyhow::Ok((number, start.elapsed()))
        });
        let sent = sender.join().map_err(|_| anyhow!("the sender's thread"));
        done.store(true, Ordering::Relaxed);
        let (number, took) = sent??;
        let count = receiver.join().map_err(|_| anyhow!("the receiver's thread"))??;
        Ok(outcome(count, number, took))
    })
}
