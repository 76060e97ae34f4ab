//! Reconciliation: observes the kernel, plans and applies; after a start, a reload, and changes of links (`changes.rs`).

use super::Daemon;
use super::execute::{Failed, carry_out};
use super::leases::Learned;
use super::macvlan::on_another_parent;
use crate::failure::Failure;
use crate::ipam::store::{self, ContainerRecord, RunText};
use crate::kernel::bpf::{DataPlane, Hook};
use crate::kernel::link::host_if_name;
use crate::kernel::netlink::{LinkInfo, alias};
use crate::kernel::{Host, Kernel};
use crate::model::{Attachment, IfName, PoolName};
use crate::plan::{Desired, Observed, Op, addresses, device_if_traces, diff, endpoint, misnamed, misplaced};
use pv_net_common::Ip;
use std::collections::BTreeSet;
use std::sync::Arc;

impl Daemon {
    /// Brings the kernel to what configuration and state say.
    pub(super) async fn reconcile(&mut self) -> Result<(), Failure> {
        if !self.is_active() {
            return Ok(());
        }
        let _quick = (!self.is_rehearsing()).then(|| self.grace.expedite());
        self.failed_steps.clear();
        self.restore_marks().await?;
        self.restore_names().await?;
        // Twice, because pools take their MTU from the uplinks in use, and these are known only after the pools'
        // bridges.
        for _ in 0..2 {
            self.ensure_pools().await?;
            self.refresh_uplinks().await?;
            if !std::mem::take(&mut self.mtu_changed) {
                break;
            }
        }
        self.container_conditions.clear();
        let observed = self.host().observe().await?;
        self.note_links(&observed);
        let desired = self.desired(&observed);
        let ops = diff(&desired, &observed);
        let failed = carry_out(&mut self.host(), &ops).await;
        // Failures are noted before anything else may set a closed link up again.
        self.note_failures(failed);
        self.hold(&desired, &observed).await?;
        self.device_ifs.extend(device_if_traces(&observed));
        self.follow_device_ifs().await;
        self.unhook_old_bridges().await?;
        let links: Vec<LinkInfo> = observed.links.into_values().collect();
        self.fit_links(&links).await;
        self.look_at_firewall();
        self.refresh_port_map().await?;
        self.save()
    }

