//! The daemon: holds the state, and brings the kernel to what it says.
//!
//! One lock, one operation at a time: what an operation sees does not change under it.

mod attach;
mod attach_state;
mod borrowed;
mod clsact;
mod core;
mod detach;
mod execute;
mod firewall;
mod mtu;
mod own_ports;
mod paths;
mod policy;
mod pools;
mod port_map;
mod reconcile;
mod repair;
mod segments;
mod teardown;
mod uplink_filter;
mod uplinks;
mod view;

pub use paths::{Paths, RunLock};
pub use teardown::teardown;

use crate::config::load::{self, Declared};
use crate::config::{ConfigError, check_container, check_uplinks};
use crate::failure::{Failure, Kind};
use crate::ipam::LeaseKey;
use crate::ipam::store::{self, State};
use crate::kernel::bpf::{Adopted, DataPlane, Options, Reader};
use crate::kernel::grace::GracePeriods;
use crate::kernel::kill_point;
use crate::kernel::netlink::Net;
use crate::model::{Container, ContainerName, Device, IfName, PoolName};
use crate::plan::PoolLink;
use crate::snapshot::Plane;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

/// A declared container: its file's text and what it says.
#[derive(Clone, Debug)]
pub(crate) struct Declaration {
    pub text: String,
    pub container: Container,
}

/// Everything that the daemon knows.
pub struct Daemon {
    paths: Paths,
    device: Arc<Device>,
    state: State,
    net: Net,
    plane: Option<DataPlane>,
    /// What others have of it.
    shared_plane: Option<Arc<Plane>>,
    adopted: Adopted,
    adopted_containers: usize,
    /// Pools whose bridge is there.
    pools: BTreeMap<PoolName, PoolLink>,
    pool_conditions: BTreeMap<PoolName, String>,
    /// By pool, networks of the device that it overlaps.
    pool_overlaps: BTreeMap<PoolName, Vec<String>>,
    declared: BTreeMap<ContainerName, Declaration>,
    /// What is wrong with the files of declared containers.
    declared_conditions: Vec<String>,
    /// Loud facts about the start.
    start_conditions: Vec<String>,
    container_conditions: BTreeMap<ContainerName, Vec<String>>,
    /// Host-side links that are there, by index.
    links: BTreeMap<u32, (ContainerName, IfName)>,
    /// Uplinks that are there, with their index.
    uplinks: BTreeMap<IfName, u32>,
    /// Pools' bridges that have their program, with their index.
    hooked_bridges: BTreeMap<IfName, u32>,
    /// Those uplinks that are set down.
    uplinks_down: BTreeSet<u32>,
    /// The smallest MTU of the uplinks in use: that of pools which say none.
    uplink_mtu: Option<u32>,
    /// It is another one than the pools have.
    mtu_changed: bool,
    /// Uplinks that the filter is for.
    filterable: BTreeSet<IfName>,
    /// What is wrong with uplinks.
    uplink_conditions: Vec<String>,
    /// What is wrong with the device's ports beside those of containers.
    port_conditions: Vec<String>,
    /// Uplinks without the filter that they should have.
    filter_conditions: Vec<String>,
    /// What the host's firewall keeps from pools.
    firewall_conditions: Vec<String>,
    /// Whether the kernel said that addresses, links or routes changed.
    uplinks_changed: bool,
    /// Whether the kernel said that a route which leads outside changed, or a routing rule.
    routes_changed: bool,
    /// Containers' links whose traffic is stopped, by index, with the reason.
    held: BTreeMap<u32, (IfName, String)>,
    /// Links of others that have the name of a pool's bridge.
    in_the_way: BTreeSet<String>,
    /// When pools that are not available were tried again.
    tried_again: Option<Instant>,
    /// Steps that failed the last time.
    failed_steps: Vec<String>,
    /// Containers' links that left their bridge since the last look.
    unbridged: BTreeSet<u32>,
    policy: policy::InForce,
    grace: GracePeriods,
}

