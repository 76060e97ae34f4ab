//! Advertising on one bridge.

use super::socket::{HOSTS, Heard, Socket};
use crate::ra::advert::VALID_SECS;
use crate::ra::metrics::Message;
use crate::ra::{Advert, Metrics, Prefix, Schedule, To, solicitation};
use ipnetwork::Ipv6Network;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::sleep_until;

/// The longest solicitation that is read, bytes.
const LONGEST: usize = 1280;
/// How many former networks of the pool are remembered.
const FORMER: usize = 4;

/// What a task has to advertise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// From now on.
    Now(Advert),
    /// Once, as the last one.
    Last(Advert),
}

impl Said {
    pub const fn advert(&self) -> &Advert {
        match self {
            Self::Now(advert) | Self::Last(advert) => advert,
        }
    }
}

/// Advertises what `said` has, until the last advertisement is sent or the socket fails.
pub(super) async fn advertise(
    socket: Socket,
    mut said: watch::Receiver<Said>,
    metrics: Arc<Metrics>,
) -> io::Result<()> {
    let mut now = said.borrow_and_update().advert().clone();
    let mut schedule = Schedule::new(now.option_secs, Instant::now());
    let mut former = Former::default();
    let mut buffer = vec![0; LONGEST];
    loop {
        tokio::select! {
            changed = said.changed() => {
                let next = said.borrow_and_update().clone();
                former.note(&now, next.advert(), Instant::now());
                now = next.advert().clone();
                if changed.is_err() || matches!(next, Said::Last(_)) {
                    metrics.count(Message::Last);
                    return socket.send(&former.with(&now, Instant::now()).encode(), HOSTS);
                }
                schedule.changed(now.option_secs, Instant::now());
            }
            () = sleep_until(schedule.due().into()) => {
                let at = Instant::now();
                for to in schedule.take(at, jitter()?) {
                    let message = former.with(&now, at).encode();
                    let (to, kind) = match to {
                        To::All => (HOSTS, Message::Unasked),
                        To::Askers => (HOSTS, Message::ToAskers),
                        To::Host(host) => (host, Message::ToHost),
                    };
                    match socket.send(&message, to) {
                        Ok(()) => metrics.count(kind),
                        // The host may be gone, or the queue full. The next advertisement follows.
                        Err(e) if kind == Message::ToHost || is_passing(&e) => metrics.count(Message::Failed),
                        Err(e) => return Err(e),
                    }
                }
            }
            heard = socket.hear(&mut buffer) => {
                let Heard { len, from, hops } = match heard {
                    Ok(heard) => heard,
                    // The kernel reports a wrong checksum so.
                    Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL)) || is_passing(&e) => {
                        metrics.count(Message::Ignored);
                        continue;
                    }
                    Err(e) => return Err(e),
                };
                if solicitation::is_valid(&buffer[..len], from, hops) {
                    metrics.count(Message::Solicited);
                    schedule.solicited(from, Instant::now(), jitter()?);
                } else {
                    metrics.count(Message::Ignored);
                }
                // A socket that is never empty must not keep the thread from others.
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Whether the error is temporary, so that the next message may be sent.
fn is_passing(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN | libc::EINTR | libc::EPERM))
}

/// A random number from 0 to 1.
fn jitter() -> io::Result<f64> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX))
}

/// Former networks of the pool, each with the time until which hosts may have valid addresses of it. Until then they
/// are advertised as deprecated (RFC 9096 section 3.5).
#[derive(Default)]
struct Former(Vec<(Ipv6Network, Instant)>);

impl Former {
    /// Remembers the networks of `before` that `next` does not have.
    fn note(&mut self, before: &Advert, next: &Advert, now: Instant) {
        let is_said = |net: &Ipv6Network| next.prefixes.iter().any(|p| p.net == *net);
        let until = now + Duration::from_secs(VALID_SECS.into());
        self.0.extend(before.prefixes.iter().filter(|p| !is_said(&p.net)).map(|p| (p.net, until)));
        self.0.retain(|(net, _)| !is_said(net));
        let extra = self.0.len().saturating_sub(FORMER);
        self.0.drain(..extra);
    }

    /// `advert` with the former networks.
    fn with(&mut self, advert: &Advert, now: Instant) -> Advert {
        self.0.retain(|(_, until)| *until > now);
        let left = |until: Instant| u32::try_from((until - now).as_secs()).unwrap_or(VALID_SECS);
        let old =
            |(net, until): &(Ipv6Network, Instant)| Prefix { net: *net, preferred_secs: 0, valid_secs: left(*until) };
        let mut advert = advert.clone();
        advert.prefixes.extend(self.0.iter().map(old));
        advert
    }
}
