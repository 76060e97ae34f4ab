//! ICMP errors and requests that are forged.
