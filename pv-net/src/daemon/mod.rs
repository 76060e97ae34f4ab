//! The daemon: holds the state, and brings the kernel to what it says.
//!
//! The controller drives it, one operation at a time, so nothing changes during an operation.

mod asked;
mod attach;
mod attach_request;
mod attach_state;
mod baked;
mod borrowed;
mod changes;
mod clsact;
mod conditions;
mod core;
mod declared;
mod detach;
mod device_if;
mod ended;
mod errands;
mod execute;
mod firewall;
mod interface;
mod leases;
mod macvlan;
mod mtu;
mod names;
mod own_ports;
mod paths;
mod policy;
mod pools;
mod port_map;
mod readdress;
mod reconcile;
mod rehearse;
mod reload;
mod repair;
mod segments;
mod teardown;
mod unfinished;
mod uplink_filter;
mod uplinks;
mod view;

pub use paths::{Paths, RunLock};
pub(crate) use pools::NO_NETKIT;
pub use teardown::teardown;

use reload::check_at_start;

use crate::config::ConfigError;
use crate::config::load;
use crate::failure::{Failure, Kind};
use crate::ipam::LeaseKey;
use crate::ipam::store::{self, State};
use crate::kernel::bpf::{Adopted, DataPlane, Options, Reader};
use crate::kernel::broker::Broker;
use crate::kernel::grace::GracePeriods;
use crate::kernel::kill_point;
use crate::kernel::netlink::Net;
use crate::kernel::{Rehearsal, Repair};
use crate::lease::{self, LeaseHandle};
use crate::memory;
use crate::model::{Attachment, Container, ContainerName, Device, IfName, Offer, PairKind, PoolName};
use crate::plan::PoolLink;
use crate::snapshot::{Plane, share};
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// A declared container: its file's text, and the parsed container.
#[derive(Clone, Debug)]
pub(crate) struct Declaration {
    pub text: String,
    pub container: Container,
}

