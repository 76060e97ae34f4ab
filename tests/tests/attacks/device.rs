//! The device as it is on real networks: many addresses, others' firewalls, the unit as packaged.

mod addresses;
mod advertised;
mod firewall;
mod links;
mod sources;
mod unit;
