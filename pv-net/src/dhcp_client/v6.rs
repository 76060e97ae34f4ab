//! Router discovery (RFC 4861 section 6.3) and SLAAC (RFC 4862): an address of an advertised prefix, and the router.
//!
//! The interface identifier is made of the prefix and the MAC, as RFC 7217 has it, so it is the same every time. It
//! keeps no secret: whoever is on the link knows the MAC anyway, and elsewhere the identifier is another one.

use super::advert::{self, Advert, Prefix};
use super::frame::{self, Heard};
use super::{Now, Random};
use crate::model::{Asker, Given, Mac, Terms6};
use sha2::{Digest, Sha256};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

/// The pause behind the first solicitation; it doubles with each one (RFC 7559).
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// How long somebody has to say that he has the address (RFC 4862 has a second: hosts of one link answer at once).
const PROBE_PAUSE: Duration = Duration::from_millis(500);
/// How many addresses of a prefix are tried (RFC 7217 section 5).
const MOST_CONFLICTS: u8 = 3;
/// An advertisement that nobody can prove to be from the router makes the time of an address no shorter than this
/// (RFC 4862 section 5.5.3).
const LEAST_SECS: u32 = 2 * 3600;
/// A prefix that is valid for less is not begun with: its address would go before the container has got much by it, and who
/// advertises such ones again and again would keep the device busy.
const SHORTEST_SECS: u32 = 60;

#[derive(Debug)]
enum State {
    /// It asks routers for what they advertise.
    Soliciting { tries: u32, again: Instant },
    /// It looks whether somebody else has the address.
    Probing {
        terms: Terms6,
        /// What it has until then.
        had: Option<Terms6>,
        is_sent: bool,
        again: Instant,
    },
    /// It has an address.
    Bound { terms: Terms6 },
}

/// The client.
#[derive(Debug)]
pub(super) struct Client {
    mac: Mac,
    random: Random,
    /// Addresses of the present prefix that somebody else has.
    conflicts: u8,
    wrong: Option<String>,
    state: State,
    /// Where the clock of the state is compared with times on disk.
    expires: Option<Instant>,
    routes_until: Option<Instant>,
}

impl Client {
    pub fn asking(asker: &Asker, known: Option<&Terms6>, now: Now, random: Random) -> Self {
        Self {
            mac: asker.mac,
            random,
            conflicts: known.map_or(0, |terms| terms.conflicts),
            wrong: None,
            state: State::Soliciting { tries: 0, again: now.at },
            expires: None,
            routes_until: None,
        }
    }

    pub fn holding(asker: &Asker, held: Option<&Terms6>, now: Now, random: Random) -> Self {
        let mut client = Self::asking(asker, held, now, random);
        if let Some(terms) = held {
            client.hold(terms.clone(), now);
        }
        client
    }

    fn hold(&mut self, terms: Terms6, now: Now) {
        let most = Duration::from_secs(u32::MAX.into());
        self.expires = now.until(terms.expires, most);
        self.routes_until = terms.given.gateway.and_then(|_| now.until(terms.routes_until, most));
        self.state = State::Bound { terms };
    }

    /// What it has.
    pub const fn held(&self) -> Option<&Terms6> {
        match &self.state {
            State::Bound { terms } => Some(terms),
            State::Probing { had, .. } => had.as_ref(),
            State::Soliciting { .. } => None,
        }
    }

    pub const fn is_close(&self) -> bool {
        matches!(self.state, State::Probing { .. })
    }

    pub fn wrong(&self) -> Option<&str> {
        match &self.state {
            State::Bound { .. } => None,
            _ => self.wrong.as_deref(),
        }
    }

    pub fn next(&self) -> Option<Instant> {
        match &self.state {
            State::Soliciting { again, .. } | State::Probing { again, .. } => Some(*again),
            State::Bound { .. } => [self.expires, self.routes_until].into_iter().flatten().min(),
        }
    }

