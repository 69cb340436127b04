#!/bin/bash
# Makes what the VM test boots, under target/vm: kernel/vmlinuz, rootfs.img (OpenRC, dockerd and their libraries, from
# Debian's packages, none of them installed) and initrd.gz (what may change from run to run: the musl binaries, the stand-in
# of host-switch, init/, tests/vm/guest and tests/vm/rd). Fast when all is there. Each result is renamed into place when it is complete, so that an interrupted
# run leaves nothing that looks finished.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=$PWD/target/vm
BIN=$PWD/target/x86_64-unknown-linux-musl/release

for binary in rancher-desktop-guestagent rancher-desktop-hostagent; do
  [ -x "$BIN/$binary" ] || { echo "vm: no $BIN/$binary: run scripts/musl.sh first" >&2; exit 1; }
done
scripts/deps.sh vm
BB=$(command -v busybox)
mkdir -p "$OUT"
exec 9>"$OUT/lock"
flock 9

# Packages are only extracted: the machine that runs the test stays as it is.
download() { # DIR PACKAGE...
  local dir=$1
  shift
  mkdir -p "$dir"
  (cd "$dir" && apt-get -o APT::Sandbox::User=root -qq download "$@")
}
fetch() { # DIR PACKAGE... ; apt's lists may be old or missing, which shows only now
  download "$@" 2>/dev/null || { apt-get update -qq && download "$@"; }
}
closure() { # PACKAGE... -> those and the libraries that they need
  printf '%s\n' "$@"
  apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$@" |
    grep -E '^(lib|zlib)' | grep -vE 'perl|newt|slang|debian-installer|textwrap|semanage|sepol|db5'
}

