//! Somebody changes pv-net's links, programs and settings: the daemon finds and repairs it, and reports it. Meanwhile
//! no forged packet arrives.

#[path = "repair/changes.rs"]
mod changes;
#[path = "repair/looks.rs"]
mod looks;
#[path = "repair/names.rs"]
mod names;
#[path = "repair/pins.rs"]
mod pins;
#[path = "repair/rules.rs"]
mod rules;