impl Daemon {
    /// Reads configuration and state, and brings the kernel to what they say. With no pools and nothing attached
    /// before, it changes nothing.
    ///
    /// # Errors
    /// When a file is wrong, the state cannot be read, or the kernel refuses what every container needs.
    pub async fn start(paths: Paths) -> Result<Self, Failure> {
        let _points = kill_point::begin("start");
        let device = load::device(&paths.config)?;
        let net = Net::here()?;
        check_device(&paths, &net, &device).await?;
        let (state, start_conditions) = store::load(&paths.state_dir)?;
        let mut daemon = Self {
            grace: GracePeriods::new(paths.grace_marker()),
            paths,
            device: Arc::new(device),
            state,
            net,
            plane: None,
            shared_plane: None,
            adopted: Adopted::default(),
            adopted_containers: 0,
            pools: BTreeMap::new(),
            pool_conditions: BTreeMap::new(),
            pool_overlaps: BTreeMap::new(),
            declared: BTreeMap::new(),
            declared_conditions: Vec::new(),
            start_conditions,
            container_conditions: BTreeMap::new(),
            links: BTreeMap::new(),
            uplinks: BTreeMap::new(),
            hooked_bridges: BTreeMap::new(),
            uplinks_down: BTreeSet::new(),
            uplink_mtu: None,
            mtu_changed: false,
            filterable: BTreeSet::new(),
            uplink_conditions: Vec::new(),
            port_conditions: Vec::new(),
            filter_conditions: Vec::new(),
            firewall_conditions: Vec::new(),
            uplinks_changed: false,
            // While no daemon ran.
            routes_changed: true,
            unbridged: BTreeSet::new(),
            held: BTreeMap::new(),
            in_the_way: BTreeSet::new(),
            tried_again: None,
            failed_steps: Vec::new(),
            policy: policy::InForce::default(),
        };
        daemon.learn_leases().await?;
        daemon.read_declarations();
        daemon.open_plane()?;
        daemon.start_policy().await?;
        daemon.reconcile().await?;
        daemon.take_over()?;
        daemon.finish_interrupted().await;
        daemon.put_away_object();
        daemon.adopted_containers =
            daemon.links.values().map(|(container, _)| container).collect::<BTreeSet<_>>().len();
        give_back_memory();
        Ok(daemon)
    }

    /// Whether there is anything for the data plane to do.
    fn is_idle(&self) -> bool {
        self.device.pools.is_empty() && self.state.containers.is_empty() && self.device.uplink_filter.is_none()
    }

    fn open_plane(&mut self) -> Result<(), Failure> {
        if self.plane.is_some() || (self.is_idle() && !self.paths.bpffs.exists()) {
            return Ok(());
        }
        let options = Options { pin_dir: self.paths.bpffs.clone(), flow_entries: self.device.flow_table };
        let (plane, adopted) = DataPlane::open(&options)?;
        self.start_conditions.extend(adopted.conditions.iter().cloned());
        self.adopted = adopted;
        self.plane = Some(plane);
        Ok(())
    }

    /// Puts newly opened programs in force: the maps hold all that they go by. Until then those of the daemon before
    /// guard the links.
    fn take_over(&mut self) -> Result<(), Failure> {
        let Some(plane) = self.plane.as_mut().filter(|plane| plane.is_waiting()) else { return Ok(()) };
        let (links, conditions) = plane.take_over()?;
        self.adopted.links = links;
        self.start_conditions.extend(conditions);
        let (hook, reader) = (plane.hook(), Reader::open(&self.paths.bpffs)?);
        self.shared_plane = Some(Arc::new(Plane { hook, reader, sweeping: plane.sweeping() }));
        self.hook_sockets();
        Ok(())
    }

    /// What had to be loaded is loaded.
    pub(super) fn put_away_object(&mut self) {
        if let Some(plane) = &mut self.plane {
            plane.put_away_object();
        }
    }

    /// The data plane, for an operation that needs it.
    pub(crate) fn plane(&mut self) -> Result<&mut DataPlane, Failure> {
        self.plane.as_mut().ok_or_else(|| Failure::new(Kind::Internal, "the data plane is not loaded"))
    }

    /// Reads the directory of declared containers. A bad file is a condition, and touches nobody else.
    fn read_declarations(&mut self) {
        self.declared.clear();
        self.declared_conditions.clear();
        self.state.ipam.clear_reservations();
        let all = load::containers(&self.paths.containers).unwrap_or_else(|errors| {
            self.declared_conditions.extend(errors.iter().map(ToString::to_string));
            Vec::new()
        });
        for Declared { path, text, container } in all {
            let checked = container.and_then(|container| {
                let errors = check_container(&path.display().to_string(), &container, &self.device);
                if errors.is_empty() { Ok(container) } else { Err(errors) }
            });
            match checked {
                Ok(container) => {
                    self.reserve(&path.display().to_string(), &container);
                    self.declared.insert(container.name.clone(), Declaration { text, container });
                }
                Err(errors) => self.note_declared(&errors),
            }
        }
    }

    fn note_declared(&mut self, errors: &[ConfigError]) {
        self.declared_conditions.extend(errors.iter().map(ToString::to_string));
    }

