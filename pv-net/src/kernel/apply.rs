//! Carries out the steps of a plan in the kernel of this machine.

use super::bpf::children::is_number;
use super::bpf::{DataPlane, Ended};
use super::link::set_link_sysctl;
use super::netlink::Net;
use super::{Kernel, KernelError, challenge_ack, sysctl};
use crate::model::alias;
use crate::plan::{Link, Observed, Op};
use pv_net_common::{FlowEntry, FlowKey, LinkId};

/// The kernel of this machine, as the plan sees it.
pub struct Host<'a> {
    /// Its links.
    pub net: &'a Net,
    /// Its programs and maps; `None` while they are not loaded.
    pub plane: Option<&'a mut DataPlane>,
    /// Set for a rehearsal: nothing is changed, the steps are only noted.
    pub rehearsal: Option<&'a mut Rehearsal>,
    /// Set for a repair: the steps that put something right are noted.
    pub repair: Option<&'a mut Repair>,
}

/// A repair under way: the last observation of the kernel, and the steps since then that put something right, each with
/// what was wrong. The observation is kept up to date with each step, since somebody may change more between the
/// observation that started the repair and a step.
#[derive(Clone, Debug, Default)]
pub struct Repair {
    seen: Observed,
    /// The steps.
    pub done: Vec<(Op, String)>,
}

impl Repair {
    fn note(&mut self, op: &Op) {
        self.done.extend(op.found(&self.seen).map(|found| (op.clone(), found)));
        self.seen.apply(op);
    }
}

/// The record of a plan that is not carried out.
#[derive(Clone, Debug, Default)]
pub struct Rehearsal {
    /// What the kernel would hold by now.
    pub holds: Observed,
    /// The steps so far, in order.
    pub ops: Vec<Op>,
}

impl Host<'_> {
    fn plane(&mut self) -> Result<&mut DataPlane, KernelError> {
        self.plane.as_deref_mut().ok_or(KernelError::NotLoaded)
    }

    /// Carries out a step about a macvlan interface that means something else there; `None` for all other steps. What is
    /// set down or up on a host-side link is closed or open there by the interface's entry in the map `interfaces`: the
    /// link itself is the container's.
    fn apply_to_child(&mut self, op: &Op) -> Option<Result<(), KernelError>> {
        match op {
            Op::SetDown { index, .. } if is_number(*index) => {
                Some(self.plane().and_then(|plane| Ok(plane.remove_interface(LinkId::of_index(*index))?)))
            }
            Op::SetUp { index, .. } | Op::Enslave { index, .. } | Op::SetAlias { index, .. } if is_number(*index) => {
                Some(Ok(()))
            }
            _ => None,
        }
    }

    /// Ends flows, and tells containers that their TCP connections have ended.
    fn end_flows(&mut self, hit: impl Fn(&FlowKey, &FlowEntry) -> bool) -> Result<(), KernelError> {
        let ended: Vec<Ended> = self.plane()?.end_flows_where(hit)?;
        challenge_ack::tell(&ended);
        Ok(())
    }
}

