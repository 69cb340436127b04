#!/bin/sh
# Says what the static programs are made of, on standard output: each crate with version, source and needs.
#
#   scripts/sbom.sh cyclonedx|auditable [cargo metadata arguments, as --no-default-features]
#
# cyclonedx: a CycloneDX 1.5 document. auditable: the list of https://github.com/rust-secure-code/cargo-auditable, which
# scripts/musl.sh compresses and puts into the programs. Neither has a time in it.
set -eu
cd "$(dirname "$0")/.."
form=${1:?usage: scripts/sbom.sh cyclonedx|auditable [cargo metadata arguments]}
case $form in
cyclonedx | auditable) ;;
*)
  echo "sbom: $form: expected cyclonedx or auditable" >&2
  exit 2
  ;;
esac
shift
# cargo knows no checksums but the lock file's.
checksums=$(awk -F '"' '/^name = /{name = $2} /^version = "/{version = $2}
  /^checksum = /{printf "%s\"%s %s\":\"%s\"", comma, name, version, $2; comma = ","}' Cargo.lock)
TARGET=x86_64-unknown-linux-musl
metadata=$(cargo metadata --locked --format-version 1 --filter-platform $TARGET "$@")
# crates KINDS: those of the tree, as JSON strings.
crates() {
  kinds=$1
  shift
  cargo tree --locked --target $TARGET --prefix none --format '{p}' -e "$kinds" "$@" |
    awk '{sub("^v", "", $2); if (!seen[$1, $2]++) {printf "%s\"%s %s\"", comma, $1, $2; comma = ","}}'
}
built=$(crates normal,build "$@")
linked=$(crates normal,no-proc-macro "$@")
compact=
[ "$form" = cyclonedx ] || compact=-c
printf '%s\n' "$metadata" |
  jq $compact --arg form "$form" --argjson checksums "{$checksums}" --argjson built "[$built]" --argjson linked "[$linked]" \
    -f scripts/sbom.jq
