//! Which address is next.

use super::{Lease, space::Space};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::net::IpAddr;

/// Released addresses that are remembered in order; what is beyond comes back when the cursor goes round again.
const REMEMBERED: usize = 1024;

/// One family's place in the circle, and what was released since.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cursor {
    /// Turns of the circle ([`Space::turn`]) that were handed out.
    turn: u128,
    /// Released addresses, the one that was released first at the front.
    released: VecDeque<IpAddr>,
}

impl Cursor {
    /// The next free address: one that was never handed out, else the one released first, else any on a new round.
    pub(super) fn next(&mut self, space: &Space, free: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        if let Some(addr) = self.advance(space, &free) {
            return Some(addr);
        }
        while let Some(addr) = self.released.pop_front() {
            // A pool may have another network than when it was released; a fixed lease may have taken it.
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
