#!/bin/sh
# Makes pv-net's container for Pantavisor, without a network:
#
#     packaging/pantavisor/build.sh BINARY DIR
#
# BINARY is the static program for the device's processor, such as one of `cargo xtask dist`. DIR is a checkout of the
# device's state (`pvr clone`), in which DIR/pv-net is made.
set -eu

if [ $# -ne 2 ]; then
    echo "error: usage: $0 BINARY DIR" >&2
    exit 2
fi
binary=$1
out=$2/pv-net
here=$(cd "$(dirname "$0")" && pwd)
if [ ! -x "$binary" ]; then
    echo "error: $binary: is no program" >&2
    echo "help: build one: cargo xtask dist" >&2
    exit 2
fi
if ! command -v mksquashfs >/dev/null; then
    echo "error: mksquashfs: not installed" >&2
    echo "help: it is in the package squashfs-tools" >&2
    exit 2
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
for dir in dev etc mnt/cgroup pantavisor proc run storage/trails sys tmp usr/bin var/lib/pv-net; do
    mkdir -p "$root/$dir"
done
chmod 755 "$root"
install -m 755 "$binary" "$root/usr/bin/pv-net"
: > "$root/etc/resolv.conf"

mkdir -p "$out"
# The same program gives the same file, whose checksum is a part of the device's state.
rm -f "$out/root.squashfs"
mksquashfs "$root" "$out/root.squashfs" -all-root -all-time 0 -mkfs-time 0 -noappend -no-progress -quiet -no-xattrs
install -m 644 "$here/run.json" "$here/lxc.container.conf" "$out/"
echo "$out"
