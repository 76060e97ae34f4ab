//! Priority tags (VLAN 0) in front of what is looked at.
