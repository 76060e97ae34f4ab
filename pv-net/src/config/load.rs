//! Reads configuration files; the only part of [`config`](super) with I/O.

use super::{ConfigError, Form, check_container, check_prefix_lengths};
use super::{parse_device, parse_run_named, parse_services, revision};
use crate::model::{Container, ContainerName, Device, Offer, PoolName};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Most bytes of a file, so that a wrong path cannot use up the device's memory.
const MAX_BYTES: u64 = 4 << 20;

fn whole(path: &Path, why: String, help: Option<&str>) -> Vec<ConfigError> {
    vec![ConfigError {
        file: path.display().to_string(),
        path: String::new(),
        value: None,
        why,
        help: help.map(str::to_owned),
    }]
}

/// The text of a configuration file.
///
/// # Errors
/// When it cannot be read, is a directory, is too large, or is not UTF-8.
pub fn text(path: &Path) -> Result<String, Vec<ConfigError>> {
    let failed = |e: io::Error| whole(path, e.to_string(), Some("name a file that is there and may be read"));
    let meta = std::fs::metadata(path).map_err(failed)?;
    if meta.is_dir() {
        return Err(whole(path, "is a directory".to_owned(), Some("name a file in it")));
    }
    content(File::open(path).map_err(failed)?, path)
}

/// The same for a file that must be a regular one: nobody who may write to its directory makes the reader wait, as a
/// pipe would.
///
/// # Errors
/// When it cannot be read, is not a regular file, is too large, or is not UTF-8.
pub fn regular(path: &Path) -> Result<String, Vec<ConfigError>> {
    let failed = |e: io::Error| whole(path, e.to_string(), None);
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(whole(path, "is no regular file".to_owned(), Some("write a file there")));
    }
    content(file, path)
}

/// The text of an open file.
///
/// # Errors
/// When it cannot be read, is too large, or is not UTF-8.
pub fn content(file: File, path: &Path) -> Result<String, Vec<ConfigError>> {
    let failed = |e: io::Error| whole(path, e.to_string(), None);
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        let help = "this cannot be a configuration: is it the right file?";
        return Err(whole(path, format!("is larger than {MAX_BYTES} bytes"), Some(help)));
    }
    String::from_utf8(bytes).map_err(|e| whole(path, format!("is not UTF-8: {e}"), Some("write the file in UTF-8")))
}

/// Whether there is something at `path`, be it unreadable.
///
/// # Errors
/// When that cannot be told: what is there must not count as missing.
fn is_there(path: &Path) -> Result<bool, Vec<ConfigError>> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
        Err(e) => Err(whole(path, e.to_string(), None)),
    }
}

/// The `device.json` at `path`. A revision need not have one, and then has no pools.
///
/// # Errors
/// Every error of the file; for a revision also when its directory is not there.
pub fn device(path: &Path, form: Form) -> Result<Device, Vec<ConfigError>> {
    let name = path.display().to_string();
    match form {
        Form::Own => parse_device(&name, &text(path)?),
        Form::Revision => {
            let text = if is_there(path)? { regular(path)? } else { "{}".to_owned() };
            // Afterwards: a file is also missing while Pantavisor puts one revision in the place of another.
            let dir = path.parent().unwrap_or(path);
            if !dir.is_dir() {
                let help = "mount the directory of Pantavisor's trails, or name a revision in it";
                return Err(whole(dir, "is no directory, and so no revision".to_owned(), Some(help)));
            }
            revision::device(&name, &text)
        }
    }
}

/// The `run.json` at `path`, which must name its container.
///
/// # Errors
/// Every error of the file.
pub fn run(path: &Path) -> Result<Container, Vec<ConfigError>> {
    parse_run_named(&path.display().to_string(), &text(path)?, None)
}

/// The container `name`, declared by the `run.json` at `path`.
///
/// # Errors
/// Every error of the file; in a revision also when the container is in no pool.
pub fn declared_run(path: &Path, name: &ContainerName, form: Form) -> Result<Container, Vec<ConfigError>> {
    let file = path.display().to_string();
    match form {
        Form::Own => parse_run_named(&file, &regular(path)?, Some(name)),
        Form::Revision => match revision::run(&file, &regular(path)?, name.as_str())? {
            Some(run) => Ok(run.container),
            None => Err(whole(path, "the container is in no pool".to_owned(), None)),
        },
    }
}

/// A declared container. Its name is that of the directory of its file.
pub struct Declared {
    /// The file.
    pub path: PathBuf,
    /// The file's text, or of a revision what pv-net reads of it; empty when it cannot be read.
    pub text: String,
    /// The container, or every error of the file.
    pub container: Result<Container, Vec<ConfigError>>,
    /// The prefix lengths behind its addresses, see [`revision::Run`].
    prefix_lengths: BTreeMap<usize, u8>,
    /// What its `services.json` says, when it has one.
    pub offers: Result<Vec<Offer>, Vec<ConfigError>>,
}

impl Declared {
    /// The container, if `device` has what it asks for.
    ///
    /// # Errors
    /// Every error of its `run.json`, and in what it asks for.
    pub fn checked(&self, device: &Device) -> Result<&Container, Vec<ConfigError>> {
        let container = self.container.as_ref().map_err(Clone::clone)?;
        let file = self.path.display().to_string();
        let mut errors = check_container(&file, container, device);
        errors.extend(check_prefix_lengths(&file, &self.prefix_lengths, container, device));
        if errors.is_empty() { Ok(container) } else { Err(errors) }
    }

