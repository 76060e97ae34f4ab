//! Everything that reads or changes the kernel: netlink, namespaces, sysctls and BPF.

pub mod bpf;
pub mod cgroup;
pub mod challenge_ack;
pub mod forwarding;
pub mod grace;
pub mod listeners;
pub mod netfilter;
pub mod netlink;
pub mod netns;
pub mod own_dir;
pub mod sysctl;
