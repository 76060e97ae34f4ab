//! Containers of LXC, runc, crun, podman, containerd, wasmtime and WasmEdge: each runtime starts them in their pools by what
//! pv-net writes for it, or in a namespace that is attached already, and one story holds for all of them.

mod auto;
mod churn;
mod containerd;
mod exec;
mod granted;
mod lab;
mod lxc;
mod modules;
mod netns;
mod oci;
mod podman;
mod refused;
mod start;
mod starter;
mod story;
mod unprivileged;
mod wasm;
