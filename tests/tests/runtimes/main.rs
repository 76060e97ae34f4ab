//! Containers of LXC, runc, crun, podman, wasmtime and WasmEdge: each runtime starts them in their pools by what pv-net
//! writes for it, and one story holds for all of them.

mod auto;
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
mod wasm;
