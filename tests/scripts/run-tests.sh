#!/usr/bin/env bash
# Runs all tests; arguments go to `cargo test`. At the end it lists the tests that could not run on
# this machine, with the reasons. (`cargo test` counts a skipped test as passed.)
set -uo pipefail

BOOTCAST_SKIPPED=$(mktemp "${TMPDIR:-/tmp}/bct-$$-skipped-XXXX")
export BOOTCAST_SKIPPED
trap 'rm -f "$BOOTCAST_SKIPPED"' EXIT

cargo test --workspace --no-fail-fast "$@"
status=$?

# Each line of the list has a test, a tab and the reason.
if [ -s "$BOOTCAST_SKIPPED" ]; then
    echo
    echo "skipped: $(wc -l <"$BOOTCAST_SKIPPED") tests could not run on this machine"
    sort -t $'\t' -k 2,2 -k 1,1 "$BOOTCAST_SKIPPED" | awk -F '\t' '
        $2 != reason { finish(); reason = $2; count = 0; print "  " reason ":" }
        ++count <= 5 { print "    " $1 }
        function finish() { if (count > 5) print "    and " count - 5 " more" }
        END { finish() }'
elif [ "$status" -eq 0 ]; then
    echo
    echo "no test was skipped"
fi
exit "$status"
