//! Somebody else's address, by an uplink or another link that is no container's.
