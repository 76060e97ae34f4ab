//! Interfaces that are added to an attached container, or removed from it, while it runs. Each is done as a whole or not
//! at all; the container's other interfaces do not notice.

use super::Daemon;
use super::attach::attachment;
use super::leases::missing;
use crate::command::{AddInterface, Halt};
use crate::config::{check_container, parse_run_named};
use crate::failure::{Failure, Kind};
use crate::ipam::store::{Begun, ContainerRecord};
use crate::ipam::{Lease, LeaseKey};
use crate::kernel::errand::{Errand, Found};
use crate::kernel::kill_point;
use crate::kernel::link::host_if_name;
use crate::kernel::netlink::Netns;
use crate::lease::{Step, Wanted};
use crate::model::{Attachment, ContainerName, IfName, Interface};
use serde_json::json;
use std::sync::Arc;

impl Daemon {
    /// Adds an interface to an attached container. The same again succeeds, and restores what is missing of it.
    ///
    /// # Errors
    /// The failure; everything is then as before. Or an errand for the container's namespace, whose result must be in
    /// `found`.
    pub(crate) async fn attach_interface(&mut self, add: &AddInterface, found: &Found) -> Result<(), Halt> {
        let AddInterface { container: name, interface, .. } = add;
        let _points = kill_point::begin("attach_interface");
        let about = |failure: Failure| failure.about(format!("container {name}"));
        let wanted = self.interface_of(add)?;
        let record = self.record_of(name)?;
        if let Some(begun @ (Begun::Detach | Begun::Remove(_))) = &record.begun {
            let rest = if let Begun::Remove(other) = begun { format!(" --interface {other}") } else { String::new() };
            let failure = Failure::new(Kind::Conflict, format!("container {name}: a detach has not come to its end"));
            return Err(failure.help(format!("finish it first: pv-net detach {name}{rest}")).into());
        }
        let has = record.attachments.iter().find(|a| a.interface == *interface);
        if let Some(why) = has.and_then(|has| differs(&wanted, has)) {
            let failure = Failure::new(Kind::Conflict, format!("container {name}: interface {interface} {why}"));
            return Err(failure.help(format!("detach it first: {}", removal(name, &record, interface))).into());
        }
        let netns = self.own_namespace(name, &record, found).await?;
        let _quick = self.grace.expedite();
        if let Some(has) = has {
            self.make_whole(name, Some(interface), netns).await.map_err(about)?;
            self.conditions_are_over(name, Some(&has.host_if));
            return Ok(());
        }
        let claims = record.attachments.iter().find(|a| a.default_route == Some(true));
        if let Some(claims) = claims.filter(|_| wanted.default_route == Some(true)) {
            let why = format!("container {name}: interface {} has the default route already", claims.interface);
            let failure = Failure::new(Kind::Conflict, why);
            return Err(failure.help("attach it without --default-route").into());
        }
        self.check_links(name, std::slice::from_ref(&wanted)).map_err(about)?;
        let given = self.ask_for(name, std::slice::from_ref(&wanted), found).await?.into_iter().next().flatten();
        let (before, leases) = (self.state.clone(), self.leases.of(name));
        let Err(failure) = self.try_attach_interface(name, &wanted, given, netns).await else {
            self.conditions_are_over(name, Some(&host_if_name(name, interface)));
            return Ok(());
        };
        self.restore_state(before);
        let routes = self.arrange(&record.attachments, netns, &[]).await.err();
        let not_restored = self.forget_attach(name, &leases).await;
        Err(about(failure.not_restored(routes).not_restored(not_restored)).into())
    }

    async fn try_attach_interface(
        &mut self,
        name: &ContainerName,
        wanted: &Interface,
        given: Option<Arc<Lease>>,
        netns: &Netns,
    ) -> Result<(), Failure> {
        // The same order as for a container: the lease is on disk before the link exists.
        let pool = self.device.pools.get(&wanted.pool).ok_or_else(|| missing(&wanted.pool))?.clone();
        let (ipv4, ipv6, mac) = (wanted.ipv4, wanted.ipv6, wanted.mac);
        let key = super::lease_key(name, wanted);
        let steps = match &given {
            Some(given) => self.learning(given.clone()),
            None => vec![Step::Assign(Wanted { pool, key, ipv4, ipv6, mac })],
        };
        let leases = self.leases.change(steps).await?;
        let lease = given.as_ref().or(leases.first());
        let lease = lease.ok_or_else(|| Failure::new(Kind::Internal, "the lease book gave no lease"))?;
        let new = attachment(wanted, lease);
        let all = self.change_attachments(name, |all| all.push(new.clone()));
        self.begin(name, Begun::Add(new.interface.clone()))?;
        if self.has_rules() {
            self.enforce_policy(false).await?;
        }
        let made = self.connect_and_arrange(std::slice::from_ref(&new), &all, netns).await?;
        if self.publishes(name)
            && let Err(failure) = self.refresh_port_map().await
        {
            return Err(self.take_back(&made, failure).await);
        }
        self.finish(&made).await;
        self.has_ended(name);
        Ok(())
    }