    /// Everything that is wrong with its files, and with what it asks of `device`.
    #[must_use]
    pub fn errors(&self, device: &Device) -> Vec<ConfigError> {
        let mut errors = self.checked(device).err().unwrap_or_default();
        errors.extend(self.offers.as_ref().err().into_iter().flatten().cloned());
        errors
    }
}

/// Everything that is wrong with the containers of a revision: with each of them, and addresses that two of them ask for.
#[must_use]
pub fn revision_errors(all: &[Declared], device: &Device) -> Vec<ConfigError> {
    let mut errors: Vec<ConfigError> = all.iter().flat_map(|declared| declared.errors(device)).collect();
    let mut owners: BTreeMap<(PoolName, String), &ContainerName> = BTreeMap::new();
    for (path, container) in all.iter().filter_map(|d| Some((&d.path, d.container.as_ref().ok()?))) {
        for (i, interface) in container.interfaces.iter().enumerate() {
            let asked = [
                ("ipv4_address", interface.ipv4.map(|a| a.to_string())),
                ("ipv6_address", interface.ipv6.map(|a| a.to_string())),
                ("mac_address", interface.mac.map(|a| a.to_string())),
            ];
            for (key, value) in asked.into_iter().filter_map(|(key, value)| Some((key, value?))) {
                let owner = owners.entry((interface.pool.clone(), value.clone())).or_insert(&container.name);
                if **owner != container.name {
                    errors.push(ConfigError {
                        file: path.display().to_string(),
                        path: format!("network.interfaces[{i}].{key}"),
                        value: Some(format!("{value:?}")),
                        why: format!("container {owner} has it already"),
                        help: Some("choose another, or leave it out to be given one".to_owned()),
                    });
                }
            }
        }
    }
    errors
}

/// Every `DIR/NAME/run.json`, in the order of the names; of a revision, those of containers with interfaces in pools. If
/// the directory does not exist, there are none; but a revision has one.
///
/// # Errors
/// When the directory cannot be read, or one in it.
pub fn containers(dir: &Path, form: Form) -> Result<Vec<Declared>, Vec<ConfigError>> {
    let paths = run_files(dir, form)?.into_iter();
    Ok(match form {
        Form::Own => paths.map(declared).collect(),
        Form::Revision => paths.filter_map(of_revision).collect(),
    })
}

/// The LXC configuration of each container of a revision, in pools or not. Those whose directories have names that no
/// container in a pool can have are left out.
///
/// # Errors
/// When the directory cannot be read, or one in it.
pub fn lxc_configs(dir: &Path) -> Result<Vec<(ContainerName, PathBuf)>, Vec<ConfigError>> {
    let config = |path: PathBuf| {
        // A `run.json` that cannot be read is an error of `containers`.
        let file = revision::lxc_config(&regular(&path).ok()?)?;
        Some((dir_of(&path).parse().ok()?, path.with_file_name(file)))
    };
    Ok(run_files(dir, Form::Revision)?.into_iter().filter_map(config).collect())
}

/// Every `DIR/NAME/run.json`, in the order of the names.
fn run_files(dir: &Path, form: Form) -> Result<Vec<PathBuf>, Vec<ConfigError>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound && form == Form::Own => return Ok(Vec::new()),
        Err(e) => return Err(whole(dir, e.to_string(), None)),
    };
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| whole(dir, e.to_string(), None))?;
        let path = entry.path().join("run.json");
        if is_there(&path)? {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The name of the directory of a container's file.
fn dir_of(path: &Path) -> String {
    path.parent().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

fn of_revision(path: PathBuf) -> Option<Declared> {
    let read = regular(&path).and_then(|text| revision::run(&path.display().to_string(), &text, &dir_of(&path)));
    let (text, container, prefix_lengths) = match read {
        Ok(None) => return None,
        Ok(Some(run)) => (run.text, Ok(run.container), run.prefix_lengths),
        Err(errors) => (String::new(), Err(errors), BTreeMap::new()),
    };
    let offers = offers(&path.with_file_name("services.json"), revision::services);
    Some(Declared { path, text, container, prefix_lengths, offers })
}

fn declared(path: PathBuf) -> Declared {
    let name = dir_of(&path);
    let name = name.parse::<ContainerName>().map_err(|e| whole(&path, format!("directory {name:?}: {e}"), None));
    let (text, container) = match regular(&path) {
        Ok(text) => {
            let container = name.and_then(|n| parse_run_named(&path.display().to_string(), &text, Some(&n)));
            (text, container)
        }
        Err(errors) => (String::new(), Err(errors)),
    };
    let offers = offers(&path.with_file_name("services.json"), parse_services);
    Declared { path, text, container, prefix_lengths: BTreeMap::new(), offers }
}

type Offers = Result<Vec<Offer>, Vec<ConfigError>>;

/// What a file offers, read by `parse`.
fn offers(path: &Path, parse: fn(&str, &str) -> Offers) -> Offers {
    if is_there(path)? { parse(&path.display().to_string(), &regular(path)?) } else { Ok(Vec::new()) }
}
