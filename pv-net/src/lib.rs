//! pv-net: the network of a container device.
//!
//! Data flows one way. [`config`] parses files into valid [`model`] types. [`ipam`], [`policy`] and [`plan`] are pure;
//! they decide what should exist and which steps lead there. [`kernel`] reads and changes the kernel. [`daemon`] brings
//! these together, driven by the [`control`]ler alone. The [`lease`] book keeps who has which address. The daemon's
//! state is published as a [`snapshot`], which [`services`] and the interfaces [`api`] and [`cli`] read. [`runtime`] is
//! what container runtimes are configured with, and tell; [`pantavisor`] is the client of Pantavisor's control socket.

pub mod api;
pub mod app;
pub mod bus;
pub mod cli;
pub mod command;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dbus;
pub mod dhcp;
pub mod dhcp6;
pub mod dhcp_client;
pub mod dns;
pub mod events;
pub mod failure;
pub mod ipam;
pub mod kernel;
pub mod lease;
pub mod memory;
pub mod model;
pub mod pantavisor;
pub mod plan;
pub mod policy;
pub mod ra;
pub mod runner;
pub mod runtime;
pub mod services;
pub mod snapshot;
pub mod supervisor;