    /// Static addresses first: nobody else is given what a declared container asks for.
    fn reserve(&mut self, file: &str, container: &Container) {
        for interface in &container.interfaces {
            let key = lease_key(&container.name, interface);
            for addr in interface.ipv4.map(Into::into).into_iter().chain(interface.ipv6.map(Into::into)) {
                if let Err(holder) = self.state.ipam.reserve(addr, &key) {
                    self.declared_conditions.push(format!("{file}: {addr} is taken by {holder}"));
                }
            }
        }
    }

    /// Reads the configuration again. A file that is wrong changes nothing, and one that cannot be carried out leaves all
    /// as it was before.
    ///
    /// # Errors
    /// Every error of the file, or what is at odds with attached containers; or why it cannot be carried out, with what
    /// could not be put back.
    pub async fn reload(&mut self) -> Result<(), Failure> {
        let _points = kill_point::begin("reload");
        let device = load::device(&self.paths.config)?;
        check_device(&self.paths, &self.net, &device).await?;
        self.check_attached(&device)?;
        self.check_policy(&device).await?;
        let resized = self.resized_pools(&device);
        let unavailable: BTreeSet<PoolName> = self.pool_conditions.keys().cloned().collect();
        let old = std::mem::replace(&mut self.device, Arc::new(device));
        if let Err(failure) = self.follow_config(&unavailable).await {
            self.device = old;
            let not_restored = self.follow_config(&unavailable).await.err();
            self.put_away_object();
            return Err(failure.not_restored(not_restored));
        }
        self.put_away_object();
        self.resize_segments(&resized).await;
        Ok(())
    }

    /// Brings all to what the configuration says; the rules last, by one write. A pool that is one of `unavailable` may
    /// stay so: it was no better before.
    async fn follow_config(&mut self, unavailable: &BTreeSet<PoolName>) -> Result<(), Failure> {
        self.read_declarations();
        self.open_plane()?;
        self.reconcile().await?;
        self.take_over()?;
        let new = self.pool_conditions.iter().filter(|(pool, _)| !unavailable.contains(*pool));
        let pools = new.map(|(pool, why)| Failure::new(Kind::Internal, format!("pool {pool}: {why}")));
        let steps = self.failed_steps.iter().map(|why| Failure::new(Kind::Internal, why.clone()));
        if let Some(failure) = pools.chain(steps).reduce(Failure::and) {
            return Err(failure);
        }
        self.enforce_policy(true).await
    }

    /// What the attached containers stand on cannot be changed under them.
    fn check_attached(&self, new: &Device) -> Result<(), Failure> {
        let mut used: BTreeMap<&PoolName, BTreeSet<&str>> = BTreeMap::new();
        for (name, record) in &self.state.containers {
            for attachment in &record.attachments {
                used.entry(&attachment.pool).or_default().insert(name.as_str());
            }
        }
        for (pool, containers) in used {
            let (old, new) = (self.device.pools.get(pool), new.pools.get(pool));
            let what = match (old, new) {
                (None, _) => continue,
                (Some(_), None) => "cannot be removed",
                (Some(old), Some(new)) if old.v4 != new.v4 || old.v6 != new.v6 => "cannot change its networks",
                (Some(old), Some(new)) if old.kind != new.kind => "cannot change its kind or bridge",
                _ => continue,
            };
            let names = containers.into_iter().collect::<Vec<_>>().join(", ");
            let why = format!("network.pools.{pool}: {what} while containers are attached: {names}");
            return Err(Failure::new(Kind::Conflict, why).help("detach them first: pv-net detach NAME"));
        }
        Ok(())
    }
}

/// A start needs more memory than what follows; glibc keeps most of it unless told.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The lease of an interface.
pub(crate) fn lease_key(container: &ContainerName, interface: &crate::model::Interface) -> LeaseKey {
    LeaseKey { pool: interface.pool.clone(), container: container.clone(), interface: interface.name.clone() }
}

/// What a file alone does not show: the networks of the uplinks.
async fn check_device(paths: &Paths, net: &Net, device: &Device) -> Result<(), Failure> {
    if device.pools.is_empty() || device.uplinks.is_empty() {
        return Ok(());
    }
    let links = net.links().await?;
    let addresses = net.addresses().await?;
    let mut networks = Vec::new();
    for (index, address) in addresses {
        let link = links.iter().find(|l| l.index == index);
        let Some(uplink) = link.and_then(|l| device.uplinks.iter().find(|u| u.as_str() == l.name)) else { continue };
        networks.push((uplink.clone(), address));
    }
    let errors = check_uplinks(&paths.config.display().to_string(), device, &networks);
    if errors.is_empty() { Ok(()) } else { Err(errors.into()) }
}