    /// The kernel, for the steps of a plan.
    pub(super) fn host(&mut self) -> Host<'_> {
        let (rehearsal, repair) = (self.rehearsal.as_mut(), self.under_repair.as_mut());
        Host { net: &self.net, plane: self.plane.as_mut(), rehearsal, repair }
    }

    /// Carries out steps on which no container's link depends, up to the first that fails.
    ///
    /// # Errors
    /// The failure of that step.
    pub(super) async fn apply_all(&mut self, ops: &[Op]) -> Result<(), Failure> {
        let mut host = self.host();
        for op in ops {
            tracing::debug!(%op, "apply");
            host.apply(op).await.map_err(|e| Failure::from(e).about(op))?;
        }
        Ok(())
    }

    /// Whether the data plane is loaded, or this is a rehearsal of loading it.
    pub(super) const fn is_active(&self) -> bool {
        self.plane.is_some() || self.is_rehearsing()
    }

    /// Whether steps are only noted.
    pub(super) const fn is_rehearsing(&self) -> bool {
        self.rehearsal.is_some()
    }

    /// How programs are attached on this kernel.
    pub(super) fn hook(&self) -> Hook {
        self.plane.as_ref().map_or_else(Hook::of_kernel, DataPlane::hook)
    }

    /// Writes the state file; does nothing in a rehearsal.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn save(&self) -> Result<(), Failure> {
        if self.is_rehearsing() {
            return Ok(());
        }
        Ok(store::save(&self.paths.state_dir, &self.state)?)
    }

    /// Notes which of the attached containers' links exist.
    fn note_links(&mut self, observed: &Observed) {
        let before = std::mem::take(&mut self.links);
        self.pairs.clear();
        let records: Vec<_> = self.state.containers.values().cloned().collect();
        for attachment in records.iter().flat_map(|record| &record.attachments) {
            if let Some(link) = observed.host_side(attachment.host_if.as_str()) {
                self.note_link(link, attachment);
            }
        }
        // The kernel's message about a link that is gone comes later, and finds it unknown.
        let gone = before.into_iter().filter(|(index, _)| !self.links.contains_key(index));
        self.thinned.extend(gone.map(|(_, (container, _))| container));
    }

    /// Notes that an attached container's link exists.
    pub(super) fn note_link(&mut self, link: &LinkInfo, attachment: &Attachment) {
        self.links.insert(link.index, (attachment.container.clone(), attachment.host_if.clone()));
        if let Some(kind) = link.pair() {
            self.pairs.insert(link.index, kind);
        }
    }

    /// The desired state of the attached containers. A container whose pool has changed or is not available is held.
    pub(super) fn desired(&mut self, observed: &Observed) -> Desired {
        let mut desired = Desired::default();
        let attachments: Vec<Attachment> =
            self.state.containers.values().flat_map(|r| r.attachments.iter().cloned()).collect();
        let misnamed = misnamed(observed, &attachments, &[]);
        let of_state: BTreeSet<&str> = attachments.iter().map(|a| a.host_if.as_str()).collect();
        for link in observed.links.values().filter(|l| l.is_containers() && !of_state.contains(l.name.as_str())) {
            let Ok(name) = link.name.parse::<IfName>() else { continue };
            let own = misnamed.iter().find(|(index, _)| *index == link.index);
            let why = match own {
                Some((_, own)) => {
                    format!("link {name}: its name is {own}, that another link has: its traffic is stopped")
                }
                None => format!("link {name}: no attached container has it: its traffic is stopped"),
            };
            let attachment = own.and_then(|(_, own)| attachments.iter().find(|a| a.host_if == *own));
            if let Some(attachment) = attachment {
                self.container_conditions.note(&attachment.container, Some(&attachment.host_if), why.clone());
            }
            desired.held.insert(name, why);
        }
        for attachment in attachments {
            let pool = self.device.pools.get(&attachment.pool).zip(self.pools.get(&attachment.pool));
            let why = match pool {
                None => Some(self.why_not_available(&attachment.pool)),
                Some((pool, link)) => {
                    misplaced(&attachment, pool).or_else(|| on_another_parent(&attachment, link, observed))
                }
            };
            if let Some(why) = why {
                let Attachment { container, interface, host_if, .. } = attachment;
                let why = format!("interface {interface}: its traffic is stopped: {why}");
                self.container_conditions.note(&container, Some(&host_if), why.clone());
                desired.held.insert(host_if, format!("container {container}: {why}"));
            } else if let Some((pool, link)) = pool {
                let identity = self.state.identity(&attachment.container);
                desired.endpoints.insert(attachment.host_if.clone(), endpoint(&attachment, pool, link, identity));
            }
        }
        desired
    }

    fn why_not_available(&self, pool: &PoolName) -> String {
        let why = self.pool_conditions.get(pool).map_or("it is not in the configuration", String::as_str);
        format!("pool {pool} is not available: {why}")
    }

    /// Turns failed steps into conditions, also of their containers.
    fn note_failures(&mut self, failed: Vec<Failed>) {
        self.closed = failed.iter().filter_map(|f| f.link).collect();
        for Failed { link, why } in failed {
            if let Some((container, host_if)) = link.and_then(|index| self.links.get(&index)) {
                self.container_conditions.note(container, Some(host_if), why.clone());
            }
            self.failed_steps.push(why);
        }
    }

    /// Notes the links that are held, and ends their flows each time: a daemon that died between two steps may have
    /// left some, and packets of known flows pass without a look at the interface.
    async fn hold(&mut self, desired: &Desired, observed: &Observed) -> Result<(), Failure> {
        self.held.clear();
        for (host_if, why) in &desired.held {
            if let Some(link) = observed.host_side(host_if.as_str()) {
                tracing::warn!(%host_if, %why, "held");
                self.held.insert(link.index, (host_if.clone(), why.clone()));
            }
        }
        let is_held = |a: &&Attachment| desired.held.contains_key(&a.host_if);
        let attachments = self.state.containers.values().flat_map(|r| &r.attachments).filter(is_held);
        let addresses: Vec<Ip> = attachments.flat_map(|a| addresses(a, 0)).collect();
        if !addresses.is_empty() {
            self.host().apply(&Op::EndFlows { addresses }).await?;
        }
        Ok(())
    }

    /// Learns the leases of containers whose links exist but which are not in the state: their addresses are in use.
    pub(super) async fn learn_leases(&mut self) -> Result<(), Failure> {
        let links = self.net.links().await?;
        let mut found: Vec<Attachment> =
            links.iter().filter_map(|l| alias::to_attachment(&l.name, l.alias.as_deref()?)).collect();
        // Somebody may have renamed the link.
        found.iter_mut().for_each(|a| a.host_if = host_if_name(&a.container, &a.interface));
        found.retain(|a| self.state.containers.get(&a.container).is_none_or(|r| !r.attachments.contains(a)));
        let learned = self.learn_all(&found).await?;
        for (attachment, learned) in found.into_iter().zip(learned) {
            let Attachment { container, host_if, .. } = &attachment;
            if let Learned::Held(holder) = learned {
                self.start_conditions.push(format!("link {host_if}: its address is leased to {holder}"));
                continue;
            }
            self.start_conditions.push(format!("{container} learned again from link {host_if}"));
            self.learn_record(attachment);
        }
        Ok(())
    }

    /// Gives containers that were learned from their links the limits of their declarations, which alone still tell them.
    pub(super) fn limit_learned(&mut self) {
        for (name, declared) in &self.declared {
            let learned = self.state.containers.get_mut(name).filter(|record| record.netns.is_none());
            if let (Some(record), Some(sockets)) = (learned, &declared.container.sockets) {
                Arc::make_mut(record).sockets.get_or_insert_with(|| Arc::new(sockets.clone()));
            }
        }
    }

    fn learn_record(&mut self, attachment: Attachment) {
        let name = attachment.container.clone();
        let record = self.state.containers.entry(name).or_insert_with(|| {
            Arc::new(ContainerRecord {
                run: RunText::from(&serde_json::json!({
                    "name": attachment.container, "network": {"interfaces": []},
                })),
                ..ContainerRecord::default()
            })
        });
        let record = Arc::make_mut(record);
        let mut interface = serde_json::json!({"name": attachment.interface, "pool": attachment.pool});
        if let Some(wish) = attachment.default_route {
            interface["default_route"] = wish.into();
        }
        let mut run = record.run.value();
        if let Some(list) = run.pointer_mut("/network/interfaces").and_then(serde_json::Value::as_array_mut) {
            list.push(interface);
            record.run = RunText::from(&run);
        }
        record.attachments.push(attachment);
    }
}
