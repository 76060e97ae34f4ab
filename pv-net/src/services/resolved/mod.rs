//! Tells a systemd-resolved that runs on the device about `network.dns_on_device`: names in the device's domain are
//! asked of that address, all others are its own matter. It is told by D-Bus, for each pool's bridge: it takes no
//! settings for loopback. It forgets what belongs to a link that goes away, and keeps the rest when it is started anew:
//! what is over is taken back.

mod bus;
mod owed;
#[cfg(test)]
mod tests;

use crate::command::{Commands, Report};
use crate::dbus::{Body, Call};
use crate::failure::Failure;
use crate::model::Mac;
use crate::snapshot::Snapshot;
use bus::{Bus, NotDone};
use owed::Owed;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

const SERVICE: &str = "org.freedesktop.resolve1";
/// The bus where no other is named (the D-Bus specification, section "Well-known Message Bus Instances").
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// How soon a refused call is made again: a new link becomes known a moment later. And how long after systemd-resolved was
/// told all it is told all again, however often it begins.
const SOON: Duration = Duration::from_secs(1);
/// So often it is tried before anybody is told.
const QUIET: u32 = 3;
/// How often it is tried later, and how often a bus that is not there is looked for.
const LATER: Duration = Duration::from_secs(30);

/// What a link is for: questions in `domain` go to `server`. The MAC tells a new link with an old one's index.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    mac: Mac,
    server: IpAddr,
    domain: String,
}

/// What is to be told: for each pool's bridge, by its index.
fn wanted(snapshot: &Snapshot) -> BTreeMap<u32, Told> {
    let Some(server) = snapshot.device.dns_on_device else { return BTreeMap::new() };
    let told = |mac| Told { mac, server, domain: snapshot.device.domain.clone() };
    let links = snapshot.pools.values().filter_map(|pool| pool.link.as_ref());
    links.map(|link| (link.index, told(link.mac))).collect()
}

/// The bus's socket. The environment may name another one, as for all its clients.
fn socket() -> PathBuf {
    let named = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_default();
    let first = named.split(';').next().unwrap_or_default();
    let path = first.strip_prefix("unix:path=").and_then(|rest| rest.split(',').next());
    path.unwrap_or(SYSTEM_BUS).into()
}

/// Follows the snapshots, and restarts of systemd-resolved. Where that does not run, nothing is told. `file` is where it is
/// written down what has to be taken back.
///
/// # Errors
/// None: what is refused is a condition, and tried again.
pub async fn resolved(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    commands: Commands,
    file: PathBuf,
) -> Result<(), Failure> {
    // The service's own name is that of what its supervisor says of it.
    let report = async |condition| commands.report(Report::Service { name: "device-names", condition }).await;
    // One that ran before may have said something.
    report(None).await;
    let (socket, mut bus, mut said, mut tries) = (socket(), None, None, 0_u32);
    let mut told: BTreeMap<u32, Told> = BTreeMap::new();
    let (mut owed, mut told_all) = (Owed::load(file).await, Instant::now());
    loop {
        let wanted = wanted(&snapshots.borrow_and_update());
        let mut wrong = None;
        let is_over = wanted.is_empty() && owed.is_empty();
        if is_over {
            bus = None;
        } else {
            match follow(&mut bus, &socket, &wanted, &mut told, &mut owed).await {
                Ok(()) | Err(NotDone::NotRunning) => {}
                Err(NotDone::Refused(why) | NotDone::NotOurs(why)) => wrong = Some(why),
                Err(NotDone::Lost(e)) => {
                    tracing::debug!(bus = %socket.display(), error = %e, "not there");
                    (bus, told) = (None, BTreeMap::new());
                }
            }
        }
        tries = if wrong.is_some() { tries + 1 } else { 0 };
        let condition = wrong.filter(|_| tries > QUIET);
        let condition = condition.map(|why| format!("systemd-resolved is not told of network.dns_on_device: {why}"));
        if condition != said {
            report(condition.clone()).await;
            said = condition;
        }
        let again = if (1..=QUIET).contains(&tries) { SOON } else { LATER };
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return Ok(()) },
            // It has ended or begun: then it may know nothing. Without a bus, nobody says so.
            changed = async { bus.as_mut()?.changed().await.ok() }, if bus.is_some() => {
                told.clear();
                if changed.is_none() {
                    bus = None;
                }
                sleep_until(told_all + SOON).await;
                told_all = Instant::now();
            }
            () = sleep(again), if tries > 0 || (bus.is_none() && !is_over) => {}
        }
    }
}

/// Tells what is not told yet, and takes back what is not wanted any more.
async fn follow(
    bus: &mut Option<Bus>,
    socket: &Path,
    wanted: &BTreeMap<u32, Told>,
    told: &mut BTreeMap<u32, Told>,
    owed: &mut Owed,
) -> Result<(), NotDone> {
    let bus = match bus {
        Some(bus) => bus,
        none => none.insert(Bus::connect(socket, SERVICE).await?),
    };
    told.retain(|link, _| wanted.contains_key(link));
    let over: Vec<u32> = owed.links().filter(|link| !wanted.contains_key(link)).collect();
    let mut refused = None;
    for link in over {
        match bus.call(&to_resolved("RevertLink", "i", Body::default().word(link))).await {
            // With a link that is gone, what was told is.
            Ok(()) | Err(NotDone::NotOurs(_)) => owed.remove(link).await,
            Err(NotDone::Refused(why)) => refused = Some(why),
            Err(e) => return Err(e),
        }
    }
    for (link, want) in wanted {
        if told.get(link) == Some(want) {
            continue;
        }
        owed.add(*link).await;
        match tell(bus, *link, want).await {
            Ok(()) => drop(told.insert(*link, want.clone())),
            // Other links may be better: one that systemd-networkd manages is its own.
            Err(NotDone::Refused(why) | NotDone::NotOurs(why)) => refused = Some(why),
            Err(e) => return Err(e),
        }
    }
    refused.map_or(Ok(()), |why| Err(NotDone::Refused(why)))
}

async fn tell(bus: &mut Bus, link: u32, want: &Told) -> Result<(), NotDone> {
    let (family, octets) = match want.server {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let on_link = || Body::default().word(link);
    let server = on_link().one(|server| server.word(family as u32).bytes(&octets));
    // For routing only: names of one label are not searched in the domain.
    let domain = on_link().one(|domain| domain.text(&want.domain).word(1));
    for call in [
        to_resolved("SetLinkDNS", "ia(iay)", server),
        to_resolved("SetLinkDomains", "ia(sb)", domain),
        to_resolved("SetLinkDefaultRoute", "ib", on_link().word(0)),
    ] {
        bus.call(&call).await?;
    }
    Ok(())
}

fn to_resolved(member: &'static str, signature: &'static str, body: Body) -> Call {
    let (path, interface) = ("/org/freedesktop/resolve1", "org.freedesktop.resolve1.Manager");
    Call { destination: SERVICE, path, interface, member, signature, body }
}
