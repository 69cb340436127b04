#!/bin/sh
# The test of the simulation: breaks a copy of the agent in each way of tests/simulation/mutants/*.patch, one at a time, and
# demands that the simulation notices. Fails where one goes unnoticed, does not apply any more or does not compile, and
# where the copy fails unbroken.
#
#   scripts/mutants.sh [NAME...]      all, without a name
set -eu
cd "$(dirname "$0")/.."
SEEDS=${SEEDS:-10000}
# A mutant may never come to an end.
SECONDS_MAX=120
patches=$PWD/tests/simulation/mutants
work=$PWD/target/mutants
tree=$work/tree
log=$work/log
export CARGO_TARGET_DIR="$work/build" CARGO_PROFILE_DEV_DEBUG=0 SHRINK=no RUST_BACKTRACE=0
mkdir -p "$tree/tests"

# Files that are the same keep their time, so that cargo builds what a mutant changes and no more. No program is built, and
# nothing with TLS: that is not what is tested.
refresh() {
  for file in $(cd "$1" && find . -type f); do
    cmp -s "$1/$file" "$2/$file" || { mkdir -p "$(dirname "$2/$file")" && cp "$1/$file" "$2/$file"; }
  done
}
rm -rf "$work/clean"
mkdir -p "$work/clean/tests"
cp -R src Cargo.lock "$work/clean/"
cp -R tests/simulation "$work/clean/tests/"
rm -rf "$work/clean/src/main.rs" "$work/clean/src/bin" "$work/clean/tests/simulation/mutants"
awk '/^\[/ { skip = /^\[\[(bin|bench|example)\]\]/ } !skip' Cargo.toml >"$work/clean/Cargo.toml"
(cd "$tree" && find . -type f) | while read -r file; do [ -e "$work/clean/$file" ] || rm "$tree/$file"; done

build() {
  (cd "$tree" && cargo test --quiet --locked --no-default-features --test simulation --no-run) >"$log" 2>&1
}
simulate() {
  (cd "$tree" && SEEDS=$1 timeout "$SECONDS_MAX" \
    cargo test --quiet --locked --no-default-features --test simulation -- --nocapture) >"$log" 2>&1
}
complain() {
  cat "$log" >&2
  echo "mutants: $1" >&2
  exit 1
}

refresh "$work/clean" "$tree"
build || complain "the copy does not compile"
simulate 500 || complain "the simulation fails without a mutant"
caught=0
begun=$(date +%s)
[ $# -gt 0 ] || set -- $(cd "$patches" && ls -- *.patch)
for name; do
  name=${name%.patch}
  start=$(date +%s)
  refresh "$work/clean" "$tree"
  (cd "$tree" && patch --quiet --no-backup-if-mismatch -p1 <"$patches/$name.patch") >"$log" 2>&1 ||
    complain "$name.patch does not apply any more"
  build || complain "$name does not compile"
  simulate "$SEEDS" && complain "$name goes unnoticed in $SEEDS seeds"
  where=$(sed -n 's/^seed \([0-9]*\) fails at step \([0-9]*\).*/at seed \1, step \2/p' "$log" | head -n 1)
  [ -n "$where" ] || complain "$name ends otherwise than with a seed"
  printf '%-24s caught %s (%s s): %s\n' "$name" "$where" "$(($(date +%s) - start))" "$(head -n 1 "$patches/$name.patch")"
  caught=$((caught + 1))
done
refresh "$work/clean" "$tree"
echo "$caught mutants caught in $(($(date +%s) - begun)) s"
