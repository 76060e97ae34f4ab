//! What a case is made of. A new one is a file in `cases/` and a line in its list.

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
    /// Programs that it starts.
    fn needs(&self) -> &'static [&'static str];
    /// The paths; the first is the baseline that the others are divided by.
    fn paths(&self, options: &Options) -> Vec<Candidate>;
    /// What is measured on each path.
    fn metrics(&self, options: &Options) -> Vec<Metric>;
}

/// A path that is not there yet.
pub struct Candidate {
    /// Its name in tables.
    pub name: String,
    /// Makes it; what it made goes away when it is dropped.
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
    /// Proves that what will be measured is what the path's name says.
    ///
    /// # Errors
    /// When it is not: nothing of this path is measured then.
    fn verify(&mut self) -> Result<()>;

    /// One measurement of about `time`.
    ///
    /// # Errors
    /// When it fails, or its proof does.
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
    /// One measurement says all, and another says the same: such as a size.
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

    /// A size, that is taken once.
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
    /// What else was seen, such as `p99_us`.
    pub extras: BTreeMap<&'static str, f64>,
    /// What the value is the sum of, by name.
    pub parts: BTreeMap<String, f64>,
    /// CPU seconds that something else used, of all CPUs; none where that cannot be told apart.
    pub foreign_secs: Option<f64>,
}
