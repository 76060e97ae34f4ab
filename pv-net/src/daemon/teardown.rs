//! `pv-net down`: restores the device as it was before the first start.

use super::Paths;
use super::borrowed::Borrowed;
use super::{clsact, own_ports};
use crate::failure::{Failure, Message};
use crate::ipam::store::{self, ContainerRecord, State};
use crate::kernel::Host;
use crate::kernel::bpf;
use crate::kernel::broker::Broker;
use crate::kernel::grace::GracePeriods;
use crate::kernel::kill_point;
use crate::kernel::link::{arrange, end_in};
use crate::kernel::netlink::{Net, NetError, alias};
use crate::lease;
use crate::model::{ContainerName, IfName};
use futures_util::FutureExt;
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Removes pv-net's rules from the namespaces of containers with several interfaces. Without their links the rules have no
/// effect, so a namespace that does not answer keeps nothing else from being removed.
async fn tidy(state: &State, net: &Net, broker: &Broker) {
    let several = state.containers.iter().filter(|(_, record)| record.attachments.len() > 1);
    let one = |(name, record): (&ContainerName, &Arc<ContainerRecord>)| {
        let (name, record) = (name.clone(), record.clone());
        async move {
            let Some(reference) = &record.netns else { return Ok(()) };
            let netns = match broker.open(reference).await {
                Err(e) if e.is_gone() => return Ok(()),
                other => other.map_err(NetError::from)?,
            };
            for attachment in &record.attachments {
                let Some(link) = net.link(attachment.host_if.as_str()).await? else { continue };
                if end_in(net, link.index, &netns).await?.is_some() {
                    arrange(&[], &netns).await?;
                    break;
                }
            }
            Ok::<(), NetError>(())
        }
        .map(move |done| (name, done))
    };
    for (name, done) in join_all(several.map(one)).await {
        if let Err(e) = done {
            tracing::warn!(container = %name, error = %e, "routing rules left in its namespace");
        }
    }
}

/// Removes everything that pv-net made: containers' links, pins, bridges, addresses on other bridges, and state. When
/// something fails the rest is removed all the same. Without a `broker` nothing is done inside namespaces.
///
/// # Errors
/// Everything that could not be removed.
pub async fn teardown(paths: &Paths, broker: Option<&Broker>) -> Result<(), Failure> {
    let _points = kill_point::begin("down");
    let mut failures: Vec<Failure> = Vec::new();
    // Dropping this restores grace periods that a killed daemon left shortened.
    drop(GracePeriods::new(paths.grace_marker()));
    let net = Net::here()?;
    let stored = store::load(&paths.state_dir);
    let known: BTreeMap<IfName, (String, [u8; 6])> = stored
        .iter()
        .flat_map(|(state, _)| state.containers.values())
        .flat_map(|record| &record.attachments)
        .map(|a| (a.host_if.clone(), (alias::of_attachment(a), a.mac.0)))
        .collect();
    let found = bpf::children::discover(&paths.bpffs, |host_if| known.get(host_if).cloned());
    failures.extend(found.err().map(Failure::from));
    if let (Ok((state, _)), Some(broker)) = (&stored, broker) {
        tidy(state, &net, broker).await;
    }
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
            if bpf::children::is_number(link.index) {
                failures.extend(bpf::children::close(&paths.bpffs, link.index).err().map(Failure::from));
            } else {
                failures.extend(net.set_down(&link.name, link.index).await.err().map(Failure::from));
            }
        }
    }
    match stored {
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
        failures.extend(paths.remove_detached().err());
        failures.extend(paths.remove_resolv_confs().err());
        failures.extend(paths.remove_resolved().err());
    }
    let Some(kind) = failures.iter().map(|f| f.kind).max() else { return Ok(()) };
    let messages: Vec<Message> = failures.into_iter().flat_map(|f| f.messages).collect();
    Err(Failure { kind, messages })
}
