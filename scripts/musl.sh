#!/bin/sh
# Builds both programs as static musl binaries, into target/x86_64-unknown-linux-musl/release/, and the agent without
# Kubernetes (so without TLS and YAML) into small/ next to it; proves that they are static, and that the agents are small.
# Each holds the list of its crates, for `cargo audit bin`, trivy and others that look for known vulnerabilities in programs.
#
# The standard library is built along with them, for size, which saves a third. Its source, and musl, come from rustup's
# components where rustup has them or can fetch them; else from Debian's packages, with Debian's compiler.
#
#   scripts/musl.sh [cargo build arguments]
set -eu
cd "$(dirname "$0")/.."
TARGET=x86_64-unknown-linux-musl
# Bytes, at most: of the agent, and of the one without Kubernetes.
SIZE_MAX=1480000
SMALL_MAX=940000
OUT=target/$TARGET/release
SMALL=target/$TARGET/small
AGENT=rancher-desktop-guestagent
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
# A panic still says what is wrong, but not in which line: it cannot happen by any input, and is 37 KB of text.
flag -Z location-detail=none
# What derive(Debug) prints is the name of the type or variant alone: nothing that the programs print uses more of it.
flag -Z fmt-debug=shallow
# The same few instructions in many places become one function: 25 KB.
flag -C llvm-args=-enable-machine-outliner=always

# C functions in place of what is larger. Rust's backtraces want two of libunwind, which Debian has not as a static
# library, and which is 58 KB of code for stacks whose tables were left out above: these say "no frames". musl's way to
# name a thread can name others, by a file in /proc, which brings all of printf (9 KB): Rust's threads name themselves.
UNWIND=$PWD/target/musl-unwind
mkdir -p "$UNWIND"
printf '%s\n' 'int _Unwind_Backtrace(void *f, void *a) { (void)f; (void)a; return 5; }' \
  'unsigned long _Unwind_GetIP(void *c) { (void)c; return 0; }' \
  'int prctl(int, ...);' \
  'int pthread_setname_np(void *t, const char *name) { (void)t; return prctl(15 /* PR_SET_NAME */, name, 0L, 0L, 0L); }' |
  cc -Os -x c -c -o "$UNWIND/unwind.o" -
# ring asks, on this architecture, for a function that is faster than another where nothing is secret; the small code has only that
# other one, which gives the same point. Their names have ring's version.
RING=ring_core_$(sed -n '/^name = "ring"$/{n;s/version = "\(.*\)"/\1/p;}' Cargo.lock | tr . _)_
printf '%s\n' "void ${RING}_p256_point_mul_base(unsigned long r[3][4], const unsigned long scalar[4]);" \
  "void ${RING}_p256_point_mul_base_vartime(unsigned long r[3][4], const unsigned long scalar[4]) {" \
  "  ${RING}_p256_point_mul_base(r, scalar); }" | cc -Os -x c -c -o "$UNWIND/p256.o" -
ar rcs "$UNWIND/libunwind.a" "$UNWIND/unwind.o" "$UNWIND/p256.o"
flag -L "native=$UNWIND"
# ring's C code: it does not unwind either. And of P-256 it has two: assembler with a table of 152 KB, and the formally verified C
# code of fiat-crypto, which it takes on most architectures, and on this one where it is to be small. Handshakes
# with the Kubernetes API, a few a day, are slower by it.
export CFLAGS_x86_64_unknown_linux_musl="-fno-asynchronous-unwind-tables -fno-unwind-tables -DOPENSSL_SMALL"

if rustup_has "rust-std-$TARGET" && rustup_has rust-src; then
  way="rustup's rust-src and target $TARGET, $(rustc --version)"
else
  scripts/deps.sh musl-source
  way="Debian's rust-web-src, $(/usr/bin/rustc --version)"
  flag -C link-self-contained=no
  export RUSTC=/usr/bin/rustc CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER=musl-gcc
fi
# The standard library's own paths: rustc names its source where that is installed (rustup's component rust-src).
flag --remap-path-prefix "$("${RUSTC:-rustc}" --print sysroot)/lib/rustlib/src/rust=/rust"
export CARGO_ENCODED_RUSTFLAGS="$flags"
# Building the standard library is not stable yet, but the compiler is.
export RUSTC_BOOTSTRAP=1
echo "musl: with $way"
build() {
  cargo build --release --locked --target "$TARGET" -Z build-std=std,panic_abort \
    -Z build-std-features=optimize_for_size "$@"
}
fail() {
  echo "musl: $1" >&2
  exit 1
}
# embed BINARY [FEATURES]: the section that `cargo auditable build` makes, 0.9 KB, and none of that tool's code; read back
# by other means than it was written. Put in place as another file, since cargo's own copy is a link to the same one.
embed() {
  binary=$1
  shift
  scripts/sbom.sh auditable "$@" >"$LIST"
  pigz -z -9 <"$LIST" >"$LIST.z"
  objcopy --remove-section=.dep-v0 --add-section ".dep-v0=$LIST.z" "$binary" "$LIST.elf"
  mv "$LIST.elf" "$binary"
  objcopy --dump-section ".dep-v0=$LIST.back" "$binary" /dev/null
  pigz -dz <"$LIST.back" | cmp -s - "$LIST" || fail "$binary does not hold the list of its crates"
  jq -e '[.packages[] | select(.root)] | length == 1' "$LIST" >/dev/null || fail "the list of crates has no root"
}
LIST=target/crates.json
# The small one first, as both go by the same name.
build --no-default-features --bin "$AGENT" "$@"
mkdir -p "$SMALL"
cp "$OUT/$AGENT" "$SMALL/$AGENT"
build "$@"
embed "$SMALL/$AGENT" --no-default-features
embed "$OUT/$AGENT"
embed "$OUT/rancher-desktop-hostagent"

# check BINARY MAX: static, tells nothing of this machine, and has MAX bytes at most.
check() {
  # Static: the kernel is asked for no interpreter, and there is nothing for one to link.
  ! readelf -lW "$1" | grep -q INTERP || fail "$1 asks for a dynamic linker"
  readelf -dW "$1" | grep -q 'no dynamic section' || fail "$1 has a dynamic section"
  for dir in "$PWD/" "$CARGO_DIR/" "${HOME%/}/"; do
    [ "$dir" = / ] || ! grep -qaF -- "$dir" "$1" || fail "$1 names a directory of this machine: $dir"
  done
  size=$(stat -c %s "$1")
  echo "musl: $1: $size bytes, static (no PT_INTERP, no dynamic section)"
  [ "$size" -le "$2" ] || fail "$1 has $size bytes, more than $2"
}
check "$OUT/$AGENT" "$SIZE_MAX"
check "$SMALL/$AGENT" "$SMALL_MAX"
check "$OUT/rancher-desktop-hostagent" "$SIZE_MAX"
