//! The parts of a case. To add one, write a file in `cases/` and add a line to the list there.

use crate::load::Load;
use crate::options::Options;
use anyhow::Result;
use std::collections::BTreeMap;
use std::time::Duration;

/// A question, such as "how fast are two containers on one device", with several paths that answer it.
pub trait Case {
    /// Its name on the command line.
    fn name(&self) -> &'static str;
    /// One line about it.
    fn about(&self) -> &'static str;
    /// Programs that the case starts.
    fn needs(&self) -> &'static [&'static str];
    /// The paths; the first is the baseline that the others are divided by.
    fn paths(&self, options: &Options) -> Vec<Candidate>;
    /// What is measured on each path.
    fn metrics(&self, options: &Options) -> Vec<Metric>;
}

/// A path that is not set up yet.
pub struct Candidate {
    /// Its name in tables.
    pub name: String,
    /// Sets the path up; everything it made goes away when the result is dropped.
    pub setup: Box<dyn Fn() -> Result<Box<dyn Path>>>,
}

impl Candidate {
    /// A path by its name and what makes it.
    pub fn new<P: Path + 'static>(name: impl Into<String>, setup: impl Fn() -> Result<P> + 'static) -> Self {
        Self { name: name.into(), setup: Box::new(move || Ok(Box::new(setup()?) as Box<dyn Path>)) }
    }
}

/// A path that is set up.
pub trait Path {
    /// Proves that the packets take the path that its name says.
    ///
    /// # Errors
    /// When they do not: nothing is measured on this path then.
    fn verify(&mut self) -> Result<()>;

    /// One measurement of about `time`.
    ///
    /// # Errors
    /// When the measurement fails, or its proof does.
    fn measure(&mut self, metric: &Metric, time: Duration) -> Result<Sample>;
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// More is better.
    Higher,
    /// Less is better.
    Lower,
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// Which way is better.
    pub better: Better,
    /// The load, when it is traffic.
    pub load: Option<Load>,
    /// One measurement is enough, since another gives the same: a size, for example.
    pub once: bool,
}

impl Metric {
    /// A traffic load.
    #[must_use]
    pub fn traffic(load: Load) -> Self {
        Self { name: load.name(), unit: load.unit(), better: Better::Higher, load: Some(load), once: false }
    }

    /// A time, in `unit`.
    #[must_use]
    pub fn time(name: &str, unit: &'static str) -> Self {
        Self { name: name.to_owned(), unit, better: Better::Lower, load: None, once: false }
    }

    /// A size, which is measured once.
    #[must_use]
    pub fn size(name: &str, unit: &'static str) -> Self {
        Self { name: name.to_owned(), unit, better: Better::Lower, load: None, once: true }
    }
}

/// One measurement.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// In the metric's unit.
    pub value: f64,
    /// Further figures of the measurement, such as `p99_us`.
    pub extras: BTreeMap<&'static str, f64>,
    /// The parts that add up to the value, by name.
    pub parts: BTreeMap<String, f64>,
    /// CPU seconds that other programs used, of all CPUs; `None` where these cannot be told apart.
    pub foreign_secs: Option<f64>,
}
