//! Tests of the controller with a core that only keeps names, and a paused clock, which advances when every task waits.

mod errands;
mod services;

use super::controller::{AUDIT, FIRST_AUDIT};
use super::{Controller, Core};
use crate::bus::Heard;
use crate::command::{self, AddInterface, AttachRequest, Commands, Halt, Prepared, Readdress, Report};
use crate::events::{Bus, Change, EventView};
use crate::failure::{Failure, Kind};
use crate::ipam::store::ContainerRecord;
use crate::kernel::broker::Broker;
use crate::kernel::errand::{Brought, Errand, Found};
use crate::kernel::netlink::NetEvent;
use crate::kernel::netns::NetnsError;
use crate::model::{ContainerName, IfName, NetnsRef};
use crate::snapshot::{Attached, ContainerStatus, Phase, Snapshot, share_all};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// How long an attach takes.
const ATTACH: Duration = Duration::from_millis(5);
/// How long handling kernel events takes.
const SETTLE: Duration = Duration::from_millis(40);

/// How long an errand takes when its namespace hangs, and otherwise.
const HANGS: Duration = Duration::from_secs(10);
const ERRAND: Duration = Duration::from_millis(2);

/// What was done, in order.
type Done = Arc<Mutex<Vec<String>>>;

struct Fake {
    attached: BTreeSet<ContainerName>,
    done: Done,
    /// The errands that the next reload leaves to be done.
    left: Left,
    errands: Vec<Errand>,
    /// The repairs of the next audit.
    repairs: Vec<(Option<ContainerName>, String)>,
}

type Left = Arc<Mutex<Vec<Errand>>>;

/// An errand that opens a namespace with this name.
fn open(name: &str) -> Errand {
    Errand::Open(NetnsRef::Path(name.into()))
}

async fn bring(errand: Errand) -> Brought {
    let Errand::Open(reference) = errand else { panic!("{errand:?}") };
    sleep(if reference == NetnsRef::Path("stuck".into()) { HANGS } else { ERRAND }).await;
    let path = reference.path();
    Brought::Netns(reference, Err(NetnsError::NotNetns { path }))
}

impl Fake {
    /// A container `A-B` needs the namespace `A` to be opened first.
    fn needs(&self, name: &ContainerName, found: &Found) -> Result<(), Halt> {
        let Some((netns, _)) = name.as_str().split_once('-') else { return Ok(()) };
        match found.netns(&NetnsRef::Path(netns.into())) {
            Some(_) => Ok(()),
            None => Err(Halt::Needs(vec![open(netns)])),
        }
    }

    fn note(&self, what: impl Into<String>) {
        self.done.lock().expect("no panic").push(what.into());
    }
}

impl Core for Fake {
    async fn attach(
        &mut self,
        name: &ContainerName,
        request: &AttachRequest,
        _: &Result<Prepared, Failure>,
        found: &Found,
    ) -> Result<(), Halt> {
        self.needs(name, found)?;
        sleep(ATTACH).await;
        self.note(format!("attach {name}"));
        match request.pid {
            Some(_) => {
                self.attached.insert(name.clone());
                Ok(())
            }
            None => Err(Failure::new(Kind::Usage, "no namespace").into()),
        }
    }

    async fn attach_declared(&mut self, name: &ContainerName, _: &Prepared, found: &Found) -> Result<(), Halt> {
        self.needs(name, found)?;
        self.note(format!("attach declared {name}"));
        self.attached.insert(name.clone());
        Ok(())
    }

    fn namespace_is_gone(&mut self, name: &ContainerName) {
        self.note(format!("namespace of {name} gone"));
    }

    async fn container_ended(&mut self, name: &ContainerName, pid: u32) -> Result<(), Failure> {
        self.note(format!("ended {name} {pid}"));
        Ok(())
    }

    async fn detach(&mut self, name: &ContainerName, found: &Found) -> Result<(), Halt> {
        self.needs(name, found)?;
        self.note(format!("detach {name}"));
        let was = self.attached.remove(name);
        was.then_some(()).ok_or_else(|| Failure::new(Kind::NotFound, "is not attached").into())
    }

