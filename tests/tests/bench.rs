//! Every benchmark case, with rounds of a tenth of a second: each path proves the way that its packets take. What the
//! figures are is not looked at: that takes longer rounds, and a machine that does nothing else.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn bench(words: &[&str]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    // The benchmarks look for the daemon beside themselves, as the tests do.
    command.env("PV_NET_BIN", harness::binary()?);
    command.args(words).output().context("the benchmarks")
}

fn run_case(case: &str, out: &Path) -> Result<Value> {
    let folder = out.display().to_string();
    let done = bench(&[case, "--small", "--rounds", "1", "--seconds", "0.1", "--out", &folder])?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{case}: {}", said.lines().rfind(|l| l.contains("error")).unwrap_or(&said));
    let chart = std::fs::read_to_string(out.join(format!("{case}.svg")))?;
    ensure!(chart.contains("<svg") && chart.contains("</svg>"), "{case}: no chart");
    ensure!(chart.contains("ratio to"), "{case}: a chart without text");
    Ok(serde_json::from_str(&std::fs::read_to_string(out.join(format!("{case}.json")))?)?)
}

/// Every path has a figure for every metric.
fn check(report: &Value) -> Result<()> {
    let case = report["case"].as_str().context("no case")?;
    let failed = report["failed"].as_object().context("no failed")?;
    ensure!(failed.is_empty(), "{case}: {failed:?}");
    let results = report["results"].as_array().context("no results")?;
    let of = |path: &str| results.iter().filter(|r| r["path"] == path).collect::<Vec<_>>();
    let paths: Vec<&str> = report["paths"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let metrics = of(paths.first().context("no path")?).len();
    ensure!(metrics > 0 && paths.iter().any(|p| p.starts_with("pv-net")), "{case}: {report}");
    for path in &paths {
        let figures = of(path);
        ensure!(figures.len() == metrics, "{case}, {path}: {} figures of {metrics}", figures.len());
        for figure in figures {
            let name = figure["metric"].as_str().unwrap_or_default();
            ensure!(figure["median"].as_f64().is_some_and(|v| v > 0.0), "{case}, {path}: {figure}");
            if let Some(share) = figure["extras"].get("witnessed") {
                ensure!(share.as_f64().is_some_and(|s| s >= 0.9), "{case}, {path}, {name}: witnessed {share}");
            }
        }
    }
    Ok(())
}

fn case(name: &str) -> Result<()> {
    let out = tempfile::tempdir()?;
    let report = run_case(name, out.path())?;
    check(&report)?;
    if ["east-west", "published", "published-local", "masquerade", "ipv6", "policy", "scale", "flow-table"]
        .contains(&name)
    {
        let witnessed = |r: &Value| r["extras"]["witnessed"].is_number();
        ensure!(
            report["results"].as_array().is_some_and(|all| all.iter().all(witnessed)),
            "{name}: no proofs: {report}"
        );
    }
    Ok(())
}

macro_rules! cases {
    ($($test:ident: $name:literal,)*) => {
        $(
            #[test]
            #[ignore = "needs root: run by cargo xtask test"]
            fn $test() -> Result<()> {
                case($name)
            }
        )*

        #[test]
        fn every_case_has_a_test() -> Result<()> {
            let listed = bench(&["--list"])?;
            let listed = String::from_utf8(listed.stdout)?;
            let listed: Vec<&str> = listed.lines().filter_map(|l| l.split_whitespace().next()).collect();
            ensure!(listed == [$($name),*], "cases: {listed:?}");
            Ok(())
        }
    };
}

cases! {
    east_west: "east-west",
    published_ports: "published",
    published_from_the_device: "published-local",
    masquerade: "masquerade",
    over_ipv6: "ipv6",
    policy: "policy",
    scale: "scale",
    flow_table: "flow-table",
    attach: "attach",
    start: "start",
    programs: "programs",
}

#[test]
fn wrong_words_end_with_an_error_and_a_remedy() -> Result<()> {
    for (words, error) in [
        (["no-such-case", "--rounds", "1"], "error: case \"no-such-case\": there is none of this name"),
        (["east-west", "--loads", "warp"], "error: load \"warp\": there is none of this name"),
    ] {
        let done = bench(&words)?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.code() == Some(2), "{words:?}: {:?}", done.status);
        let lines: Vec<&str> = said.lines().collect();
        ensure!(lines.len() == 2 && lines[0] == error && lines[1].starts_with("help: one of "), "{words:?}: {said}");
    }
    Ok(())
}
