//! Everything that reads or changes the kernel: netlink, namespaces, sysctls and BPF.

pub mod bpf;
