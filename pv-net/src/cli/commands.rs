//! The commands, one function each.

use super::args::{Args, AttachArg, Command, InterfaceArgs, PolicyCommand};
use super::client::{call, send};
use super::output::{done, escaped, pretty, say};
use super::starts::Starts;
use super::table::{self, Column};
use super::{Ended, containers, doctor, policy, runtime};
use crate::command::{AttachRequest, InterfaceRequest};
use crate::config::{ConfigError, load, parse_device, parse_run, parse_run_named, parse_services};
use crate::daemon::{NO_NETKIT, Paths, RunLock, teardown};
use crate::failure::{Failure, Kind};
use crate::kernel::broker::Broker;
use crate::kernel::link::knows_netkit;
use crate::kernel::own_dir;
use crate::lease::unix_time;
use crate::model::{ContainerName, Device, PairKind, Pool};
use clap::CommandFactory;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Runs every command except `run`, which has its own runtimes.
pub async fn run(command: Command, paths: Paths, json: bool) -> Result<ExitCode, Ended> {
    match command {
        // These are handled in `cli::run`.
        Command::Run { .. }
        | Command::Runner
        | Command::Broker
        | Command::Launch { .. }
        | Command::Pantavisor { .. } => {}
        // These flags may stand before the command too, so clap cannot tell.
        Command::Check { files } => match (&paths.revision, files.is_empty()) {
            (Some(_), true) => check_revision(&paths, json)?,
            (None, false) => check(&files, json)?,
            (None, true) => return Err(no_files("no file is named").into()),
            (Some(_), false) => return Err(no_files("a revision and files are named").into()),
        },
        Command::Attach { name, what: AttachArg { interface: Some(of), .. }, pool, interface, .. } => {
            attach_interface(&paths, &name, &of, pool.unwrap_or_default(), interface, json).await?;
        }
        Command::Attach { name, what, pool, run, auto_detach, .. } => {
            let request = AttachRequest { pool, auto_detach, ..AttachRequest::default() };
            attach(&paths, &name, request, what, run, json).await?;
        }
        Command::Detach { name, interface: Some(interface) } => {
            call(&paths, Method::DELETE, &path_of(&name, &interface), None).await?;
            done(json, &format!("interface {interface} of container {name} detached"));
        }
        Command::Detach { name, interface: None } => {
            call(&paths, Method::DELETE, &format!("/containers/{}", escaped(&name)), None).await?;
            done(json, &format!("container {name} detached"));
        }
        Command::Status => status(&paths, json).await?,
        Command::Pools => list(&paths, "/pools", table::POOLS, json).await?,
        Command::Containers { command: Some(command), .. } => return containers::run(&paths, command, json).await,
        Command::Containers { name, command: None } => containers::list(&paths, name, json).await?,
        Command::Leases => leases(&paths, json).await?,
        Command::Ports => list(&paths, "/ports", table::PORTS, json).await?,
        Command::Services => list(&paths, "/services", table::SERVICES, json).await?,
        Command::Flows { follow } => loop {
            list(&paths, "/flows", table::FLOWS, json).await?;
            if !follow {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        },
        Command::Policy { command: PolicyCommand::List } => policy::list(&paths, json).await?,
        Command::Policy { command: PolicyCommand::Explain { from, to, traffic } } => {
            policy::explain(&paths, &from, &to, &traffic, json).await?;
        }
        Command::Resolve { name, from, kind } => resolve(&paths, &name, from, kind, json).await?,
        Command::Monitor { dns: false } => monitor(&paths, "/events", table::event, json).await?,
        Command::Monitor { dns: true } => monitor(&paths, "/dns/queries", table::query, json).await?,
        Command::Plan | Command::Reload { dry_run: true } => plan(&paths, json).await?,
        Command::Reload { dry_run: false } => {
            call(&paths, Method::POST, "/reload", None).await?;
            done(json, "configuration reloaded");
        }
        Command::Lxc { command } => runtime::lxc(&paths, command, json)?,
        Command::Oci { command } => runtime::oci(&paths, command, json)?,
        Command::Hook { command } => runtime::hook(&paths, command).await?,
        Command::Doctor => return Ok(doctor::run(&paths, json).await),
        Command::Down => down(&paths, json).await?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "pv-net", &mut script);
            say(String::from_utf8_lossy(&script).trim_end());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn check(files: &[PathBuf], json: bool) -> Result<(), Ended> {
    let (mut errors, mut conditions) = (Vec::new(), Vec::new());
    let mut named: BTreeMap<String, ContainerName> = BTreeMap::new();
    let mut starts = Starts::default();
    for file in files {
        match check_file(file, &mut named, &mut starts) {
            Ok(notes) => conditions.extend(notes.iter().map(|note| format!("{}: {note}", file.display()))),
            Err(wrong) => errors.extend(wrong),
        }
    }
    errors.extend(starts.circle());
    if !errors.is_empty() {
        return Err(Failure::from(errors).into());
    }
    checked(json, &format!("{} checked: all right", table::count(files.len(), "file")), &conditions);
    Ok(())
}

/// Says that all is right, and what is surprising nevertheless.
fn checked(json: bool, text: &str, conditions: &[String]) {
    if json {
        say(&json!({"done": text, "conditions": conditions}).to_string());
    } else {
        conditions.iter().for_each(|line| say(line));
        say(text);
    }
}

fn no_files(why: &str) -> Failure {
    let help = "name the files to check, or a revision of Pantavisor with --pantavisor";
    Failure::new(Kind::Usage, format!("check: {why}")).help(help)
}

/// Checks the revision of Pantavisor that the paths lead to.
fn check_revision(paths: &Paths, json: bool) -> Result<(), Ended> {
    let device = load::device(&paths.config, paths.form()).map_err(Failure::from)?;
    let containers = load::containers(&paths.containers, paths.form()).map_err(Failure::from)?;
    let errors = load::revision_errors(&containers, &device);
    if !errors.is_empty() {
        return Err(Failure::from(errors).into());
    }
    let pooled = table::count(containers.len(), "container");
    let of_device = device.inactive.iter().map(|path| unused(path)).chain(no_netkit(&device));
    let mut conditions: Vec<String> = of_device.map(|note| format!("{}: {note}", paths.config.display())).collect();
    for (path, container) in containers.iter().filter_map(|d| Some((&d.path, d.container.as_ref().ok()?))) {
        conditions.extend(container.inactive.iter().map(|field| format!("{}: {}", path.display(), unused(field))));
    }
    let text = format!("{} checked: all right, with {pooled} in pools", paths.containers.display());
    checked(json, &text, &conditions);
    Ok(())
}

fn unused(path: &str) -> String {
    format!("{path}: accepted, not acted on yet")
}

/// A note for each pool of netkit links, when the kernel here has none. Only root is told what the kernel has. The file may
/// be meant for another machine, so this is no error.
fn no_netkit(device: &Device) -> Vec<String> {
    let is_netkit = |pool: &&Pool| pool.bridge().is_some() && pool.link == PairKind::Netkit;
    let pools = device.pools.values().filter(|pool| is_netkit(pool) && matches!(knows_netkit(), Ok(false)));
    pools.map(|pool| format!("network.pools.{}.{NO_NETKIT}", pool.name)).collect()
}

/// Checks a file. Returns warnings about a valid one: settings that this version does not act on, and surprising ones.
/// Where its name does not say what it is, a `run.json` is told by fields that a `device.json` cannot have. `named` has the
/// containers of the files checked before, and `starts` what they wait for.
fn check_file(
    file: &Path,
    named: &mut BTreeMap<String, ContainerName>,
    starts: &mut Starts,
) -> Result<Vec<String>, Vec<ConfigError>> {
    let text = load::text(file)?;
    let name = file.display().to_string();
    let keys = serde_json::from_str::<serde_json::Map<String, Value>>(&text).unwrap_or_default();
    let network = keys.get("network").and_then(Value::as_object);
    let of_run =
        ["#spec", "name", "type", "start", "runtime", "stop_timeout", "services", "health_check", "auto_recovery"];
    let of_run_network = ["pool", "interfaces", "mode", "hostname", "aliases", "ports"];
    let is_run = of_run.iter().any(|k| keys.contains_key(*k))
        || network.is_some_and(|n| of_run_network.iter().any(|k| n.contains_key(*k)));
    // The daemon goes by the names of files.
    let is_called = |name: &str| file.file_name().is_some_and(|own| own == name);
    let is_known = is_called("device.json") || is_called("run.json") || is_called("services.json");
    let is_run = is_called("run.json") || !is_known && is_run;
    let is_list = text.trim_start().starts_with('[') || keys.get("services").is_some_and(Value::is_array);
    if is_called("services.json") || !is_known && is_list {
        starts.offers(file, parse_services(&name, &text)?);
        return Ok(Vec::new());
    }
    if is_run {
        let container = parse_run(&name, &text)?;
        starts.requires(file, &container);
        let lower = container.name.as_str().to_ascii_lowercase();
        let mut notes: Vec<String> = container.inactive.iter().map(|path| unused(path)).collect();
        if lower == "gateway" {
            notes.push("name: in DNS that name is the gateway's: others cannot find the container by it".to_owned());
        } else if let Some(first) = named.insert(lower, container.name.clone()).filter(|n| *n != container.name) {
            notes.push(format!("name: names in DNS have no case: others cannot tell it from container {first}"));
        }
        return Ok(notes);
    }
    let device = parse_device(&name, &text)?;
    let has_domain = network.is_some_and(|n| n.contains_key("domain"));
    let of_mdns = (has_domain && format!(".{}", device.domain).ends_with(".local")).then(|| {
        let domain = &device.domain;
        format!("network.domain: {domain:?}: names in .local are asked by mDNS (RFC 6762), not here, where a system has it: take one such as \"pv.internal\"")
    });
    Ok(device.inactive.iter().map(|path| unused(path)).chain(of_mdns).chain(no_netkit(&device)).collect())
}

async fn attach(
    paths: &Paths,
    name: &str,
    mut request: AttachRequest,
    what: AttachArg,
    run: Option<PathBuf>,
    json: bool,
) -> Result<(), Ended> {
    request.pid = what.pid;
    if let Some(path) = what.netns {
        // The daemon has another working directory, so the path must be absolute.
        let path = std::path::absolute(&path)
            .map_err(|e| Failure::new(Kind::Usage, format!("namespace {}: {e}", path.display())))?;
        request.netns = Some(path);
    }
    if let Some(file) = run {
        let text = load::text(&file).map_err(Failure::from)?;
        // Checked here, where the file's name is known for errors. The daemon checks the container's name.
        if let Ok(name) = name.parse() {
            parse_run_named(&file.display().to_string(), &text, Some(&name)).map_err(Failure::from)?;
        }
        let run: Value =
            serde_json::from_str(&text).map_err(|e| Failure::new(Kind::Usage, format!("{}: {e}", file.display())))?;
        request.run = Some(run);
    }
    let path = format!("/containers/{}", escaped(name));
    let view = call(paths, Method::PUT, &path, Some(&json!(request))).await?;
    if json {
        say(&pretty(&view));
    } else {
        let addresses: Vec<&str> = ["ipv4_address", "ipv6_address"].iter().filter_map(|k| view[k].as_str()).collect();
        say(&format!("container {name} attached: {}", addresses.join(", ")));
    }
    Ok(())
}

/// The API's path of an interface.
fn path_of(name: &str, interface: &str) -> String {
    format!("/containers/{}/interfaces/{}", escaped(name), escaped(interface))
}

async fn attach_interface(
    paths: &Paths,
    name: &str,
    interface: &str,
    pool: String,
    args: InterfaceArgs,
    json: bool,
) -> Result<(), Ended> {
    let InterfaceArgs { default_route, ipv4_address, ipv6_address, mac_address } = args;
    let request = InterfaceRequest { pool, default_route, ipv4_address, ipv6_address, mac_address };
    let view = call(paths, Method::PUT, &path_of(name, interface), Some(&json!(request))).await?;
    if json {
        say(&pretty(&view));
        return Ok(());
    }
    let all = view["interfaces"].as_array().into_iter().flatten();
    let new = all.into_iter().find(|i| i["name"] == interface).cloned().unwrap_or_default();
    let addresses: Vec<&str> = ["ipv4_address", "ipv6_address"].iter().filter_map(|k| new[k].as_str()).collect();
    say(&format!("interface {interface} of container {name} attached: {}", addresses.join(", ")));
    Ok(())
}

async fn resolve(
    paths: &Paths,
    name: &str,
    from: Option<String>,
    kind: Option<String>,
    json: bool,
) -> Result<(), Ended> {
    let given = [("from", from), ("type", kind)].into_iter().filter_map(|(key, value)| Some((key, value?)));
    let more: String = given.map(|(key, value)| format!("&{key}={}", escaped(&value))).collect();
    let value = call(paths, Method::GET, &format!("/resolve?name={}{more}", escaped(name)), None).await?;
    say(&if json { pretty(&value) } else { table::answers(&value) });
    Ok(())
}

async fn plan(paths: &Paths, json: bool) -> Result<(), Ended> {
    let value = call(paths, Method::POST, "/reload?dry_run", None).await?;
    say(&if json { pretty(&value) } else { table::plan(&value) });
    Ok(())
}

async fn list(paths: &Paths, path: &str, columns: &[Column], json: bool) -> Result<(), Ended> {
    let value = call(paths, Method::GET, path, None).await?;
    say(&if json { pretty(&value) } else { table::render(columns, value.as_array().map_or(&[][..], Vec::as_slice)) });
    Ok(())
}

/// Leases; to people the end of one is a time from now, and who has given it is one column.
async fn leases(paths: &Paths, json: bool) -> Result<(), Ended> {
    let mut value = call(paths, Method::GET, "/leases", None).await?;
    if json {
        say(&pretty(&value));
        return Ok(());
    }
    let now = unix_time();
    let rows = value.as_array_mut().map(Vec::as_mut_slice).unwrap_or_default();
    for row in &mut *rows {
        if let Some(expires) = row["expires"].as_u64() {
            row["expires"] = json!(format!("in {} s", expires.saturating_sub(now)));
        }
        let from: Vec<&str> = ["server", "router"].iter().filter_map(|key| row[*key].as_str()).collect();
        if !from.is_empty() {
            row["from"] = json!(from.join(" "));
        }
    }
    say(&table::render(table::LEASES, rows));
    Ok(())
}

async fn status(paths: &Paths, json: bool) -> Result<(), Ended> {
    let value = call(paths, Method::GET, "/status", None).await?;
    say(&if json { pretty(&value) } else { table::status(&value) });
    Ok(())
}

/// Prints what the daemon tells at `path`, as `line` shows it.
async fn monitor(paths: &Paths, path: &str, line: fn(&Value) -> String, json: bool) -> Result<(), Ended> {
    let mut body = send(paths, Method::GET, path, None).await?.into_body();
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Failure::new(Kind::Internal, format!("the daemon hung up: {e}")))?;
        rest.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d));
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let bytes: Vec<u8> = rest.drain(..=end).collect();
            let text = String::from_utf8_lossy(&bytes);
            let event: Value = serde_json::from_str(&text).unwrap_or_default();
            say(&if json { text.trim_end().to_owned() } else { line(&event) });
        }
    }
    Ok(())
}

