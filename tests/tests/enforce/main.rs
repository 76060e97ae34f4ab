//! Policy as packets meet it: what the rules and the pools' settings say is what happens, also to flows that run already.

mod agree;
mod errors;
mod established;
mod host;
mod lab;
mod link;
mod probe;
mod rules;
