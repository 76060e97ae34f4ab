//! The lease book: who has which address, kept by its own thread in its own file.
//!
//! Attach and DHCP send requests by a [`LeaseHandle`], and get the answer when the lease is on disk. Requests that wait
//! meanwhile are written together in one write (`book.rs`), at the end of the file `leases`:
//!
//! ```text
//! pv-net leases 1
//! frame: all leases and cursors, as JSON          the snapshot, written with the file
//! frame: the changes of one batch, as JSON        the journal, appended; one fdatasync each
//! …
//! ```
//!
//! Each frame has its length and checksums in front (`record.rs`), so a batch is there completely or not at all. When
//! the file has grown long, a new one replaces it in one step (`journal.rs`). Snapshot and journal are in one file, so
//! they always belong together.

mod book;
mod clock;
mod handle;
mod journal;
mod lent;
pub mod record;
#[cfg(test)]
mod tests;

pub use book::open;
pub use clock::unix_time;
pub use handle::{LeaseError, LeaseHandle, OfContainers, Step, Wanted, undo};
pub use journal::remove;
pub use lent::Clients;
