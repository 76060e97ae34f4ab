//! The statistics over the measurements of one metric on one path.

use crate::case::Sample;
use std::collections::BTreeMap;

/// A measurement is discarded when other programs used more than this share of one CPU's time. A tolerance for the
/// kernel's coarse clock ticks is added.
const FOREIGN_SHARE: f64 = 0.08;
const FOREIGN_SECS: f64 = 0.03;
/// With fewer clean measurements than this all are used, and the figure says so.
const ENOUGH: usize = 3;

/// Whether other programs used the CPUs during the measurement.
#[must_use]
pub fn disturbed(sample: &Sample, secs: f64) -> bool {
    sample.foreign_secs.is_some_and(|f| f > secs * FOREIGN_SHARE + FOREIGN_SECS)
}

/// A measurement of one round.
#[derive(Clone, Debug)]
pub struct Taken {
    /// What was measured.
    pub sample: Sample,
    /// Whether other programs used the CPUs.
    pub disturbed: bool,
}

/// The result for one metric on one path.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Median of the rounds.
    pub median: f64,
    /// Least.
    pub min: f64,
    /// Greatest.
    pub max: f64,
    /// Median of each round's ratio to the baseline of the same round.
    pub ratio: Option<f64>,
    /// How many rounds it was made from.
    pub rounds: usize,
    /// Other programs used the CPUs in so many rounds that these could not be left out.
    pub disturbed: bool,
    /// Medians of the extras.
    pub extras: BTreeMap<&'static str, f64>,
    /// Medians of the parts.
    pub parts: BTreeMap<String, f64>,
}

/// The middle one, or the mean of the middle two.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let high = sorted.get(middle)?;
    Some(if sorted.len() % 2 == 1 { *high } else { (sorted.get(middle - 1)? + high) / 2.0 })
}

/// The value that this share of all is not above: 0.5 for the median, 1.0 for the greatest.
#[must_use]
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    if (share - 0.5).abs() < f64::EPSILON {
        return median(values);
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// Makes the figure; none without a measurement. `taken` and `baseline` have an item for each round.
#[must_use]
pub fn figure(taken: &[Taken], baseline: &[Taken]) -> Option<Figure> {
    let clean: Vec<&Taken> = taken.iter().filter(|t| !t.disturbed).collect();
    let used = if clean.len() >= ENOUGH.min(taken.len()) { clean } else { taken.iter().collect() };
    let disturbed = used.iter().any(|t| t.disturbed);
    let values: Vec<f64> = used.iter().map(|t| t.sample.value).collect();
    let extras = medians(used.iter().map(|t| t.sample.extras.iter().map(|(name, v)| (*name, *v))));
    let parts = medians(used.iter().map(|t| t.sample.parts.iter().map(|(name, v)| (name.clone(), *v))));
    Some(Figure {
        median: median(&values)?,
        min: values.iter().copied().fold(f64::INFINITY, f64::min),
        max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        ratio: ratio(taken, baseline),
        rounds: values.len(),
        disturbed,
        extras,
        parts,
    })
}

/// The median of each name's values; a measurement need not have all names.
fn medians<K: Ord>(measurements: impl Iterator<Item = impl Iterator<Item = (K, f64)>>) -> BTreeMap<K, f64> {
    let mut all: BTreeMap<K, Vec<f64>> = BTreeMap::new();
    measurements.flatten().for_each(|(name, value)| all.entry(name).or_default().push(value));
    all.into_iter().filter_map(|(name, values)| Some((name, median(&values)?))).collect()
}

/// The median of the ratios within each round, so that a drift from round to round does not count.
fn ratio(taken: &[Taken], baseline: &[Taken]) -> Option<f64> {
    let pairs = || taken.iter().zip(baseline).filter(|(_, b)| b.sample.value > 0.0);
    let clean: Vec<_> = pairs().filter(|(a, b)| !a.disturbed && !b.disturbed).collect();
    let used = if clean.len() >= ENOUGH.min(taken.len()) { clean } else { pairs().collect() };
    median(&used.iter().map(|(a, b)| a.sample.value / b.sample.value).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(values: &[(f64, bool)]) -> Vec<Taken> {
        let one = |(value, disturbed): &(f64, bool)| Taken {
            sample: Sample { value: *value, ..Sample::default() },
            disturbed: *disturbed,
        };
        values.iter().map(one).collect()
    }

    #[test]
    fn disturbed_rounds_are_left_out_while_enough_remain() {
        let rounds = taken(&[(10.0, false), (1.0, true), (12.0, false), (11.0, false)]);
        let base = taken(&[(10.0, false), (10.0, false), (10.0, false), (11.0, false)]);
        let figure = figure(&rounds, &base).expect("a figure");
        assert_eq!((figure.median, figure.min, figure.max, figure.rounds), (11.0, 10.0, 12.0, 3));
        assert!(!figure.disturbed);
        assert_eq!(figure.ratio, Some(1.0));
    }

    #[test]
    fn too_few_clean_rounds_are_not_hidden() {
        let rounds = taken(&[(10.0, false), (2.0, true), (6.0, true)]);
        let figure = figure(&rounds, &rounds).expect("a figure");
        assert!(figure.disturbed);
        assert_eq!((figure.median, figure.rounds), (6.0, 3));
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!([0.005, 0.99, 1.0].map(|share| quantile(&values, share)), [Some(1.0), Some(198.0), Some(200.0)]);
        assert_eq!(quantile(&[], 0.99), None);
    }

    #[test]
    fn a_median_of_none_is_none() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
    }
}
