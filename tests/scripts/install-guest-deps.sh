#!/usr/bin/env bash
# Installs what tests need, and the programs that boot virtual machines for `make demo-fleet`.
# qemu-utils must come from the same suite as qemu-system-x86.
set -euo pipefail
exec "$(dirname "$0")/install-deps.sh" e2fsprogs mmdebstrap qemu-system-x86 "$@"
