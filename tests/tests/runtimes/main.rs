//! Containers of LXC, runc, crun, podman and containerd: each runtime starts them in their pools by what pv-net writes
//! for it, or in a namespace that is attached already, and one story holds for all of them.

mod auto;
mod churn;
mod containerd;
mod lab;
mod lxc;
mod netns;
mod oci;
mod podman;
mod refused;
mod start;
mod starter;
mod story;
mod unprivileged;
