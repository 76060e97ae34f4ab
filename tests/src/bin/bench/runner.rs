//! Runs a case: sets up all paths, then measures them in turn, round by round.

use crate::case::{Candidate, Case, Metric, Path, Sample};
use crate::fault::failure;
use crate::interrupt;
use crate::options::Options;
use crate::report::{Report, Row};
use crate::stats::{Taken, disturbed, figure};
use anyhow::{Result, bail};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Instant;

/// How often a disturbed measurement is repeated.
const TRIES: u32 = 3;
/// The share of the planned time that repetitions may add in all.
const EXTRA: f64 = 0.2;

/// A path, or the reason why it does not work.
struct Lane {
    name: String,
    path: Result<Box<dyn Path>, String>,
    /// The other build of the daemon that the path is measured with, if any.
    daemon: Option<PathBuf>,
}

/// Runs the case.
///
/// # Errors
/// When no path works, or a signal ends the run. The failure of a single path is a line in the report.
pub fn run(case: &dyn Case, options: &Options) -> Result<Report> {
    let mut progress = Progress::new(case.name());
    let metrics = case.metrics(options);
    let mut lanes = Vec::new();
    for (i, candidate) in case.paths(options).into_iter().enumerate() {
        let wanted = options.paths.is_empty() || options.paths.iter().any(|p| candidate.name.contains(p.as_str()));
        if i == 0 || wanted {
            progress.say(&format!("set up and prove {}", candidate.name));
            lanes.push(lane(&candidate, None)?);
            if let Some(other) = options.against.as_ref().filter(|_| candidate.name.contains("pv-net")) {
                lanes.push(lane(&candidate, Some(other.clone()))?);
            }
        }
    }
    let mut extra =
        options.seconds.as_secs_f64() * f64::from(options.rounds) * (metrics.len() * lanes.len()) as f64 * EXTRA;
    let mut rows = Vec::new();
    let mut thrown_away = 0;
    let rounds_of = |metric: &Metric| if metric.once { 1 } else { options.rounds };
    progress.plan(metrics.iter().map(|m| rounds_of(m) as usize * lanes.len()).sum());
    for metric in &metrics {
        let mut taken: Vec<Vec<Taken>> = lanes.iter().map(|_| Vec::new()).collect();
        let rounds = rounds_of(metric);
        for round in 1..=rounds {
            for (lane, taken) in lanes.iter_mut().zip(&mut taken) {
                progress.step();
                let Ok(path) = lane.path.as_mut() else { continue };
                progress.say(&format!("{} round {round}/{rounds}: {}", metric.name, lane.name));
                let one = harness::with_binary(lane.daemon.as_deref(), || {
                    measure(path.as_mut(), metric, options, &mut extra, &mut thrown_away)
                });
                match one {
                    Ok(one) => taken.push(one),
                    Err(why) => {
                        interrupt::check()?;
                        lane.path = Err(format!("{}: {why:#}", metric.name));
                        taken.clear();
                    }
                }
            }
        }
        let baseline = taken.first().cloned().unwrap_or_default();
        for (lane, taken) in lanes.iter().zip(&taken) {
            if let Some(figure) = figure(taken, &baseline) {
                let samples = taken.iter().map(|t| t.sample.value).collect();
                rows.push(Row { path: lane.name.clone(), metric: metric.clone(), figure, samples });
            }
        }
    }
    progress.end();
    // All figures of a path that failed are left out: the earlier ones may have the same fault.
    let failed: Vec<(String, String)> =
        lanes.iter().filter_map(|l| Some((l.name.clone(), l.path.as_ref().err()?.clone()))).collect();
    rows.retain(|row| !failed.iter().any(|(name, _)| *name == row.path));
    let paths: Vec<String> = lanes.iter().map(|l| l.name.clone()).collect();
    if failed.len() == paths.len() {
        let whys: Vec<String> = failed.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        let help = "a path needs what its error names; --paths leaves paths out, but for the first";
        return Err(failure(format!("no path works: {}", whys.join("; ")), help));
    }
    Ok(Report::new(case, options, paths, metrics, rows, failed, thrown_away))
}

