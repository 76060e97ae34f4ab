//! ARP, neighbour discovery, MLD, IGMP, and the neighbour table.
