//! The client of DHCPv4: the states of RFC 2131 section 4.4.

use super::frame::{self, EVERYBODY, Heard};
use super::message::{self, Lease, Question, Said};
use super::{Now, Random};
use crate::model::{Asker, Mac, Terms4};
use dhcproto::v4::MessageType;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// The pause behind the first question; it doubles with each one (RFC 2131 section 4.1, which begins with four seconds: a
/// container waits for this).
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(64);
/// Questions for an address that the client had before, until it asks for any.
const REBOOT_TRIES: u32 = 2;
/// Questions for an offered address, until it asks anew.
const REQUEST_TRIES: u32 = 4;
/// ARP probes for an address, and the pause behind each (RFC 5227 has seconds: hosts of one link answer at once).
const PROBES: u32 = 2;
const PROBE_PAUSE: Duration = Duration::from_millis(120);
/// The pause after an address was declined (RFC 2131 section 3.1.5). The first one is shorter: a container waits.
const DECLINE_PAUSE: Duration = Duration::from_secs(10);
const FIRST_DECLINE_PAUSE: Duration = Duration::from_secs(1);
/// The shortest pause between two questions for going on with a lease.
const LEAST_PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug)]
enum State {
    /// It asks who has an address for it.
    Selecting { tries: u32, again: Instant },
    /// It asks for an offered address, or, `server` is none, for the one that it had before.
    Requesting { address: Ipv4Addr, server: Option<Ipv4Addr>, tries: u32, again: Instant },
    /// It looks whether somebody else has the address.
    Probing { held: Held, tries: u32, again: Instant },
    /// It has an address. From T1 on it asks the server to go on, from T2 on any server.
    Bound { held: Held, again: Option<Instant> },
}

#[derive(Clone, Debug)]
struct Held {
    terms: Terms4,
    renew: Option<Instant>,
    rebind: Option<Instant>,
    expires: Option<Instant>,
}

/// The client.
#[derive(Debug)]
pub(super) struct Client {
    asker: Asker,
    random: Random,
    xid: u32,
    /// The address that it had last.
    last: Option<Ipv4Addr>,
    wrong: Option<String>,
    state: State,
    /// When the last REQUEST was sent: a lease lasts from then on (RFC 2131 section 4.4.1).
    asked: Option<Now>,
    /// How often servers have refused an address, and how often it has declined one, since it had one last.
    refusals: u32,
    declines: u32,
}

impl Client {
    pub fn asking(asker: &Asker, known: Option<&Terms4>, now: Now, mut random: Random) -> Self {
        let xid = random.word();
        let last = known.map(|terms| terms.given.address);
        let state = match known.filter(|terms| terms.expires > now.unix) {
            Some(terms) => State::Requesting { address: terms.given.address, server: None, tries: 0, again: now.at },
            None => State::Selecting { tries: 0, again: now.at },
        };
        Self { asker: asker.clone(), random, xid, last, wrong: None, state, asked: None, refusals: 0, declines: 0 }
    }

    pub fn holding(asker: &Asker, held: Option<&Terms4>, now: Now, mut random: Random) -> Self {
        let Some(terms) = held else { return Self::asking(asker, None, now, random) };
        let xid = random.word();
        let lasts = |unix: u64| now.until(unix, Duration::from_secs(u32::MAX.into()));
        let (renew, rebind, expires) = (lasts(terms.renew), lasts(terms.rebind), lasts(terms.expires));
        let last = Some(terms.given.address);
        let held = Held { terms: terms.clone(), renew, rebind, expires };
        let state = State::Bound { again: held.renew, held };
        Self { asker: asker.clone(), random, xid, last, wrong: None, state, asked: None, refusals: 0, declines: 0 }
    }

    /// The lease that it has.
    pub const fn held(&self) -> Option<&Terms4> {
        match &self.state {
            State::Bound { held, .. } => Some(&held.terms),
            _ => None,
        }
    }

    pub const fn is_close(&self) -> bool {
        matches!(self.state, State::Probing { .. } | State::Requesting { .. })
    }

    pub fn wrong(&self) -> Option<&str> {
        match &self.state {
            State::Bound { .. } => None,
            _ => self.wrong.as_deref(),
        }
    }

    pub fn next(&self) -> Option<Instant> {
        match &self.state {
            State::Selecting { again, .. } | State::Requesting { again, .. } | State::Probing { again, .. } => {
                Some(*again)
            }
            State::Bound { held, again } => [held.expires, *again].into_iter().flatten().min(),
        }
    }