/// Everything that the daemon knows.
pub struct Daemon {
    paths: Paths,
    /// The revision of Pantavisor whose configuration is in use.
    revision: Option<Arc<str>>,
    /// A revision that could not be put in force for an attach, and why.
    not_followed: Option<Arc<(String, String)>>,
    device: Arc<Device>,
    state: State,
    leases: LeaseHandle,
    net: Net,
    broker: Broker,
    plane: Option<DataPlane>,
    /// The read-only access to the maps that snapshots share.
    shared_plane: Option<Arc<Plane>>,
    adopted: Adopted,
    adopted_containers: usize,
    /// Pools whose bridge exists.
    pools: BTreeMap<PoolName, PoolLink>,
    pool_conditions: BTreeMap<PoolName, String>,
    /// By pool, conditions about networks of the device that it overlaps.
    pool_overlaps: BTreeMap<PoolName, Vec<String>>,
    /// By pool, the condition that the kernel lacks its kind of links.
    no_links: BTreeMap<PoolName, String>,
    declared: BTreeMap<ContainerName, Declaration>,
    /// The declared containers that are attached when their namespace exists.
    awaited: declared::Waiting,
    /// What they offer.
    offers: Arc<BTreeMap<ContainerName, Vec<Offer>>>,
    /// Conditions about the files of declared containers.
    declared_conditions: Vec<String>,
    /// Addresses in pools' networks that the device itself has.
    own_addresses: BTreeSet<IpAddr>,
    /// Addresses that are kept for containers which do not have them as a lease yet.
    reservations: Vec<leases::Reservation>,
    /// Declared addresses that somebody else has.
    taken: Vec<leases::Taken>,
    /// Conditions from the start.
    start_conditions: Vec<String>,
    container_conditions: conditions::Conditions,
    /// What interfaces lack that their network is to give them, by container and host-side link.
    lacks: BTreeMap<ContainerName, BTreeMap<IfName, String>>,
    /// What interfaces have lost and what may still be there inside, by host-side link. The guard refuses it.
    leaving: BTreeMap<IfName, Vec<Attachment>>,
    /// By container, conditions about its published ports.
    unpublished: BTreeMap<ContainerName, Vec<String>>,
    /// Containers that have lost a link since [`follow_thinned`](Self::follow_thinned) looked, or could not be detached
    /// then.
    thinned: BTreeSet<ContainerName>,
    /// Containers' host-side links that exist, by index.
    links: BTreeMap<u32, (ContainerName, IfName)>,
    /// The kinds of those that are pairs, by index.
    pairs: BTreeMap<u32, PairKind>,
    /// Uplinks that exist, with their index.
    uplinks: BTreeMap<IfName, u32>,
    /// Pools' bridges that have their program, with their index.
    hooked_bridges: BTreeMap<IfName, u32>,
    /// Uplinks that are set down.
    uplinks_down: BTreeSet<u32>,
    /// An uplink has an IPv6 address or an IPv6 default route.
    has_way_out6: bool,
    /// The smallest MTU of the uplinks in use, for pools that do not set their own.
    uplink_mtu: Option<u32>,
    /// The uplinks' MTU differs from that of the pools.
    mtu_changed: bool,
    /// Uplinks that are to have the filter.
    filterable: BTreeSet<IfName>,
    /// Conditions about uplinks.
    uplink_conditions: Vec<String>,
    /// Conditions about ports of the device, except those about its sockets.
    port_conditions: Vec<String>,
    /// Sockets of the device that use a published port or a port of masquerade's range.
    port_holders: Vec<own_ports::Holder>,
    /// Conditions about uplinks that lack the filter.
    filter_conditions: Vec<String>,
    /// Conditions about the host's firewall.
    firewall_conditions: Vec<String>,
    /// Indexes of the device's own interfaces on parents of macvlan pools.
    device_ifs: BTreeSet<u32>,
    /// Conditions about them.
    device_if_conditions: Vec<String>,
    /// When one of them could last not be made.
    device_if_failed: Option<Instant>,
    /// Whether the kernel has reported a change of addresses, links or routes.
    uplinks_changed: bool,
    /// Whether the kernel has reported a change of routing rules, or of routes that containers may use.
    routes_changed: bool,
    /// Containers' links whose traffic is stopped, by index, with the reason.
    held: BTreeMap<u32, (IfName, String)>,
    /// Containers' links that were closed because a step about them failed.
    closed: BTreeSet<u32>,
    /// Repairs that have not been published yet.
    repairs: Vec<repair::Repaired>,
    /// Problems with bridges that a repair did not solve; the next audit tries again.
    beyond_repair: Vec<String>,
    /// Names of pools' bridges that are taken by other links.
    in_the_way: BTreeSet<String>,
    /// When pools that are not available were last tried again.
    tried_again: Option<Instant>,
    /// Steps that failed in the last reconciliation.
    failed_steps: Vec<String>,
    /// Whether the socket hooks are attached.
    has_socket_hooks: bool,
    /// Whether the kernel has reported that a pool's bridge is gone.
    bridge_gone: bool,
    /// Whether the kernel has reported a change of a macvlan pool's parent: an interface on it may be gone.
    children_changed: bool,
    /// Whether the kernel has reported that a filter of pv-net was replaced or removed.
    filters_changed: bool,
    /// Whether a link of pv-net has another name than its own.
    misnamed: bool,
    /// Links of pv-net that were reported with another `ifalias` than their own.
    unmarked: BTreeSet<u32>,
    /// Containers' links that left their bridge since the last look.
    unbridged: BTreeSet<u32>,
    /// What the attached containers publish.
    mappings: port_map::Mappings,
    policy: policy::InForce,
    grace: GracePeriods,
    /// Bridges not made by pv-net whose MAC this daemon has set.
    macs_held: BTreeSet<u32>,
    /// Addresses that pv-net has given to pools' bridges, by bridge.
    former_gateways: BTreeMap<IfName, BTreeSet<IpNetwork>>,
    /// Links whose container's end could not be given its pool's MTU, with the reason.
    misfits: BTreeMap<IfName, (ContainerName, String)>,
    /// Work to be done beside the controller.
    errands: errands::Errands,
    /// Set during a rehearsal: steps are only noted.
    rehearsal: Option<Rehearsal>,
    /// Set during a repair.
    under_repair: Option<Repair>,
}