    async fn attach_interface(&mut self, add: &AddInterface, found: &Found) -> Result<(), Halt> {
        self.needs(&add.container, found)?;
        self.note(format!("attach {} of {}", add.interface, add.container));
        Ok(())
    }

    async fn detach_interface(&mut self, name: &ContainerName, interface: &IfName, found: &Found) -> Result<(), Halt> {
        self.needs(name, found)?;
        self.note(format!("detach {interface} of {name}"));
        Ok(())
    }

    async fn readdress(&mut self, new: &Readdress, found: &Found) -> Result<(), Halt> {
        self.needs(&new.key.container, found)?;
        self.note(format!("readdress {}", new.key));
        Ok(())
    }

    async fn reload(&mut self) -> Result<(), Failure> {
        self.note("reload");
        self.errands = std::mem::take(&mut *self.left.lock().expect("no panic"));
        Ok(())
    }

    async fn plan(&mut self) -> Result<crate::plan::ReloadPlan, Failure> {
        self.note("plan");
        Ok(crate::plan::ReloadPlan::default())
    }

    async fn on_event(&mut self, event: &NetEvent) {
        self.note(format!("{event:?}"));
    }

    async fn settle(&mut self) {
        sleep(SETTLE).await;
        self.note("settle");
    }

    async fn audit(&mut self) {
        self.note("audit");
        self.repairs.push((None, "found: done".to_owned()));
    }

    fn port_is_taken(&mut self, proto: u32, port: u16) {
        self.note(format!("port {port} of {proto}"));
    }

    async fn teardown(&mut self) -> Result<(), Failure> {
        self.note("down");
        Ok(())
    }

    fn errands(&mut self) -> Vec<Errand> {
        std::mem::take(&mut self.errands)
    }

    fn run(&self, errand: Errand) -> impl Future<Output = Brought> + Send + 'static {
        bring(errand)
    }

    async fn errand_ended(&mut self, brought: Brought) {
        let Brought::Netns(reference, _) = brought else { panic!("{brought:?}") };
        self.note(format!("{} brought", reference.path().display()));
    }

    fn take_repairs(&mut self) -> Vec<(Option<ContainerName>, String)> {
        std::mem::take(&mut self.repairs)
    }

    fn snapshot(&mut self, before: &Snapshot) -> Snapshot {
        let status = |name: &ContainerName| {
            let record = ContainerRecord::default();
            let (ports, inactive) = (Vec::new(), Vec::new());
            let phase = Phase::Attached(Attached {
                identity: 1,
                record: Arc::new(record),
                links: Vec::new(),
                pairs: Vec::new(),
                aliases: Vec::new(),
                ports,
                inactive,
            });
            ContainerStatus { name: name.clone(), phase, is_startable: false, conditions: Vec::new() }
        };
        let containers =
            share_all(&before.containers, &self.attached, |old, new| old.name.cmp(*new), |_, _| true, status);
        Snapshot { containers, conditions: Arc::default(), ..before.clone() }
    }
}

/// A running controller.
struct Lab {
    commands: Commands,
    kernel: mpsc::UnboundedSender<NetEvent>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    stop: CancellationToken,
    bus: Bus,
    done: Done,
    left: Left,
    ended: tokio::task::JoinHandle<Result<(), Failure>>,
}

impl Lab {
    fn new() -> Self {
        let (commands, queue) = command::channel(Broker::on_threads());
        let (kernel, changes) = mpsc::unbounded_channel();
        let (stop, bus, done) = (CancellationToken::new(), Bus::default(), Done::default());
        let left = Left::default();
        let core = Fake {
            attached: BTreeSet::new(),
            done: done.clone(),
            left: left.clone(),
            errands: Vec::new(),
            repairs: Vec::new(),
        };
        let (controller, snapshots) = Controller::new(core, queue, changes, bus.clone(), stop.clone());
        let ended = tokio::task::spawn_local(controller.run());
        Self { commands, kernel, snapshots, stop, bus, done, left, ended }
    }

