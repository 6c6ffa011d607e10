#!/usr/bin/env bash
# Installs what tests need, and the programs that `make bench` compares bootcast with. Benchmarks
# leave out programs that are not installed.
set -euo pipefail
exec "$(dirname "$0")/install-deps.sh" nginx udpcast uftp