fn lane(candidate: &Candidate, daemon: Option<PathBuf>) -> Result<Lane> {
    interrupt::check()?;
    let set_up = || (candidate.setup)().and_then(|mut path| path.verify().map(|()| path));
    let path = harness::with_binary(daemon.as_deref(), set_up).map_err(|why| format!("{why:#}"));
    interrupt::check()?;
    let name = candidate.name.clone() + if daemon.is_some() { ", other build" } else { "" };
    Ok(Lane { name, path, daemon })
}

/// Takes a measurement. It is repeated while other programs use the CPUs and there is time for it.
fn measure(
    path: &mut dyn Path,
    metric: &Metric,
    options: &Options,
    extra: &mut f64,
    thrown_away: &mut u32,
) -> Result<Taken> {
    let mut best: Option<(Sample, bool)> = None;
    for attempt in 0..TRIES {
        interrupt::check()?;
        let start = Instant::now();
        let sample = path.measure(metric, options.seconds)?;
        let took = start.elapsed().as_secs_f64();
        if attempt > 0 {
            *extra -= took;
        }
        let dirty = disturbed(&sample, took);
        let less = best.as_ref().is_none_or(|(b, _)| sample.foreign_secs < b.foreign_secs);
        if attempt > 0 {
            *thrown_away += 1;
        }
        if less {
            best = Some((sample, dirty));
        }
        if !dirty || *extra <= 0.0 {
            break;
        }
    }
    match best {
        Some((sample, disturbed)) => Ok(Taken { sample, disturbed }),
        None => bail!("nothing was measured"),
    }
}

/// A line that says what is being done and how long the rest takes; on a terminal it is overwritten.
struct Progress {
    case: &'static str,
    terminal: bool,
    start: Instant,
    /// When the measurements began, how many there are, and how many are done.
    measuring: Option<(Instant, usize, usize)>,
}

impl Progress {
    fn new(case: &'static str) -> Self {
        Self { case, terminal: std::io::stderr().is_terminal(), start: Instant::now(), measuring: None }
    }

    /// From now on `count` measurements are made.
    fn plan(&mut self, count: usize) {
        self.measuring = Some((Instant::now(), count, 0));
    }

    /// Called when the next measurement begins.
    fn step(&mut self) {
        if let Some((_, _, begun)) = &mut self.measuring {
            *begun += 1;
        }
    }

    /// `17 of 210, 96 s left`.
    fn left(&self) -> Option<String> {
        let (since, count, begun) = self.measuring?;
        let done = begun.saturating_sub(1);
        let each = since.elapsed().as_secs_f64() / done as f64;
        let left = (done > 0).then(|| format!(", {:.0} s left", each * (count - done) as f64));
        Some(format!("{begun} of {count}{}, ", left.unwrap_or_default()))
    }

    fn say(&self, what: &str) {
        let left = self.left().unwrap_or_default();
        let line = format!("{} ({left}{} s): {what}", self.case, self.start.elapsed().as_secs());
        // A line that wraps could not be overwritten.
        let line: String = if self.terminal { line.chars().take(columns() - 1).collect() } else { line };
        let mut out = std::io::stderr();
        // A failure to write progress does not matter.
        let _ = if self.terminal { write!(out, "\r\x1b[K{line}") } else { writeln!(out, "{line}") };
        let _ = out.flush();
    }

    fn end(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// How wide the terminal is.
fn columns() -> usize {
    let mut size = nix::libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request writes one winsize, which lives until the call returns.
    let done = unsafe { nix::libc::ioctl(nix::libc::STDERR_FILENO, nix::libc::TIOCGWINSZ, &raw mut size) };
    if done == 0 && size.ws_col > 1 { size.ws_col.into() } else { 80 }
}
