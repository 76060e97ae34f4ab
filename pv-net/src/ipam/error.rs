//! Why a lease cannot be given.

use super::{ClientKey, LeaseKey};
use crate::model::{Mac, PoolName};
use std::net::IpAddr;

/// Why a request for a lease failed; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// Every address is leased or reserved.
    #[error("pool {pool}: all its {size} addresses are in use")]
    PoolFull {
        /// The pool.
        pool: PoolName,
        /// How many addresses it has for containers.
        size: u128,
    },
    /// Somebody else has the address.
    #[error("{addr}: taken by {holder}")]
    Taken {
        /// The address.
        addr: IpAddr,
        /// Who has it.
        holder: LeaseKey,
    },
    /// The device itself has it.
    #[error("{addr}: taken by this device")]
    OfDevice {
        /// The address.
        addr: IpAddr,
    },
    /// A client of DHCP has it, or had it last.
    #[error("{addr}: taken by {holder}")]
    Lent {
        /// The address.
        addr: IpAddr,
        /// Who has it.
        holder: ClientKey,
    },
    /// The address is not in the pool's network.
    #[error("{addr}: outside {subnet} of pool {pool}")]
    Outside {
        /// The address.
        addr: IpAddr,
        /// The pool's network.
        subnet: String,
        /// The pool.
        pool: PoolName,
    },
    /// An address that no container can have.
    #[error("{addr}: {what} of pool {pool}")]
    Special {
        /// The address.
        addr: IpAddr,
        /// What it is.
        what: &'static str,
        /// The pool.
        pool: PoolName,
    },
    /// The pool does not have the family.
    #[error("{addr}: pool {pool} has no {family}")]
    NoFamily {
        /// The address.
        addr: IpAddr,
        /// The pool.
        pool: PoolName,
        /// The family.
        family: &'static str,
    },
    /// Somebody else in the pool has the MAC.
    #[error("{mac}: taken by {holder}")]
    MacTaken {
        /// The MAC.
        mac: Mac,
        /// Who has it.
        holder: LeaseKey,
    },
    /// All MACs that follow from the address are taken by requested MACs.
    #[error("pool {pool}: no MAC like {mac} is free")]
    NoMac {
        /// The pool.
        pool: PoolName,
        /// The first that was tried.
        mac: Mac,
    },
    /// A pool of neither family.
    #[error("pool {pool}: has no subnet")]
    NoSubnet {
        /// The pool.
        pool: PoolName,
    },
}
