#!/bin/sh
# Installs what the named components need, with apt-get, and only what is missing: silent and instant when all is there.
#
#   scripts/deps.sh COMPONENT...      docker podman containerd cni openssl commands mutants demo musl sbom fuzz vm bench soak lint
#
# A need is written TEST:PACKAGE. TEST is a command looked for on the path, or a file where it starts with a slash; so a
# tool which came another way (a newer docker, say) counts as there and is left alone.
set -eu
cd "$(dirname "$0")/.."

# dpkg's own record says "static" better than the command busybox, which may be the dynamic one.
BUSYBOX=/var/lib/dpkg/info/busybox-static.list:busybox-static
VSOCK_BACKEND=target/vm/tools/bin/vhost-device-vsock

needs() {
  case $1 in
  docker)
    echo dockerd:docker.io docker:docker.io iptables:iptables ip:iproute2 curl:curl ps:procps nsenter:util-linux $BUSYBOX
    ;;
  podman)
    echo podman:podman /usr/lib/podman/netavark:netavark /usr/lib/podman/aardvark-dns:aardvark-dns ip:iproute2 $BUSYBOX
    ;;
  containerd) echo containerd:containerd ctr:containerd runc:runc ip:iproute2 nsenter:util-linux cc:gcc $BUSYBOX ;;
  cni) echo /usr/lib/cni/portmap:containernetworking-plugins iptables:iptables nft:nftables ip:iproute2 ;;
  openssl) echo openssl:openssl curl:curl ;;
  commands) echo jq:jq zsh:zsh fish:fish groff:groff-base unshare:util-linux setpriv:util-linux $BUSYBOX ;;
  mutants) echo patch:patch ;;
  demo) echo curl:curl ss:iproute2 ps:procps ;;
  # ring is C and assembler, for the musl target too.
  musl) echo readelf:binutils objcopy:binutils cc:gcc musl-gcc:musl-tools jq:jq pigz:pigz ;;
  sbom) echo jq:jq ;;
  fuzz) echo c++:g++ ;;
  # Where rustup has no musl target: Debian's compiler, with the source of the standard library (scripts/musl.sh).
  musl-source) echo /usr/bin/rustc:rustc-web /usr/lib/rustlib/src/rust/library:rust-web-src ;;
  vm) echo qemu-system-x86_64:qemu-system-x86 mke2fs:e2fsprogs flock:util-linux setpriv:util-linux dpkg-deb:dpkg cc:gcc $BUSYBOX ;;
  bench) echo socat:socat ip:iproute2 ;;
  soak) echo faketime:faketime prlimit:util-linux mount:mount $BUSYBOX ;;
  lint) echo shellcheck:shellcheck ;;
  *)
    echo "deps: no component '$1'" >&2
    return 1
    ;;
  esac
}

there() {
  case $1 in
  /*) [ -e "$1" ] ;;
  *) command -v "$1" >/dev/null ;;
  esac
}

missing_packages() {
  for component in "$@"; do
    list=$(needs "$component") || return 1
    for need in $list; do
      there "${need%%:*}" || echo "${need#*:}"
    done
  done | sort -u
}

[ $# -gt 0 ] || { echo "usage: scripts/deps.sh COMPONENT..." >&2; exit 2; }
for component in "$@"; do needs "$component" >/dev/null || exit 2; done
missing=$(missing_packages "$@" | tr '\n' ' ')
if [ -n "$missing" ]; then
  command -v apt-get >/dev/null || { echo "deps: missing: $missing(names of Debian's packages; no apt-get here)" >&2; exit 1; }
  [ "$(id -u)" = 0 ] || { echo "deps: missing: $missing- run as root: apt-get install $missing" >&2; exit 1; }
  echo "deps: installing $missing"
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  export DEBIAN_FRONTEND=noninteractive
  # shellcheck disable=SC2086 # a list of package names
  { apt-get update -q && apt-get install -qy --no-install-recommends $missing; } >"$log" 2>&1 || {
    tail -n 5 "$log" >&2
    echo "deps: apt-get could not install $missing" >&2
    exit 1
  }
fi

# The VM test's vsock device is a crate, in no distribution yet. Into target/, so that cargo clean removes it too.
case " $* " in
*" vm "*)
  if [ ! -x "$VSOCK_BACKEND" ]; then
    command -v cargo >/dev/null || { echo "deps: cargo is missing: see https://rustup.rs" >&2; exit 1; }
    echo "deps: building vhost-device-vsock"
    # cargo install renames the finished program into place; its intermediate files are not worth keeping.
    CARGO_TARGET_DIR=target/vm/tools-build cargo install --quiet --root target/vm/tools --version 0.3.0 --locked vhost-device-vsock
    rm -rf target/vm/tools-build
  fi
  ;;
esac