    /// Removes an interface from an attached container, and releases its lease.
    ///
    /// # Errors
    /// When the container has no such interface or no other one, or an operation of the kernel or the disk fails; it can
    /// be tried again then. Or an errand for the container's namespace, whose result must be in `found`.
    pub(crate) async fn detach_interface(
        &mut self,
        name: &ContainerName,
        interface: &IfName,
        found: &Found,
    ) -> Result<(), Halt> {
        let record = self.record_of(name)?;
        let Some(gone) = record.attachments.iter().find(|a| a.interface == *interface) else {
            let names: Vec<&str> = record.attachments.iter().map(|a| a.interface.as_str()).collect();
            let why = format!("container {name}: has no interface {interface}");
            return Err(Failure::new(Kind::NotFound, why).help(format!("it has {}", names.join(", "))).into());
        };
        if record.attachments.len() == 1 {
            let why = format!("container {name}: interface {interface} is its only one");
            return Err(Failure::new(Kind::Conflict, why).help(format!("pv-net detach {name} detaches it")).into());
        }
        if let Some(reference) = record.netns.as_ref().filter(|reference| found.netns(reference).is_none()) {
            return Err(Halt::Needs(vec![Errand::Open(reference.clone())]));
        }
        let _points = kill_point::begin("detach_interface");
        // A namespace that does not answer, or is gone, keeps no interface.
        let inside = self.namespace_of(&record, found).await;
        Ok(self.try_detach_interface(name, &record, gone, inside).await?)
    }

    /// Removes the interface `gone` of a container whose namespace is `inside`, if it still has one.
    pub(super) async fn try_detach_interface(
        &mut self,
        name: &ContainerName,
        record: &ContainerRecord,
        gone: &Attachment,
        inside: Option<&Netns>,
    ) -> Result<(), Failure> {
        let _quick = self.grace.expedite();
        self.begin(name, Begun::Remove(gone.interface.clone()))?;
        if let Some(index) = self.link_index(&gone.host_if)
            && let Err(failure) = self.disconnect(index, gone).await
        {
            if self.link_index(&gone.host_if).is_some() {
                self.has_ended(name);
            }
            return Err(failure.about(format!("container {name}")));
        }
        let left: Vec<Attachment> = record.attachments.iter().filter(|a| *a != gone).cloned().collect();
        if let Some(netns) = inside {
            self.tidy_inside(name, &left, netns).await;
        }
        let interface = &gone.interface;
        let half_done = |failure: Failure| {
            let why = format!("container {name}: the link of its interface {interface} is gone, but not all else");
            failure.about(why).help(format!("pv-net detach {name} --interface {interface} tries it again"))
        };
        let leases = self.leases.of(name);
        self.leases.change(vec![Step::Release(LeaseKey::of(gone))]).await.map_err(|e| half_done(e.into()))?;
        let before = self.state.clone();
        self.change_attachments(name, |all| all.retain(|a| a != gone));
        if let Some(record) = self.state.containers.get_mut(name) {
            Arc::make_mut(record).begun = None;
        }
        let written = async {
            if self.publishes(name) {
                self.refresh_port_map().await?;
            }
            // The container is not in that pool any more.
            if self.has_rules() {
                self.enforce_policy(false).await?;
            }
            self.save()
        };
        if let Err(failure) = written.await {
            self.restore_state(before);
            let not_restored = self.restore_leases(name, &leases).await.err();
            return Err(half_done(failure).not_restored(not_restored));
        }
        let key = LeaseKey::of(gone);
        self.give_back(&leases.into_iter().filter(|lease| lease.key == key).collect::<Vec<_>>());
        self.conditions_are_over(name, Some(&gone.host_if));
        Ok(())
    }

