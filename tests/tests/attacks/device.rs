//! Devices as they are: many addresses, router advertisements, firewalls.
