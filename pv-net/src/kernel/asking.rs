//! Asks the network on a link for addresses, in the name of an interface that sits on that link: a packet socket, and
//! the clock. What is asked and answered is decided in [`dhcp_client`](crate::dhcp_client).
//!
//! The socket is on the parent, in the device's namespace. What it sends goes past the queueing layer
//! (`PACKET_QDISC_BYPASS`), and so past the parent's program, which lets a container's MAC send only what the program on
//! its own interface has let pass. No container has such a socket. It hears what comes in before macvlan takes it away.

use super::errand::Asked;
use super::packet::{self, LARGEST, jump, statement};
use crate::dhcp_client::{Client, Now, release};
use crate::model::{Asker, Mac, Terms};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, UNIX_EPOCH};
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout_at};

/// How long an attach waits for an address.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long it waits for the other family, once it has an address of one: routers answer within half a second (RFC 4861
/// section 6.2.6), and a server looks whether an address is free.
const FOR_THE_OTHER: Duration = Duration::from_secs(2);
/// The same for IPv4, where no server has refused it: servers look whether an address is free first, and INIT-REBOOT comes
/// before the question for any address.
const FOR_V4: Duration = Duration::from_secs(5);
/// The same where the network had one family only the last time.
const FOR_ANOTHER: Duration = Duration::from_millis(500);
/// How many interfaces ask at once.
static TURNS: Semaphore = Semaphore::const_new(8);
/// The MAC of the group of all hosts (ff02::1), to which routers advertise.
const ALL_HOSTS: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// `PACKET_QDISC_BYPASS` of linux/if_packet.h.
const QDISC_BYPASS: libc::c_int = 20;
/// `PACKET_IGNORE_OUTGOING` of linux/if_packet.h.
const IGNORE_OUTGOING: libc::c_int = 23;
/// Where a filter reads whether a frame had a VLAN's tag (`SKF_AD_VLAN_TAG_PRESENT` of linux/filter.h): the kernel has
/// taken it out, and the frame is another link's.
const HAS_TAG: u32 = (-0x1000_i32 + 48) as u32;

/// Both clocks.
#[must_use]
#[expect(
    clippy::disallowed_types,
    reason = "leases end by the clock of the day, since they outlive the device's uptime"
)]
pub fn now() -> Now {
    let unix = std::time::SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Now { unix, at: Instant::now() }
}

/// A random number.
#[must_use]
pub fn seed() -> u64 {
    // Each such state has keys of its own, which the kernel's random numbers are behind.
    RandomState::new().build_hasher().finish()
}

/// A packet socket for one interface.
pub struct Wire {
    socket: AsyncFd<OwnedFd>,
    link: u32,
    mac: Mac,
    /// It hears ARP and neighbour discovery too.
    is_curious: bool,
}

impl Wire {
    /// Opens one on the link with the index `link`, for the interface with this MAC. `alone`: the interface is not there
    /// yet, so that the link does not hear for it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(link: u32, mac: Mac, alone: bool) -> io::Result<Self> {
        let socket = packet::of_frames(link, &filter(mac, true))?;
        packet::option(&socket, QDISC_BYPASS, &1_i32)?;
        // What the device and its containers send themselves.
        packet::option(&socket, IGNORE_OUTGOING, &1_i32)?;
        join(&socket, link, libc::PACKET_MR_UNICAST, mac.0)?;
        join(&socket, link, libc::PACKET_MR_MULTICAST, ALL_HOSTS)?;
        if alone {
            join(&socket, link, libc::PACKET_MR_ALLMULTI, [0; 6])?;
        }
        Ok(Self { socket: packet::readable(socket)?, link, mac, is_curious: true })
    }

    /// Sends frames. One that cannot be sent is lost, as on any network.
    pub fn send(&self, frames: &[Vec<u8>]) {
        for frame in frames {
            let Some(to) = frame.first_chunk::<6>() else { continue };
            if let Err(e) = packet::send(self.socket.get_ref(), self.link, libc::ETH_P_ALL, Mac(*to), frame) {
                tracing::debug!(mac = %self.mac, error = %e, "frame of a client not sent");
            }
        }
    }

    /// Waits for frames.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn hear(&self) -> io::Result<Vec<Vec<u8>>> {
        loop {
            let mut ready = self.socket.readable().await?;
            let came = packet::read_frames(&mut ready);
            if !came.is_empty() {
                return Ok(came.into_iter().map(|(frame, _)| frame).collect());
            }
        }
    }

    /// Whether to hear ARP and neighbour discovery too: who has what he wants is not woken by them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn listen(&mut self, is_curious: bool) -> io::Result<()> {
        if self.is_curious != is_curious {
            packet::filter(self.socket.get_ref(), &filter(self.mac, is_curious))?;
            self.is_curious = is_curious;
        }
        Ok(())
    }
}