    fn done(&self) -> Vec<String> {
        std::mem::take(&mut *self.done.lock().expect("no panic"))
    }

    fn names(&self) -> Vec<String> {
        names(&self.snapshots.borrow())
    }

    async fn attach(&self, name: &str) -> command::Outcome {
        self.attach_as(name, AttachRequest { pid: Some(1), ..AttachRequest::default() }).await
    }

    /// Sends the command without opening a namespace: a thread would have to be waited for, and the clock is paused.
    async fn attach_as(&self, name: &str, request: AttachRequest) -> command::Outcome {
        let prepared = Err(Failure::new(Kind::Internal, "a fake needs none"));
        self.commands.attach_prepared(name.parse().expect("name"), request, prepared).await
    }

    async fn detach(&self, name: &str) -> command::Outcome {
        self.commands.detach(name.parse().expect("name")).await
    }

    fn conditions(&self) -> Vec<String> {
        self.snapshots.borrow().conditions.to_vec()
    }
}

fn names(snapshot: &Snapshot) -> Vec<String> {
    snapshot.containers.iter().map(|c| c.name.to_string()).collect()
}

/// Runs a test with a paused clock, and the controller on the same thread.
fn paused(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    tokio::task::LocalSet::new().block_on(&runtime.expect("a runtime"), test);
}

#[test]
fn who_asked_sees_what_was_done_and_so_does_everybody_else() {
    paused(async {
        let lab = Lab::new();
        let after = lab.attach("web").await.expect("attached");
        assert_eq!((names(&after), lab.names()), (vec!["web".to_owned()], vec!["web".to_owned()]));
        let earlier = lab.snapshots.borrow().clone();
        lab.attach("db").await.expect("attached");
        assert_eq!(lab.names(), ["db", "web"]);
        // A snapshot that somebody holds does not change, and parts that stayed the same are shared.
        assert_eq!(names(&earlier), ["web"]);
        assert!(Arc::ptr_eq(&earlier.containers[0], &lab.snapshots.borrow().containers[1]));
        lab.detach("web").await.expect("detached");
        assert_eq!(lab.names(), ["db"]);
        let failure = lab.detach("web").await.expect_err("it is gone");
        assert_eq!(failure.kind, Kind::NotFound);
    });
}

#[test]
fn commands_are_carried_out_in_their_order_and_reads_wait_for_none() {
    paused(async {
        let lab = Lab::new();
        let begun = Instant::now();
        let (first, second, third, fourth) =
            tokio::join!(lab.attach("a"), lab.commands.reload(), lab.attach("b"), async {
                // While the controller is busy with the first command.
                tokio::task::yield_now().await;
                assert_eq!((lab.names(), begun.elapsed()), (Vec::<String>::new(), Duration::ZERO));
                lab.detach("a").await
            });
        for outcome in [first, second, third, fourth] {
            outcome.expect("done");
        }
        assert_eq!(lab.done(), ["attach a", "reload", "attach b", "detach a"]);
        assert_eq!(begun.elapsed(), ATTACH * 2);
    });
}

#[test]
fn a_client_that_hangs_up_leaves_nothing_half_done() {
    paused(async {
        let lab = Lab::new();
        let gave_up = tokio::time::timeout(ATTACH / 2, lab.attach("web")).await;
        assert!(gave_up.is_err());
        lab.commands.reload().await.expect("reloaded");
        assert_eq!(lab.names(), ["web"]);
    });
}

#[test]
fn what_fails_is_answered_and_changes_nothing() {
    paused(async {
        let lab = Lab::new();
        let before = lab.snapshots.borrow().revision;
        let failure = lab.attach_as("web", AttachRequest::default()).await;
        assert_eq!(failure.expect_err("no namespace").line(), "no namespace");
        assert_eq!(lab.snapshots.borrow().revision, before);
    });
}

