#!/bin/sh
# Fuzzes the targets of tests/fuzz/ one after the other, each for $FUZZ_SECONDS (600), and prints how
# often each ran. Arguments name targets; without any, all. New inputs stay in $FUZZ_DIR; with
# FUZZ_KEEP=1 the corpus in the repository is replaced by the smallest inputs that reach the same
# code.
#
# The instrumentation is that of stable rustc, so no nightly compiler is needed. AddressSanitizer
# would be: the decoders have no unsafe code.
set -eu
cd "$(dirname "$0")/.."
crate=fuzz/libfuzzer
target_dir=${FUZZ_TARGET_DIR:-$(pwd)/../target/fuzz}
work=${FUZZ_DIR:-$target_dir/corpus}
seconds=${FUZZ_SECONDS:-600}

coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
    -Ccodegen-units=16"
# With --target, build scripts and macros are built without it.
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS=$(echo $coverage) nice -n 19 cargo build --release --quiet \
    --manifest-path "$crate/Cargo.toml" --target "$host" --target-dir "$target_dir"
program=$target_dir/$host/release/bootcast-fuzz

[ $# -gt 0 ] || set -- $(ls fuzz/corpus)
failed=
for name; do
    mkdir -p "$work/$name"
    export BOOTCAST_FUZZ_TARGET="$name"
    log=$work/$name.log
    nice -n 19 "$program" "$work/$name" "fuzz/corpus/$name" -max_total_time="$seconds" \
        -max_len=4096 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$work/$name-" >"$log" 2>&1 || failed="$failed $name"
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    features=$(sed -n 's/.* cov: \([0-9]*\) ft: \([0-9]*\).*/\1 edges, \2 features/p' "$log" | tail -n 1)
    echo "$name: ${runs:-0} runs, ${features:-none}"
    if [ "${FUZZ_KEEP:-0}" = 1 ]; then
        small=$(mktemp -d)
        "$program" -merge=1 -max_len=4096 "$small" "fuzz/corpus/$name" "$work/$name" \
            >>"$log" 2>&1 && rm -f "fuzz/corpus/$name"/* && cp "$small"/* "fuzz/corpus/$name"
        rm -r "$small"
    fi
done
if [ -n "$failed" ]; then
    echo "failed:$failed (see the logs and inputs in $work)" >&2
    exit 1
fi
