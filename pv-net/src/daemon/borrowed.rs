//! What pv-net has changed on bridges that it did not make: addresses that it added, forwarding that it switched on,
//! `accept_ra` that it set to 2, and that it set them up.

use crate::failure::Failure;
use crate::ipam::store::State;
use crate::kernel::netlink::alias::{BorrowedAddress, BorrowedForwarding};
use crate::kernel::{Host, Kernel, sysctl};
use crate::model::IfName;
use crate::plan::{LinkSysctl, Observed, Op};

/// The changes that have to be undone.
pub(super) struct Borrowed {
    pub addresses: Vec<BorrowedAddress>,
    pub raised: Vec<IfName>,
    pub forwarding: Vec<BorrowedForwarding>,
    pub listening: Vec<IfName>,
}

impl Borrowed {
    /// Everything that is borrowed, from the state file.
    pub(crate) fn of(state: &State) -> Self {
        Self {
            addresses: state.borrowed.clone(),
            raised: state.raised.clone(),
            forwarding: state.forwarding.clone(),
            listening: state.listening.clone(),
        }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.raised.is_empty() && self.forwarding.is_empty() && self.listening.is_empty()
    }

    /// The steps that undo them: addresses are removed, forwarding is switched off, bridges are set down. Bridges that
    /// are gone need no step.
    fn steps(&self, observed: &Observed) -> Vec<Op> {
        let link = |name: &IfName| observed.links.get(name.as_str());
        let has = |b: &&BorrowedAddress| link(&b.link).is_some_and(|l| observed.has_address(l.index, b.address));
        let mut ops = Vec::new();
        for BorrowedAddress { link: name, address } in self.addresses.iter().filter(has) {
            ops.extend(link(name).map(|l| Op::RemoveAddress {
                link: l.name.clone(),
                index: l.index,
                address: *address,
            }));
        }
        let raised = self.raised.iter().filter_map(link).filter(|l| l.up);
        ops.extend(raised.map(|l| Op::SetDown { link: l.name.clone(), index: l.index }));
        for BorrowedForwarding { link: name, family } in self.forwarding.iter().filter(|f| link(&f.link).is_some()) {
            let family = if family == "ipv4" { "ipv4" } else { "ipv6" };
            let sysctl = LinkSysctl { family, link: name.clone(), key: "forwarding" };
            ops.push(Op::SetSysctl { sysctl, value: "0".to_owned() });
        }
        ops
    }

    /// Undoes the changes. Returns everything that failed.
    pub(crate) async fn give_back(&self, kernel: &mut Host<'_>) -> Vec<Failure> {
        let observed = match kernel.observe_device().await {
            Ok(observed) => observed,
            Err(e) => return vec![e.into()],
        };
        let mut ops = self.steps(&observed);
        // `accept_ra` comes last, since with 1 a forwarding bridge accepts no router advertisements. If somebody has
        // changed it since, it stays.
        let is_ours = |link: &&IfName| sysctl::get("ipv6", link, "accept_ra").as_deref() == Some("2");
        for link in self.listening.iter().filter(is_ours) {
            let sysctl = LinkSysctl { family: "ipv6", link: link.clone(), key: "accept_ra" };
            ops.push(Op::SetSysctl { sysctl, value: "1".to_owned() });
        }
        let mut failures = Vec::new();
        for op in ops {
            failures.extend(kernel.apply(&op).await.err().map(|e| Failure::from(e).about(&op)));
        }
        failures
    }
}
