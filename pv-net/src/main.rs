//! The `pv-net` binary.

fn main() {}