    /// Acts on the time.
    pub fn wake(&mut self, now: Now) -> Vec<Vec<u8>> {
        if self.next().is_none_or(|next| next > now.at) {
            return Vec::new();
        }
        match &mut self.state {
            State::Soliciting { tries, again } => {
                let about = FIRST_PAUSE.saturating_mul(1 << (*tries).min(12)).min(LONGEST_PAUSE);
                *tries += 1;
                *again = now.at + self.random.near(about);
                frame::router_solicitation(self.mac).into_iter().collect()
            }
            State::Probing { terms, is_sent: is_sent @ false, again, .. } => {
                (*is_sent, *again) = (true, now.at + PROBE_PAUSE);
                frame::solicitation(self.mac, terms.given.address).into_iter().collect()
            }
            State::Probing { terms, .. } => {
                let terms = terms.clone();
                self.wrong = None;
                self.hold(terms, now);
                Vec::new()
            }
            State::Bound { terms } if self.expires.is_some_and(|end| end <= now.at) => {
                self.wrong = Some(format!("no router advertises the network of {} any more", terms.given.address));
                self.solicit(now);
                self.wake(now)
            }
            State::Bound { terms } => {
                terms.given.gateway = None;
                self.routes_until = None;
                frame::router_solicitation(self.mac).into_iter().collect()
            }
        }
    }

    fn solicit(&mut self, now: Now) {
        (self.expires, self.routes_until) = (None, None);
        self.state = State::Soliciting { tries: 0, again: now.at };
    }

    /// Acts on a frame.
    pub fn hear(&mut self, bytes: &[u8], now: Now) -> Vec<Vec<u8>> {
        match frame::read(bytes) {
            // A router with the interface's own address is none: the kernel takes no such gateway.
            Some(Heard::Router { router, body }) if router != frame::link_local(self.mac) => {
                if let Some(advert) = advert::read(body) {
                    self.told(router, &advert, now);
                }
            }
            Some(Heard::Said { from, target }) if from != self.mac => self.conflict(from, target, now),
            // Who has no address yet wants to have it at this moment.
            Some(Heard::Asked { from: (from, address), target }) if address.is_unspecified() && from != self.mac => {
                self.conflict(from, target, now);
            }
            _ => return Vec::new(),
        }
        self.wake(now)
    }

    /// The answer to who asks for its link-local address.
    pub fn answer(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        frame::answer(self.mac, frame::link_local(self.mac), &frame::read(bytes)?)
    }

    fn conflict(&mut self, from: Mac, target: Ipv6Addr, now: Now) {
        let State::Probing { terms, had, is_sent, again } = &mut self.state else { return };
        if terms.given.address != target {
            return;
        }
        let conflicts = terms.conflicts.saturating_add(1);
        self.wrong = Some(format!("{target} is in use by {from}"));
        if conflicts >= MOST_CONFLICTS {
            // What it has is valid still, though not preferred: better than nothing.
            if let Some(terms) = had.take() {
                self.state = State::Bound { terms };
                return;
            }
            self.state = State::Soliciting { tries: 6, again: now.at + LONGEST_PAUSE };
            return;
        }
        let net = Ipv6Addr::from(u128::from(target) & !u128::from(u64::MAX));
        terms.given.address = self::address(net, self.mac, conflicts);
        terms.conflicts = conflicts;
        (*is_sent, *again) = (false, now.at);
        self.conflicts = conflicts;
    }

