//! Policy as packets meet it: the rules and the pools' settings are followed, also by flows that exist already.

mod agree;
mod errors;
mod established;
mod host;
mod lab;
mod link;
mod probe;
mod rules;