    fn begin(&mut self, now: Now, pause: Duration) {
        self.xid = self.random.word();
        self.state = State::Selecting { tries: 0, again: now.at + pause };
    }

    /// Asks for any address after a refusal: the first time at once, since an address that it had before may be another
    /// network's, and then after pauses that grow.
    fn begin_after_refusal(&mut self, now: Now) {
        let pause = self.refusals.checked_sub(1).map_or(Duration::ZERO, |tries| self.pause(tries));
        self.refusals = self.refusals.saturating_add(1);
        self.begin(now, pause);
    }

    fn pause(&mut self, tries: u32) -> Duration {
        let about = FIRST_PAUSE.saturating_mul(1 << tries.min(6)).min(LONGEST_PAUSE);
        self.random.near(about)
    }

    fn to_all(&self, kind: MessageType, requested: Option<Ipv4Addr>, server: Option<Ipv4Addr>) -> Option<Vec<u8>> {
        let question = Question { kind, xid: self.xid, ciaddr: Ipv4Addr::UNSPECIFIED, requested, server };
        self.send(&question, (EVERYBODY, Ipv4Addr::BROADCAST))
    }

    fn send(&self, question: &Question, to: (Mac, Ipv4Addr)) -> Option<Vec<u8>> {
        frame::to_server((self.asker.mac, question.ciaddr), to, &question.encode(&self.asker))
    }

    /// Acts on the time.
    pub fn wake(&mut self, now: Now) -> Vec<Vec<u8>> {
        if self.next().is_none_or(|next| next > now.at) {
            return Vec::new();
        }
        match &self.state {
            State::Selecting { tries, .. } => {
                let tries = tries + 1;
                if tries > 2 && self.last.is_some() {
                    self.wrong.get_or_insert_with(|| "no DHCP server answers".to_owned());
                }
                let again = now.at + self.pause(tries - 1);
                self.state = State::Selecting { tries, again };
                self.to_all(MessageType::Discover, self.last, None).into_iter().collect()
            }
            State::Requesting { address, server, tries, .. } => {
                let (address, server, tries) = (*address, *server, tries + 1);
                if tries > if server.is_some() { REQUEST_TRIES } else { REBOOT_TRIES } {
                    self.begin(now, Duration::ZERO);
                    return self.wake(now);
                }
                let again = now.at + self.pause(tries - 1);
                self.state = State::Requesting { address, server, tries, again };
                self.asked = Some(now);
                self.to_all(MessageType::Request, Some(address), server).into_iter().collect()
            }
            State::Probing { held, tries, .. } if *tries < PROBES => {
                let (held, tries) = (held.clone(), tries + 1);
                let probe = frame::arp_probe(self.asker.mac, held.terms.given.address);
                self.state = State::Probing { held, tries, again: now.at + PROBE_PAUSE };
                vec![probe]
            }
            State::Probing { held, .. } => {
                let held = held.clone();
                self.last = Some(held.terms.given.address);
                self.wrong = None;
                (self.refusals, self.declines) = (0, 0);
                self.state = State::Bound { again: held.renew, held };
                Vec::new()
            }
            State::Bound { held, .. } if held.expires.is_some_and(|end| end <= now.at) => {
                self.wrong = Some(format!("its lease of {} has ended", held.terms.given.address));
                self.begin(now, Duration::ZERO);
                self.wake(now)
            }
            State::Bound { held, .. } => {
                let held = held.clone();
                let is_rebinding = held.rebind.is_some_and(|t2| t2 <= now.at);
                let ends = if is_rebinding { held.expires } else { held.rebind };
                // RFC 2131 section 4.4.5: half of the time that is left.
                let left = ends.map_or(LONGEST_PAUSE, |end| end.saturating_duration_since(now.at));
                let again = now.at + (left / 2).max(LEAST_PAUSE).min(left.max(Duration::from_millis(1)));
                self.xid = self.random.word();
                let question = Question {
                    kind: MessageType::Request,
                    xid: self.xid,
                    ciaddr: held.terms.given.address,
                    requested: None,
                    server: None,
                };
                let to = if is_rebinding {
                    (EVERYBODY, Ipv4Addr::BROADCAST)
                } else {
                    (held.terms.server_mac, held.terms.server)
                };
                let frame = self.send(&question, to);
                self.state = State::Bound { held, again: Some(again) };
                self.asked = Some(now);
                frame.into_iter().collect()
            }
        }
    }