    /// The interface that a request describes, checked against the device.
    fn interface_of(&self, add: &AddInterface) -> Result<Interface, Failure> {
        let AddInterface { container: name, interface, request } = add;
        // The same checks as for one in a run.json, with the same messages.
        let file = format!("interface {interface} of container {name}");
        let described = serde_json::to_value(request).map_err(|e| Failure::new(Kind::Internal, e.to_string()))?;
        let mut run = json!({"name": name, "network": {"interfaces": [described]}});
        run["network"]["interfaces"][0]["name"] = json!(interface);
        let container = parse_run_named(&file, &run.to_string(), Some(name))?;
        let errors = check_container(&file, &container, &self.device);
        if !errors.is_empty() {
            return Err(errors.into());
        }
        let one = container.interfaces.into_iter().next();
        one.ok_or_else(|| Failure::new(Kind::Internal, format!("{file}: not described")))
    }

    fn record_of(&self, name: &ContainerName) -> Result<Arc<ContainerRecord>, Failure> {
        let record = self.state.containers.get(name).filter(|record| !record.attachments.is_empty());
        record.cloned().ok_or_else(|| {
            let why = format!("container {name}: is not attached");
            Failure::new(Kind::NotFound, why).help(format!("attach it first: pv-net attach {name} --netns PATH"))
        })
    }

    /// The namespace in which all interfaces of a container are.
    async fn own_namespace<'a>(
        &self,
        name: &ContainerName,
        record: &ContainerRecord,
        found: &'a Found,
    ) -> Result<&'a Netns, Halt> {
        let conflict = |why: &str| Failure::new(Kind::Conflict, format!("container {name}: {why}"));
        let Some(reference) = &record.netns else {
            let help = format!("detach it, and attach it again: pv-net detach {name}");
            return Err(conflict("its namespace is not known").help(help).into());
        };
        let netns = match found.netns(reference) {
            None => return Err(Halt::Needs(vec![Errand::Open(reference.clone())])),
            Some(Err(e)) => return Err(Failure::from(e).about(format!("container {name}")).into()),
            Some(Ok(netns)) => netns,
        };
        if !self.is_in(record, netns).await.map_err(Failure::from)? {
            let help = format!("attach it in its present one: pv-net attach {name} --netns PATH");
            return Err(conflict("none of its interfaces is in its namespace").help(help).into());
        }
        Ok(netns)
    }

    fn change_attachments(
        &mut self,
        name: &ContainerName,
        change: impl FnOnce(&mut Vec<Attachment>),
    ) -> Vec<Attachment> {
        let Some(record) = self.state.containers.get_mut(name) else { return Vec::new() };
        let all = &mut Arc::make_mut(record).attachments;
        change(all);
        all.clone()
    }
}

/// The command that removes an interface: the only one goes with its container.
fn removal(name: &ContainerName, record: &ContainerRecord, interface: &IfName) -> String {
    let command = format!("pv-net detach {name}");
    if record.attachments.len() == 1 { command } else { format!("{command} --interface {interface}") }
}

/// Why an interface is not the wanted one.
fn differs(wanted: &Interface, has: &Attachment) -> Option<String> {
    if wanted.pool != has.pool {
        return Some(format!("is in pool {}", has.pool));
    }
    let other = |wanted: Option<String>, has: Option<String>| wanted.is_some() && wanted != has;
    let text = |a: Option<std::net::IpAddr>| a.map(|a| a.to_string());
    if other(text(wanted.ipv4.map(Into::into)), text(has.ipv4.map(Into::into))) {
        return Some(format!("has {}", text(has.ipv4.map(Into::into)).unwrap_or_else(|| "no IPv4".to_owned())));
    }
    if other(text(wanted.ipv6.map(Into::into)), text(has.ipv6.map(Into::into))) {
        return Some(format!("has {}", text(has.ipv6.map(Into::into)).unwrap_or_else(|| "no IPv6".to_owned())));
    }
    if wanted.mac.is_some_and(|mac| mac != has.mac) {
        return Some(format!("has {}", has.mac));
    }
    let is_another = wanted.default_route.is_some() && wanted.default_route != has.default_route;
    is_another.then(|| "is there with another \"default_route\"".to_owned())
}