impl Daemon {
    /// Reads configuration and state, and brings the kernel to what they say. Without pools and attached containers it
    /// changes nothing.
    ///
    /// # Errors
    /// When a file is wrong, the state cannot be read, or the kernel refuses something that every container needs.
    pub async fn start(paths: Paths, broker: Broker) -> Result<Self, Failure> {
        let _points = kill_point::begin("start");
        // Before its files are read: if it is another one by then, they are read again.
        let revision = paths.running_revision().map(Arc::from);
        let device = load::device(&paths.config, paths.form())?;
        let net = Net::here()?;
        check_at_start(&paths, &net, &device).await?;
        let (mut state, mut start_conditions) = store::load(&paths.state_dir)?;
        let moved = state.ipam.take();
        let is_moved = moved.is_some();
        let (leases, conditions) = lease::open(&paths.state_dir, moved)?;
        start_conditions.extend(conditions);
        if is_moved {
            store::save(&paths.state_dir, &state)?;
        }
        let mut daemon = Self {
            grace: GracePeriods::new(paths.grace_marker()),
            awaited: declared::Waiting::load(&paths),
            paths,
            revision,
            not_followed: None,
            device: Arc::new(device),
            state,
            leases,
            net,
            broker,
            plane: None,
            shared_plane: None,
            adopted: Adopted::default(),
            adopted_containers: 0,
            pools: BTreeMap::new(),
            pool_conditions: BTreeMap::new(),
            pool_overlaps: BTreeMap::new(),
            own_addresses: BTreeSet::new(),
            no_links: BTreeMap::new(),
            declared: BTreeMap::new(),
            offers: Arc::default(),
            declared_conditions: Vec::new(),
            reservations: Vec::new(),
            taken: Vec::new(),
            start_conditions,
            container_conditions: conditions::Conditions::default(),
            lacks: BTreeMap::new(),
            leaving: BTreeMap::new(),
            unpublished: BTreeMap::new(),
            thinned: BTreeSet::new(),
            links: BTreeMap::new(),
            pairs: BTreeMap::new(),
            uplinks: BTreeMap::new(),
            hooked_bridges: BTreeMap::new(),
            uplinks_down: BTreeSet::new(),
            has_way_out6: false,
            uplink_mtu: None,
            mtu_changed: false,
            filterable: BTreeSet::new(),
            uplink_conditions: Vec::new(),
            port_conditions: Vec::new(),
            port_holders: Vec::new(),
            filter_conditions: Vec::new(),
            firewall_conditions: Vec::new(),
            device_ifs: BTreeSet::new(),
            device_if_conditions: Vec::new(),
            device_if_failed: None,
            uplinks_changed: false,
            // Something may have changed while no daemon was running.
            routes_changed: true,
            has_socket_hooks: false,
            bridge_gone: false,
            children_changed: false,
            filters_changed: false,
            misnamed: false,
            unmarked: BTreeSet::new(),
            unbridged: BTreeSet::new(),
            held: BTreeMap::new(),
            closed: BTreeSet::new(),
            repairs: Vec::new(),
            beyond_repair: Vec::new(),
            in_the_way: BTreeSet::new(),
            tried_again: None,
            failed_steps: Vec::new(),
            mappings: port_map::Mappings::default(),
            policy: policy::InForce::default(),
            macs_held: BTreeSet::new(),
            former_gateways: BTreeMap::new(),
            misfits: BTreeMap::new(),
            errands: errands::Errands::default(),
            rehearsal: None,
            under_repair: None,
        };
        daemon.learn_from_records().await?;
        daemon.learn_leases().await?;
        daemon.read_declarations().await?;
        daemon.limit_learned();
        daemon.open_plane()?;
        daemon.discover_children().await?;
        daemon.start_policy().await?;
        daemon.reconcile().await?;
        daemon.take_over()?;
        daemon.free_taken().await;
        daemon.finish_interrupted().await;
        daemon.put_away_object();
        daemon.adopted_containers =
            daemon.links.values().map(|(container, _)| container).collect::<BTreeSet<_>>().len();
        memory::give_back();
        Ok(daemon)
    }

