#!/bin/sh
# Fuzzes one target, or every one, for some seconds each, from the corpus that is there; new inputs go to target/fuzz/. Needs no
# nightly compiler and no cargo-fuzz: what that would pass to the compiler is here.
#
#   scripts/fuzz.sh SECONDS [TARGET]
set -eu
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { echo "usage: scripts/fuzz.sh SECONDS [TARGET]" >&2; exit 2; }
seconds=$1
HOST=$(rustc -vV | sed -n 's/^host: //p')
# Coverage for the fuzzer, and AddressSanitizer. The C++ of libFuzzer is built along: it needs a C++ compiler.
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address -Ccodegen-units=1"
export CARGO_TARGET_DIR="$PWD/target/fuzz"
cargo build --manifest-path fuzz/Cargo.toml --release --locked --target "$HOST"
for source in fuzz/fuzz_targets/*.rs; do
  target=$(basename "$source" .rs)
  [ "${2:-$target}" = "$target" ] || continue
  mkdir -p "target/fuzz/corpus/$target" "target/fuzz/artifacts/$target"
  "target/fuzz/$HOST/release/$target" -max_total_time="$seconds" -max_len=8192 -print_final_stats=1 \
    -artifact_prefix="target/fuzz/artifacts/$target/" "target/fuzz/corpus/$target" "fuzz/corpus/$target"
done