if [ ! -d "$OUT/kernel" ]; then
  echo "vm: fetching a kernel"
  rm -rf "$OUT/kernel.tmp"
  image=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2 }')
  [ -n "$image" ] || { apt-get update -qq; image=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ { print $2 }'); }
  fetch "$OUT/kernel.tmp/debs" "$image"
  dpkg-deb -x "$OUT"/kernel.tmp/debs/*.deb "$OUT/kernel.tmp"
  rm -rf "$OUT/kernel.tmp/debs" "$OUT/kernel.tmp/usr"
  mv "$OUT"/kernel.tmp/boot/vmlinuz-* "$OUT/kernel.tmp/vmlinuz"
  "$BB" depmod -b "$OUT/kernel.tmp" "$(ls "$OUT/kernel.tmp/lib/modules")"
  mv "$OUT/kernel.tmp" "$OUT/kernel"
fi
VERSION=$(ls "$OUT/kernel/lib/modules")
MODULES=lib/modules/$VERSION

# The packages' files, busybox for everything else, all modules: ext4 made by mke2fs -d, without mounting anything.
if [ ! -e "$OUT/rootfs.img" ] || [ tests/vm/prepare.sh -nt "$OUT/rootfs.img" ]; then
  echo "vm: making the root file system"
  root=$OUT/rootfs.tmp
  rm -rf "$root"
  if [ ! -d "$OUT/debs" ]; then
    rm -rf "$OUT/debs.tmp"
    # shellcheck disable=SC2046 # a list of package names
    fetch "$OUT/debs.tmp" $(closure openrc dash docker.io containerd runc iptables iproute2 logrotate | sort -u)
    mv "$OUT/debs.tmp" "$OUT/debs"
  fi
  for deb in "$OUT"/debs/*.deb; do dpkg-deb -x "$deb" "$root"; done
  rm -rf "${root:?}"/usr/share "$root"/etc/runlevels/*/* "$root"/etc/init.d/* "$root"/etc/logrotate.d
  mkdir -p "$root"/{bin,sbin,proc,sys,dev,run,tmp,root,etc/conf.d,usr/local/bin,var/log,var/lib,lib/modules}
  ln -sfn ../run "$root/var/run"
  cp -a "$OUT/kernel/$MODULES" "$root/lib/modules/"
  cp "$BB" "$root/bin/busybox"
  for tool in "" -save -restore; do
    for family in iptables ip6tables; do ln -sf xtables-nft-multi "$root/usr/sbin/$family$tool"; done
  done
  # dash is sh, as busybox's shell would take its own ip for iproute2's. The kernel loads modules by /sbin/modprobe.
  ln -sfn dash "$root/bin/sh"
  ln -sfn ../bin/busybox "$root/sbin/modprobe"
  for applet in $("$BB" --list); do
    case $applet in busybox | init | start-stop-daemon | ip) continue ;; esac
    [ -e "$root/bin/$applet" ] || [ -e "$root/sbin/$applet" ] || [ -e "$root/usr/sbin/$applet" ] ||
      [ -e "$root/usr/bin/$applet" ] || ln -s busybox "$root/bin/$applet"
  done
  echo root:x:0:0:root:/root:/bin/sh >"$root/etc/passwd"
  printf '%s\n' root:x:0: uucp:x:10: docker:x:99: >"$root/etc/group"
  # Read by OpenRC, which complains where they are missing.
  mkdir "$root/etc/insserv.conf.d"
  touch "$root/etc/fstab" "$root/etc/insserv.conf"
  mke2fs -q -t ext4 -d "$root" -F "$OUT/rootfs.img.tmp" 1G
  mv "$OUT/rootfs.img.tmp" "$OUT/rootfs.img"
  rm -rf "$root"
fi

# Stage 0: busybox, the modules for the disk, and under /overlay what is copied onto it (the disk is a snapshot).
initrd=$OUT/initrd.tmp
rm -rf "$initrd"
mkdir -p "$initrd"/{bin,sbin,proc,dev,new,"$MODULES"} "$initrd"/overlay/{etc/init.d,etc/conf.d,etc/runlevels/{boot,default},etc/logrotate.d,usr/local/bin}
cp "$BB" "$initrd/bin/busybox"
ln -s busybox "$initrd/bin/sh"
for module in virtio_pci virtio_blk; do
  # "module.ko: what it needs, what that needs, ..."
  read -ra files < <(sed -n "/\/$module\.ko:/s/://p" "$OUT/kernel/$MODULES/modules.dep")
  for file in "${files[@]}"; do
    mkdir -p "$initrd/$MODULES/${file%/*}"
    cp "$OUT/kernel/$MODULES/$file" "$initrd/$MODULES/$file"
  done
done
cp "$OUT/kernel/$MODULES/modules.builtin" "$initrd/$MODULES/"
"$BB" depmod -b "$initrd" "$VERSION"
cp tests/vm/stage0 "$initrd/init"
cp -a tests/vm/guest/. "$initrd/overlay/"
ln -s /etc/init.d/guest-setup "$initrd/overlay/etc/runlevels/boot/"
ln -s /etc/init.d/docker /etc/init.d/shell "$initrd/overlay/etc/runlevels/default/"
name=rancher-desktop-guestagent
cp "init/$name.initd" "$initrd/overlay/etc/init.d/$name"
cp "init/$name.confd" "$initrd/overlay/etc/conf.d/$name"
cp "init/$name.logrotate" "$initrd/overlay/etc/logrotate.d/$name"
cp "$BIN/rancher-desktop-guestagent" "$BIN/rancher-desktop-hostagent" "$initrd/overlay/usr/local/bin/"
chmod 755 "$initrd/init" "$initrd"/overlay/etc/init.d/*
# The service of Rancher Desktop's kind, and the stand-in with the libraries of this machine that it needs.
mkdir -p "$initrd"/overlay/opt/{rd,host-switch}
cp -a tests/vm/rd/. "$initrd/overlay/opt/rd/"
chmod 755 "$initrd"/overlay/opt/rd/*
CARGO_TARGET_DIR=target cargo build --locked --quiet --example host-switch-stand-in
switch=target/debug/examples/host-switch-stand-in
strip -o "$initrd/overlay/opt/host-switch/stand-in" "$switch"
for library in $(ldd "$switch" | grep -o '/[^ ]*'); do cp -L "$library" "$initrd/overlay/opt/host-switch/"; done
(cd "$initrd" && find . | "$BB" cpio -o -H newc 2>/dev/null | gzip -1) >"$OUT/initrd.gz.tmp"
mv "$OUT/initrd.gz.tmp" "$OUT/initrd.gz"
rm -rf "$initrd"
