//! A run: sends a batch of frames, then compares where they arrived with the model.

use super::generate::{self, MOST};
use super::judgement::{Judgement, Verdict};
use super::lab::Lab;
use super::model::{Memory, Model};
use super::reading::without_padding;
use super::receive::{Receivers, Seen, hears, icmp_of};
use super::{Place, World, mark};
use crate::raw::RawSocket;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Shots in a batch. The queue between a link and its reader holds 1000 packets (`netdev_max_backlog`).
const BATCH: u32 = 128;
/// How long to wait for a frame that must arrive.
const PATIENCE: Duration = Duration::from_secs(3);
/// How many kinds of disagreement a failure prints in full.
const SHOWN: usize = 80;

/// What is to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attack {
    /// The seed: the same one makes the same frames.
    pub seed: u64,
    /// The first shot of the seed.
    pub first: u32,
    /// How many frames, at least.
    pub frames: usize,
}

/// The numbers of a run without disagreement.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    /// Frames sent.
    pub frames: usize,
    /// Arrivals that the model demands.
    pub demanded: usize,
    /// Arrivals that the model excludes, none of which happened.
    pub excluded: usize,
    /// The first shot that was not sent.
    pub next: u32,
    /// How long it took.
    pub took: Duration,
}

/// A frame that was sent.
struct Sent {
    from: Place,
    frame: Vec<u8>,
    said: Judgement,
    arrived: HashSet<Place>,
    /// How many frames were sent before it.
    place: usize,
    /// The frame was sent a second time: an arrival from now on says nothing about the first time.
    again: bool,
}

/// A place where the model and the device differ about a frame.
struct Disagreement {
    number: u32,
    place: Place,
    arrived: bool,
    alone: Option<bool>,
}

struct Run<'l> {
    senders: HashMap<Place, RawSocket>,
    /// Programs run on what these send before the link takes it.
    guarded: &'static [Place],
    receivers: &'l Receivers,
    sent: HashMap<u32, Sent>,
    wrong: Vec<Disagreement>,
    report: Report,
}

impl Attack {
    /// Sends the frames. `memory` holds what was sent to this lab before.
    ///
    /// # Errors
    /// When the model and the device differ: on which frames, and the model's reasons.
    pub(crate) fn run(&self, lab: &Lab, world: &World, memory: &mut Memory) -> Result<Report> {
        stay_on_one_cpu()?;
        let start = Instant::now();
        let mut model = Model::new(world, memory);
        let receivers = Receivers::open(lab)?;
        let open = |place: &Place| {
            let ns = match place {
                Place::Out => &lab.out,
                Place::Lan => &lab.lan,
                Place::C => &lab.c.ns,
                Place::Rogue => lab.rogue.as_ref().unwrap_or(&lab.a.ns),
                _ => &lab.a.ns,
            };
            Ok((*place, RawSocket::open(ns, "eth0")?))
        };
        let senders = world.attackers().iter().map(open).collect::<Result<_>>()?;
        let (sent, wrong) = (HashMap::new(), Vec::new());
        let guarded: &[Place] = if world.is_child(Place::A) { &[Place::A, Place::Rogue] } else { &[] };
        let mut run = Run { senders, guarded, receivers: &receivers, sent, wrong, report: Report::default() };
        let mut shot = self.first;
        while run.report.frames < self.frames {
            let last = shot + BATCH;
            for shot in shot..last {
                let (from, frames) = generate::shot(world, self.seed, shot);
                for (number, frame) in frames {
                    let said = model.judge(from, &frame);
                    run.send(number, from, frame, said);
                }
            }
            run.settle((shot * MOST)..(last * MOST))?;
            shot = last;
        }
        run.settle(0..0)?;
        run.report.took = start.elapsed();
        run.report.next = shot;
        if run.wrong.is_empty() { Ok(run.report) } else { bail!("{}", run.explain(self)) }
    }
}

