#!/bin/sh
# Fuzzes one target, or every one, for some seconds each, two at once, from the corpora that are there; new inputs go to
# target/fuzz/corpus/, and what a target says to target/fuzz/TARGET.log. Ends with a line a target, and with 1 where something
# was found. Needs no nightly compiler and no cargo-fuzz: what that would pass to the compiler is here.
#
#   scripts/fuzz.sh SECONDS [TARGET]
set -eu
cd "$(dirname "$0")/.."
usage() {
  echo "usage: scripts/fuzz.sh SECONDS [TARGET]: a number from 1, and a name of fuzz/fuzz_targets" >&2
  exit 2
}
[ $# -ge 1 ] && [ $# -le 2 ] || usage
# Where libFuzzer reads no number, it never ends.
case $1 in '' | 0* | *[!0-9]*) usage ;; esac
case ${2:-} in */*) usage ;; esac
all=$(cd fuzz/fuzz_targets && ls | sed 's/\.rs$//')
targets=${2:-$all}
[ -e "fuzz/fuzz_targets/${2:-docker}.rs" ] || { echo "there is no target $2: $(echo $all)" >&2; exit 2; }
HOST=$(rustc -vV | sed -n 's/^host: //p')
# Coverage for the fuzzer, and AddressSanitizer. The C++ of libFuzzer is built along: it needs a C++ compiler.
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address -Ccodegen-units=1 -Cdebug-assertions"
export CARGO_TARGET_DIR="$PWD/target/fuzz"
cargo build --manifest-path fuzz/Cargo.toml --release --locked --target "$HOST" --bins
programs="target/fuzz/$HOST/release"
for target in $targets; do
  mkdir -p "target/fuzz/corpus/$target" "target/fuzz/artifacts/$target"
done
# The shell that xargs starts has the target's name as $0. Whatever a target finds, the others run.
export SECONDS_EACH="$1" PROGRAMS="$programs"
echo "$targets" | tr ' ' '\n' | xargs -n 1 -P 2 sh -c '
  if ! "$PROGRAMS/$0" -max_total_time="$SECONDS_EACH" -max_len=8192 -timeout=2 -rss_limit_mb=512 -print_final_stats=1 \
    -artifact_prefix="target/fuzz/artifacts/$0/" "target/fuzz/corpus/$0" "fuzz/corpus/$0" >"target/fuzz/$0.log" 2>&1
  then echo "FAILED" >>"target/fuzz/$0.log"; fi'
found=0
printf '%-16s %12s %8s %6s %9s\n' target executions exec/s new coverage
for target in $targets; do
  log="target/fuzz/$target.log"
  stat() { sed -n "s/^stat::$1: *//p" "$log" | tail -n 1; }
  coverage=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
  printf '%-16s %12s %8s %6s %9s\n' "$target" "$(stat number_of_executed_units)" "$(stat average_exec_per_sec)" \
    "$(stat new_units_added)" "$coverage"
  if [ "$(tail -n 1 "$log")" = FAILED ]; then
    found=1
    artifact=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
    # Where it did not even start, the log alone tells.
    echo "$target: found ${artifact:-something}, see $log" >&2
    [ -z "$artifact" ] || echo "  again: $programs/$target $artifact; to keep: cp $artifact fuzz/corpus/$target/" >&2
  fi
done
exit "$found"
