//! Decides what to do for one declared container. Pure.

use crate::kernel::netns::{NetnsId, Place};
use crate::snapshot::{Awaited, Phase};
use std::time::Duration;
use tokio::time::Instant;

/// The pause before a failed attach is tried again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A file that is no namespace for this long will not become one: `ip netns add` mounts the namespace at once.
const BECOMES_ONE: Duration = Duration::from_secs(5);

/// What the service knows about a declared container.
#[derive(Debug)]
pub(super) struct Memory {
    /// Its declaration. When that changes, everything starts again.
    pub awaited: Awaited,
    /// What was at its path at the last look, and since when.
    seen: Option<(Place, Instant)>,
    /// The namespace in which nothing is left to do, as long as the container's links exist.
    settled: Option<NetnsId>,
    /// At that time it could not be seen which namespace is at the path.
    settled_closed: bool,
    /// What was at its path at the last try, when the next try is allowed, and the pause before it.
    tried: Option<(Place, Instant, Duration)>,
    /// It is being attached.
    pub is_busy: bool,
    /// The controller has been told about a failure, which counts until the namespace goes.
    pub is_told: bool,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing, until something changes.
    Rest,
    /// Nothing before this time.
    Wait(Instant),
    /// Tell the controller that the namespace is gone, which ends the container's failure.
    Clear,
    /// Check whether these links lead into the namespace, and attach the container if not.
    Compare(Vec<u32>),
    /// Attach it.
    Attach,
}

impl Memory {
    pub(crate) fn new(awaited: Awaited) -> Self {
        Self { awaited, seen: None, settled: None, settled_closed: false, tried: None, is_busy: false, is_told: false }
    }

    /// Takes over the declaration. If it has changed, everything starts again.
    pub(crate) fn follow(&mut self, now: &Awaited) {
        if (&self.awaited.path, &self.awaited.run) != (&now.path, &now.run) {
            (self.settled, self.tried) = (None, None);
            if self.awaited.path != now.path {
                self.seen = None;
            }
        }
        self.awaited.clone_from(now);
    }

    /// Allows a new try at once, because something has changed on which the failure may depend.
    pub(crate) fn hope(&mut self) {
        self.tried = None;
    }

    /// Notes what is at its path.
    pub(crate) fn see(&mut self, place: Place, now: Instant) {
        if self.seen.is_none_or(|(before, _)| before != place) {
            self.seen = Some((place, now));
            self.settled_closed = false;
        }
    }

    /// Notes that its links lead into `namespace`, or that somebody has attached it in another way. If it then loses a
    /// link in that namespace, there is a pause before it is attached again.
    pub(crate) fn settle(&mut self, namespace: Option<NetnsId>, now: Instant) {
        self.settled = namespace;
        self.settled_closed = matches!(self.seen, Some((Place::Closed, _)));
        self.tried = self.seen.map(|(place, _)| (place, now + FIRST_PAUSE, FIRST_PAUSE));
    }

    /// The namespace seen at the last look.
    pub(crate) fn namespace(&self) -> Option<NetnsId> {
        match self.seen {
            Some((Place::Namespace(id), _)) => Some(id),
            _ => None,
        }
    }

    /// Notes that it could not be attached.
    pub(crate) fn fail(&mut self, now: Instant) {
        let Some((place, _)) = self.seen else { return };
        let pause = match self.tried {
            Some((before, _, pause)) if before == place => (pause * 2).min(LONGEST_PAUSE),
            _ => FIRST_PAUSE,
        };
        self.tried = Some((place, now + pause, pause));
    }

    /// What to do now, given the container's phase.
    pub(crate) fn next(&self, phase: &Phase, now: Instant) -> Next {
        let Some((place, since)) = self.seen else { return Next::Rest };
        let links: Option<Vec<u32>> = match phase {
            // One for each interface, so `None` when any link is missing.
            Phase::Attached(attached) => attached.links.iter().copied().collect(),
            Phase::Declared { .. } => None,
        };
        match place {
            Place::Empty if self.is_told => return Next::Clear,
            Place::Empty => return Next::Rest,
            Place::OtherFile if now < since + BECOMES_ONE => return Next::Wait(since + BECOMES_ONE),
            Place::Namespace(id) if self.awaited.detached_in == Some(id) => return Next::Rest,
            // Only the broker can see which namespace it is.
            Place::Closed if self.awaited.detached_in.is_some() => return Next::Rest,
            Place::Closed if self.settled_closed && links.is_some() => return Next::Rest,
            _ => {}
        }
        if links.is_some() && (self.settled == self.namespace()) {
            return Next::Rest;
        }
        match (self.tried, links) {
            (Some((before, again, _)), _) if before == place && now < again => Next::Wait(again),
            (_, Some(links)) => Next::Compare(links),
            (_, None) => Next::Attach,
        }
    }
}
