//! The results of a case: tables on the terminal and in Markdown, JSON, and a chart.

use crate::case::{Better, Case, Metric};
use crate::fault::failure;
use crate::stats::Figure;
use crate::table::Table;
use crate::{cases, chart, machine, options::Options};
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

/// A figure with its path and metric.
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
    /// How many measurements were discarded.
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
        let how = machine::how(options);
        Self { case: case.name(), about: case.about(), paths, metrics, rows, failed, thrown_away, how }
    }

    /// The figure of a path.
    pub fn row(&self, path: &str, metric: &Metric) -> Option<&Row> {
        self.rows.iter().find(|r| r.path == path && r.metric.name == metric.name)
    }

    /// The table, on the terminal.
    pub fn print(&self) {
        println!("\n{}: {}", self.case, self.about);
        println!("{}; {} disturbed measurements thrown away", self.measured(), self.thrown_away);
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
        for (path, table) in self.parts() {
            println!("\n  {path}, in parts\n{}", table.aligned("    ").trim_end());
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
        for (name, value) in f.extras.iter().filter(|(name, _)| !PROOFS.contains(name)) {
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
                "parts": r.figure.parts,
                "traffic": r.metric.load.is_some(),
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

    /// How it was measured, in words.
    #[must_use]
    pub fn measured(&self) -> String {
        machine::words(&self.how)
    }

    /// A section in Markdown: a table of ratios and medians, one of the extras, and the parts of sums.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!("## {}: {}\n\n", self.case, self.about);
        let _ = writeln!(text, "`cargo xtask bench {}`; {}.\n", self.case, self.measured());
        let names = self.metrics.iter().map(|m| format!("{}, {}", m.name, m.unit));
        text += &self.table(self.case, names.collect(), &self.metrics.iter().collect::<Vec<_>>(), |row| {
            let star = if row.figure.disturbed { "*" } else { "" };
            let ratio = row.figure.ratio.filter(|_| self.paths.len() > 1);
            let ratio = ratio.map(|r| format!("**{r:.2}**{star} · ")).unwrap_or_default();
            format!("{ratio}{}", number(row.figure.median))
        });
        let more: Vec<&Metric> = self.metrics.iter().filter(|m| self.more(m).is_some()).collect();
        if !more.is_empty() {
            let heads = more.iter().map(|m| format!("{}, {}", m.name, self.more(m).unwrap_or_default())).collect();
            text += "\n";
            text += &self.table("beside it", heads, &more, |row| {
                let shown = MORE.iter().flat_map(|(names, _)| *names).filter_map(|name| row.figure.extras.get(name));
                shown.map(|v| number(*v)).collect::<Vec<_>>().join(" / ")
            });
        }
        for (path, table) in self.parts() {
            let _ = write!(text, "\n{path}, in parts:\n\n{}", table.markdown());
        }
        text
    }

    fn table(&self, head: &str, names: Vec<String>, metrics: &[&Metric], cell: impl Fn(&Row) -> String) -> String {
        let mut table = Table::new([vec![head.to_owned()], names].concat());
        for path in &self.paths {
            let cells = metrics.iter().map(|m| self.row(path, m).map_or_else(|| "failed".to_owned(), &cell));
            table.row([path.clone()].into_iter().chain(cells).collect());
        }
        table.markdown()
    }

    /// Which extras are shown for a metric.
    fn more(&self, metric: &Metric) -> Option<String> {
        let rows = || self.rows.iter().filter(|r| r.metric.name == metric.name);
        let seen = |name: &&str| rows().any(|r| r.figure.extras.contains_key(name));
        let heads: Vec<&str> = MORE.iter().filter(|(names, _)| names.iter().any(seen)).map(|(_, what)| *what).collect();
        (!heads.is_empty()).then(|| heads.join(" / "))
    }

    /// The parts of each metric whose figures are sums, for each path. A table of sizes that is the same as that of an
    /// earlier path is left out.
    fn parts(&self) -> Vec<(&str, Table)> {
        let mut said: Vec<(&str, &String, f64)> = Vec::new();
        let mut all = Vec::new();
        for path in &self.paths {
            let rows: Vec<&Row> = self.rows.iter().filter(|r| r.path == *path && !r.figure.parts.is_empty()).collect();
            let names: BTreeSet<&String> = rows.iter().flat_map(|r| r.figure.parts.keys()).collect();
            let heads = rows.iter().map(|r| r.metric.name.clone());
            let mut table = Table::new(["part".to_owned()].into_iter().chain(heads).collect());
            let mut news = false;
            for name in names {
                let mut cells = Vec::new();
                for row in &rows {
                    let one = row.figure.parts.get(name).map(|value| (row.metric.name.as_str(), name, *value));
                    let new = one.filter(|one| !row.metric.once || !said.contains(one));
                    cells.push(new.map_or_else(|| "–".to_owned(), |(_, _, value)| number(value)));
                    said.extend(new);
                }
                if cells.iter().any(|c| c != "–") {
                    table.row([name.clone()].into_iter().chain(cells).collect());
                    news = true;
                }
            }
            if news {
                all.push((path.as_str(), table));
            }
        }
        all
    }

    /// Writes `CASE.json`, `CASE.md` and `CASE.svg`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let file = |ending: &str| folder.join(format!("{}.{ending}", self.case));
        let pretty = serde_json::to_string_pretty(&self.json())?;
        std::fs::write(file("json"), pretty + "\n").map_err(|why| unwritten(&file("json"), &why))?;
        std::fs::write(file("md"), self.markdown()).map_err(|why| unwritten(&file("md"), &why))?;
        chart::draw(self, &file("svg")).map_err(|why| unwritten(&file("svg"), &why))
    }
}