impl Kernel for Host<'_> {
    async fn observe(&mut self) -> Result<Observed, KernelError> {
        match &self.rehearsal {
            Some(rehearsal) => Ok(rehearsal.holds.clone()),
            None => {
                let mut observed = super::observe::device(self).await?;
                super::observe::containers(self, &mut observed).await?;
                if let Some(repair) = &mut self.repair {
                    repair.seen = observed.clone();
                }
                Ok(observed)
            }
        }
    }

    async fn observe_device(&mut self) -> Result<Observed, KernelError> {
        match &self.rehearsal {
            Some(rehearsal) => Ok(rehearsal.holds.clone()),
            None => {
                let observed = super::observe::device(self).await?;
                if let Some(repair) = &mut self.repair {
                    repair.seen = observed.clone();
                }
                Ok(observed)
            }
        }
    }

    async fn apply(&mut self, op: &Op) -> Result<(), KernelError> {
        if let Some(rehearsal) = &mut self.rehearsal {
            rehearsal.holds.apply(op);
            rehearsal.ops.push(op.clone());
            return Ok(());
        }
        let net = self.net;
        if let Some(done) = self.apply_to_child(op) {
            return done;
        }
        match op {
            Op::SetInterface { index, info, .. } => self.plane()?.set_interface(LinkId::of_index(*index), info)?,
            Op::RemoveInterface { index } => self.plane()?.remove_interface(LinkId::of_index(*index))?,
            Op::AttachPrograms { host_if, index } => self.plane()?.attach(host_if, *index)?,
            Op::DetachPrograms { index } => self.plane()?.detach(*index)?,
            Op::SetEndpoint { addr, info } => self.plane()?.set_endpoint(*addr, info)?,
            Op::RemoveEndpoint { addr } => self.plane()?.remove_endpoint(*addr)?,
            Op::EndFlows { .. } => self.plane()?.end_flows_where(|key, entry| op.ends(key, entry)).map(drop)?,
            Op::SetSysctl { sysctl, value } => set_link_sysctl(sysctl, value)?,
            Op::Hook { at, link, index } => self.plane()?.hook_at(*at, link, *index)?,
            Op::Unhook { at, link, index } => self.plane()?.unhook_at(*at, link, *index)?,
            Op::Set(entry) => self.plane()?.set_entry(entry)?,
            Op::Remove(entry) => self.plane()?.remove_entry(entry)?,
            Op::SetNatRange { first } => self.plane()?.set_nat_range(*first)?,
            Op::ReservePorts { list } => sysctl::write(sysctl::RESERVED_PORTS, list)?,
            Op::EndUplinkFlows { .. } | Op::EndPortFlows { .. } => self.end_flows(|key, entry| op.ends(key, entry))?,
            Op::RenewRoutes => self.plane()?.routes_changed()?,
            Op::Enslave { host_if, index, bridge, mac } => {
                net.enslave(host_if.as_str(), *index, *bridge).await?;
                net.hold_mac(host_if.as_str(), *index, *mac).await?;
            }
            Op::Release { host_if, index } => net.enslave(host_if.as_str(), *index, 0).await?,
            Op::SetUp { link, index } => net.set_up(link, *index).await?,
            Op::SetDown { link, index } => net.set_down(link, *index).await?,
            Op::Rename { link, index, name } => net.rename(link, *index, name).await?,
            Op::DeleteLink { link, index } => net.delete_link(link, *index).await?,
            Op::MakeBridge(bridge) => net.make_bridge(bridge).await?,
            Op::DeleteBridge { name } => {
                let found = net.link(name.as_str()).await?;
                if let Some(link) = found.filter(|l| alias::is_ours(l.alias.as_deref())) {
                    net.delete_link(name.as_str(), link.index).await?;
                }
            }
            Op::MakeDeviceIf(own) => net.make_device_if(own).await?,
            Op::DeleteDeviceIf { name } => {
                let found = net.link(name.as_str()).await?;
                if let Some(link) = found.filter(Link::is_device_if) {
                    net.delete_link(name.as_str(), link.index).await?;
                }
            }
            Op::AddRoute { route, .. } => net.add_host_route(*route).await?,
            Op::RemoveRoute { route, .. } => net.remove_host_route(*route).await?,
            Op::SetMac { link, index, mac } => net.set_mac(link, *index, *mac).await?,
            Op::SetMtu { link, index, mtu } => net.set_mtu(link, *index, *mtu).await?,
            Op::SetAlias { link, index, alias } => net.set_alias(link, *index, alias).await?,
            Op::AddAddress { link, index, address, deprecated } => {
                net.add_address(link, *index, *address, *deprecated).await?;
            }
            Op::RemoveAddress { link, index, address } => net.delete_address(link, *index, *address).await?,
        }
        if let Some(repair) = &mut self.repair {
            repair.note(op);
        }
        Ok(())
    }
}
