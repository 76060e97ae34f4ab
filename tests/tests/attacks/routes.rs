//! Routes, uplinks and their addresses that change.
