//! The condition of a service reaches the snapshot, and the controller goes on meanwhile.

use super::{Lab, paused};
use crate::failure::{Failure, Kind};
use crate::supervisor::Supervisor;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep};

#[test]
fn a_service_that_panics_comes_back_with_a_condition() {
    paused(async {
        let lab = Lab::new();
        let mut supervisor = Supervisor::new(tokio::runtime::Handle::current(), lab.commands.clone());
        let starts = Arc::new(AtomicU32::new(0));
        supervisor.start("dns", {
            let starts = starts.clone();
            move |stop| {
                let start = starts.fetch_add(1, Ordering::Relaxed);
                async move {
                    match start {
                        0 => panic!("a bug"),
                        1 => Err(Failure::new(Kind::Internal, "port 53: in use")),
                        _ => {
                            stop.cancelled().await;
                            Ok(())
                        }
                    }
                }
            }
        });
        sleep(Duration::from_millis(100)).await;
        assert_eq!(lab.conditions(), ["service dns: it panicked: a bug: it is started anew"]);
        assert_eq!(starts.load(Ordering::Relaxed), 1);
        // The pause before each new start grows.
        sleep(Duration::from_millis(300)).await;
        assert_eq!(lab.conditions(), ["service dns: port 53: in use: it is started anew"]);
        sleep(Duration::from_millis(400)).await;
        assert_eq!(starts.load(Ordering::Relaxed), 3);
        // The condition goes when the service has run for a while.
        assert_eq!(lab.conditions().len(), 1);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(lab.conditions(), Vec::<String>::new());
        // The controller has gone on meanwhile.
        lab.attach("web").await.expect("attached");
        let begun = Instant::now();
        supervisor.stop().await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    });
}

#[test]
fn a_service_that_does_not_end_is_dropped() {
    paused(async {
        let lab = Lab::new();
        let mut supervisor = Supervisor::new(tokio::runtime::Handle::current(), lab.commands.clone());
        supervisor.start("stuck", |_| std::future::pending());
        tokio::task::yield_now().await;
        let begun = Instant::now();
        supervisor.stop().await;
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
    });
}

#[test]
fn a_service_that_ends_with_the_controller_has_not_failed() {
    paused(async {
        let lab = Lab::new();
        let mut supervisor = Supervisor::new(tokio::runtime::Handle::current(), lab.commands.clone());
        let starts = Arc::new(AtomicU32::new(0));
        supervisor.start("ra", {
            let (starts, snapshots) = (starts.clone(), lab.snapshots.clone());
            move |_| {
                starts.fetch_add(1, Ordering::Relaxed);
                let mut snapshots = snapshots.clone();
                async move {
                    while snapshots.changed().await.is_ok() {}
                    Ok(())
                }
            }
        });
        sleep(Duration::from_millis(100)).await;
        lab.stop.cancel();
        sleep(Duration::from_secs(1)).await;
        assert!(lab.ended.is_finished());
        assert_eq!(starts.load(Ordering::Relaxed), 1);
        supervisor.stop().await;
    });
}
