//! `pv-net down`: the device as it was before the first start.

use super::Paths;
use super::borrowed::Borrowed;
use super::{clsact, own_ports};
use crate::failure::{Failure, Message};
use crate::ipam::store;
use crate::kernel::bpf;
use crate::kernel::grace::GracePeriods;
use crate::kernel::kill_point;
use crate::kernel::netlink::{Net, alias};

/// Removes everything that pv-net made: containers' links, pins, bridges, addresses on bridges of others, state. What
/// fails is reported at the end; the rest is removed all the same.
///
/// # Errors
/// All that could not be removed.
pub async fn teardown(paths: &Paths) -> Result<(), Failure> {
    let _points = kill_point::begin("down");
    let mut failures: Vec<Failure> = Vec::new();
    // A daemon that was killed may have left them short.
    drop(GracePeriods::new(paths.grace_marker()));
    let net = Net::here()?;
    // Containers' links first: while one is there, its guard is too.
    let mut links = net.links().await?;
    links.retain(|l| alias::is_ours(l.alias.as_deref()));
    links.sort_by_key(|l| l.kind.as_deref() == Some("bridge"));
    for link in links {
        if let Err(e) = net.delete_link(&link.name, link.index).await {
            failures.push(e.into());
        }
    }
    match store::load(&paths.state_dir) {
        Ok((state, _)) => {
            for hook in &state.clsact {
                failures.extend(clsact::remove(hook, &net).await.err());
            }
            failures.extend(Borrowed::of(&state).give_back(&net).await);
            failures.extend(own_ports::give_back(&state).err());
        }
        Err(e) => failures.push(e.into()),
    }
    failures.extend(bpf::remove_all(&paths.bpffs).err().map(Failure::from));
    failures.extend(store::remove(&paths.state_dir).err().map(Failure::from));
    let Some(kind) = failures.iter().map(|f| f.kind).max() else { return Ok(()) };
    let messages: Vec<Message> = failures.into_iter().flat_map(|f| f.messages).collect();
    Err(Failure { kind, messages })
}
