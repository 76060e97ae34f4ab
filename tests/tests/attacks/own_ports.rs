//! The device's own connections beside published and translated ports.
