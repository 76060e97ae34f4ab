//! Searches for an input that breaks a target.

use crate::coverage::Coverage;
use crate::mutate::{Stock, mutate};
use crate::random::Random;
use crate::{Target, corpus, limits};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Most bytes of an input.
pub const MAX_LEN: usize = 16 << 10;
/// An input that takes longer than this never ends: SIGALRM ends the process.
const STUCK_SECS: u32 = 60;

/// Options of a search.
pub struct Options {
    /// How long.
    pub time: Duration,
    /// The same seed and corpus give the same inputs.
    pub seed: u64,
    /// Directory of the inputs that reached new code.
    pub grown: PathBuf,
}

/// The result of a search.
pub struct Report {
    /// Inputs that were tried.
    pub tried: u64,
    /// Inputs worth keeping.
    pub corpus: usize,
    /// Coverage counters that were raised, and how many there are.
    pub reached: (usize, usize),
    /// What broke.
    pub found: Option<Found>,
}

/// An input that breaks a target.
pub struct Found {
    /// The input, as short as could be made.
    pub input: Vec<u8>,
    /// The assertion that fails for it.
    pub why: String,
}

/// A file that holds the present input, so that it is known when the process dies of it.
pub struct Current(pub File);

impl Current {
    fn set(&mut self, input: &[u8]) -> Result<()> {
        self.0.write_all_at(input, 8).context("note the input")?;
        self.0.write_all_at(&(input.len() as u64).to_le_bytes(), 0).context("note the input")
    }

    /// The last input that was tried.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn get(file: &File) -> Result<Vec<u8>> {
        let mut len = [0; 8];
        file.read_exact_at(&mut len, 0).context("the input that was tried")?;
        let mut input = vec![0; usize::try_from(u64::from_le_bytes(len))?];
        file.read_exact_at(&mut input, 8).context("the input that was tried")?;
        Ok(input)
    }
}

/// Tries inputs until the time is over or one breaks the target.
///
/// # Errors
/// When a file cannot be read or written.
pub fn hunt(target: &Target, options: &Options, current: &mut Current) -> Result<Report> {
    static MESSAGE: Mutex<String> = Mutex::new(String::new());
    std::panic::set_hook(Box::new(|info| {
        if let Ok(mut message) = MESSAGE.lock() {
            *message = info.to_string();
        }
    }));
    let end = Instant::now() + options.time;
    let words = (target.words)();
    let mut random = Random::new(options.seed);
    let mut coverage = Coverage::new();
    let mut known: Vec<Vec<u8>> = Vec::new();
    let mut seeds: Vec<Vec<u8>> = corpus::read(&options.grown)?.into_iter().map(|i| i.bytes).collect();
    seeds.extend(corpus::kept(target.name)?.into_iter().map(|i| i.bytes));
    fs::create_dir_all(&options.grown).with_context(|| options.grown.display().to_string())?;
    let mut tried = 0;
    while !seeds.is_empty() || Instant::now() < end {
        let (input, is_seed) = match seeds.pop() {
            Some(seed) => (seed, true),
            None => {
                let stock = Stock { form: target.form, words: &words, corpus: &known, max_len: MAX_LEN };
                let parent = parent(&mut random, &known);
                (mutate(&mut random, parent, &stock), false)
            }
        };
        current.set(&input)?;
        nix::unistd::alarm::set(STUCK_SECS);
        let (held, new) = coverage.of(|| holds(target, &input));
        tried += 1;
        if !held {
            let input = shorten(target, input, end);
            holds(target, &input);
            let why = MESSAGE.lock().map(|m| m.clone()).unwrap_or_default();
            nix::unistd::alarm::cancel();
            return Ok(Report {
                tried,
                corpus: known.len(),
                reached: coverage.reached(),
                found: Some(Found { input, why }),
            });
        }
        if is_seed || new {
            if !is_seed {
                keep(&options.grown, &input)?;
            }
            known.push(input);
        }
    }
    nix::unistd::alarm::cancel();
    Ok(Report { tried, corpus: known.len(), reached: coverage.reached(), found: None })
}

/// Chooses one of the known inputs; every other time one of the newest, since these were explored least.
fn parent<'a>(random: &mut Random, known: &'a [Vec<u8>]) -> &'a [u8] {
    let newest = if random.once_in(2) { known.len() / 8 + 1 } else { known.len() };
    random.pick(&known[known.len().saturating_sub(newest)..]).map_or(&[], Vec::as_slice)
}

fn holds(target: &Target, input: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| limits::enforce(target.check, input))).is_ok()
}

/// Shortens an input as long as it still breaks the target, for at most half a minute.
fn shorten(target: &Target, mut input: Vec<u8>, end: Instant) -> Vec<u8> {
    let end = end.max(Instant::now()) + Duration::from_secs(30);
    let mut size = input.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at < input.len() && Instant::now() < end {
            let shorter = [&input[..at], &input[(at + size).min(input.len())..]].concat();
            nix::unistd::alarm::set(STUCK_SECS);
            if holds(target, &shorter) {
                at += size;
            } else {
                input = shorter;
            }
        }
        size /= 2;
    }
    input
}

/// Writes `input` to `dir`, with a name derived from it.
///
/// # Errors
/// When it cannot be written.
pub fn keep(dir: &Path, input: &[u8]) -> Result<PathBuf> {
    let mut hash = DefaultHasher::new();
    input.hash(&mut hash);
    let path = dir.join(format!("{:016x}", hash.finish()));
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    fs::write(&path, input).with_context(|| path.display().to_string())?;
    Ok(path)
}