    /// Whether the data plane is not needed.
    fn is_idle(&self) -> bool {
        self.device.pools.is_empty() && self.state.containers.is_empty() && self.device.uplink_filter.is_none()
    }

    fn open_plane(&mut self) -> Result<(), Failure> {
        if self.is_rehearsing() || self.plane.is_some() || (self.is_idle() && !self.paths.bpffs.exists()) {
            return Ok(());
        }
        let options = Options { pin_dir: self.paths.bpffs.clone(), flow_entries: self.device.flow_table };
        let (plane, adopted) = DataPlane::open(&options)?;
        self.start_conditions.extend(adopted.conditions.iter().cloned());
        self.adopted = adopted;
        self.plane = Some(plane);
        Ok(())
    }

    /// Puts newly opened programs in force, now that the maps hold everything that they need. Until then the earlier
    /// daemon's programs guard the links.
    fn take_over(&mut self) -> Result<(), Failure> {
        // Readers of the maps and the socket hooks come afterwards; what failed there the last time is tried again.
        if self.is_rehearsing() {
            return Ok(());
        }
        let is_done = self.shared_plane.is_some();
        let Some(plane) = self.plane.as_mut().filter(|plane| plane.is_waiting() || !is_done) else { return Ok(()) };
        let (links, conditions) = plane.take_over()?;
        self.adopted.links += links;
        self.start_conditions.extend(conditions);
        let (hook, reader) = (plane.hook(), Reader::open(&self.paths.bpffs)?);
        self.shared_plane = Some(Arc::new(Plane { hook, reader, sweeping: plane.sweeping() }));
        self.hook_sockets();
        Ok(())
    }

    /// Frees what was needed only for loading programs.
    pub(super) fn put_away_object(&mut self) {
        if let Some(plane) = &mut self.plane {
            plane.put_away_object();
        }
    }

    /// The data plane, or an error when it is not loaded.
    pub(crate) fn plane(&mut self) -> Result<&mut DataPlane, Failure> {
        self.plane.as_mut().ok_or_else(|| Failure::new(Kind::Internal, "the data plane is not loaded"))
    }

    /// Reads the directory of declared containers. A wrong file is a condition and affects no other container.
    async fn read_declarations(&mut self) -> Result<(), Failure> {
        self.declared.clear();
        self.declared_conditions.clear();
        let mut offers = BTreeMap::new();
        let all = load::containers(&self.paths.containers, self.paths.form()).unwrap_or_else(|errors| {
            self.declared_conditions.extend(errors.iter().map(ToString::to_string));
            Vec::new()
        });
        let mut reservations = Vec::new();
        for declared in all {
            let container = match declared.checked(&self.device) {
                Ok(container) => container.clone(),
                Err(errors) => {
                    self.note_declared(&errors);
                    continue;
                }
            };
            reservations.extend(leases::reservations(&declared.path.display().to_string(), &container));
            match declared.offers {
                Ok(offered) if offered.is_empty() => {}
                Ok(offered) => drop(offers.insert(container.name.clone(), offered)),
                Err(errors) => self.note_declared(&errors),
            }
            self.declared.insert(container.name.clone(), Declaration { text: declared.text, container });
        }
        let (baked, errors) = self.baked();
        reservations.extend(baked);
        self.note_declared(&errors);
        self.reservations = reservations;
        self.offers = share(&self.offers, offers);
        self.await_declared();
        self.reserve_declared().await
    }

    fn note_declared(&mut self, errors: &[ConfigError]) {
        self.declared_conditions.extend(errors.iter().map(ToString::to_string));
    }
}

/// The lease of an interface.
pub(crate) fn lease_key(container: &ContainerName, interface: &crate::model::Interface) -> LeaseKey {
    LeaseKey { pool: interface.pool.clone(), container: container.clone(), interface: interface.name.clone() }
}
