//! Answers containers on their pools' gateway addresses, and gives each a `resolv.conf`.

mod files;
mod lanes;
mod sockets;
mod tcp;
mod udp;

use crate::command::{Commands, Report};
use crate::dns::{Dns, NamedClient, Zone};
use crate::failure::{Failure, Kind};
use crate::ipam::ClientLease;
use crate::lease::{LeaseHandle, unix_time};
use crate::snapshot::Snapshot;
use files::Files;
use sockets::Sockets;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// How often an address is tried that could not be had.
const AGAIN: Duration = Duration::from_millis(250);
/// How long after a lease of a DHCP client the names are made anew.
const CROWD: Duration = Duration::from_millis(100);
/// How often the leases of clients are compared with the clock, if there are any.
const CLOCK: Duration = Duration::from_secs(60);
/// An address comes a moment after its bridge: so often it is tried before anybody is told.
const QUIET: u32 = 8;

/// Follows the snapshots: their names, addresses and containers. `files` is the directory for `resolv.conf`s.
///
/// # Errors
/// When the threads that answer cannot be started. What else cannot be had is a condition, and tried again.
pub async fn dns(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    commands: Commands,
    dns: Arc<Dns>,
    leases: LeaseHandle,
    files: PathBuf,
) -> Result<(), Failure> {
    let sockets = Sockets::new(dns.clone());
    let mut sockets = sockets.map_err(|e| Failure::new(Kind::Internal, format!("threads for names: {e}")))?;
    let broken = sockets.broken();
    tokio::pin!(broken);
    let mut files = Files::new(files);
    // One that ran before may have said something.
    commands.report(Report::Service { name: "names", condition: None }).await;
    let (mut before, mut told, mut tries): (Option<Arc<Snapshot>>, _, u32) = (None, None, 0);
    let (mut clients, mut named, mut distrusted) = (leases.clients(), Vec::new(), dns.distrusted());
    // When the names of clients are looked at again, and until when no socket is opened because one has just failed.
    let (mut look, mut rests): (_, Option<Instant>) = (Some(Instant::now()), None);
    let mut lost = Vec::new();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let mut is_other = before.as_ref().is_none_or(|before| is_other(before, &snapshot));
        if look.is_some_and(|at| at <= Instant::now()) {
            let now = unix_time();
            let (now_named, until) = named_clients(&clients.named(now), now);
            // The device's clock may be set, which begins leases anew or ends them.
            let until = until.unwrap_or(CLOCK).min(CLOCK);
            look = (!clients.is_empty()).then(|| Instant::now() + until);
            is_other |= named != now_named;
            named = now_named;
        }
        if is_other {
            dns.set_zone(Zone::new(&snapshot).with_clients(&snapshot.device.domain, &named));
            files.follow(&dns.zone(), &snapshot).await;
            before = Some(snapshot.clone());
        } else if files.wrong().next().is_some() {
            files.follow(&dns.zone(), &snapshot).await;
        }
        dns.set_followed(snapshot.revision);
        rests = rests.filter(|until| *until > Instant::now());
        if rests.is_none() {
            lost = sockets.follow(&dns.zone());
            tries = if lost.is_empty() && files.wrong().next().is_none() { 0 } else { tries + 1 };
        }
        let loud = lost.iter().filter(|_| tries > QUIET).cloned();
        let clashes = dns.zone().clashes().to_vec();
        let untrusted = distrusted.borrow_and_update().clone();
        // One that was still being asked when it was taken out of the configuration is nobody's concern.
        let zone = dns.zone();
        let untrusted = untrusted
            .iter()
            .filter(|(server, _)| zone.asks(server))
            .map(|(server, (why, _))| format!("server {server} is not asked: {why}"));
        let wrong: Vec<String> = loud.chain(files.wrong().map(str::to_owned)).chain(clashes).chain(untrusted).collect();
        let condition = (!wrong.is_empty()).then(|| format!("dns: {}", wrong.join("; ")));
        if condition != told {
            commands.report(Report::Service { name: "names", condition: condition.clone() }).await;
            told = condition;
        }
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return Ok(()) },
            () = sockets.ended() => rests = Some(Instant::now() + AGAIN),
            () = sleep_until(rests.unwrap_or_else(Instant::now)), if rests.is_some() => {}
            () = &mut broken => {
                return Err(Failure::new(Kind::Internal, "a thread that answers questions has ended"));
            }
            Ok(()) = distrusted.changed() => {}
            // Names are made anew once for many leases.
            Ok(()) = clients.changed() => {
                let soon = Instant::now() + CROWD;
                look = Some(look.map_or(soon, |at| at.min(soon)));
            }
            () = sleep_until(look.unwrap_or_else(Instant::now)), if look.is_some() => {}
            () = sleep(AGAIN * tries.min(4 * QUIET).div_ceil(QUIET).max(1)), if tries > 0 => {}
        }
    }
}

/// The clients of DHCP with these leases that gave themselves names; and how long it is from `now` until the first of their
/// leases is over.
fn named_clients(clients: &[Arc<ClientLease>], now: u64) -> (Vec<NamedClient>, Option<Duration>) {
    let named = clients.iter().filter_map(|lease| Some((lease, lease.hostname.clone()?)));
    let until = named.clone().map(|(lease, _)| lease.expires.saturating_sub(now)).min().map(Duration::from_secs);
    let named = named.map(|(lease, hostname)| NamedClient {
        pool: lease.pool.clone(),
        hostname,
        address: lease.address,
        client: lease.client.clone(),
        mac: lease.mac,
    });
    (named.collect(), until)
}

/// Whether something is another that names are made from.
fn is_other(before: &Snapshot, now: &Snapshot) -> bool {
    !Arc::ptr_eq(&before.device, &now.device)
        || !Arc::ptr_eq(&before.offers, &now.offers)
        || !Arc::ptr_eq(&before.pools, &now.pools)
        || !Arc::ptr_eq(&before.containers, &now.containers)
}
