//! Fuzzing of what reads bytes and text that others wrote.
//!
//! A [`Target`] asserts what must hold for any input. [`hunt`] makes inputs by mutation, keeps those that reach code
//! that none before has reached ([`coverage`]), and ends at the first that breaks an assertion, takes too long or too
//! much memory. A stable compiler does: nothing but LLVM's coverage counters is needed, and without them it still works,
//! less well. The inputs in `corpus/` are where it begins, and a test runs each of them.

pub mod corpus;
pub mod coverage;
pub mod hunt;
mod json;
pub mod limits;
mod mutate;
mod random;
pub mod targets;

/// What inputs of a target look like: how they are mutated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Bytes, with numbers in them.
    Bytes,
    /// Text.
    Text,
    /// A JSON document.
    Json,
}

/// Something that reads what others wrote.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and its folder's in `corpus/`.
    pub name: &'static str,
    /// What its inputs look like.
    pub form: Form,
    /// Words that mean something to it.
    pub words: fn() -> Vec<Vec<u8>>,
    /// Panics when something does not hold for this input.
    pub check: fn(&[u8]),
}
