//! Cases of what to do for a declared container.

use super::next::{Memory, Next};
use crate::ipam::store::ContainerRecord;
use crate::kernel::netns::{NetnsId, Place, look};
use crate::snapshot::{Attached, Awaited, Phase};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Two different namespace identities.
fn two() -> (NetnsId, NetnsId) {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| {
        let path = dir.path().join(name);
        std::os::unix::fs::symlink("/proc/self/ns/net", &path).expect("made");
        match look(&path, None) {
            Place::Namespace(id) => id,
            other => panic!("{other:?}"),
        }
    };
    (at("a"), at("b"))
}

fn awaited(run: &str, detached_in: Option<NetnsId>) -> Awaited {
    Awaited { path: "/run/netns/web".into(), run: run.into(), detached_in }
}

fn attached(links: &[Option<u32>]) -> Phase {
    let record = ContainerRecord::default();
    let (ports, inactive) = (Vec::new(), Vec::new());
    Phase::Attached(Attached {
        identity: 1,
        record: Arc::new(record),
        links: links.to_vec(),
        aliases: Vec::new(),
        pairs: Vec::new(),
        ports,
        inactive,
    })
}

const DECLARED: Phase = Phase::Declared { interfaces: Vec::new(), aliases: Vec::new() };

#[test]
fn it_is_attached_when_its_namespace_is_there_and_only_then() {
    let ((a, b), now) = (two(), Instant::now());
    let whole = attached(&[Some(7), Some(8)]);
    let lost = attached(&[Some(7), None]);
    let later = now + Duration::from_secs(6);
    for (name, place, detached_in, phase, at, want) in [
        ("nothing is there", Place::Empty, None, &DECLARED, now, Next::Rest),
        ("nothing is there any more", Place::Empty, None, &lost, now, Next::Rest),
        ("it is there", Place::Namespace(a), None, &DECLARED, now, Next::Attach),
        ("it is there after a reboot", Place::Namespace(a), None, &lost, now, Next::Attach),
        ("it may be there already", Place::Namespace(a), None, &whole, now, Next::Compare(vec![7, 8])),
        ("detached in it", Place::Namespace(a), Some(a), &DECLARED, now, Next::Rest),
        ("a link lost, and detached in it", Place::Namespace(a), Some(a), &lost, now, Next::Rest),
        ("detached in another one", Place::Namespace(a), Some(b), &DECLARED, now, Next::Attach),
        ("half of it is there", Place::OtherFile, None, &DECLARED, now, Next::Wait(now + Duration::from_secs(5))),
        ("some file is there", Place::OtherFile, None, &DECLARED, later, Next::Attach),
        ("attached elsewhere, and some file is there", Place::OtherFile, None, &whole, later, Next::Rest),
        ("nobody may look", Place::Closed, None, &DECLARED, now, Next::Attach),
    ] {
        let mut memory = Memory::new(awaited("{}", detached_in));
        assert_eq!(memory.next(phase, now), Next::Rest, "{name}: not looked at yet");
        memory.see(place, now);
        assert_eq!(memory.next(phase, at), want, "{name}");
    }
}

#[test]
fn what_is_settled_rests_until_the_namespace_or_a_link_is_another() {
    let ((a, b), now) = (two(), Instant::now());
    let whole = attached(&[Some(7)]);
    let mut memory = Memory::new(awaited("{}", None));
    memory.see(Place::Namespace(a), now);
    memory.settle(Some(a), now);
    assert_eq!(memory.next(&whole, now), Next::Rest);
    // One of its links is gone. It is attached after a pause, so that somebody who removes the link each time cannot
    // keep the daemon busy.
    let pause = Duration::from_millis(250);
    assert_eq!(memory.next(&attached(&[None]), now), Next::Wait(now + pause));
    assert_eq!(memory.next(&attached(&[None]), now + pause), Next::Attach);
    // A new namespace is attached at once.
    memory.see(Place::Namespace(b), now);
    assert_eq!(memory.next(&whole, now), Next::Compare(vec![7]));
    assert_eq!(memory.next(&attached(&[None]), now), Next::Attach);
    memory.settle(Some(b), now);
    // The declaration has changed, so the controller has to check whether the container is attached as declared.
    memory.follow(&awaited("{\"changed\": true}", None));
    assert_eq!(memory.next(&whole, now), Next::Compare(vec![7]));
}

#[test]
fn what_fails_is_tried_again_less_and_less_often() {
    let ((a, b), mut now) = (two(), Instant::now());
    let mut memory = Memory::new(awaited("{}", None));
    memory.see(Place::Namespace(a), now);
    let mut pauses = Vec::new();
    for _ in 0..9 {
        assert_eq!(memory.next(&DECLARED, now), Next::Attach);
        memory.fail(now);
        let Next::Wait(until) = memory.next(&DECLARED, now) else { panic!("no pause") };
        pauses.push((until - now).as_millis());
        now = until;
    }
    assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
    memory.fail(now);
    // A change of the configuration, the file or the namespace allows a try at once.
    let later = |change: &dyn Fn(&mut Memory)| {
        let mut memory = Memory::new(awaited("{}", None));
        memory.see(Place::Namespace(a), now);
        memory.fail(now);
        change(&mut memory);
        memory.next(&DECLARED, now)
    };
    assert!(matches!(later(&|_| {}), Next::Wait(_)));
    assert_eq!(later(&Memory::hope), Next::Attach);
    assert_eq!(later(&|memory| memory.follow(&awaited("{\"changed\": true}", None))), Next::Attach);
    assert_eq!(later(&|memory| memory.see(Place::Namespace(b), now)), Next::Attach);
    // When the namespace goes, the failure ends, and the controller is told so once.
    memory.is_told = true;
    memory.see(Place::Empty, now);
    assert_eq!(memory.next(&DECLARED, now), Next::Clear);
    memory.is_told = false;
    assert_eq!(memory.next(&DECLARED, now), Next::Rest);
}
