//! `pv-net down`: restores the device as it was before the first start.

use super::Paths;
use super::borrowed::Borrowed;
use super::{clsact, declared, own_ports};
use crate::failure::{Failure, Message};
use crate::ipam::store;
use crate::kernel::Host;
use crate::kernel::bpf;
use crate::kernel::grace::GracePeriods;
use crate::kernel::kill_point;
use crate::kernel::netlink::{Net, alias};
use crate::lease;

/// Removes everything that pv-net made: containers' links, pins, bridges, addresses on other bridges, and state. When
/// something fails the rest is removed all the same.
///
/// # Errors
/// Everything that could not be removed.
pub async fn teardown(paths: &Paths) -> Result<(), Failure> {
    let _points = kill_point::begin("down");
    let mut failures: Vec<Failure> = Vec::new();
    // Dropping this restores grace periods that a killed daemon left shortened.
    drop(GracePeriods::new(paths.grace_marker()));
    let net = Net::here()?;
    // Containers' links go first, since a link must keep its guard as long as it exists.
    let mut links = net.links().await?;
    links.retain(|l| alias::is_ours(l.alias.as_deref()));
    links.sort_by_key(|l| l.kind.as_deref() == Some("bridge"));
    let mut all_gone = true;
    for link in links {
        let Err(e) = net.delete_link(&link.name, link.index).await else { continue };
        failures.push(e.into());
        if link.kind.as_deref() != Some("bridge") {
            // A link that stays keeps its programs, and the state that records it.
            all_gone = false;
            failures.extend(net.set_down(&link.name, link.index).await.err().map(Failure::from));
        }
    }
    match store::load(&paths.state_dir) {
        Ok((state, _)) => {
            for hook in &state.clsact {
                failures.extend(clsact::remove(hook, &net).await.err());
            }
            let mut host = Host { net: &net, plane: None, rehearsal: None, repair: None };
            failures.extend(Borrowed::of(&state).give_back(&mut host).await);
            failures.extend(own_ports::give_back(&state).err());
        }
        Err(e) => failures.push(e.into()),
    }
    if all_gone {
        failures.extend(bpf::remove_all(&paths.bpffs).err().map(Failure::from));
        // Leases go first: if this is killed in between, the lease of a known container is learned again, while a lease
        // without a container would stay forever.
        failures.extend(lease::remove(&paths.state_dir).err().map(Failure::from));
        failures.extend(store::remove(&paths.state_dir).err().map(Failure::from));
        failures.extend(declared::remove(paths).err());
        failures.extend(paths.remove_resolv_confs().err());
        failures.extend(paths.remove_resolved().err());
    }
    let Some(kind) = failures.iter().map(|f| f.kind).max() else { return Ok(()) };
    let messages: Vec<Message> = failures.into_iter().flat_map(|f| f.messages).collect();
    Err(Failure { kind, messages })
}
