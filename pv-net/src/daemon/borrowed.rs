//! What pv-net has of bridges that somebody else made: addresses that it added, forwarding that it switched on, that they
//! listen to routers all the same, and that it set them up.

use crate::failure::Failure;
use crate::ipam::store::State;
use crate::kernel::netlink::alias::{BorrowedAddress, BorrowedForwarding};
use crate::kernel::netlink::{LinkInfo, Net, NetError};
use crate::kernel::{forwarding, sysctl};
use crate::model::IfName;

/// What is to be given back.
pub(super) struct Borrowed {
    pub addresses: Vec<BorrowedAddress>,
    pub raised: Vec<IfName>,
    pub forwarding: Vec<BorrowedForwarding>,
    pub listening: Vec<IfName>,
}

impl Borrowed {
    /// All of it.
    pub fn of(state: &State) -> Self {
        Self {
            addresses: state.borrowed.clone(),
            raised: state.raised.clone(),
            forwarding: state.forwarding.clone(),
            listening: state.listening.clone(),
        }
    }

    /// Removes the addresses, switches forwarding off and sets the bridges down; all that failed. A bridge that is gone
    /// took them along.
    pub async fn give_back(&self, net: &Net) -> Vec<Failure> {
        let mut failures = Vec::new();
        for BorrowedAddress { link, address } in &self.addresses {
            let remove = async |l: LinkInfo| net.delete_address(link.as_str(), l.index, *address).await;
            failures.extend(on(net, link, remove).await.err());
        }
        for link in &self.raised {
            let lower = async |l: LinkInfo| net.set_down(link.as_str(), l.index).await;
            failures.extend(on(net, link, lower).await.err());
        }
        for BorrowedForwarding { link, family } in &self.forwarding {
            let off = async |_| Ok(sysctl::set(family, link, "forwarding", "0").map(drop)?);
            failures.extend(on(net, link, off).await.err());
        }
        // Only now: as long as it forwards it would not listen with less.
        for link in &self.listening {
            let listen = async |_| Ok(forwarding::listen_as_before(link)?);
            failures.extend(on(net, link, listen).await.err());
        }
        failures.into_iter().map(Failure::from).collect()
    }
}

async fn on(
    net: &Net,
    link: &IfName,
    work: impl AsyncFnOnce(LinkInfo) -> Result<(), NetError>,
) -> Result<(), NetError> {
    match net.link(link.as_str()).await? {
        Some(found) => work(found).await,
        None => Ok(()),
    }
}
