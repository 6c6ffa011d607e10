#!/bin/sh
# Fuzzes the targets of tests/fuzz/ one after another, each for $FUZZ_SECONDS (600), and prints how
# often each ran. Arguments name targets; without any, all. New inputs stay in $FUZZ_DIR; with
# FUZZ_KEEP=1 some of them go to the corpus in the repository.
#
# The instrumentation is that of stable rustc, so no nightly compiler is needed. AddressSanitizer
# would be: the decoders have no unsafe code.
set -eu
cd "$(dirname "$0")/.."
crate=fuzz/libfuzzer
target_dir=${FUZZ_TARGET_DIR:-$(pwd)/../target/fuzz}
work=${FUZZ_DIR:-$target_dir/corpus}
seconds=${FUZZ_SECONDS:-600}

RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
RUSTFLAGS="$RUSTFLAGS -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
RUSTFLAGS="$RUSTFLAGS -Cllvm-args=-sanitizer-coverage-pc-table"
RUSTFLAGS="$RUSTFLAGS -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=16"
export RUSTFLAGS
# With --target, build scripts and macros are built without it.
host=$(rustc -vV | sed -n 's/^host: //p')
nice -n 19 cargo build --release --quiet \
    --manifest-path "$crate/Cargo.toml" --target "$host" --target-dir "$target_dir"
program=$target_dir/$host/release/bootcast-fuzz

# Replaces the corpus of a target but for its seeds: by up to 60 inputs of all lengths.
keep() {
    small=$(mktemp -d)
    "$program" -set_cover_merge=1 -max_len=400 "$small" "fuzz/corpus/$1" "$work/$1" || return 1
    find "fuzz/corpus/$1" -type f ! -name 'seed-*' -delete
    # shellcheck disable=SC2012 # The names are hashes.
    ls -S "$small" | awk -v count="$(ls "$small" | wc -l)" \
        'BEGIN { step = count > 60 ? count / 60 : 1 } NR > next_ { print; next_ += step }' |
        while read -r input; do
            cp "$small/$input" "fuzz/corpus/$1/$(echo "$input" | cut -c1-16)"
        done
    rm -r "$small"
}

# shellcheck disable=SC2046 # Names of targets have no spaces.
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
        keep "$name" >>"$log" 2>&1 || failed="$failed $name"
    fi
done
if [ -n "$failed" ]; then
    echo "failed:$failed (see the logs and inputs in $work)" >&2
    exit 1
fi
