//! What an attach asks for, and why it may be refused before anything is done.

use super::Daemon;
use crate::command::AttachRequest;
use crate::config::parse_run_named;
use crate::failure::{Failure, Kind};
use crate::ipam::store::RunText;
use crate::kernel::netlink::Netns;
use crate::model::{Container, ContainerName, NetworkMode, PoolName};

/// A container in no pool has nothing that could be attached.
///
/// # Errors
/// When it is in no pool.
pub(super) fn check_mode(container: &Container) -> Result<(), Failure> {
    if container.mode == NetworkMode::Pool {
        return Ok(());
    }
    let mode = serde_json::json!(container.mode);
    let mode = mode.as_str().unwrap_or_default();
    let why = format!("container {}: network.mode: {mode}: it is in no pool", container.name);
    Err(Failure::new(Kind::Conflict, why)
        .help("there is nothing to attach: give it a pool in its run.json, or start it without this"))
}

impl Daemon {
    /// The container that a request describes, and its `run.json`.
    pub(super) fn container_of(
        &self,
        name: &ContainerName,
        request: &AttachRequest,
    ) -> Result<(RunText, Container), Failure> {
        let run = match (&request.run, &request.pool) {
            (Some(_), Some(_)) => {
                return Err(Failure::new(Kind::Usage, "a run.json and a pool were given: give one of them"));
            }
            (Some(run), None) => run.clone(),
            (None, Some(pool)) => {
                let pool: PoolName =
                    pool.parse().map_err(|e| Failure::new(Kind::Usage, format!("pool {pool:?}: {e}")))?;
                serde_json::json!({"name": name, "network": {"pool": pool}})
            }
            (None, None) => match self.declared.get(name) {
                Some(declared) => {
                    let run: serde_json::Value = serde_json::from_str(&declared.text).unwrap_or_default();
                    return Ok((RunText::from(&run), declared.container.clone()));
                }
                None => {
                    let why = format!("container {name}: no run.json is declared for it");
                    return Err(Failure::new(Kind::Usage, why).help("give it one with --run FILE, or a --pool"));
                }
            },
        };
        let run = RunText::from(&run);
        let container = parse_run_named(&format!("container {name}"), run.text(), Some(name))?;
        Ok((run, container))
    }

    /// Another container that has interfaces in `netns`.
    pub(super) async fn other_in(&self, name: &ContainerName, netns: &Netns) -> Result<Option<ContainerName>, Failure> {
        let Some(number) = self.net.number_of(netns.file()).await? else { return Ok(None) };
        let links = self.net.links().await?;
        let inside = links.iter().filter(|link| link.other_ns == Some(number));
        let containers = inside.filter_map(|link| self.links.get(&link.index)).map(|(container, _)| container);
        Ok(containers.into_iter().find(|container| *container != name).cloned())
    }

    /// Annotations may be an image's. So they lead only into pools that allow it, give a declared container no other pool,
    /// and give nobody the name of a container that somebody has attached, with its lease, even after it has ended.
    pub(super) fn check_annotated(&self, request: &AttachRequest, container: &Container) -> Result<(), Failure> {
        let name = &container.name;
        // Its file may be wrong at the moment.
        let is_declared = self.declared.contains_key(name) || self.paths.containers.join(name.as_str()).exists();
        if request.pool.is_some() && is_declared {
            let why = format!("container {name}: is declared, and an annotation names a pool for it");
            return Err(Failure::new(Kind::Conflict, why)
                .help("leave the annotation pv-net.pool out: the pools of its run.json count"));
        }
        if request.pool.is_some() && self.state.containers.get(name).is_some_and(|record| !record.auto_detach) {
            let why = format!("container {name}: it was attached without an annotation, and one claims its name");
            return Err(Failure::new(Kind::Conflict, why)
                .help(format!("give it another pv-net.name, or detach the other one: pv-net detach {name}")));
        }
        let allows = |pool: &PoolName| self.device.pools.get(pool).is_some_and(|pool| pool.annotations);
        match container.interfaces.iter().map(|interface| &interface.pool).find(|pool| !allows(pool)) {
            None => Ok(()),
            Some(pool) => {
                let why = format!("container {name}: an annotation leads to pool {pool}, which does not allow that");
                Err(Failure::new(Kind::Conflict, why).help(format!(
                    "set network.pools.{pool}.annotations to true if every image that this device runs may join it"
                )))
            }
        }
    }
}
