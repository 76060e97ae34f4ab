//! Writes the manual pages, one for each command, into the directory that is its only argument.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from).ok_or(std::io::ErrorKind::InvalidInput)?;
    std::fs::create_dir_all(&dir)?;
    clap_mangen::generate_to(pv_net::cli::command(), dir)
}