#[test]
fn a_storm_of_changes_takes_a_part_of_the_time() {
    paused(async {
        let lab = Lab::new();
        let storm = async {
            loop {
                lab.kernel.send(NetEvent::Changed).expect("it runs");
                sleep(Duration::from_millis(1)).await;
            }
        };
        let attaches = async {
            for n in 0..20 {
                lab.attach(&format!("c{n}")).await.expect("attached");
            }
        };
        let begun = Instant::now();
        tokio::select! { () = storm => {}, () = attaches => {} }
        // After each handling of events there is a calm of four times its length, in which the 20 attaches (100 ms)
        // fit.
        assert!(begun.elapsed() < ATTACH * 20 + SETTLE * 4, "{:?}", begun.elapsed());
        assert!(lab.done().iter().filter(|what| *what == "settle").count() <= 2);
    });
}

#[test]
fn what_nobody_tells_of_is_looked_at_now_and_then() {
    paused(async {
        let lab = Lab::new();
        sleep(FIRST_AUDIT + AUDIT * 3 + Duration::from_millis(1)).await;
        assert_eq!(lab.done(), ["audit"; 4]);
    });
}

#[test]
fn a_late_report_finds_the_controller_as_it_is_by_then() {
    paused(async {
        let lab = Lab::new();
        let late = async {
            sleep(ATTACH / 2).await;
            lab.commands.report(Report::PortTaken { proto: 6, port: 61_000 }).await;
        };
        let (outcome, ()) = tokio::join!(lab.attach("web"), late);
        outcome.expect("attached");
        lab.stop.cancel();
        // After the controller has ended, a report is dropped without waiting.
        let Lab { commands, ended, done, .. } = lab;
        ended.await.expect("no panic").expect("stopped");
        commands.report(Report::PortTaken { proto: 6, port: 61_001 }).await;
        let failure = commands.reload().await.expect_err("it has ended");
        assert_eq!(failure.line(), "the daemon is stopping");
        assert_eq!(done.lock().expect("no panic")[0], "attach web");
    });
}

#[test]
fn stopping_waits_for_what_is_being_done_and_not_for_the_queue() {
    paused(async {
        let lab = Lab::new();
        let stop = async {
            sleep(ATTACH / 2).await;
            lab.stop.cancel();
        };
        let (first, second, ()) = tokio::join!(lab.attach("a"), lab.attach("b"), stop);
        first.expect("attached");
        assert_eq!(second.expect_err("it stops").line(), "the daemon is stopping");
        assert_eq!(lab.done(), ["attach a"]);
    });
}

#[test]
fn down_is_answered_and_is_the_end() {
    paused(async {
        let lab = Lab::new();
        lab.commands.down().await.expect("down");
        assert_eq!(lab.done(), ["down"]);
        lab.ended.await.expect("no panic").expect("ended");
    });
}

#[test]
fn listeners_hear_what_changed() {
    paused(async {
        let lab = Lab::new();
        let mut listener = lab.bus.listen();
        lab.attach("web").await.expect("attached");
        lab.commands.report(Report::Service { name: "dns", condition: Some("service dns: it ended".to_owned()) }).await;
        lab.detach("web").await.expect("detached");
        let mut heard = Vec::new();
        for _ in 0..3 {
            let Some(Heard::Message(EventView::Change(change))) = listener.next().await else { panic!("a change") };
            heard.push((change.event, change.container.or(change.text).expect("about something")));
        }
        let expected =
            [(Change::Attached, "web"), (Change::Condition, "service dns: it ended"), (Change::Detached, "web")];
        assert_eq!(heard, expected.map(|(change, what)| (change, what.to_owned())));
    });
}

#[test]
fn what_was_put_right_is_told_by_name() {
    paused(async {
        let lab = Lab::new();
        let mut listener = lab.bus.listen();
        sleep(FIRST_AUDIT).await;
        let Some(Heard::Message(EventView::Change(change))) = listener.next().await else { panic!("a change") };
        assert_eq!((change.event, change.text.as_deref()), (Change::Repaired, Some("found: done")));
    });
}