    fn told(&mut self, router: Ipv6Addr, advert: &Advert, now: Now) {
        match &self.state {
            State::Soliciting { .. } => match best(&advert.prefixes) {
                Some(prefix) => self.probe(router, advert, prefix, now),
                None if advert.is_managed => {
                    let why = format!("router {router} leaves addresses to DHCPv6, which is not supported here");
                    self.wrong = Some(why);
                }
                None => {
                    self.wrong.get_or_insert_with(|| format!("router {router} advertises no network for hosts"));
                }
            },
            State::Probing { .. } => {}
            State::Bound { terms } => {
                let mut terms = terms.clone();
                let own = advert.prefixes.iter().find(|p| is_in(terms.given.address, p.net));
                let is_over = own.is_some_and(|own| own.preferred_secs == 0);
                // The network is renumbered: a new address takes the place of the one that is not to be used any more.
                if is_over && let Some(other) = best(&advert.prefixes) {
                    self.conflicts = 0;
                    self.probe(router, advert, other, now);
                    return;
                }
                // Only what is said anew is counted from now: the clock of the day may have been set meanwhile.
                let left = self.expires.map(|end| end.saturating_duration_since(now.at));
                if let Some(secs) = own.and_then(|own| extended(left, own)) {
                    (terms.expires, self.expires) = (now.after(secs), now.in_secs(secs));
                }
                if terms.router == router || terms.given.gateway.is_none() && advert.router_secs > 0 {
                    terms.router = router;
                    terms.given.gateway = (advert.router_secs > 0).then_some(router);
                    terms.routes_until = now.after(advert.router_secs.into());
                    self.routes_until = terms.given.gateway.and_then(|_| now.in_secs(advert.router_secs.into()));
                    terms.given.dns.clone_from(&advert.dns);
                    terms.given.search.clone_from(&advert.search);
                }
                self.state = State::Bound { terms };
            }
        }
    }

    fn probe(&mut self, router: Ipv6Addr, advert: &Advert, prefix: &Prefix, now: Now) {
        let terms = Terms6 {
            given: Given {
                address: address(prefix.net, self.mac, self.conflicts),
                prefix: if prefix.is_on_link { 64 } else { 128 },
                gateway: (advert.router_secs > 0).then_some(router),
                dns: advert.dns.clone(),
                search: advert.search.clone(),
            },
            router,
            routes_until: now.after(advert.router_secs.into()),
            expires: now.after(prefix.valid_secs),
            conflicts: self.conflicts,
        };
        let had = self.held().cloned();
        self.state = State::Probing { terms, had, is_sent: false, again: now.at };
    }
}

fn is_in(address: Ipv6Addr, net: Ipv6Addr) -> bool {
    u128::from(address) >> 64 == u128::from(net) >> 64
}

/// The prefix to make the address of: one that is known everywhere comes before a unique local one.
fn best(all: &[Prefix]) -> Option<&Prefix> {
    let usable = all.iter().filter(|p| p.preferred_secs > 0 && p.valid_secs >= SHORTEST_SECS);
    usable.min_by_key(|p| p.net.octets()[0] & 0xfe == 0xfc)
}

/// The seconds that an address lasts after this advertisement (RFC 4862 section 5.5.3), where it had `left`, or for ever;
/// `None` when that stays.
fn extended(left: Option<Duration>, prefix: &Prefix) -> Option<u32> {
    let new = prefix.valid_secs;
    let is_longer = left.is_some_and(|left| Duration::from_secs(new.into()) > left);
    if new > LEAST_SECS || is_longer {
        Some(new)
    } else if left.is_some_and(|left| left <= Duration::from_secs(LEAST_SECS.into())) {
        None
    } else {
        Some(LEAST_SECS)
    }
}

/// The address of the interface with this MAC in the network `net`, when it is not the first one that was tried.
fn address(net: Ipv6Addr, mac: Mac, conflicts: u8) -> Ipv6Addr {
    let mut hash = Sha256::new();
    hash.update(b"pv-net interface identifier");
    hash.update(net.octets());
    hash.update(mac.0);
    hash.update([conflicts]);
    let hash = hash.finalize();
    let id = u64::from_be_bytes(std::array::from_fn(|i| hash[i]));
    // Identifiers of anycast addresses are reserved: none, and the last 128 (RFC 2526).
    let id = if id == 0 || id >= 0xfdff_ffff_ffff_ff80 { id ^ 1 << 62 } else { id };
    Ipv6Addr::from(u128::from(net) | u128::from(id))
}