fn join(socket: &OwnedFd, link: u32, kind: libc::c_int, mac: [u8; 6]) -> io::Result<()> {
    let [a, b, c, d, e, f] = mac;
    let request = libc::packet_mreq {
        mr_ifindex: i32::try_from(link).map_err(io::Error::other)?,
        mr_type: kind as u16,
        mr_alen: 6,
        mr_address: [a, b, c, d, e, f, 0, 0],
    };
    packet::option(socket, libc::PACKET_ADD_MEMBERSHIP, &request)
}

/// Lets what a client with this MAC acts on into the socket: DHCPv4 messages for it, router advertisements, and with
/// `is_curious` ARP and neighbour discovery. Nothing with a VLAN's tag.
fn filter(mac: Mac, is_curious: bool) -> Vec<libc::sock_filter> {
    use libc::{
        BPF_ABS, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_MSH, BPF_RET, BPF_W,
    };
    const IPV4: usize = 6;
    const IPV6: usize = 17;
    const TAKE: usize = 23;
    const LEAVE: usize = 24;
    let [a, b, c, d, e, f] = mac.0;
    let if_curious = if is_curious { TAKE } else { LEAVE };
    let mut program: Vec<libc::sock_filter> = Vec::with_capacity(LEAVE + 1);
    let load = |size: u32, mode: u32, at: u32| statement(BPF_LD | size | mode, at);
    // If the value is `k`, on at `yes`, else at `no`; 0 is the next instruction.
    let test = |program: &mut Vec<libc::sock_filter>, how: u32, k: u32, yes: usize, no: usize| {
        let here = program.len();
        let by = |to: usize| if to == 0 { 0 } else { (to - here - 1) as u8 };
        program.push(jump(BPF_JMP | how | BPF_K, k, by(yes), by(no)));
    };
    program.push(load(BPF_W, BPF_ABS, HAS_TAG));
    test(&mut program, BPF_JEQ, 0, 0, LEAVE);
    program.push(load(BPF_H, BPF_ABS, 12));
    test(&mut program, BPF_JEQ, libc::ETH_P_IP as u32, IPV4, 0);
    test(&mut program, BPF_JEQ, libc::ETH_P_IPV6 as u32, IPV6, 0);
    test(&mut program, BPF_JEQ, libc::ETH_P_ARP as u32, if_curious, LEAVE);
    // IPv4: UDP, no fragment, to a client's port, with this MAC in the message.
    program.push(load(BPF_B, BPF_ABS, 23));
    test(&mut program, BPF_JEQ, 17, 0, LEAVE);
    program.push(load(BPF_H, BPF_ABS, 20));
    test(&mut program, BPF_JSET, 0x3fff, LEAVE, 0);
    program.push(statement(BPF_LDX | BPF_B | BPF_MSH, 14));
    program.push(load(BPF_H, BPF_IND, 16));
    test(&mut program, BPF_JEQ, 68, 0, LEAVE);
    program.push(load(BPF_W, BPF_IND, 50));
    test(&mut program, BPF_JEQ, u32::from_be_bytes([a, b, c, d]), 0, LEAVE);
    program.push(load(BPF_H, BPF_IND, 54));
    test(&mut program, BPF_JEQ, u32::from_be_bytes([0, 0, e, f]), TAKE, LEAVE);
    // IPv6: ICMPv6 right behind the header.
    program.push(load(BPF_B, BPF_ABS, 20));
    test(&mut program, BPF_JEQ, 58, 0, LEAVE);
    program.push(load(BPF_B, BPF_ABS, 54));
    test(&mut program, BPF_JEQ, 134, TAKE, 0);
    test(&mut program, BPF_JEQ, 135, if_curious, 0);
    test(&mut program, BPF_JEQ, 136, if_curious, LEAVE);
    program.push(statement(BPF_RET | BPF_K, LARGEST as u32));
    program.push(statement(BPF_RET | BPF_K, 0));
    debug_assert_eq!(program.len(), LEAVE + 1);
    program
}

/// Asks for addresses for an interface that is not there yet, those that it had before, `known`, first. Waits for an
/// address of one family, and a little longer for the other.
///
/// # Errors
/// Why there is none after [`PATIENCE`].
async fn ask(link: u32, asker: &Asker, known: &Terms) -> Result<Terms, String> {
    let wire = Wire::open(link, asker.mac, true).map_err(|e| format!("packet socket: {e}"))?;
    let mut client = Client::asking(asker, known, now(), seed());
    let last = Instant::now() + PATIENCE;
    let mut first = None;
    loop {
        wire.send(&client.wake(now()));
        let terms = client.terms();
        let at = Instant::now();
        if !terms.is_empty() {
            let enough = *first.get_or_insert(at) + more(known, &terms, client.is_refused());
            let has_both = terms.v4.is_some() && terms.v6.is_some();
            if has_both || at >= last || at >= enough && !client.is_close() {
                return Ok(terms);
            }
        } else if at >= last {
            return Err(client.wrong().unwrap_or_else(|| "no DHCP server and no router answers".to_owned()));
        }
        let enough = first.map(|first| first + more(known, &terms, client.is_refused()));
        let next = [client.next(), enough.filter(|enough| *enough > at)].into_iter().flatten().min();
        let next = next.map_or(last, |next| next.min(last));
        match timeout_at(next.into(), wire.hear()).await {
            Ok(Ok(frames)) => {
                for frame in frames {
                    wire.send(&client.speak_for_itself(&frame).into_iter().collect::<Vec<_>>());
                    wire.send(&client.hear(&frame, now()));
                }
            }
            Ok(Err(e)) => {
                tracing::debug!(error = %e, "packet socket");
                sleep_until(next.into()).await;
            }
            Err(_) => {}
        }
    }
}

