//! The client's side of DHCPv4 (RFC 2131), router discovery (RFC 4861) and SLAAC (RFC 4862), for interfaces whose addresses
//! the network of their pool's parent chooses. Pure: frames and the time in, frames and what the network has given out; the
//! packet socket is in `kernel/asking.rs`.
//!
//! Each family is a state machine of its own (`v4::Client`, `v6::Client`); [`Client`] is both. Anybody on the link may
//! send what they read, so nothing of it is believed that could not be an address of the interface.

mod advert;
mod domain;
mod frame;
mod message;
mod random;
#[cfg(test)]
mod tests;
mod v4;
mod v6;

use crate::model::{Asker, Terms};
use random::Random;
use std::time::{Duration, Instant};

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Seconds since 1970 (UTC): what is kept on disk.
    pub unix: u64,
    /// What times are measured by.
    pub at: Instant,
}

impl Now {
    /// The moment at which the time `unix` comes; none for `u64::MAX`, which is never. The clock may have been set since
    /// that was written, so it is at most `most` from now.
    fn until(self, unix: u64, most: Duration) -> Option<Instant> {
        let left = Duration::from_secs(unix.saturating_sub(self.unix)).min(most);
        (unix != u64::MAX).then(|| self.at + left)
    }

    /// The moment in `secs`; none for `u32::MAX`, which is for ever.
    fn in_secs(self, secs: u32) -> Option<Instant> {
        (secs != u32::MAX).then(|| self.at + Duration::from_secs(secs.into()))
    }

    /// What is written for something that lasts `secs`.
    fn after(self, secs: u32) -> u64 {
        if secs == u32::MAX { u64::MAX } else { self.unix.saturating_add(secs.into()) }
    }
}

/// Asks a network for an address of each family, and keeps them.
#[derive(Debug)]
pub struct Client {
    v4: v4::Client,
    v6: v6::Client,
}

impl Client {
    /// A client without addresses. It asks for those that it had, `known`, first. `seed` is a random number.
    #[must_use]
    pub fn asking(asker: &Asker, known: &Terms, now: Now, seed: u64) -> Self {
        let mut random = Random::new(seed);
        Self {
            v4: v4::Client::asking(asker, known.v4.as_ref(), now, random.fork()),
            v6: v6::Client::asking(asker, known.v6.as_ref(), now, random.fork()),
        }
    }

    /// A client whose interface has the addresses `held`; it asks for the others.
    #[must_use]
    pub fn holding(asker: &Asker, held: &Terms, now: Now, seed: u64) -> Self {
        let mut random = Random::new(seed);
        Self {
            v4: v4::Client::holding(asker, held.v4.as_ref(), now, random.fork()),
            v6: v6::Client::holding(asker, held.v6.as_ref(), now, random.fork()),
        }
    }

    /// Acts on the time. Returns frames that are to be sent.
    pub fn wake(&mut self, now: Now) -> Vec<Vec<u8>> {
        let mut frames = self.v4.wake(now);
        frames.extend(self.v6.wake(now));
        frames
    }

    /// Acts on a frame that came. Returns frames that are to be sent.
    pub fn hear(&mut self, frame: &[u8], now: Now) -> Vec<Vec<u8>> {
        let mut frames = self.v4.hear(frame, now);
        frames.extend(self.v6.hear(frame, now));
        frames
    }

    /// When [`wake`](Self::wake) is to be called next.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        [self.v4.next(), self.v6.next()].into_iter().flatten().min()
    }

    /// What it has at present.
    #[must_use]
    pub fn terms(&self) -> Terms {
        Terms { v4: self.v4.held().cloned(), v6: self.v6.held().cloned() }
    }

    /// Whether it will soon have an address: it asks for a certain one, or looks whether somebody else has it. Then it must
    /// hear who has which address.
    #[must_use]
    pub const fn is_close(&self) -> bool {
        self.v4.is_close() || self.v6.is_close()
    }

    /// Answers for its link-local address, while no interface has it that could.
    #[must_use]
    pub fn speak_for_itself(&self, frame: &[u8]) -> Option<Vec<u8>> {
        self.v6.answer(frame)
    }

    /// Whether a DHCP server has answered, but not with an address that can be taken.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.v4.wrong().is_some()
    }

    /// What is wrong: of each family, the last reason why it has no address.
    #[must_use]
    pub fn wrong(&self) -> Option<String> {
        let all: Vec<&str> = [self.v4.wrong(), self.v6.wrong()].into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

/// The message by which a lease is given back (RFC 2131 section 4.4.6), as a frame.
#[must_use]
pub fn release(asker: &Asker, terms: &Terms, seed: u64) -> Option<Vec<u8>> {
    let terms = terms.v4.as_ref()?;
    v4::release(asker, terms, Random::new(seed).word())
}
