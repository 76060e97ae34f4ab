//! Rehearsals: what a reload would do. It does the reload's own work with a copy of the daemon's knowledge, on the
//! state that the kernel would have after each step.

use super::Daemon;
use super::reload::check_device;
use crate::config::load;
use crate::failure::Failure;
use crate::kernel::{Kernel, Rehearsal};
use crate::plan::{Observed, Op, ReloadPlan};
use std::sync::Arc;

/// What a rehearsal does with each field of the daemon. Both lists together must name all fields, which the compiler
/// checks.
macro_rules! copied {
    (copied: $($field:ident),+ ; left: $($left:ident),+ $(,)?) => {
        /// Restores the copied fields.
        type PutBack = Box<dyn FnOnce(&mut Daemon) + Send>;

        fn copy(daemon: &Daemon) -> PutBack {
            // Without `..`, so that every new field has to be put into one of the lists: fields that a reconciliation
            // changes, or the others.
            let Daemon { $($field,)+ $($left: _,)+ } = daemon;
            $(let $field = $field.clone();)+
            Box::new(move |daemon: &mut Daemon| { $(daemon.$field = $field;)+ })
        }
    };
}

copied! {
    copied:
    device, state, pools, pool_conditions, pool_overlaps, own_addresses, no_links, declared, offers, declared_conditions, reservations, taken,
    start_conditions,
    container_conditions, lacks, leaving, unpublished, thinned, links, pairs, uplinks, hooked_bridges, uplinks_down, has_way_out6, uplink_mtu,
    mtu_changed, filterable,
    uplink_conditions, port_conditions, port_holders, filter_conditions, firewall_conditions, device_ifs, device_if_conditions,
    device_if_failed, uplinks_changed, routes_changed, held, closed, awaited, beyond_repair, in_the_way, tried_again, failed_steps, unbridged, unmarked, misnamed, macs_held,
    former_gateways, misfits, errands, repairs, has_socket_hooks, bridge_gone, filters_changed,
    children_changed;
    // A rehearsal does not touch what these lead to: files, the kernel, the lease book, the rules in force.
    left:
    paths, revision, not_followed, leases, net, broker, plane, shared_plane, adopted, adopted_containers, policy, mappings, grace, rehearsal, under_repair,
}

impl Daemon {
    /// Tells what [`Self::reload`] would do; changes nothing.
    ///
    /// # Errors
    /// The errors that the reload would have, as far as they can be predicted.
    pub(super) async fn plan_reload(&mut self) -> Result<ReloadPlan, Failure> {
        let device = load::device(&self.paths.config, self.paths.form())?;
        check_device(&self.paths, &self.net, &device).await?;
        self.check_attached(&device)?;
        self.check_policy(&device).await?;
        let mut plan = ReloadPlan::default();
        plan.compare(&self.device, &device);
        let resized = self.resized_pools(&device);
        let known = self.known_faults();
        let before = self.all_conditions();
        let leases = self.lease_texts();
        let will_load = self.plane.is_none();
        let holds = self.host().observe().await?;
        let put_back = copy(self);
        self.rehearsal = Some(Rehearsal { holds, ops: Vec::new() });
        self.device = Arc::new(device);
        // If this configuration does not need the data plane, the rehearsal has none either.
        let idle = will_load && self.is_idle();
        let done = if idle { Ok(()) } else { self.follow_config(&known).await };
        let ops = self.rehearsal.take().map(|rehearsal| rehearsal.ops).unwrap_or_default();
        let after = self.all_conditions();
        let leases_after = self.lease_texts();
        put_back(self);
        done?;
        if will_load && !idle {
            plan.steps.push("programs loaded and pinned".to_owned());
        }
        plan.note(&ops);
        if !plan.rules.is_empty() {
            plan.steps
                .push("rules put in force by one write: each flow is decided again by its next packet".to_owned());
        }
        plan.steps.extend(resized.iter().map(|pool| format!("largest segments on the links of pool {pool} set")));
        plan.leases.added = leases_after.iter().filter(|l| !leases.contains(l)).cloned().collect();
        plan.leases.removed = leases.into_iter().filter(|l| !leases_after.contains(l)).collect();
        plan.conditions = after.into_iter().filter(|condition| !before.contains(condition)).collect();
        self.note_flows(&mut plan, &ops)?;
        Ok(plan)
    }

    /// The steps that a reconciliation would take in a kernel with the state `holds`; changes nothing.
    ///
    /// # Errors
    /// The errors that the reconciliation would have.
    pub(super) async fn rehearse_reconcile(&mut self, holds: Observed) -> Result<Vec<Op>, Failure> {
        let put_back = copy(self);
        self.rehearsal = Some(Rehearsal { holds, ops: Vec::new() });
        let done = self.reconcile().await;
        let ops = self.rehearsal.take().map(|rehearsal| rehearsal.ops).unwrap_or_default();
        put_back(self);
        done.map(|()| ops)
    }

    fn all_conditions(&self) -> Vec<String> {
        let pools = self.pool_conditions.iter().map(|(pool, why)| format!("pool {pool}: {why}"));
        let unpublished = self.unpublished.iter().flat_map(|(name, all)| all.iter().map(move |why| (name, why)));
        let containers =
            self.container_conditions.all().chain(unpublished).map(|(name, why)| format!("container {name}: {why}"));
        let overlaps =
            self.pool_overlaps.iter().flat_map(|(pool, all)| all.iter().map(move |why| format!("pool {pool}: {why}")));
        let no_links = self.no_links.iter().map(|(pool, why)| format!("pool {pool}: {why}"));
        let lists = [
            &self.declared_conditions,
            &self.uplink_conditions,
            &self.port_conditions,
            &self.filter_conditions,
            &self.firewall_conditions,
            &self.device_if_conditions,
        ];
        pools
            .chain(containers)
            .chain(overlaps)
            .chain(no_links)
            .chain(self.taken.iter().map(|taken| taken.why.clone()))
            .chain(lists.into_iter().flatten().cloned())
            .chain(self.holder_conditions())
            .collect()
    }

    /// The addresses that are reserved for declared containers. A reload changes no leases.
    fn lease_texts(&self) -> Vec<String> {
        self.reservations.iter().map(|kept| format!("{} kept for {}", kept.addr, kept.key)).collect()
    }

    /// Adds the flows that would end now.
    fn note_flows(&self, plan: &mut ReloadPlan, ops: &[Op]) -> Result<(), Failure> {
        let Some(plane) = &self.shared_plane else { return Ok(()) };
        let records = plane.reader.flows()?;
        plan.note_flows(ops, records.iter().map(|record| (&record.key, &record.entry)));
        Ok(())
    }
}
