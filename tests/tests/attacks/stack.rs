//! Ways to the device's own stack.
