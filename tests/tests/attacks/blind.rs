//! A blind attacker off the path: resets, and frames with another MAC.
