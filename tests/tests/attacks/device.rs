//! The device on real networks: many addresses, firewalls of others, and the daemon as the package runs it.

mod addresses;
mod advertised;
mod firewall;
mod links;
mod sources;
mod unit;