    /// Acts on a frame.
    pub fn hear(&mut self, bytes: &[u8], now: Now) -> Vec<Vec<u8>> {
        match frame::read(bytes) {
            Some(Heard::Dhcp { from, message }) => {
                if let Some(said) = message::read(message, self.xid, self.asker.mac) {
                    self.told(said, from, now);
                }
                self.wake(now)
            }
            Some(Heard::Arp { from, sender, target }) if from != self.asker.mac => {
                let State::Probing { held, .. } = &self.state else { return Vec::new() };
                let address = held.terms.given.address;
                // RFC 5227 section 2.1.1: who probes for it at this moment counts too.
                if sender != address && !(sender.is_unspecified() && target == address) {
                    return Vec::new();
                }
                self.wrong = Some(format!("{address} from DHCP server {} is in use by {from}", held.terms.server));
                let decline = self.to_all(MessageType::Decline, Some(address), Some(held.terms.server));
                self.last = None;
                let pause = if self.declines == 0 { FIRST_DECLINE_PAUSE } else { DECLINE_PAUSE };
                self.declines = self.declines.saturating_add(1);
                self.begin(now, pause);
                decline.into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    fn told(&mut self, said: Said, from: Mac, now: Now) {
        match (&self.state, said) {
            (State::Selecting { tries, .. }, Said::Give { is_ack: false, server, lease }) if *tries > 0 => {
                match lease {
                    Ok(lease) => {
                        let address = lease.given.address;
                        self.state = State::Requesting { address, server: Some(server), tries: 0, again: now.at };
                    }
                    Err(why) => self.wrong = Some(format!("DHCP server {server} offers {why}")),
                }
            }
            (State::Requesting { address, server: wanted, .. }, Said::Give { is_ack: true, server, lease })
                if wanted.is_none_or(|wanted| wanted == server) =>
            {
                match lease {
                    Ok(lease) if lease.given.address == *address => {
                        let held = held(&lease, server, from, self.asked.unwrap_or(now));
                        self.state = State::Probing { held, tries: 0, again: now.at };
                    }
                    Ok(_) => {}
                    Err(why) => self.wrong = Some(format!("DHCP server {server} gives {why}")),
                }
            }
            (State::Requesting { address, server: wanted, .. }, Said::Refuse { server })
                if wanted.is_none_or(|wanted| wanted == server) =>
            {
                self.wrong = Some(format!("DHCP server {server} refuses {address}"));
                self.begin_after_refusal(now);
            }
            (State::Bound { held: had, .. }, Said::Give { is_ack: true, server, lease: Ok(lease) })
                if lease.given.address == had.terms.given.address && self.is_asking(now) =>
            {
                let held = held(&lease, server, from, self.asked.unwrap_or(now));
                self.state = State::Bound { again: held.renew, held };
            }
            (State::Bound { held, .. }, Said::Refuse { server }) => {
                // Before T2 only its own server was asked.
                let may = held.rebind.is_some_and(|t2| t2 <= now.at) || server == held.terms.server;
                if may && self.is_asking(now) {
                    self.wrong =
                        Some(format!("DHCP server {server} has ended its lease of {}", held.terms.given.address));
                    self.last = None;
                    self.begin_after_refusal(now);
                }
            }
            _ => {}
        }
    }

    /// Whether it has asked to go on with its lease, and not been answered.
    fn is_asking(&self, now: Now) -> bool {
        matches!(&self.state, State::Bound { held, .. } if held.renew.is_some_and(|t1| t1 <= now.at))
    }
}

fn held(lease: &Lease, server: Ipv4Addr, server_mac: Mac, now: Now) -> Held {
    let lasts = |secs: u32| (secs != u32::MAX).then(|| now.at + Duration::from_secs(secs.into()));
    let terms = Terms4 {
        given: lease.given.clone(),
        server,
        server_mac,
        renew: if lease.secs == u32::MAX { u64::MAX } else { now.after(lease.renew_secs) },
        rebind: if lease.secs == u32::MAX { u64::MAX } else { now.after(lease.rebind_secs) },
        expires: now.after(lease.secs),
    };
    let is_finite = lease.secs != u32::MAX;
    Held {
        terms,
        renew: lasts(lease.renew_secs).filter(|_| is_finite),
        rebind: lasts(lease.rebind_secs).filter(|_| is_finite),
        expires: lasts(lease.secs),
    }
}

/// The message by which a lease is given back.
pub(super) fn release(asker: &Asker, terms: &Terms4, xid: u32) -> Option<Vec<u8>> {
    let (own, server) = (terms.given.address, terms.server);
    let question = Question { kind: MessageType::Release, xid, ciaddr: own, requested: None, server: Some(server) };
    frame::to_server((asker.mac, own), (terms.server_mac, server), &question.encode(asker))
}
