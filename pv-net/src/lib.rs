//! pv-net: the network of a container device.
//!
//! Data flows one way: [`config`] parses files into valid [`model`] types; [`ipam`], [`policy`] and [`plan`] decide,
//! purely, what should exist and which steps lead there; [`kernel`] reads and changes the kernel; [`daemon`] turns the wheel and
//! [`api`] and [`cli`] are its two faces.

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod failure;
pub mod ipam;
pub mod kernel;
pub mod model;
pub mod plan;
pub mod policy;
