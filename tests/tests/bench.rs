//! Runs every benchmark case with rounds of a tenth of a second: each path proves which way its packets take. The
//! figures are not checked: that would need longer rounds and an idle machine.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pv_net_common::names;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn bench(words: &[&str]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    // The benchmarks look for the daemon beside their own program, as the tests do.
    command.env("PV_NET_BIN", harness::binary()?);
    command.args(words).output().context("the benchmarks")
}

fn run_case(case: &str, out: &Path) -> Result<Value> {
    let folder = out.display().to_string();
    let done = bench(&[case, "--small", "--rounds", "1", "--seconds", "0.1", "--out", &folder])?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{case}: {}", said.lines().rfind(|l| l.contains("error")).unwrap_or(&said));
    let read = |name: &str| std::fs::read_to_string(out.join(name)).with_context(|| name.to_owned());
    let chart = read(&format!("{case}.svg"))?;
    ensure!(chart.contains("<svg") && chart.contains("</svg>"), "{case}: no chart");
    ensure!(chart.contains("ratio to") && chart.contains("is better"), "{case}: a chart without text");
    ensure!(read("tables.md")?.contains(&read(&format!("{case}.md"))?), "{case}: not in tables.md");
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
            // A case that sends traffic must report its proof.
            if figure["traffic"] == true {
                let share = &figure["extras"]["witnessed"];
                ensure!(share.as_f64().is_some_and(|s| s >= 0.9), "{case}, {path}, {name}: witnessed {share}");
            }
            // A case must also report what a reader needs besides the figure.
            let beside = match figure["unit"].as_str().unwrap_or_default() {
                "exchanges/s" | "connections/s" | "answers/s" => "p99_us",
                "Gbit/s" => "cpu_secs_per_gb",
                _ => continue,
            };
            let value = &figure["extras"][beside];
            ensure!(value.as_f64().is_some_and(|v| v > 0.0), "{case}, {path}, {name}: {beside} {value}");
        }
    }
    Ok(())
}

fn case(name: &str) -> Result<()> {
    let out = tempfile::tempdir()?;
    let report = run_case(name, out.path())?;
    check(&report)?;
    if name == "programs" {
        each_program(&report)?;
    }
    Ok(())
}

/// Every program that a device loads has a size, and those on hooks a run time on the path that meets them.
fn each_program(report: &Value) -> Result<()> {
    let part = |path: &str, metric: &str, program: &str| {
        let rows = report["results"].as_array().into_iter().flatten();
        let row = rows.filter(|r| r["path"] == path).find(|r| r["metric"] == metric);
        row.and_then(|r| r["parts"][program].as_f64()).unwrap_or_default()
    };
    let (pool, edge) = ("pv-net, one pool", "pv-net, published port behind a filter");
    let hooks = [names::PROG_FROM_CONTAINER, names::PROG_TO_CONTAINER, names::PROG_FROM_UPLINK, names::PROG_XDP_UPLINK];
    for program in hooks.iter().chain(&names::PROG_SOCK).chain(&names::PROG_STAGES) {
        let sizes = ["size", "verified", "machine-code"].map(|metric| part(edge, metric, program));
        ensure!(sizes.iter().all(|size| *size > 0.0), "{program}: {sizes:?}");
    }
    for (path, program) in [
        (pool, names::PROG_FROM_CONTAINER),
        (edge, names::PROG_FROM_UPLINK),
        (edge, names::PROG_XDP_UPLINK),
        ("pv-net, device to container", names::PROG_TO_CONTAINER),
    ] {
        ensure!(part(path, "run-time-rr-same", program) > 1.0, "{path}: no run time of {program}");
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
    lxc: "lxc",
    start: "start",
    dhcp: "dhcp",
    dns: "dns",
    dns_by_tcp: "dns-tcp",
    programs: "programs",
}

/// Fails unless the program ended with `code`, one error with this beginning, and one help text.
fn ended(done: &Output, code: i32, error: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.code() == Some(code), "{:?}, not {code}: {said}", done.status);
    let lines: Vec<&str> = said.lines().rev().take(2).collect();
    let [help, why] = lines[..] else { anyhow::bail!("not two lines: {said}") };
    ensure!(why.starts_with(&format!("error: {error}")), "not {error:?}: {said}");
    ensure!(help.starts_with("help: ") && said.matches("error: ").count() == 1, "{said}");
    Ok(())
}

#[test]
fn wrong_words_end_with_an_error_and_a_remedy() -> Result<()> {
    for (words, error) in [
        (["no-such-case", "--rounds", "1"], "case \"no-such-case\": there is none of this name"),
        (["east-west", "--loads", "warp"], "load \"warp\": there is none of this name"),
        (["attach", "--paths", "tunnel"], "path \"tunnel\": no path's name contains it"),
    ] {
        let done = bench(&words)?;
        ended(&done, 2, error)?;
        ensure!(String::from_utf8_lossy(&done.stderr).lines().count() == 2, "{done:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_missing_program_is_named_and_so_is_a_missing_daemon() -> Result<()> {
    let empty = tempfile::tempdir()?;
    let run = |variable: &str, value: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
        command.env("PV_NET_BIN", harness::binary()?).env(variable, value).arg("attach");
        command.output().context("the benchmarks")
    };
    ended(&run("PATH", empty.path())?, 2, "ip: no such program")?;
    ended(&run("PV_NET_BIN", &empty.path().join("none"))?, 2, "pv-net: not built")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn without_root_nothing_is_begun() -> Result<()> {
    let nobody = "--reuid=65534";
    let done =
        Command::new("setpriv").args([nobody, "--clear-groups", env!("CARGO_BIN_EXE_bench"), "attach"]).output()?;
    ended(&done, 2, "benchmarks make network namespaces and load eBPF programs: not root")
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_folder_that_takes_no_files_is_told_before_anything_is_measured() -> Result<()> {
    let done = bench(&["attach", "--out", "/proc/nothing"])?;
    ended(&done, 1, "/proc/nothing: ")?;
    ensure!(done.stdout.is_empty(), "{done:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: run by cargo xtask test"]
fn a_signal_ends_a_run_and_nothing_is_left() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (signal, after) in [(Signal::SIGINT, "prove"), (Signal::SIGTERM, "round"), (Signal::SIGHUP, "pv-net")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
        command.env("PV_NET_BIN", harness::binary()?).env("TMPDIR", folder.path());
        command.args(["east-west", "--small", "--seconds", "0.1", "--loads", "rr-same,crr-same", "--out"]);
        let mut child = command.arg(folder.path()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stderr.take().context("no output")?).lines();
        let seen = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(after)));
        let pid = child.id();
        kill(Pid::from_raw(i32::try_from(pid)?), signal)?;
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        let status = child.wait()?;
        ensure!(seen.is_some() && status.code() == Some(1), "{signal}: {status:?}, {rest:?}");
        ensure!(rest.iter().any(|line| line == "error: ended by a signal"), "{signal}: {rest:?}");
        ensure!(rest.last().is_some_and(|line| line.starts_with("help: ")), "{signal}: {rest:?}");
        let left = |folder: &Path, start: &str| -> Result<Vec<String>> {
            let names = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            Ok(names.collect::<Result<Vec<_>>>()?.into_iter().filter(|name| name.starts_with(start)).collect())
        };
        let (spaces, files) =
            (left(Path::new("/run/netns"), &format!("pvt-{pid}-"))?, left(folder.path(), "pv-net-test-")?);
        ensure!(spaces.is_empty() && files.is_empty(), "{signal}: left {spaces:?} {files:?}");
    }
    Ok(())
}
