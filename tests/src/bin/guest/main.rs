//! The only program of a virtual machine that `cargo xtask vm` boots. It prepares the system, checks the data plane
//! with the real daemon, prints a line for each check and a verdict, and powers the machine off.
//!
//! The program is also the daemon, when it is called as `pv-net`: so one static file is a whole device.

mod cards;
mod checks;
mod console;
mod icmp;
mod init;
mod lab;
mod memory;
mod power_cut;
mod programs;

use std::process::ExitCode;

fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    if std::path::Path::new(&called).file_name().is_some_and(|name| name == "pv-net") {
        return pv_net::cli::main();
    }
    // On an ordinary system it would mount over file systems in use, and power the system off.
    if std::process::id() != 1 {
        eprintln!("error: guest: this is the init of a test machine: it runs as process 1 only");
        eprintln!("help: cargo xtask vm");
        return ExitCode::FAILURE;
    }
    let failed = match init::prepare() {
        Ok(()) if std::env::var("PV_NET_GUEST").is_ok_and(|guest| guest == "power-cut") => match power_cut::run() {
            Ok(never) => match never {},
            Err(why) => {
                console::failed("power cut", &why);
                1
            }
        },
        Ok(()) => checks::run(),
        Err(why) => {
            console::failed("init", &why);
            1
        }
    };
    console::verdict(failed);
    init::power_off()
}