impl Run<'_> {
    fn send(&mut self, number: u32, from: Place, frame: Vec<u8>, said: Judgement) {
        // A receiver could not recognise a frame whose mark is damaged or cut off.
        let marked = mark::last(without_padding(&frame)) == Some(number);
        let said = if marked { said } else { said.weakened() };
        let said = if hears(&frame) { said } else { said.weakened_at(Place::Device) };
        // The sender's own link refused the frame: it arrives nowhere.
        if self.put(from, &frame).is_err() {
            return;
        }
        let place = self.report.frames;
        self.report.frames += 1;
        for place in Place::ALL.into_iter().filter(|place| *place != from) {
            match said.of(place).0 {
                Verdict::Must => self.report.demanded += 1,
                Verdict::MustNot => self.report.excluded += 1,
                Verdict::May => {}
            }
        }
        self.sent.insert(number, Sent { from, frame, said, arrived: HashSet::new(), place, again: false });
    }

    /// Sends a frame. What a program drops on the way out, the sender is told, as `ENOBUFS`: this frame counts.
    fn put(&self, from: Place, frame: &[u8]) -> Result<()> {
        match self.senders[&from].send(frame) {
            Err(why) if self.guarded.contains(&from) && why.downcast_ref() == Some(&Errno::ENOBUFS) => Ok(()),
            other => other,
        }
    }

    /// Waits for what must arrive of a batch, and notes where the device and the model differ.
    fn settle(&mut self, batch: Range<u32>) -> Result<()> {
        let start = Instant::now();
        let known = self.wrong.len();
        loop {
            // Read the clock before the queues: what has come in time is seen, however late this thread runs.
            let late = start.elapsed() > crate::patience(PATIENCE);
            self.read()?;
            let missing: Vec<(u32, Place)> = batch.clone().flat_map(|number| self.missing(number)).collect();
            if missing.is_empty() {
                break;
            }
            if late {
                let absent = |(number, place)| Disagreement { number, place, arrived: false, alone: None };
                self.wrong.extend(missing.into_iter().map(absent));
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        for n in known..self.wrong.len() {
            self.repeat(n)?;
        }
        // Frames of much older batches are forgotten: nobody waits for them any more.
        let old = batch.start.saturating_sub(16 * BATCH * MOST);
        let wrong: HashSet<u32> = self.wrong.iter().map(|w| w.number / MOST).collect();
        self.sent.retain(|number, _| *number >= old || wrong.contains(&(number / MOST)));
        Ok(())
    }

    fn missing(&self, number: u32) -> Vec<(u32, Place)> {
        let Some(sent) = self.sent.get(&number) else { return Vec::new() };
        sent.said.musts().filter(|p| *p != sent.from && !sent.arrived.contains(p)).map(|p| (number, p)).collect()
    }

    fn read(&mut self) -> Result<()> {
        let (sent, wrong) = (&mut self.sent, &mut self.wrong);
        self.receivers.drain(|seen| {
            let Some(of) = sent.get_mut(&seen.number) else { return };
            if seen.place == of.from || is_answer(&seen, of) || !of.arrived.insert(seen.place) {
                return;
            }
            if of.said.of(seen.place).0 == Verdict::MustNot && !of.again {
                wrong.push(Disagreement { number: seen.number, place: seen.place, arrived: true, alone: None });
            }
        })
    }

    /// Sends a shot once more, alone, to see whether the disagreement depends on the frames before. Only for the first
    /// of each kind.
    fn repeat(&mut self, n: usize) -> Result<()> {
        let Disagreement { number, place, arrived, .. } = self.wrong[n];
        let kind = self.kind(&self.wrong[n]);
        let kinds: HashSet<_> = self.wrong[..n].iter().map(|w| self.kind(w)).collect();
        if kinds.contains(&kind) || kinds.len() >= SHOWN {
            return Ok(());
        }
        let first = number / MOST * MOST;
        for number in self.in_order(first..first + MOST) {
            if let Some(sent) = self.sent.get_mut(&number) {
                sent.arrived.remove(&place);
                sent.again = true;
                self.put(self.sent[&number].from, &self.sent[&number].frame)?;
            }
        }
        let start = Instant::now();
        let again = loop {
            let late = start.elapsed() > crate::patience(Duration::from_millis(if arrived { 100 } else { 1000 }));
            self.read()?;
            let there = self.sent.get(&number).is_some_and(|sent| sent.arrived.contains(&place));
            if there || late {
                break there;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        self.wrong[n].alone = Some(again == arrived);
        Ok(())
    }

    /// The frames of these numbers that were sent, in the order of sending.
    fn in_order(&self, numbers: Range<u32>) -> Vec<u32> {
        let mut sent: Vec<u32> = numbers.filter(|number| self.sent.contains_key(number)).collect();
        sent.sort_by_key(|number| self.sent[number].place);
        sent
    }

    /// A key for disagreements that probably have one cause.
    fn kind(&self, wrong: &Disagreement) -> (Place, Place, bool, &'static str) {
        let sent = &self.sent[&wrong.number];
        (sent.from, wrong.place, wrong.arrived, sent.said.of(wrong.place).1)
    }

    /// A text with every kind of disagreement, and its first frame in full.
    fn explain(&self, attack: &Attack) -> String {
        let mut kinds: BTreeMap<_, Vec<&Disagreement>> = BTreeMap::new();
        for wrong in &self.wrong {
            kinds.entry(self.kind(wrong)).or_default().push(wrong);
        }
        let (seed, frames) = (attack.seed, self.report.frames);
        let mut text =
            format!("seed {seed}: model and device disagree {} times in {frames} frames\n", self.wrong.len());
        for ((from, place, arrived, why), all) in kinds.iter().take(SHOWN) {
            let what = if *arrived { "arrived" } else { "did not arrive" };
            let _ = writeln!(text, "{} times: from {from:?} {what} at {place:?}: {why}", all.len());
            let alone = |w: &&&Disagreement| w.alone.is_some();
            for wrong in all.iter().filter(alone).chain(all.iter().filter(|w| w.alone.is_none()).take(2)) {
                let alone = match wrong.alone {
                    Some(true) => ", alone too",
                    Some(false) => ", not when it is sent alone",
                    None => "",
                };
                let _ = writeln!(text, "    shot {}{alone}:", wrong.number / MOST);
                let shot = wrong.number / MOST * MOST;
                for number in self.in_order(shot..shot + MOST) {
                    let hex: String = self.sent[&number].frame.iter().map(|b| format!("{b:02x}")).collect();
                    let this = if number == wrong.number { " <" } else { "" };
                    let _ = writeln!(text, "        {hex}{this}");
                }
            }
        }
        text
    }
}

/// Whether the arrival is an echo reply, or an error that quotes the sent frame.
fn is_answer(seen: &Seen, of: &Sent) -> bool {
    seen.icmp.is_some_and(|kind| matches!(kind, 0 | 1..=5 | 11 | 12 | 129) && icmp_of(&of.frame) != Some(kind))
}

/// Pins this thread to one CPU. A veth passes a frame on by the queue of the CPU that sends it, and frames in the
/// queues of two CPUs may overtake each other.
fn stay_on_one_cpu() -> Result<()> {
    let mut here = CpuSet::new();
    here.set(nix::sched::sched_getcpu()?)?;
    sched_setaffinity(Pid::from_raw(0), &here).context("a CPU of its own")
}
