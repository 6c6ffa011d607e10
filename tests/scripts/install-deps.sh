#!/usr/bin/env bash
# Installs the Debian packages that building and testing need and that are missing, and also the
# packages given as arguments. Without root it only lists the missing ones; tests that need them are
# skipped.
set -euo pipefail

wanted=(
    btrfs-progs busybox ca-certificates curl ethtool fuse3 gcc iproute2 klibc-utils libc6-dev
    nftables procps python3 qemu-utils tcpdump util-linux wget "$@"
)

if ! command -v cargo >/dev/null; then
    echo "cargo not found: install Rust 1.88 or later from https://rustup.rs" >&2
    exit 1
fi
if ! command -v dpkg-query >/dev/null; then
    echo "not a Debian system: install the equivalents of ${wanted[*]}" >&2
    exit 0
fi

missing=()
for package in "${wanted[@]}"; do
    state=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "missing packages: ${missing[*]}" >&2
    echo "tests that need them are skipped; as root: apt-get install ${missing[*]}" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -qy --no-install-recommends "${missing[@]}"
