//! What comes out: a table, JSON, Markdown, a chart.

use crate::case::{Better, Case, Metric};
use crate::stats::Figure;
use crate::{chart, cpu, load, options::Options};
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::fmt::Write;
use std::path::Path;

/// A figure and what it is about.
pub struct Row {
    /// The path.
    pub path: String,
    /// What was measured.
    pub metric: Metric,
    /// The figure.
    pub figure: Figure,
    /// Each round's value.
    pub samples: Vec<f64>,
}

/// All figures of a case.
pub struct Report {
    /// The case.
    pub case: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// Paths in their order; the first is the baseline.
    pub paths: Vec<String>,
    /// What was measured.
    pub metrics: Vec<Metric>,
    /// The figures.
    pub rows: Vec<Row>,
    /// Paths that failed, and why.
    pub failed: Vec<(String, String)>,
    /// Measurements that were thrown away.
    pub thrown_away: u32,
    how: Value,
}

impl Report {
    /// A report.
    pub fn new(
        case: &dyn Case,
        options: &Options,
        paths: Vec<String>,
        metrics: Vec<Metric>,
        rows: Vec<Row>,
        failed: Vec<(String, String)>,
        thrown_away: u32,
    ) -> Self {
        let how = json!({
            "date": today(),
            "cpu": cpu_model(),
            "cpus": cpu::allowed().len(),
            "kernel": first_line("/proc/sys/kernel/osrelease"),
            "scheduling": cpu::class(),
            "congestion_control": load::CONGESTION,
            "rounds": options.rounds,
            "seconds": options.seconds.as_secs_f64(),
            "small": options.small,
        });
        Self { case: case.name(), about: case.about(), paths, metrics, rows, failed, thrown_away, how }
    }

    /// The figure of a path.
    pub fn row(&self, path: &str, metric: &Metric) -> Option<&Row> {
        self.rows.iter().find(|r| r.path == path && r.metric.name == metric.name)
    }

    /// The table, on the terminal.
    pub fn print(&self) {
        let text = |key: &str| self.how[key].to_string().trim_matches('"').to_owned();
        println!("\n{}: {}", self.case, self.about);
        println!(
            "{} x {}, Linux {}, {}; {} rounds of {} s, {}, TCP with {}; {} disturbed measurements thrown away",
            text("cpus"),
            text("cpu"),
            text("kernel"),
            text("date"),
            text("rounds"),
            text("seconds"),
            text("scheduling"),
            text("congestion_control"),
            self.thrown_away,
        );
        for (path, why) in &self.failed {
            println!("  {path}  failed: {}", one_line(why));
        }
        for metric in &self.metrics {
            let way = if metric.better == Better::Higher { "more" } else { "less" };
            println!("\n  {}, {} ({way} is better)", metric.name, metric.unit);
            let width = self.paths.iter().map(String::len).max().unwrap_or_default();
            for path in &self.paths {
                if let Some(line) = self.line(path, metric) {
                    println!("    {path:<width$}  {line}");
                }
            }
        }
        if self.rows.iter().any(|r| r.figure.disturbed) {
            println!("\n  * something else used the CPUs in too many rounds to leave them out");
        }
        println!();
    }

    fn line(&self, path: &str, metric: &Metric) -> Option<String> {
        let row = self.row(path, metric)?;
        let f = &row.figure;
        let star = if f.disturbed { "*" } else { "" };
        let mut line = format!("{:>12}  ({} – {})", number(f.median), number(f.min), number(f.max));
        if let Some(ratio) = f.ratio {
            let _ = write!(line, "  ratio {ratio:.2}{star}");
        }
        for (name, value) in f.extras.iter().filter(|(name, _)| **name != "witnessed") {
            let _ = write!(line, "  {name} {}", number(*value));
        }
        Some(line)
    }

    /// All of it as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let row = |r: &Row| {
            let extras: Map<String, Value> = r.figure.extras.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
            json!({
                "metric": r.metric.name,
                "unit": r.metric.unit,
                "better": if r.metric.better == Better::Higher { "higher" } else { "lower" },
                "path": r.path,
                "median": r.figure.median,
                "min": r.figure.min,
                "max": r.figure.max,
                "ratio": r.figure.ratio,
                "rounds": r.figure.rounds,
                "disturbed": r.figure.disturbed,
                "samples": r.samples,
                "extras": extras,
            })
        };
        let failed: Map<String, Value> = self.failed.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        json!({
            "case": self.case,
            "about": self.about,
            "how": self.how,
            "baseline": self.paths.first(),
            "paths": self.paths,
            "failed": failed,
            "thrown_away": self.thrown_away,
            "results": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }

    /// A table of ratios and values in Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let names: Vec<String> = self.metrics.iter().map(|m| format!("{}, {}", m.name, m.unit)).collect();
        let mut text = format!("| {} | {} |\n|---|{}\n", self.case, names.join(" | "), "---|".repeat(names.len()));
        for path in &self.paths {
            let cell = |metric: &Metric| match self.row(path, metric) {
                Some(row) => {
                    let star = if row.figure.disturbed { "*" } else { "" };
                    let ratio = row.figure.ratio.filter(|_| self.paths.len() > 1);
                    let ratio = ratio.map(|r| format!("**{r:.2}**{star} · ")).unwrap_or_default();
                    format!("{ratio}{}", number(row.figure.median))
                }
                None => "failed".to_owned(),
            };
            let cells: Vec<String> = self.metrics.iter().map(cell).collect();
            let _ = writeln!(text, "| {path} | {} |", cells.join(" | "));
        }
        text
    }

    /// Writes `CASE.json`, `CASE.md` and `CASE.svg`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let file = |ending: &str| folder.join(format!("{}.{ending}", self.case));
        let pretty = serde_json::to_string_pretty(&self.json())?;
        std::fs::write(file("json"), pretty + "\n").with_context(|| file("json").display().to_string())?;
        std::fs::write(file("md"), self.markdown()).with_context(|| file("md").display().to_string())?;
        chart::draw(self, &file("svg")).with_context(|| file("svg").display().to_string())
    }
}

/// Three digits that count, or all of a large number, in groups.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => return grouped(value.round() as i64),
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        0.0 => 0,
        _ => 3,
    };
    format!("{value:.digits$}")
}

fn grouped(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let mut text = if value < 0 { "-".to_owned() } else { String::new() };
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A whole answer of a program may be long: its command and where it ended are what helps.
fn one_line(why: &str) -> String {
    let text = why.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut short: String = text.chars().take(300).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

fn first_line(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = |l: &str| l.split_once(':').filter(|(k, _)| k.trim() == "model name").map(|(_, v)| v.trim().to_owned());
    text.lines().find_map(named).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Year-month-day in UTC, by Howard Hinnant's `civil_from_days`.
fn today() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let days = (since.as_secs() / 86_400) as i64 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) =
        (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        let shown = [(1_234_567.0, "1,234,567"), (999.6, "1,000"), (42.25, "42.2"), (0.9712, "0.971"), (0.0, "0")];
        for (value, text) in shown {
            assert_eq!(number(value), text);
        }
    }
}
