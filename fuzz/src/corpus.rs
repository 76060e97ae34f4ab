//! Reads the inputs in `corpus/TARGET/`: first inputs, and those that once broke an assertion.
//!
//! A file is an input as it is; if its name ends in `.hex`, it has the input as hexadecimal digits, with comments
//! behind `#`.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// An input with its file.
pub struct Input {
    /// The file.
    pub path: PathBuf,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// The inputs of the target `name` that are kept with the sources.
///
/// # Errors
/// When there are none, or one cannot be read.
pub fn kept(name: &str) -> Result<Vec<Input>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let inputs = read(&dir)?;
    if inputs.is_empty() {
        bail!("{} has no inputs", dir.display());
    }
    Ok(inputs)
}

/// Every input in `dir`, in the order of their names; none when the directory does not exist.
///
/// # Errors
/// When one cannot be read.
pub fn read(dir: &Path) -> Result<Vec<Input>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let mut paths = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    paths.into_iter().map(input).collect()
}

fn input(path: PathBuf) -> Result<Input> {
    let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    if path.extension().is_some_and(|e| e == "hex") {
        let text = String::from_utf8(bytes).with_context(|| path.display().to_string())?;
        return Ok(Input { bytes: from_hex(&text).with_context(|| path.display().to_string())?, path });
    }
    Ok(Input { path, bytes })
}

fn from_hex(text: &str) -> Result<Vec<u8>> {
    let code = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let digits: Vec<char> = code.flat_map(str::chars).filter(|c| !c.is_whitespace()).collect();
    if !digits.len().is_multiple_of(2) {
        bail!("half an octet");
    }
    let octet = |pair: &[char]| {
        u8::from_str_radix(&pair.iter().collect::<String>(), 16).with_context(|| format!("{pair:?} is no octet"))
    };
    digits.chunks(2).map(octet).collect()
}

#[cfg(test)]
mod tests {
    use super::from_hex;

    #[test]
    fn hexadecimal_has_comments() {
        assert_eq!(from_hex("# a header\n45 00 # IPv4\n0a03\n").expect("hex"), [0x45, 0, 0x0a, 3]);
        assert!(from_hex("450").is_err());
        assert!(from_hex("zz").is_err());
    }
}
