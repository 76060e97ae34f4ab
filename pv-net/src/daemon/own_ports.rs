//! Ports that both the device and containers may want: the device wins. The kernel's automatic choice of ports is kept
//! apart from masquerade's range and from published ports (`ip_local_reserved_ports`); ports that the device uses
//! already stay its own.

use super::Daemon;
use crate::failure::{Failure, Kind};
use crate::ipam::store::{self, ReservedPorts};
use crate::kernel::Kernel;
use crate::kernel::challenge_ack;
use crate::kernel::errand::Errand;
use crate::kernel::listeners::{self, Listener};
use crate::kernel::sysctl::{self, LOCAL_PORT_RANGE, RESERVED_PORTS};
use crate::model::Transport;
use crate::plan::{Observed, Op, PortSet, Published, nat_range, reserved};
use pv_net_common::flow::{FLOW_NAT, FLOW_NEIGHBOUR};
use std::ops::RangeInclusive;

/// The kernel's default for `ip_local_port_range`.
const DEFAULT_LOCAL: RangeInclusive<u16> = 32_768..=60_999;
/// How many sockets are named in conditions; of further ones only the number is given.
const NAMED: usize = 3;

/// The value of `ip_local_port_range`.
fn local_range() -> RangeInclusive<u16> {
    let text = sysctl::read(LOCAL_PORT_RANGE).unwrap_or_default();
    let ports: Vec<u16> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    if let [first, last] = ports[..] { first..=last } else { DEFAULT_LOCAL }
}

/// A socket of the device with a published port, or with a port of masquerade's range.
#[derive(Clone)]
pub(super) struct Holder {
    pub(super) socket: Listener,
    /// Whether the port is published.
    is_published: bool,
    /// The process that has it, if known.
    pub(super) owner: Option<String>,
}

fn ports_of(text: &str) -> Result<PortSet, Failure> {
    PortSet::parse(text).ok_or_else(|| Failure::new(Kind::Internal, format!("{RESERVED_PORTS} is {text:?}")))
}

/// Restores `ip_local_reserved_ports`.
///
/// # Errors
/// When the sysctl cannot be read or written.
pub(super) fn give_back(state: &store::State) -> Result<(), Failure> {
    let Some(ReservedPorts { was, ours }) = &state.reserved_ports else { return Ok(()) };
    let set = |text: &str| PortSet::parse(text).unwrap_or_default();
    let now = ports_of(&sysctl::read(RESERVED_PORTS)?)?;
    let back = now.without(&set(ours), &set(was));
    if back != now {
        sysctl::write(RESERVED_PORTS, &back.to_string())?;
    }
    Ok(())
}

impl Daemon {
    /// Chooses masquerade's range, and reserves it and the published ports against the kernel's automatic choice. A
    /// failure of that is a condition: explicit binds and sockets are watched all the same.
    ///
    /// # Errors
    /// When the state file or a map cannot be written.
    pub(super) async fn keep_ports_apart(
        &mut self,
        published: &[Published],
        observed: &Observed,
    ) -> Result<(), Failure> {
        self.port_conditions.clear();
        let local = local_range();
        let range = nat_range(&local);
        if observed.nat_first_port != *range.start() {
            self.host().apply(&Op::SetNatRange { first: *range.start() }).await?;
        }
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
        if let Err(e) = self.reserve_ports(&ours, &observed.reserved_ports).await {
            self.port_conditions.extend(e.messages.into_iter().map(|m| {
                format!("{}: the device's own connections may get ports of masquerade, or published ones", m.error)
            }));
        }
        Ok(())
    }

    /// Repeats [`Self::keep_ports_apart`] periodically: sockets come and go, and somebody may change the sysctls.
    pub(super) async fn look_at_ports(&mut self) {
        if self.plane.is_none() {
            return;
        }
        let looked = async {
            let observed = self.host().observe_device().await?;
            self.keep_ports_apart(&self.all_published(), &observed).await
        };
        if let Err(e) = looked.await {
            tracing::warn!(error = %e, "ports of the device not looked at");
        }
    }

    /// Notes the sockets of the device that already use a published port, or a port of masquerade's `range`.
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
        if !self.is_rehearsing() {
            self.plane()?.keep_from_nat(own)?;
        }
        let before = std::mem::take(&mut self.port_holders);
        for socket in held {
            let known = before.iter().find(|holder| holder.socket == socket);
            if known.is_none() && self.port_holders.len() < NAMED && !self.is_rehearsing() {
                self.errands.add(Errand::Owner(socket.clone()));
            }
            let (is_published, owner) = (is_published(&socket), known.and_then(|holder| holder.owner.clone()));
            self.port_holders.push(Holder { socket, is_published, owner });
        }
        Ok(())
    }

    /// These sockets as conditions. The process's name is added when it is known, a little later.
    pub(super) fn holder_conditions(&self) -> Vec<String> {
        let named = self.port_holders.iter().take(NAMED).map(|holder| {
            let owner = holder.owner.as_deref().unwrap_or("a socket of the device");
            let what = if holder.is_published { "published" } else { "of masquerade's range" };
            let (port, transport) = (holder.socket.addr.port(), holder.socket.transport);
            format!(
                "port {port}/{transport} is {what}, and {owner} had it before: what comes to its connections stays its"
            )
        });
        let rest = self.port_holders.len().saturating_sub(NAMED);
        let rest = (rest > 0).then(|| format!("and so have {rest} more sockets of the device"));
        named.chain(rest).collect()
    }

    /// The state is on disk before the kernel is changed, so that `down` always knows what to restore.
    async fn reserve_ports(&mut self, ours: &PortSet, now: &str) -> Result<(), Failure> {
        let set = |text: &str| PortSet::parse(text).unwrap_or_default();
        let before = self.state.reserved_ports.clone();
        if before.is_none() && ours.is_empty() {
            return Ok(());
        }
        let now = ports_of(now)?;
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
        self.host().apply(&Op::ReservePorts { list: wanted.to_string() }).await?;
        let after = ReservedPorts { was: was.to_string(), ours: ours.to_string() };
        self.remember((!ours.is_empty()).then_some(after))
    }

    fn remember(&mut self, reserved: Option<ReservedPorts>) -> Result<(), Failure> {
        if self.state.reserved_ports != reserved {
            self.state.reserved_ports = reserved;
            self.save()?;
        }
        Ok(())
    }

    /// Called when a program of the device has bound a port of masquerade's range: flows of containers that use it end.
    /// The bind hook has marked the port, so no new flow gets it.
    pub fn port_is_taken(&mut self, proto: u32, port: u16) {
        let Some(plane) = &mut self.plane else { return };
        let leaves_by = FLOW_NAT | FLOW_NEIGHBOUR;
        let ended = plane.end_flows_where(|key, entry| {
            key.proto == proto && entry.flags & leaves_by == leaves_by && u16::from_be(entry.sport_be) == port
        });
        match ended {
            Ok(ended) => challenge_ack::tell(&ended),
            Err(e) => tracing::warn!(error = %e, port, "flows not ended whose port a program of the device took"),
        }
    }
}