/// The same, a few interfaces at a time.
///
/// # Errors
/// As `ask`, from its turn on.
pub async fn ask_in_turn(asked: Asked) -> Result<Terms, String> {
    in_turn(async move { ask(asked.link, &asked.asker, &asked.known).await }).await
}

/// Waits for a turn, and then for `asking`. What that reads is of strangers, so a fault in reading it is this attach's alone.
async fn in_turn(asking: impl Future<Output = Result<Terms, String>> + Send + 'static) -> Result<Terms, String> {
    let _turn = TURNS.acquire().await.map_err(|e| e.to_string())?;
    let mut task = JoinSet::new();
    task.spawn(asking);
    match task.join_next().await {
        Some(Ok(terms)) => terms,
        Some(Err(e)) => Err(format!("a fault of pv-net: {e}")),
        None => Err("nobody was asked".to_owned()),
    }
}

/// How long to wait for the family that is missing in `has`, where the interface had `known` before.
const fn more(known: &Terms, has: &Terms, is_refused: bool) -> Duration {
    let (knew4, knew6) = (known.v4.is_some(), known.v6.is_some());
    match has.v4 {
        Some(_) if knew4 && !knew6 => FOR_ANOTHER,
        Some(_) => FOR_THE_OTHER,
        None if knew6 && !knew4 => FOR_ANOTHER,
        None if is_refused => FOR_THE_OTHER,
        None => FOR_V4,
    }
}

/// Gives a lease back. It is said once: a server that does not hear it has the address back when the lease ends.
pub fn give_back(link: u32, asker: &Asker, terms: &Terms) {
    let Some(frame) = release(asker, terms, seed()) else { return };
    match Wire::open(link, asker.mac, false) {
        Ok(wire) => wire.send(&[frame]),
        Err(e) => tracing::debug!(mac = %asker.mac, error = %e, "lease not given back"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attach_waits_longest_for_ipv4_that_nobody_has_refused() {
        use crate::model::{Given, Terms4, Terms6};
        let (server, expires) = ([192, 0, 2, 1].into(), u64::MAX);
        let given = Given::bare([192, 0, 2, 2].into(), 24, None);
        let v4 = Terms4 { given, server, server_mac: Mac([2; 6]), renew: expires, rebind: expires, expires };
        let router = [0xfe80, 0, 0, 0, 0, 0, 0, 1].into();
        let given = Given::bare([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(), 64, None);
        let v6 = Terms6 { given, router, routes_until: expires, expires, conflicts: 0 };
        let (none, v4) = (Terms::default(), Terms { v4: Some(v4), v6: None });
        let v6 = Terms { v4: None, v6: Some(v6) };
        assert_eq!(more(&none, &v6, false), FOR_V4);
        assert_eq!(more(&v4, &v6, false), FOR_V4);
        assert_eq!(more(&none, &v6, true), FOR_THE_OTHER);
        assert_eq!(more(&none, &v4, false), FOR_THE_OTHER);
        assert_eq!(more(&v4, &v4, false), FOR_ANOTHER);
        assert_eq!(more(&v6, &v6, false), FOR_ANOTHER);
    }

    #[tokio::test]
    async fn eight_ask_at_once_and_a_fault_is_one_attachs() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicUsize, Ordering};
        let (begun, end) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let mut all = JoinSet::new();
        for number in 0..9 {
            let (begun, end) = (begun.clone(), end.clone());
            all.spawn(in_turn(async move {
                begun.fetch_add(1, Ordering::Relaxed);
                let _end = end.acquire().await;
                assert!(number != 0, "a fault");
                Ok(Terms::default())
            }));
        }
        // This thread runs all tasks, so each has got as far as it can.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(begun.load(Ordering::Relaxed), 8);
        end.add_permits(1);
        let done = all.join_all().await;
        assert_eq!(begun.load(Ordering::Relaxed), 9);
        let faults: Vec<_> = done.into_iter().filter_map(Result::err).collect();
        assert!(matches!(faults.as_slice(), [fault] if fault.starts_with("a fault of pv-net")), "{faults:?}");
    }

    #[test]
    fn every_jump_stays_in_the_filter() {
        for is_curious in [true, false] {
            let program = filter(Mac([2, 1, 2, 3, 4, 5]), is_curious);
            for (at, step) in program.iter().enumerate() {
                let furthest = at + 1 + usize::from(step.jt.max(step.jf));
                assert!(furthest < program.len() || at + 2 >= program.len(), "{at}");
            }
        }
    }
}
