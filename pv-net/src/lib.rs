//! pv-net: the network of a container device.
//!
//! Data flows one way: [`config`] parses files into valid [`model`] types; [`ipam`], [`policy`] and [`plan`] decide,
//! purely, what should exist and which steps lead there; [`kernel`] reads and changes the kernel; [`daemon`] turns the
//! wheel, driven by the [`control`]ler alone. What it leaves is a [`snapshot`], that [`services`] and the two faces,
//! [`api`] and [`cli`], read.

pub mod api;
pub mod app;
pub mod cli;
pub mod command;
pub mod config;
pub mod control;
pub mod daemon;
pub mod events;
pub mod failure;
pub mod ipam;
pub mod kernel;
pub mod model;
pub mod plan;
pub mod policy;
pub mod services;
pub mod snapshot;
pub mod supervisor;
