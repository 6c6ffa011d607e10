#!/usr/bin/env bash
# Installs what `make bench` compares with, besides what tests need. Tests and continuous integration need none of it, and a benchmark
# leaves out what is not there.
set -euo pipefail
exec "$(dirname "$0")/install-deps.sh" nginx udpcast uftp
