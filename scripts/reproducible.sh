#!/bin/sh
# Builds the static programs twice from what is committed, in two directories, with other paths, homes, time zones, locales,
# file times and rights, and compares them byte by byte. Takes as long as two `make musl` from nothing.
set -eu
cd "$(dirname "$0")/.."
FILES="release/rancher-desktop-guestagent release/rancher-desktop-hostagent small/rancher-desktop-guestagent"
OUT=target/x86_64-unknown-linux-musl

commit=$(git rev-parse HEAD)
git diff --quiet "$commit" || echo "reproducible: what is not committed is not built" >&2
# The compiler and the crates, fetched once; nothing of HOME itself.
export CARGO_HOME="${CARGO_HOME:-$HOME/.cargo}" RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# build DIRECTORY UMASK TAR_FLAG [NAME=VALUE...]
build() (
  directory=$1 mask=$2 extract=$3
  shift 3
  umask "$mask"
  mkdir -p "$directory/home"
  git archive "$commit" | tar -x "$extract" -C "$directory"
  cd "$directory"
  echo "reproducible: building in $directory" >&2
  env -u CARGO_TARGET_DIR -u CARGO_BUILD_TARGET_DIR HOME="$directory/home" "$@" scripts/musl.sh >"$directory/log" 2>&1 || {
    tail -n 20 "$directory/log" >&2
    echo "reproducible: the build failed" >&2
    exit 1
  }
)
FIRST=$work/a
SECOND="$work/another directory/of a longer name"
build "$FIRST" 022 -p TZ=UTC LC_ALL=C
build "$SECOND" 077 -m TZ=Asia/Kathmandu LC_ALL=C.UTF-8 LANG=C.UTF-8

status=0
for file in $FILES; do
  one=$FIRST/$OUT/$file other=$SECOND/$OUT/$file
  sum=$(sha256sum <"$one" | cut -d ' ' -f 1)
  if difference=$(cmp -- "$one" "$other" 2>&1); then
    echo "$sum  $file"
  else
    status=1
    keep=target/reproducible/$(dirname "$file")
    mkdir -p "$keep"
    cp -- "$one" "$keep/$(basename "$file").1"
    cp -- "$other" "$keep/$(basename "$file").2"
    echo "reproducible: $file differs: ${difference##*: }; $(cmp -l -- "$one" "$other" 2>/dev/null | wc -l) bytes in all" >&2
    echo "reproducible: compare with: diffoscope $keep/$(basename "$file").1 $keep/$(basename "$file").2" >&2
  fi
done
exit $status
