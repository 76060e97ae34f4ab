//! IPv6 as hosts on a pool's bridge get it: router advertisements and DHCPv6, with the programs that ask for them.

mod advertisements;
mod host;
mod leases;
mod networkd;
