#!/usr/bin/env bash
# Measures what its arguments name, or everything. Files and caches lie in a memory disk of its own, for otherwise the disk would be
# measured; its pages are large, as those of a file system on a disk are.
set -euo pipefail
dir=$(mktemp -d)
clean_up() {
    umount "$dir" 2>/dev/null || true
    rmdir "$dir"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
mount -t tmpfs -o huge=within_size bootcast-bench "$dir"
TMPDIR=$dir cargo bench -p bootcast-tests --bench fleet -- "$@"
