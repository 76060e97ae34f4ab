//! The circumstances of figures: machine, kernel and date.

use crate::{cpu, load, options::Options};
use serde_json::{Value, json};

/// The circumstances, and how a case was measured.
pub fn how(options: &Options) -> Value {
    json!({
        "date": today(),
        "cpu": cpu_model(),
        "cpus": cpu::allowed().len(),
        "kernel": first_line("/proc/sys/kernel/osrelease"),
        "scheduling": cpu::class(),
        "congestion_control": load::CONGESTION,
        "rounds": options.rounds,
        "seconds": options.seconds.as_secs_f64(),
        "small": options.small,
    })
}

/// The same in words.
pub fn words(how: &Value) -> String {
    let text = |key: &str| how[key].to_string().trim_matches('"').to_owned();
    let rounds = if how["rounds"] == 1 { "round" } else { "rounds" };
    let small = if how["small"] == true { ", small" } else { "" };
    format!(
        "{} {rounds} of {} s{small}; {} x {}, Linux {}, {}; {}, TCP with {}",
        text("rounds"),
        text("seconds"),
        text("cpus"),
        text("cpu"),
        text("kernel"),
        text("date"),
        text("scheduling"),
        text("congestion_control"),
    )
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
