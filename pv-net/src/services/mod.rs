//! What runs beside the controller: each service has its own clock, handles and state, reads the snapshots, and reports.

mod sweep;

pub use sweep::sweep;
