//! Changes of leases, in the form in which the lease file stores them, and how they are undone.

use super::{ClientKey, ClientLease, Cursors, Ipam, Lease, LeaseKey};
use crate::model::PoolName;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A change of the leases. It contains its result, so replaying it on the same leases needs neither the pools nor the
/// reservations of its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// A new lease, which replaces the one that its key had.
    Assigned(Assigned),
    /// The lease of this key ended.
    Released(LeaseKey),
    /// A lease that was in use before it was known; it replaces the one that its key had.
    Learned(Arc<Lease>),
    /// A client's lease, which replaces the one that its key had.
    Lent(Arc<ClientLease>),
    /// The lease of this client ended.
    Ended(ClientKey),
}

/// A new lease, and how it moved the cursors of its pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assigned {
    /// The lease.
    pub(super) lease: Arc<Lease>,
    /// How its IPv4 address was found; `None` when the cursor was not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) v4: Option<Moved>,
    /// How its IPv6 address was found; `None` when the cursor was not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) v6: Option<Moved>,
}

/// How far a cursor moved for one address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Moved {
    /// The cursor's position on its circle afterwards.
    pub(super) turn: u128,
    /// How many released addresses it skipped or used, from the oldest on.
    pub(super) taken: usize,
}

/// The state of a key and of its pool's cursors before a change, for undoing the change.
#[derive(Debug)]
pub struct Before(Was);

#[derive(Debug)]
enum Was {
    /// The lease of a key, and the cursors of its pool.
    Interface { key: LeaseKey, lease: Option<Arc<Lease>>, cursors: Option<Cursors> },
    /// The lease of a client.
    Client { key: ClientKey, lease: Option<Arc<ClientLease>> },
}

impl Before {
    /// If the change was about a client: its key, and the lease that it had.
    #[must_use]
    pub const fn client(&self) -> Option<(&ClientKey, Option<&Arc<ClientLease>>)> {
        match &self.0 {
            Was::Client { key, lease } => Some((key, lease.as_ref())),
            Was::Interface { .. } => None,
        }
    }

    pub(super) fn cursors(&self) -> Option<&Cursors> {
        match &self.0 {
            Was::Interface { cursors, .. } => cursors.as_ref(),
            Was::Client { .. } => None,
        }
    }
}

impl Ipam {
    /// The present state of `key` and its pool's cursors.
    #[must_use]
    pub fn before(&self, key: &LeaseKey) -> Before {
        let (lease, cursors) = (self.leases.get(key).cloned(), self.cursors.get(&key.pool).cloned());
        Before(Was::Interface { key: key.clone(), lease, cursors })
    }

    /// The present state of a client's key.
    #[must_use]
    pub fn before_client(&self, key: &ClientKey) -> Before {
        Before(Was::Client { key: key.clone(), lease: self.clients.get(key).cloned() })
    }

    /// Undoes the last change, before which `before` was taken. Several changes must be undone in reverse order.
    pub fn take_back(&mut self, before: Before) {
        let (key, lease, cursors) = match before.0 {
            Was::Interface { key, lease, cursors } => (key, lease, cursors),
            Was::Client { key, lease } => {
                self.end(&key);
                if let Some(lease) = lease {
                    self.insert_client(key, lease);
                }
                return;
            }
        };
        self.remove(&key);
        if let Some(lease) = lease {
            self.insert(lease);
        }
        match cursors {
            Some(cursors) => self.cursors.insert(key.pool, cursors),
            None => self.cursors.remove(&key.pool),
        };
    }

    /// Replays a stored change.
    ///
    /// # Errors
    /// When the change does not fit the present leases; nothing is changed then.
    pub fn apply(&mut self, change: Change) -> Result<(), String> {
        match change {
            Change::Assigned(Assigned { lease, v4, v6 }) => {
                if let Some(holder) = self.clash(&lease) {
                    return Err(format!("{} and {holder} have one address or MAC", lease.key));
                }
                let old = self.remove(&lease.key);
                self.move_cursors(&lease.key.pool, v4, v6);
                if let Some(old) = old {
                    self.note_released(&old, &lease);
                }
                self.insert(lease);
                Ok(())
            }
            Change::Released(key) => match self.release(&key) {
                Some(_) => Ok(()),
                None => Err(format!("{key} has no lease that could end")),
            },
            Change::Learned(lease) => {
                let key = lease.key.clone();
                self.learn(lease).map_err(|holder| format!("{key} and {holder} have one address or MAC"))
            }
            Change::Lent(lease) => {
                let key = lease.key();
                self.lend(lease).map_err(|e| format!("{key}: {e}"))
            }
            Change::Ended(key) => match self.end(&key) {
                Some(_) => Ok(()),
                None => Err(format!("{key} has no lease that could end")),
            },
        }
    }

    fn move_cursors(&mut self, pool: &PoolName, v4: Option<Moved>, v6: Option<Moved>) {
        if v4.is_none() && v6.is_none() {
            return;
        }
        let cursors = self.cursors.entry(pool.clone()).or_default();
        for (cursor, moved) in [(&mut cursors.v4, v4), (&mut cursors.v6, v6)] {
            if let Some(moved) = moved {
                cursor.follow(&moved);
            }
        }
    }

    /// How the cursors of `pool` have moved since they were `before`. Nothing was released in between.
    pub(super) fn moved(&self, pool: &PoolName, before: Option<&Cursors>) -> (Option<Moved>, Option<Moved>) {
        let never = Cursors::default();
        let before = before.unwrap_or(&never);
        let now = self.cursors.get(pool).unwrap_or(&never);
        (now.v4.moved_since(&before.v4), now.v6.moved_since(&before.v6))
    }
}
