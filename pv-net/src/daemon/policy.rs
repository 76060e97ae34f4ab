//! The policy in force: compiled from the rules and the device's present state, and replaced by generations.

use super::Daemon;
use crate::failure::{Failure, Kind};
use crate::kernel::bpf::PolicyTables;
use crate::model::{Device, Rule};
use crate::policy::{Compiled, PolicyError, RuleRef, Topology, compile, host_addresses, member, name_servers};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// Comparing the maps with the rules takes at most one part of the time in this many. Up to some ten thousand entries it is
/// done at every audit.
const COMPARING: u32 = 200;

/// What the daemon knows about the policy in the kernel.
#[derive(Default)]
pub(super) struct InForce {
    tables: Option<PolicyTables>,
    /// What the policy was compiled from; `None` before this daemon has compiled one.
    source: Option<(Vec<Rule>, Topology)>,
    /// Its rules, by number.
    pub refs: Arc<[RuleRef]>,
    /// Why the configured rules, or the device's present state, are not in force.
    pub condition: Option<String>,
    /// Why the maps may hold other rules than those in force.
    pub damage: Option<String>,
    /// Before this the maps are not compared again.
    compared: Option<Instant>,
}

impl InForce {
    /// Why the rules that are to be in force may not be.
    pub fn conditions(&self) -> impl Iterator<Item = &String> {
        self.condition.iter().chain(&self.damage)
    }
}

impl From<PolicyError> for Failure {
    fn from(e: PolicyError) -> Self {
        Self::new(Kind::Usage, format!("{}: {e}", e.of().path())).help(e.help())
    }
}

impl Daemon {
    /// The device's present state, as the rules see it.
    pub(super) async fn topology(&mut self, device: &Device) -> Result<Topology, Failure> {
        let host = self.host_addresses().await?;
        let networks = device.pools.values().flat_map(crate::model::Pool::own_networks).collect();
        let names: Vec<_> = self.state.containers.keys().cloned().collect();
        let containers = names.into_iter().map(|name| {
            let identity = self.state.identity(&name);
            let attachments = self.state.containers.get(&name).map(|r| r.attachments.as_slice()).unwrap_or_default();
            let sockets = self.state.containers.get(&name).and_then(|record| record.sockets.clone());
            member(&name, identity, attachments, sockets)
        });
        Ok(Topology { containers: containers.collect(), networks, host, name_servers: name_servers(&device.pools) })
    }

    /// The device's own addresses.
    async fn host_addresses(&self) -> Result<Vec<IpAddr>, Failure> {
        let bridges: Vec<_> = self.pools.values().filter(|p| !p.on_parent).map(|p| (p.index, p.mac)).collect();
        let all = self.net.addresses().await?.into_iter().map(|(link, address)| (link, address.ip()));
        Ok(host_addresses(all, &bridges))
    }

    /// Whether some container may have certain sockets only.
    fn has_confined(&self) -> bool {
        self.state.containers.values().any(|record| record.sockets.is_some())
    }

    /// Whether there are rules, or the limits of a container, or such are still in force: only then does the policy follow
    /// the containers.
    pub(super) fn has_rules(&self) -> bool {
        !self.device.policies.is_empty() || self.has_confined() || !self.policy.refs.is_empty()
    }

    /// Checks whether the rules of `device` can be compiled; changes nothing.
    ///
    /// # Errors
    /// Why they cannot.
    pub(super) async fn check_policy(&mut self, device: &Device) -> Result<(), Failure> {
        if device.policies.is_empty() && !self.has_confined() {
            return Ok(());
        }
        let topology = self.topology(device).await?;
        Ok(compile(&device.policies, &topology).map(drop)?)
    }

    /// Puts the configured rules in force, for the device's present state. If they are in force already, nothing
    /// changes unless `anew` is set; then every flow is decided again.
    ///
    /// # Errors
    /// Why it cannot be done; the earlier policy stays in force.
    pub(super) async fn enforce_policy(&mut self, anew: bool) -> Result<(), Failure> {
        if !self.is_active() {
            return Ok(());
        }
        let device = self.device.clone();
        let source = (device.policies.clone(), self.topology(&device).await?);
        if self.is_rehearsing() {
            return compile(&source.0, &source.1).map(drop).map_err(Failure::from);
        }
        if !anew && self.policy.source.as_ref() == Some(&source) {
            return Ok(());
        }
        let compiled = compile(&source.0, &source.1)?;
        self.swap(&compiled, anew)?;
        self.policy.refs = compiled.rules.into();
        self.policy.source = Some(source);
        self.policy.condition = None;
        self.policy.damage = None;
        Ok(())
    }

