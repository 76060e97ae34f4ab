#!/bin/sh
# Builds agent-wasip2.wasm and agent-wasmedge.wasm, which are committed beside this: their tools are no part of setup. It needs
# Debian's clang-22, lld-22 and libclang-rt-22-dev-wasm32, `cargo install wasm-component-ld`, and as $SYSROOT the directory in
# which the package wasi-libc of Debian sid is unpacked, the first one with wasm32-wasip2.
set -eu
cd "$(dirname "$0")"
: "${SYSROOT:?name the directory of wasi-libc}"
build() {
    target=$1
    shift
    clang-22 --target="$target" -O2 -Wall -Wextra -Wno-unused-parameter --sysroot="$SYSROOT/usr" "$@"
}
build wasm32-wasip2 -Wl,-s -o agent-wasip2.wasm agent.c net_wasip2.c
build wasm32-wasip1 -Wl,-s -o agent-wasmedge.wasm agent.c net_wasmedge.c
