//! Fuzzing of everything that reads bytes or text of others.
//!
//! A [`Target`] asserts what must hold for any input. [`hunt`] makes inputs by mutation, keeps those that reach new
//! code ([`coverage`]), and ends at the first that breaks an assertion or takes too much time or memory. It needs only
//! a stable compiler; without LLVM's coverage counters it works too, but finds less. The inputs in `corpus/` are the
//! beginning, and a test runs each of them.

pub mod corpus;
pub mod coverage;
pub mod hunt;
mod json;
pub mod limits;
mod mutate;
mod random;
pub mod targets;

/// The form of a target's inputs, which decides how they are mutated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Bytes, with numbers in them.
    Bytes,
    /// Text.
    Text,
    /// A JSON document.
    Json,
}

/// Something that reads bytes or text of others.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and its folder's in `corpus/`.
    pub name: &'static str,
    /// What its inputs look like.
    pub form: Form,
    /// Words with a meaning for it, which mutations insert.
    pub words: fn() -> Vec<Vec<u8>>,
    /// Panics when something does not hold for this input.
    pub check: fn(&[u8]),
}
