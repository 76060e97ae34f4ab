//! The steps of a plan, carried out in the kernel that this runs on.

use super::bpf::DataPlane;
use super::netlink::Net;
use super::{Kernel, KernelError};
use crate::plan::{Observed, Op};

/// The kernel of the device.
pub struct Host<'a> {
    /// Its links.
    pub net: &'a Net,
    /// Its programs and maps, when they are loaded.
    pub plane: Option<&'a mut DataPlane>,
}

impl Host<'_> {
    fn plane(&mut self) -> Result<&mut DataPlane, KernelError> {
        self.plane.as_deref_mut().ok_or(KernelError::NotLoaded)
    }
}

impl Kernel for Host<'_> {
    async fn observe(&mut self) -> Result<Observed, KernelError> {
        super::observe::observe(self).await
    }

    async fn apply(&mut self, op: &Op) -> Result<(), KernelError> {
        let net = self.net;
        match op {
            Op::SetInterface { index, info, .. } => self.plane()?.set_interface(*index, info)?,
            Op::RemoveInterface { index } => self.plane()?.remove_interface(*index)?,
            Op::AttachPrograms { host_if, .. } => self.plane()?.attach(host_if)?,
            Op::DetachPrograms { host_if } => self.plane()?.detach(host_if)?,
            Op::Enslave { host_if, index, bridge, mac } => {
                net.enslave(host_if.as_str(), *index, *bridge).await?;
                net.hold_mac(host_if.as_str(), *index, *mac).await?;
            }
            Op::Release { host_if, index } => net.enslave(host_if.as_str(), *index, 0).await?,
            Op::SetUp { link, index } => net.set_up(link, *index).await?,
            Op::SetDown { link, index } => net.set_down(link, *index).await?,
            Op::DeleteLink { link, index } => net.delete_link(link, *index).await?,
            Op::SetEndpoint { addr, info } => self.plane()?.set_endpoint(*addr, info)?,
            Op::RemoveEndpoint { addr } => self.plane()?.remove_endpoint(*addr)?,
            Op::EndFlows { addresses } => self.plane()?.end_flows(addresses)?,
        }
        Ok(())
    }
}
