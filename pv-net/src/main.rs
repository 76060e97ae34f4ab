//! The `pv-net` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    pv_net::cli::main()
}