/// Asks the daemon if there is one, so that nobody attaches meanwhile; otherwise this process does it.
async fn down(paths: &Paths, json: bool) -> Result<(), Ended> {
    match call(paths, Method::POST, "/down", None).await {
        Ok(_) => {}
        Err(Ended::NoDaemon(_)) => {
            let locks = RunLock::take(paths)?;
            let pins = paths.bpffs.exists().then(|| own_dir::lock(&paths.bpffs)).transpose().map_err(Failure::from)?;
            let broker = Broker::start();
            if let Err(e) = &broker {
                tracing::warn!(error = %e, "no namespace can be entered: routing rules may be left in some");
            }
            teardown(paths, broker.as_ref().ok()).await?;
            drop((locks, pins));
        }
        Err(e) => return Err(e),
    }
    wait_for_lock(paths).await?;
    done(json, "everything that pv-net made is removed");
    Ok(())
}

/// Waits until the daemon's lock is free, which means that it has ended; then removes the last files.
async fn wait_for_lock(paths: &Paths) -> Result<(), Ended> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let start = std::time::Instant::now();
    while paths.run_dir.exists() {
        match RunLock::of_run_dir(paths) {
            Ok(_lock) => {
                // A daemon that was killed has left its socket.
                remove(&paths.socket())?;
                return remove(&paths.run_dir.join("lock"));
            }
            Err(failure) if start.elapsed() > PATIENCE => return Err(failure.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), Ended> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::new(Kind::Internal, format!("remove {}: {e}", path.display())).into())
        }
        _ => Ok(()),
    }
}
