//! Reads configuration files; the only part of [`config`](super) with I/O.

use super::{ConfigError, parse_device, parse_run_named, parse_services};
use crate::model::{Container, ContainerName, Device, Offer};
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

/// The `device.json` at `path`.
///
/// # Errors
/// Every error of the file.
pub fn device(path: &Path) -> Result<Device, Vec<ConfigError>> {
    parse_device(&path.display().to_string(), &text(path)?)
}

/// The `run.json` at `path`, which must name its container.
///
/// # Errors
/// Every error of the file.
pub fn run(path: &Path) -> Result<Container, Vec<ConfigError>> {
    parse_run_named(&path.display().to_string(), &text(path)?, None)
}

/// A declared container. Its name is that of the directory of its file.
pub struct Declared {
    /// The file.
    pub path: PathBuf,
    /// The file's text; empty when it cannot be read.
    pub text: String,
    /// The container, or every error of the file.
    pub container: Result<Container, Vec<ConfigError>>,
    /// What its `services.json` says, when it has one.
    pub offers: Result<Vec<Offer>, Vec<ConfigError>>,
}

/// Every `DIR/NAME/run.json`, in the order of the names. If the directory does not exist, there are none.
///
/// # Errors
/// When the directory cannot be read.
pub fn containers(dir: &Path) -> Result<Vec<Declared>, Vec<ConfigError>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(whole(dir, e.to_string(), None)),
    };
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| whole(dir, e.to_string(), None))?;
        let path = entry.path().join("run.json");
        if path.exists() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths.into_iter().map(declared).collect())
}

fn declared(path: PathBuf) -> Declared {
    let name = path.parent().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let name = name.parse::<ContainerName>().map_err(|e| whole(&path, format!("directory {name:?}: {e}"), None));
    let (text, container) = match regular(&path) {
        Ok(text) => {
            let container = name.and_then(|n| parse_run_named(&path.display().to_string(), &text, Some(&n)));
            (text, container)
        }
        Err(errors) => (String::new(), Err(errors)),
    };
    let offers = offers(&path.with_file_name("services.json"));
    Declared { path, text, container, offers }
}

fn offers(path: &Path) -> Result<Vec<Offer>, Vec<ConfigError>> {
    match path.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        _ => parse_services(&path.display().to_string(), &regular(path)?),
    }
}