    /// [`Self::enforce_policy`], with a failure kept as a condition.
    pub(super) async fn enforce_or_say(&mut self, anew: bool) -> Result<(), Failure> {
        let result = self.enforce_policy(anew).await;
        if let Err(failure) = &result {
            self.policy.condition = Some(format!("the policy in force is an older one: {failure}"));
        }
        result
    }

    /// Writes the new generation, puts it in force by one write, and removes the others.
    /// Returns whether it had to write one.
    fn swap(&mut self, compiled: &Compiled, anew: bool) -> Result<bool, Failure> {
        let Some(plane) = &mut self.plane else { return Ok(false) };
        let tables = match &mut self.policy.tables {
            Some(tables) => tables,
            none => none.insert(plane.policy_tables()?),
        };
        let current = plane.generation()?;
        let same_rules = plane.has_rules()? != compiled.rules.is_empty();
        if !anew && same_rules && tables.holds(compiled, current)? {
            // An earlier daemon has put the same policy in force, so its flows go on undisturbed.
            tables.keep_only(current)?;
            return Ok(false);
        }
        tables.load(compiled, current.wrapping_add(1).max(1))?;
        let generation = plane.next_generation(!compiled.rules.is_empty())?;
        tracing::info!(generation, rules = compiled.rules.len(), pairs = compiled.pairs.len(), "policy in force");
        tables.keep_only(generation)?;
        Ok(true)
    }

    /// Puts the policy in force at the start. If it cannot be compiled, that of an earlier daemon stays in force. If
    /// there is none, the daemon does not start, since packets that the rules refuse would pass.
    pub(super) async fn start_policy(&mut self) -> Result<(), Failure> {
        if self.plane.is_some() {
            // Rules about the device include the pools' gateways, which must exist.
            self.ensure_pools().await?;
        }
        let Err(failure) = self.enforce_or_say(false).await else { return Ok(()) };
        let Some(plane) = &self.plane else { return Err(failure) };
        let earlier = plane.policy_tables()?.entries(plane.generation()?)?;
        if earlier.iter().all(|n| *n == 0) { Err(failure) } else { Ok(()) }
    }

    /// Updates the policy when the device's own addresses change, since rules about `host` and `world` depend on them.
    pub async fn refresh_policy(&mut self) {
        let Some((_, topology)) = &self.policy.source else { return };
        if !self.has_rules() {
            return;
        }
        let known = topology.host.clone();
        let changed = self.host_addresses().await.map(|now| now != known);
        let result = match changed {
            Ok(false) => return,
            Ok(true) => self.enforce_or_say(false).await,
            Err(e) => Err(e),
        };
        if let Err(e) = result {
            tracing::warn!(error = %e, "policy does not follow the device's addresses");
        }
    }

    /// Compares the maps with the policy in force, since no event reports a change of an entry. Where they differ, the
    /// policy is written anew, and every flow is decided again, also those that the changed entries have let pass.
    pub(super) fn repair_policy(&mut self) {
        let start = Instant::now();
        if self.policy.compared.is_some_and(|next| start < next) {
            return;
        }
        let mended = self.mend_policy();
        self.policy.compared = Some(start + start.elapsed() * COMPARING);
        match mended {
            Ok(mended) => {
                self.policy.damage = None;
                if mended {
                    self.note_repair(None, "maps of the rules: other entries than the rules have", "written anew");
                }
            }
            Err(e) => {
                tracing::warn!(error = %e, "the rules in the maps are not put right");
                self.policy.damage = Some(format!("the rules in the maps may be others than those in force: {e}"));
            }
        }
    }

    fn mend_policy(&mut self) -> Result<bool, Failure> {
        let Some(plane) = self.plane.as_ref().filter(|plane| !plane.is_waiting()) else { return Ok(false) };
        let Some((rules, topology)) = &self.policy.source else { return Ok(false) };
        // Without rules the programs do not look at the maps.
        if self.policy.refs.is_empty() && !plane.has_rules()? {
            return Ok(false);
        }
        let compiled = compile(rules, topology)?;
        let (has_rules, generation) = (plane.has_rules()?, plane.generation()?);
        if has_rules != compiled.rules.is_empty()
            && let Some(tables) = &self.policy.tables
            && tables.holds(&compiled, generation)?
        {
            return Ok(false);
        }
        self.swap(&compiled, false)
    }

    /// Whether the configured rules are in force.
    pub(super) fn policy_is_in_force(&self) -> bool {
        let configured = self.policy.source.as_ref().is_some_and(|(rules, _)| *rules == self.device.policies);
        configured && self.policy.damage.is_none()
    }
}
