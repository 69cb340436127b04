#!/bin/sh
# Builds both programs as static musl binaries, into target/x86_64-unknown-linux-musl/release/, and proves that they are.
#
# The standard library is built along with them, for size, which saves a third. Its source, and musl, come from rustup's
# components where rustup has them or can fetch them; else from Debian's packages, with Debian's compiler.
#
#   scripts/musl.sh [cargo build arguments]
set -eu
cd "$(dirname "$0")/.."
TARGET=x86_64-unknown-linux-musl
SIZE_MAX=1400000
OUT=target/$TARGET/release
export CARGO_TARGET_DIR=target

scripts/deps.sh musl

# rustup_has COMPONENT: there already, or fetched now.
rustup_has() {
  command -v rustup >/dev/null || return 1
  there() { rustup component list --installed 2>/dev/null | grep -qx "$1"; }
  there "$1" || { timeout 60 rustup component add "$1" >/dev/null 2>&1 && there "$1"; }
}

# Flags are joined with 0x1f for CARGO_ENCODED_RUSTFLAGS, so that a directory's name may hold spaces.
flags=
flag() { for word in "$@"; do flags="$flags${flags:+$(printf '\037')}$word"; done; }
# Nothing unwinds (panic=abort), nothing is loaded at run time and nobody looks for a build id: leave those tables out.
flag -C relocation-model=static -C force-unwind-tables=no
flag -C link-arg=-Wl,--no-eh-frame-hdr -C link-arg=-Wl,-z,noseparate-code -C link-arg=-Wl,--build-id=none
# Panic messages hold the path of their source file; that of the machine it was built on is nobody's business.
CARGO_DIR=${CARGO_HOME:-$HOME/.cargo}
flag --remap-path-prefix "$CARGO_DIR=/cargo" --remap-path-prefix "$PWD=/src"

if rustup_has "rust-std-$TARGET" && rustup_has rust-src; then
  way="rustup's rust-src and target $TARGET, $(rustc --version)"
else
  scripts/deps.sh musl-source
  way="Debian's rust-web-src, $(/usr/bin/rustc --version)"
  # Rust's backtraces want two functions of a static libunwind, which Debian does not have. These say "no frames".
  unwind=$PWD/target/musl-unwind
  mkdir -p "$unwind"
  printf '%s\n' 'int _Unwind_Backtrace(void *f, void *a) { (void)f; (void)a; return 5; }' \
    'unsigned long _Unwind_GetIP(void *c) { (void)c; return 0; }' |
    musl-gcc -Os -x c -c -o "$unwind/unwind.o" -
  ar rcs "$unwind/libunwind.a" "$unwind/unwind.o"
  flag -C link-self-contained=no -L "native=$unwind"
  export RUSTC=/usr/bin/rustc CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER=musl-gcc
fi
# The standard library's own paths: rustc names its source where that is installed (rustup's component rust-src).
flag --remap-path-prefix "$("${RUSTC:-rustc}" --print sysroot)/lib/rustlib/src/rust=/rust"
export CARGO_ENCODED_RUSTFLAGS="$flags"
# Building the standard library is not stable yet, but the compiler is.
export RUSTC_BOOTSTRAP=1
echo "musl: with $way"
cargo build --release --locked --target "$TARGET" -Z build-std=std,panic_abort -Z build-std-features=optimize_for_size "$@"

fail() {
  echo "musl: $1" >&2
  exit 1
}
for program in rancher-desktop-guestagent rancher-desktop-hostagent; do
  binary=$OUT/$program
  size=$(stat -c %s "$binary")
  # Static: the kernel is asked for no interpreter, and there is nothing for one to link.
  ! readelf -lW "$binary" | grep -q INTERP || fail "$binary asks for a dynamic linker"
  readelf -dW "$binary" | grep -q 'no dynamic section' || fail "$binary has a dynamic section"
  for dir in "$PWD/" "$CARGO_DIR/" "${HOME%/}/"; do
    [ "$dir" = / ] || ! grep -qaF -- "$dir" "$binary" || fail "$binary names a directory of this machine: $dir"
  done
  echo "musl: $binary: $size bytes, static (no PT_INTERP, no dynamic section)"
done
size=$(stat -c %s "$OUT/rancher-desktop-guestagent")
[ "$size" -le "$SIZE_MAX" ] || fail "the agent has $size bytes, more than $SIZE_MAX"
