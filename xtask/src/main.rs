//! `cargo xtask`: set up, build, demonstrate and test pv-net.

fn main() {}
