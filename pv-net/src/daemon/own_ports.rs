//! The device's own ports against those of containers: the device wins. What it takes by itself is kept apart from
//! masquerade's range and from published ports (`ip_local_reserved_ports`); what it has already stays its own.

use super::Daemon;
use crate::failure::{Failure, Kind};
use crate::ipam::store::{self, ReservedPorts};
use crate::kernel::listeners::{self, Listener};
use crate::kernel::sysctl::{self, LOCAL_PORT_RANGE, RESERVED_PORTS};
use crate::model::Transport;
use crate::plan::{PortSet, Published, nat_range, reserved};
use pv_net_common::flow::{FLOW_NAT, FLOW_NEIGHBOUR};
use std::ops::RangeInclusive;

/// The kernel's default.
const DEFAULT_LOCAL: RangeInclusive<u16> = 32_768..=60_999;
/// Sockets that are named; of more only the number is said.
const NAMED: usize = 3;

/// What the device's connections have their ports from.
fn local_range() -> RangeInclusive<u16> {
    let text = sysctl::read(LOCAL_PORT_RANGE).unwrap_or_default();
    let ports: Vec<u16> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    if let [first, last] = ports[..] { first..=last } else { DEFAULT_LOCAL }
}

fn current() -> Result<PortSet, Failure> {
    let text = sysctl::read(RESERVED_PORTS)?;
    PortSet::parse(&text).ok_or_else(|| Failure::new(Kind::Internal, format!("{RESERVED_PORTS} is {text:?}")))
}

/// Gives the device back what was reserved.
///
/// # Errors
/// The kernel's.
pub(super) fn give_back(state: &store::State) -> Result<(), Failure> {
    let Some(ReservedPorts { was, ours }) = &state.reserved_ports else { return Ok(()) };
    let set = |text: &str| PortSet::parse(text).unwrap_or_default();
    let now = current()?;
    let back = now.without(&set(ours), &set(was));
    if back != now {
        sysctl::write(RESERVED_PORTS, &back.to_string())?;
    }
    Ok(())
}

impl Daemon {
    /// Chooses masquerade's range and keeps it and the published ports out of the device's automatic binds. Where that
    /// is not to be had it is a condition: explicit binds and sockets are looked at all the same.
    ///
    /// # Errors
    /// The disk's, and those of the maps.
    pub(super) fn keep_ports_apart(&mut self, published: &[Published]) -> Result<(), Failure> {
        self.port_conditions.clear();
        let local = local_range();
        let range = nat_range(&local);
        self.plane()?.set_nat_range(*range.start())?;
        let masquerades = self.device.pools.values().any(|pool| pool.nat);
        let ports = published.iter().map(|p| &p.mapping.host_ports);
        let (ours, refused) = reserved(&local, masquerades.then_some(&range), ports);
        for ports in refused {
            self.port_conditions.push(format!(
                "published ports {}-{}: they are most of net.ipv4.ip_local_port_range, {}-{}: the device's own \
                 connections may get one, and keep it: publish fewer, or give the device another range",
                ports.start(),
                ports.end(),
                local.start(),
                local.end()
            ));
        }
        self.note_holders(&range, masquerades, published)?;
        if let Err(e) = self.reserve_ports(&ours) {
            self.port_conditions.extend(e.messages.into_iter().map(|m| {
                format!("{}: the device's own connections may get ports of masquerade, or published ones", m.error)
            }));
        }
        Ok(())
    }

    /// The same once a while: sockets come and go, and somebody may change what the device takes ports from.
    pub(super) fn look_at_ports(&mut self) {
        if self.plane.is_none() {
            return;
        }
        if let Err(e) = self.keep_ports_apart(&self.all_published()) {
            tracing::warn!(error = %e, "ports of the device not looked at");
        }
    }

    /// Sockets of the device that have a port already which is published or of masquerade's `range`.
    fn note_holders(
        &mut self,
        range: &RangeInclusive<u16>,
        masquerades: bool,
        published: &[Published],
    ) -> Result<(), Failure> {
        let is_published = |socket: &Listener| {
            published.iter().any(|p| {
                let host = p.mapping.host.filter(|host| !host.is_unspecified() && !socket.addr.ip().is_unspecified());
                p.mapping.transport == socket.transport
                    && p.mapping.host_ports.contains(&socket.addr.port())
                    && host.is_none_or(|host| host == socket.addr.ip())
            })
        };
        let is_nat = |socket: &Listener| masquerades && range.contains(&socket.addr.port());
        let held = listeners::holders(|socket| is_nat(socket) || is_published(socket));
        let proto = |transport: Transport| transport.number().into();
        let in_sockets = held.iter().map(|socket| (proto(socket.transport), socket.addr.port()));
        let in_mappings =
            published.iter().flat_map(|p| p.mapping.host_ports.clone().map(|port| (proto(p.mapping.transport), port)));
        let own = in_sockets.chain(in_mappings).filter(|(_, port)| range.contains(port)).collect();
        self.plane()?.keep_from_nat(own)?;
        for socket in held.iter().take(NAMED) {
            let owner = socket.owner().unwrap_or_else(|| "a socket of the device".to_owned());
            let what = if is_published(socket) { "published" } else { "of masquerade's range" };
            let (port, transport) = (socket.addr.port(), socket.transport);
            self.port_conditions.push(format!(
                "port {port}/{transport} is {what}, and {owner} had it before: what comes to its connections stays its"
            ));
        }
        if held.len() > NAMED {
            self.port_conditions.push(format!("and so have {} more sockets of the device", held.len() - NAMED));
        }
        Ok(())
    }

    /// On disk before it is in the kernel: whatever happens, `down` knows what to give back.
    fn reserve_ports(&mut self, ours: &PortSet) -> Result<(), Failure> {
        let set = |text: &str| PortSet::parse(text).unwrap_or_default();
        let before = self.state.reserved_ports.clone();
        if before.is_none() && ours.is_empty() {
            return Ok(());
        }
        let now = current()?;
        let (was, had) = match &before {
            Some(ReservedPorts { was, ours }) => (now.without(&set(ours), &set(was)), set(ours)),
            None => (now.clone(), PortSet::default()),
        };
        let wanted = was.union(ours);
        if wanted == now && had == *ours {
            return Ok(());
        }
        let either = ReservedPorts { was: was.to_string(), ours: had.union(ours).to_string() };
        self.remember(Some(either))?;
        sysctl::write(RESERVED_PORTS, &wanted.to_string())?;
        let after = ReservedPorts { was: was.to_string(), ours: ours.to_string() };
        self.remember((!ours.is_empty()).then_some(after))
    }

    fn remember(&mut self, reserved: Option<ReservedPorts>) -> Result<(), Failure> {
        if self.state.reserved_ports != reserved {
            self.state.reserved_ports = reserved;
            store::save(&self.paths.state_dir, &self.state)?;
        }
        Ok(())
    }

    /// A program of the device has bound a port of masquerade's range: flows of containers that use it end. The hook has
    /// marked it as the device's, so that no new one does.
    pub fn port_is_taken(&mut self, proto: u32, port: u16) {
        let Some(plane) = &mut self.plane else { return };
        let leaves_by = FLOW_NAT | FLOW_NEIGHBOUR;
        let ended = plane.end_flows_where(|key, entry| {
            key.proto == proto && entry.flags & leaves_by == leaves_by && u16::from_be(entry.sport_be) == port
        });
        match ended {
            Ok(ended) => super::uplinks::tell(&ended),
            Err(e) => tracing::warn!(error = %e, port, "flows not ended whose port a program of the device took"),
        }
    }
}
