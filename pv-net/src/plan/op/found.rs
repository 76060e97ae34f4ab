//! What was wrong in the kernel that a step of a repair puts right, as text for the event `repaired`.

use super::Op;
use crate::plan::{Observed, ProgramState};
use std::net::IpAddr;

fn program(state: Option<&ProgramState>, what: &str) -> String {
    match state {
        Some(ProgramState::Other(id)) => format!("program {id} was in the place of {what}"),
        Some(ProgramState::Lost) => format!("{what}: not attached any more"),
        Some(ProgramState::Own) | None => format!("{what}: missing"),
    }
}

impl Op {
    /// What is wrong in `before`, the state of the kernel, that this step puts right. `None` for a step that only
    /// follows from another one.
    #[must_use]
    pub fn found(&self, before: &Observed) -> Option<String> {
        let exists = |index: u32| before.link(index).is_some();
        Some(match self {
            Self::SetInterface { host_if, index, .. } => match before.interfaces.get(index) {
                Some(_) => format!("{host_if}: another entry of the map interfaces"),
                None => format!("{host_if}: no entry of the map interfaces"),
            },
            Self::RemoveInterface { index } => format!("an entry of the map interfaces for link {index}"),
            Self::AttachPrograms { host_if, index } => {
                program(before.hooks.as_ref()?.get(index), &format!("programs on {host_if}"))
            }
            Self::DetachPrograms { index } => format!("pins of link {index}, that is gone"),
            Self::Enslave { host_if, index, .. } if exists(*index) => format!("{host_if}: not a port of its bridge"),
            Self::SetUp { link, index } if before.link(*index).is_some_and(|l| !l.up) => format!("{link}: down"),
            Self::SetDown { link, index } if before.is_guarded(*index) => {
                format!("{link}: up, though its traffic is stopped")
            }
            Self::Rename { link, index, name } if exists(*index) => format!("{name}: called {link}"),
            Self::SetEndpoint { addr, .. } => match before.endpoints.get(addr) {
                Some(_) => format!("another entry for endpoint {}", IpAddr::from(*addr)),
                None => format!("no entry for endpoint {}", IpAddr::from(*addr)),
            },
            Self::RemoveEndpoint { addr } => format!("an entry for endpoint {}, that is nobody's", IpAddr::from(*addr)),
            Self::MakeBridge(bridge) => format!("bridge {}: not there", bridge.name),
            Self::MakeDeviceIf(own) => format!("{}: not there", own.name),
            Self::AddRoute { link, route } if exists(route.link) => {
                format!("{link}: without its route to {}", route.to)
            }
            Self::SetMac { link, index, .. } if exists(*index) => format!("{link}: another MAC"),
            Self::SetMtu { link, index, .. } if exists(*index) => {
                format!("{link}: MTU {}", before.link(*index).map_or(0, |l| l.mtu))
            }
            Self::SetAlias { link, index, .. } if exists(*index) => format!("{link}: without its mark"),
            Self::AddAddress { link, index, address, .. } if exists(*index) => format!("{link}: without {address}"),
            Self::SetSysctl { sysctl, .. } => {
                let value = before.sysctls.get(sysctl)?;
                format!("net.{}.conf.{}.{} = {value}", sysctl.family, sysctl.link, sysctl.key)
            }
            Self::Hook { at, link, index } if exists(*index) => {
                program(before.hooked.get(&(*at, *index)), &format!("{at} {link}"))
            }
            Self::Unhook { at, link, .. } => format!("{at} {link}, where none belongs"),
            Self::Set(entry) => match before.tables.get(entry) {
                Some(other) => format!("{other} in the place of another"),
                None => format!("{entry}: missing"),
            },
            Self::Remove(entry) => format!("{entry}, that does not belong there"),
            Self::SetNatRange { .. } => format!("masquerade's ports from {}", before.nat_first_port),
            Self::ReservePorts { .. } => format!("reserved ports {:?}", before.reserved_ports),
            Self::Enslave { .. }
            | Self::SetUp { .. }
            | Self::SetDown { .. }
            | Self::Rename { .. }
            | Self::SetMac { .. }
            | Self::SetMtu { .. }
            | Self::SetAlias { .. }
            | Self::AddAddress { .. }
            | Self::Hook { .. }
            | Self::Release { .. }
            | Self::DeleteLink { .. }
            | Self::DeleteBridge { .. }
            | Self::DeleteDeviceIf { .. }
            | Self::AddRoute { .. }
            | Self::RemoveRoute { .. }
            | Self::RemoveAddress { .. }
            | Self::EndFlows { .. }
            | Self::EndUplinkFlows { .. }
            | Self::EndPortFlows { .. }
            | Self::RenewRoutes => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::plan::fixture::{desired, whole};
    use crate::plan::{Observed, ProgramState, diff};

    fn found(now: &Observed) -> Vec<String> {
        diff(&desired(&[7], true), now).iter().filter_map(|op| op.found(now)).collect()
    }

    #[test]
    fn what_was_changed_is_named_and_what_follows_from_it_is_not() {
        let well = whole(&[7], true);
        assert_eq!(found(&well), Vec::<String>::new());
        let mut swapped = well.clone();
        swapped.hooks = Some([(107, ProgramState::Other(9))].into());
        assert_eq!(found(&swapped), ["program 9 was in the place of programs on pv7"]);
        let mut detached = well.clone();
        detached.hooks = Some([(107, ProgramState::Lost)].into());
        assert_eq!(found(&detached), ["programs on pv7: not attached any more"]);
        let mut down = well;
        let link = down.links.get_mut("pv7").expect("there");
        (link.up, link.controller) = (false, None);
        down.interfaces.clear();
        assert_eq!(found(&down), ["pv7: no entry of the map interfaces", "pv7: not a port of its bridge", "pv7: down"]);
    }
}
