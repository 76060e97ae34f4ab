//! Broadcast, multicast, and frames to somebody else's MAC.
