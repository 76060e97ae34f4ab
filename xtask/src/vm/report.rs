//! Collects what a machine reported.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::budget::Counts;
use super::kernel::Kernel;
use super::qemu::Ended;

/// How many of the console's last lines are shown when a machine ends without a verdict.
const TAIL: usize = 30;

/// One machine's lines, sorted.
pub struct Report {
    /// `6.1`.
    pub series: String,
    release: String,
    log: PathBuf,
    passed: usize,
    failed: Vec<String>,
    absent: Vec<String>,
    /// Instructions by program.
    pub counts: Counts,
    /// How it ended.
    pub ended: Ended,
    /// From making the initramfs to the verdict.
    pub took: Duration,
}

impl Report {
    /// Nothing heard yet.
    pub fn new(kernel: &Kernel, log: &Path) -> Self {
        Self {
            series: kernel.series.clone(),
            release: kernel.release.clone(),
            log: log.to_owned(),
            passed: 0,
            failed: Vec::new(),
            absent: Vec::new(),
            counts: Counts::new(),
            ended: Ended::Silent,
            took: Duration::ZERO,
        }
    }

    /// Takes one line; returns whether to show it to people.
    pub fn hear(&mut self, line: &str) -> bool {
        match line.split_once(' ') {
            Some(("ok", _)) => self.passed += 1,
            Some(("FAIL", why)) => self.failed.push(why.to_owned()),
            Some(("none", what)) => self.absent.push(what.to_owned()),
            Some(("fact", _)) => {}
            Some(("insns", rest)) => {
                let Some((program, count)) = rest.rsplit_once(' ') else { return false };
                let Ok(count) = count.parse() else { return false };
                self.counts.insert(program.to_owned(), count);
            }
            _ => return false,
        }
        true
    }

    /// Everything that is wrong. A machine that reported no failure but ran no check has not passed.
    pub fn faults(&self) -> Vec<String> {
        let mut wrong = self.failed.clone();
        match self.ended {
            Ended::Verdict(0) if self.passed == 0 => wrong.push("no check ran".to_owned()),
            Ended::Verdict(0) => {}
            Ended::Verdict(n) if usize::try_from(n).is_ok_and(|n| n == self.failed.len()) => {}
            Ended::Verdict(n) => wrong.push(format!("the verdict is {n} failures")),
            Ended::Silent => wrong.push(format!("it ended without a verdict:\n{}", self.tail())),
            Ended::Cut => wrong.push("its power was cut".to_owned()),
            Ended::Late => wrong.push(format!("no verdict in time:\n{}", self.tail())),
        }
        wrong
    }

    /// The end of the console.
    fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(TAIL)..];
        last.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
    }

    /// One line to sum it up, and one for each fault.
    pub fn line(&self, wrong: &[String]) -> String {
        let verdict = if wrong.is_empty() { "passed" } else { "FAILED" };
        let seconds = self.took.as_secs();
        let mut text = format!("vm: {verdict} {}: {} checks in {seconds} s", self.release, self.passed);
        for absent in &self.absent {
            text += &format!("\nvm:   {absent}");
        }
        for fault in wrong {
            text += &format!("\nvm:   {fault}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str], ended: Ended) -> Report {
        let kernel = Kernel {
            series: "6.1".to_owned(),
            release: "6.1.0-1-cloud-amd64".to_owned(),
            image: PathBuf::new(),
            modules: PathBuf::new(),
            config: PathBuf::new(),
        };
        let mut report = Report::new(&kernel, Path::new("/nonexistent"));
        lines.iter().for_each(|line| {
            report.hear(line);
        });
        report.ended = ended;
        report
    }

    #[test]
    fn a_machine_passes_only_by_checks_and_a_verdict() {
        assert!(report(&["ok   one (0.1 s)"], Ended::Verdict(0)).faults().is_empty());
        for (lines, ended) in [
            (&["ok   one (0.1 s)"][..], Ended::Silent),
            (&["ok   one (0.1 s)"], Ended::Late),
            (&[], Ended::Verdict(0)),
            (&["ok   one (0.1 s)", "FAIL two: why"], Ended::Verdict(1)),
            (&["ok   one (0.1 s)", "FAIL two: why"], Ended::Verdict(0)),
            (&["ok   one (0.1 s)"], Ended::Verdict(1)),
        ] {
            assert!(!report(lines, ended).faults().is_empty(), "{lines:?} {ended:?}");
        }
    }

    #[test]
    fn what_a_kernel_lacks_is_told_and_is_no_check() {
        let heard = report(&["ok   one (0.1 s)", "none two: not in this kernel"], Ended::Verdict(0));
        assert!(heard.faults().is_empty());
        assert!(heard.line(&[]).ends_with("1 checks in 0 s\nvm:   two: not in this kernel"), "{}", heard.line(&[]));
        assert!(!report(&["none one: not in this kernel"], Ended::Verdict(0)).faults().is_empty());
    }

    #[test]
    fn counts_are_heard() {
        let heard = report(&["insns pv_a 12", "insns nothing", "ok   x (1 s)"], Ended::Verdict(0));
        assert_eq!(heard.counts.get("pv_a"), Some(&12));
        assert_eq!(heard.counts.len(), 1);
    }
}
