//! The random attacker: generated frames from several places are compared with a simple model of who may reach whom. A
//! container, the host behind the uplink and a host at a port of the pool's bridge send; at every place that a frame
//! could reach, sockets record what arrives. Where the pool is a macvlan pool, the LAN is that of its parent, and the
//! container of another pool, which has a bridge, sends too.
//!
//! The model (`reading`, `model`) is written from the rules that the project promises and from the RFCs. It shares no
//! code with the data plane.

mod campaign;
mod generate;
mod judgement;
mod lab;
mod mark;
mod model;
mod pool;
mod random;
mod reading;
mod receive;
mod run;
mod world;

pub use campaign::Campaign;
pub use pool::{Link, Mode};

use lab::Lab;
use model::Memory;
use run::Attack;
use world::{Access, Place, Policy, Rule, Who, World};
