#!/bin/sh
# Runs the tests of the thirty scenarios of docs/scenarios.md and lists these with pass or FAIL, or lists them from the output of a
# `make test` that has run. Fails if one of them failed, or has no test.
#
#   scripts/scenarios.sh [FILE]
set -eu
[ $# -eq 0 ] || [ -r "$1" ] || { echo "scenarios: cannot read $1" >&2; exit 2; }
log=$(realpath -m "${1:-$(dirname "$0")/../target/scenarios.log}")
cd "$(dirname "$0")/.."
if [ $# -eq 0 ]; then
  mkdir -p target
  names=$(seq -f 's%02.0f_' 30)
  # shellcheck disable=SC2086 # one word each
  cargo test --locked --no-fail-fast -- --include-ignored $names >"$log" 2>&1 ||
    echo "scenarios: tests failed; their output is in $log" >&2
fi
awk -F '|' -v log_file="$log" '
  # `test module::s05_name ... ok`; a test that has printed puts its verdict elsewhere, and is listed as failed then.
  FILENAME == log_file {
    if (/has been running for|\.\.\. ignored/) next
    if (split($0, word, " ") >= 4 && word[1] == "test" && match(word[2], /(^|::|_)s[0-9][0-9]_/)) {
      names = word[2]
      while (match(names, /s[0-9][0-9]_/)) {
        number = substr(names, RSTART + 1, 2) + 0
        total[number]++
        if ($0 !~ /\.\.\. ok$/) failed[number] = failed[number] " " word[2]
        names = substr(names, RSTART + 4)
      }
    }
    next
  }
  $2 ~ /^ [0-9]+ $/ {
    number = $2 + 0
    verdict = !total[number] ? "NO TEST" : failed[number] ? "FAIL" : "pass"
    bad += verdict != "pass"
    gsub(/^ | $/, "", $3)
    printf "%2d  %-7s %3d  %s%s\n", number, verdict, total[number], $3, failed[number] ? ":" failed[number] : ""
  }
  END { exit bad > 0 }
' "$log" docs/scenarios.md
