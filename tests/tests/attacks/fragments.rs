//! Fragments, and headers that are not where they seem to be.
