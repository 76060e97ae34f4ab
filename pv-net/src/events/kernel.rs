//! Forwards the kernel's ring buffer to the event bus: dropped packets, refused binds, and binds of ports in
//! masquerade's range.

use super::{BindEventView, Bus, EventView, names};
use crate::command::{Commands, Report};
use crate::failure::{Failure, Kind};
use crate::kernel::bpf::kernel_events;
use crate::snapshot::Snapshot;
use pv_net_common::event::NOBODY;
use pv_net_common::{BindEvent, DropEvent};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// A record of the ring buffer.
enum Record {
    Drop(DropEvent),
    Bind(BindEvent),
}

impl Record {
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let drop = DropEvent::from_bytes(bytes).map(Self::Drop);
        drop.or_else(|| BindEvent::from_bytes(bytes).map(Self::Bind))
    }
}

/// When each refused bind was last logged: a program that tries again and again is logged only now and then.
#[derive(Default)]
struct Logged(HashMap<(IpAddr, u16, String, String), Instant>);

impl Logged {
    fn is_new(&mut self, event: &BindEventView) -> bool {
        const QUIET: Duration = Duration::from_secs(60);
        let now = Instant::now();
        self.0.retain(|_, at| now.duration_since(*at) < QUIET);
        let key = (event.address, event.port, event.proto.clone(), event.program.clone());
        if self.0.contains_key(&key) {
            return false;
        }
        self.0.insert(key, now);
        true
    }
}

fn log(event: &BindEventView) {
    let container = event.container.as_deref().unwrap_or("a container that is gone");
    let BindEventView { address, port, proto, program, pid, .. } = event;
    tracing::warn!(%address, port, %proto, %program, pid, %container, "refused to bind: the port is published");
}

/// Forwards the kernel's records as soon as the data plane is loaded.
///
/// # Errors
/// When the ring buffer cannot be opened or waited for.
pub async fn forward(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    commands: Commands,
    bus: Bus,
) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::new(Kind::Internal, format!("kernel's events: {e}"));
    let plane = match snapshots.wait_for(|s| s.plane.is_some()).await {
        Ok(snapshot) => snapshot.plane.clone(),
        // The controller has ended.
        Err(_) => return Ok(()),
    };
    let Some(plane) = plane else { return Ok(()) };
    let ring = kernel_events(plane.reader.pin_dir())?;
    // SAFETY: the ring buffer owns its file descriptor and closes it only when it is dropped.
    let mut ring = unsafe { AsyncFd::register(ring) }.map_err(|e| failed(e.into()))?;
    let mut logged = Logged::default();
    loop {
        let mut guard = ring.readable_mut().await.map_err(failed)?;
        let mut records = Vec::new();
        while let Some(item) = guard.get_inner_mut().next() {
            records.extend(Record::from_bytes(&item));
        }
        guard.clear_ready();
        if !bus.is_heard() {
            // Without listeners drops are skipped, but refused binds are still logged, and taken ports still reported.
            records.retain(|record| matches!(record, Record::Bind(_)));
        }
        let snapshot = snapshots.borrow().clone();
        for record in &records {
            match record {
                Record::Bind(event) if event.identity == NOBODY => {
                    let port = u16::from_be(event.port_be);
                    commands.report(Report::PortTaken { proto: event.proto, port }).await;
                }
                Record::Drop(event) => bus.publish(EventView::Drop(names::dropped(event, &snapshot))),
                Record::Bind(event) => {
                    let view = names::refused(event, &snapshot);
                    if logged.is_new(&view) {
                        log(&view);
                    }
                    bus.publish(EventView::Bind(view));
                }
            }
        }
    }
}
