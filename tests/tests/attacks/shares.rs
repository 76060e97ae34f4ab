//! One who takes what others need.
