//! Attacks with real packets. The name of a test says what the attacker must not achieve.

mod blind;
mod device;
mod dhcp;
mod fragments;
mod groups;
mod honest;
mod icmp;
mod identity;
mod lab;
mod loopback;
mod neighbour_table;
mod neighbours;
mod own_ports;
mod routes;
mod shares;
mod sizes;
mod stack;
mod strangers;
mod trial;
mod unreadable;
mod vlan;