/// The extras that are shown: their names, and a heading.
const MORE: [(&[&str], &str); 5] = [
    (&["p50_us", "p99_us"], "µs: median / 99th percentile"),
    (&["cpu_us"], "of the server's CPU"),
    (&["cpu_secs_per_gb"], "CPU s a GB"),
    (&["p99"], "99th percentile"),
    (&["worst"], "worst"),
];

/// Extras that only prove a measurement, and are not shown.
const PROOFS: [&str; 2] = ["witnessed", "packets"];

/// The file with the tables of all cases.
const JOINED: &str = "tables.md";

/// Makes the folder, and tests that a file can be written there: before the measurements, not after them.
///
/// # Errors
/// When the folder cannot be made or written.
pub fn writable(folder: &Path) -> Result<()> {
    let probe = folder.join(".probe");
    // The file has some content, since an empty one can be made on a full disk.
    let write = || std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&probe, [0u8; 64 * 1024]));
    let done = write();
    // Fails when the file could not be made.
    let _ = std::fs::remove_file(&probe);
    done.map_err(|why| unwritten(folder, &why))
}

/// Joins the tables of all cases in the folder, from this run and earlier ones.
///
/// # Errors
/// When the file cannot be written.
pub fn join(folder: &Path) -> Result<()> {
    let all = cases::all();
    let sections = all.iter().filter_map(|c| std::fs::read_to_string(folder.join(format!("{}.md", c.name()))).ok());
    let file = folder.join(JOINED);
    std::fs::write(&file, sections.collect::<Vec<_>>().join("\n")).map_err(|why| unwritten(&file, &why))
}

fn unwritten(file: &Path, why: &dyn std::fmt::Display) -> anyhow::Error {
    failure(format!("{}: {why}", file.display()), "--out names another folder for JSON, charts and tables")
}

/// Formats a number with three significant digits; a large number with all its digits, in groups.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 || v.fract() == 0.0 => return grouped(value.round() as i64),
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
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

/// The first 300 characters of an error, in one line: the whole output of a program may be long, and its beginning
/// names the command and where it ended.
fn one_line(why: &str) -> String {
    let text = why.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut short: String = text.chars().take(300).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        let shown = [
            (1_234_567.0, "1,234,567"),
            (999.6, "1,000"),
            (42.25, "42.2"),
            (0.9712, "0.971"),
            (0.0, "0"),
            (21.0, "21"),
        ];
        for (value, text) in shown {
            assert_eq!(number(value), text);
        }
    }
}
