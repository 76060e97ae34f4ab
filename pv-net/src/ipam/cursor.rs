//! Chooses the next address.

use super::change::Moved;
use super::{Lease, space::Space};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::net::IpAddr;

/// How many released addresses are remembered in order. Others are found when the cursor comes round again.
const REMEMBERED: usize = 1024;

/// A family's position on the circle of its addresses, and the addresses released since.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cursor {
    /// The position on the circle ([`Space::turn`]): how many addresses were handed out from it.
    turn: u128,
    /// Released addresses, the one released first at the front.
    released: VecDeque<IpAddr>,
}

impl Cursor {
    /// The next free address: one that was never handed out, else the one that was released first, else the next one on
    /// a new round.
    pub(super) fn next(&mut self, space: &Space, free: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        if let Some(addr) = self.advance(space, &free) {
            return Some(addr);
        }
        while let Some(addr) = self.released.pop_front() {
            // The pool's network may have changed since the release, and a requested address may have been assigned.
            if space.usable(addr) && free(addr) {
                return Some(addr);
            }
        }
        self.turn = 0;
        self.advance(space, &free)
    }

    fn advance(&mut self, space: &Space, free: &impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        while let Some((turn, offset)) = space.usable_from(self.turn.saturating_add(1)) {
            self.turn = turn;
            match space.at(offset) {
                Some(addr) if free(addr) && !self.released.contains(&addr) => return Some(addr),
                _ => {}
            }
        }
        None
    }

    /// How the cursor has moved since it was `before`. Nothing was released in between.
    pub(super) fn moved_since(&self, before: &Self) -> Option<Moved> {
        let taken = before.released.len().saturating_sub(self.released.len());
        (self.turn != before.turn || taken > 0).then_some(Moved { turn: self.turn, taken })
    }

    /// Moves in the same way as another cursor did.
    pub(super) fn follow(&mut self, moved: &Moved) {
        self.turn = moved.turn;
        self.released.drain(..moved.taken.min(self.released.len()));
    }

    fn release(&mut self, addr: IpAddr) {
        self.released.retain(|a| *a != addr);
        self.released.push_back(addr);
        if self.released.len() > REMEMBERED {
            self.released.pop_front();
        }
    }
}

impl super::Cursors {
    /// Remembers the addresses of an ended lease.
    pub(super) fn release(&mut self, lease: &Lease) {
        if let Some(addr) = lease.ipv4 {
            self.v4.release(addr.into());
        }
        if let Some(addr) = lease.ipv6 {
            self.v6.release(addr.into());
        }
    }
}
