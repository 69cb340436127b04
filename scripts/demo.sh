#!/usr/bin/env bash
# Shows the main job: a guest (a network namespace) with an engine and the agent, its host with somebody who forwards,
# containers whose published ports answer on the host's loopback, and refuse once they are gone. Needs root. Everything
# it starts and makes is gone afterwards, on failure too.
#
#   scripts/demo.sh [docker|containerd] [hostagent|host-switch]
#
# With hostagent the host is this machine, and our own host end forwards. With host-switch the host is a second
# namespace, where a stand-in for Rancher Desktop's host-switch forwards, and the agent gets no flag but its engine's.
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=$PWD/target/release
ENGINE=${1:-docker}
SINK=${2:-hostagent}
case $ENGINE:$SINK in
docker:hostagent | containerd:hostagent | docker:host-switch | containerd:host-switch) ;;
*) echo "usage: scripts/demo.sh [docker|containerd] [hostagent|host-switch]" >&2; exit 2 ;;
esac
[ "$(id -u)" = 0 ] || { echo "demo: needs root, for a network namespace and $ENGINE" >&2; exit 1; }

W=$(mktemp -d /tmp/rda-demo.XXXX)
NS=rda-demo-$$
LINK=rdademo$(($$ % 100000))
case $SINK in
hostagent) GUEST=192.168.143.2 HOST=192.168.143.1 ;;
# Rancher Desktop's own addresses, which both sides take for granted.
host-switch) GUEST=192.168.127.2 HOST=192.168.127.1 ;;
esac
SOCKET=$W/engine.sock
pids=()
spaces=("$NS")

finish() {
  status=$?
  if [ -S "$SOCKET" ]; then
    for name in web echo; do "${ENGINE}_remove" $name >/dev/null 2>&1 || true; done
  fi
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do tail --pid="$pid" -f /dev/null; done
  if [ $status != 0 ]; then
    echo "demo: failed; the last lines of each log:" >&2
    tail -n 5 "$W"/*.log >&2 2>/dev/null || true
  fi
  for space in "${spaces[@]}"; do ip netns del "$space" 2>/dev/null || true; done
  rm -rf "$W"
}
trap finish EXIT

# until_ok SECONDS WHAT COMMAND...: tries until it succeeds.
until_ok() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { echo "demo: $what: not within the time" >&2; return 1; }
    sleep 0.05
  done
}

# What runs inside the guest. nsenter, not `ip netns exec`, which would hide the cgroups from an engine.
in_guest=(nsenter --net="/var/run/netns/$NS")

# What runs on the host: this machine itself, or a namespace.
on_host=()
[ "$SINK" = hostagent ] || on_host=(nsenter --net="/var/run/netns/$NS-host")

start_agent() { # VARIABLE=VALUE... -- FLAG...
  local variables=()
  while [ "$1" != -- ]; do variables+=("$1") && shift; done
  shift
  local agent=("$BIN/rancher-desktop-guestagent" "$@")
  case $SINK in
  hostagent) agent+=(--sink "unix://$W/host.sock") ;;
  # With a /run of its own, where its state is kept, as in a guest that has just booted.
  host-switch) agent=(unshare --mount sh -c 'mount -t tmpfs -o mode=0755 tmpfs /run && exec "$@"' sh "${agent[@]}") ;;
  esac
  "${in_guest[@]}" env "${variables[@]}" "${agent[@]}" 2>"$W/agent.log" &
  pids+=($!)
}

# --- dockerd

docker() { command docker -H "unix://$SOCKET" "$@"; }
docker_start() {
  "${in_guest[@]}" dockerd --data-root "$W/data" --exec-root "$W/exec" -H "unix://$SOCKET" -p "$W/docker.pid" --bip 172.30.0.1/16 \
    >"$W/dockerd.log" 2>&1 &
  pids+=($!)
}
docker_watch() { start_agent DOCKER_HOST="unix://$SOCKET" -- -docker; }
docker_answers() { docker version; }
docker_import() { tar -C "$1" -c . | docker import - demo:local >/dev/null; }
docker_run() { # NAME 'PUBLISH...' COMMAND...
  local name=$1 publish=() port
  for port in $2; do publish+=(-p "$port"); done
  docker run -d --name "$name" "${publish[@]}" demo:local "${@:3}" >/dev/null
}
docker_remove() { docker rm -f "$1" >/dev/null; }

# --- containerd, with nerdctl's part (a label, and the CNI plugins bridge and portmap) done here by hand

ctr() { command ctr --address "$SOCKET" "$@"; }
containerd_start() {
  # Without CRI, which would look at this machine's CNI, and without opt, which would leave a directory in /opt.
  echo 'version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]' >"$W/containerd.toml"
  "${in_guest[@]}" containerd --config "$W/containerd.toml" --address "$SOCKET" --root "$W/root" --state "$W/state" >"$W/containerd.log" 2>&1 &
  pids+=($!)
}
containerd_watch() { start_agent -- -containerd -containerdSock "$SOCKET"; }
containerd_answers() { ctr version; }
containerd_import() {
  # An image is a layer, a config and a manifest, each named by its digest.
  local blobs=$W/oci/blobs/sha256
  mkdir -p "$blobs"
  blob() { # keeps what it reads, and prints its digest
    cat >"$W/blob"
    local digest
    digest=$(sha256sum <"$W/blob" | cut -d' ' -f1)
    mv "$W/blob" "$blobs/$digest"
    echo "$digest"
  }
  named() { echo "\"digest\":\"sha256:$1\",\"size\":$(stat -c %s "$blobs/$1")"; }
  local layer config manifest
  layer=$(tar -C "$1" -c . | blob)
  config=$(echo "{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:$layer\"]}}" | blob)
  manifest=$(echo "{\"schemaVersion\":2,\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",$(named "$config")},\"layers\":[{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",$(named "$layer")}]}" | blob)
  echo "{\"schemaVersion\":2,\"manifests\":[{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",$(named "$manifest"),\"annotations\":{\"io.containerd.image.name\":\"demo/demo:local\"}}]}" >"$W/oci/index.json"
  echo '{"imageLayoutVersion":"1.0.0"}' >"$W/oci/oci-layout"
  tar -C "$W/oci" -c . >"$W/oci.tar"
  ctr image import "$W/oci.tar" >/dev/null
}
cni() { # ADD|DEL NAME PLUGIN, the configuration on standard input
  "${in_guest[@]}" env CNI_COMMAND="$1" CNI_CONTAINERID="default-$2" CNI_NETNS="/var/run/netns/$NS-$2" CNI_IFNAME=eth0 \
    CNI_PATH=/usr/lib/cni "/usr/lib/cni/$3"
}
containerd_run() { # NAME 'PUBLISH...' COMMAND...
  local name=$1 publish mappings='' ip host container protocol
  for publish in $2; do
    protocol=tcp ip=''
    case $publish in */*) protocol=${publish#*/} publish=${publish%/*} ;; esac
    case $publish in *:*:*) ip=${publish%%:*} publish=${publish#*:} ;; esac
    host=${publish%:*} container=${publish#*:}
    mappings+="${mappings:+,}{\"HostPort\":$host,\"ContainerPort\":$container,\"Protocol\":\"$protocol\",\"HostIP\":\"${ip:-0.0.0.0}\"}"
  done
  ip netns add "$NS-$name"
  spaces+=("$NS-$name")
  local network='"cniVersion":"1.0.0","name":"bridge"'
  echo "{$network,\"type\":\"bridge\",\"bridge\":\"nerdctl0\",\"isGateway\":true,\"ipMasq\":true,\"ipam\":{\"type\":\"host-local\",\"dataDir\":\"$W/ipam\",\"ranges\":[[{\"subnet\":\"10.4.0.0/24\"}]],\"routes\":[{\"dst\":\"0.0.0.0/0\"}]}}" >"$W/$name.bridge"
  cni ADD "$name" bridge <"$W/$name.bridge" >"$W/$name.result"
  # The plugin spells the same list in its own way, and leaves 0.0.0.0 out.
  local ports
  ports=$(echo "$mappings" | sed 's/HostPort/hostPort/g; s/ContainerPort/containerPort/g; s/Protocol/protocol/g; s/,"HostIP":"0.0.0.0"//g; s/HostIP/hostIP/g')
  echo "{$network,\"type\":\"portmap\",\"capabilities\":{\"portMappings\":true},\"runtimeConfig\":{\"portMappings\":[$ports]},\"prevResult\":$(cat "$W/$name.result")}" >"$W/$name.portmap"
  cni ADD "$name" portmap <"$W/$name.portmap" >/dev/null
  # With runc's state and the cgroup apart from those of another containerd's container of that name.
  ctr run -d --null-io --runc-root "$W/runc" --cgroup "$NS-$name" --with-ns "network:/var/run/netns/$NS-$name" --label "nerdctl/ports=[$mappings]" demo/demo:local "$name" "${@:3}"
}
containerd_remove() {
  ctr task kill -s 9 "$1" || true
  until_ok 10 "the end of $1" ctr task rm "$1"
  ctr container rm "$1"
  cni DEL "$1" portmap <"$W/$1.portmap"
  cni DEL "$1" bridge <"$W/$1.bridge"
}

# --- who forwards, on the host

hostagent_namespace() {
  if ip -4 addr show | grep -q ' 192\.168\.143\.'; then
    echo "demo: this machine uses 192.168.143.0/24 already, which the demo's guest needs" >&2
    exit 1
  fi
  for port in 8080 8081; do
    ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "demo: port $port of this machine is taken" >&2; exit 1; }
  done
}
hostagent_start() {
  echo "2. the host end on this machine, the agent in the guest"
  "$BIN/rancher-desktop-hostagent" --listen "unix://$W/host.sock" >"$W/host.out" 2>"$W/hostagent.log" &
  pids+=($!)
}
# What the host end says it has opened: port, address and protocol.
hostagent_open() {
  sed -n 's/.*"event":"opened".*"protocol":"\([a-z]*\)","hostIp":"\([^"]*\)","hostPort":\([0-9]*\).*/\3 \2 \1/p' "$W/host.out"
}

host-switch_namespace() {
  ip netns add "$NS-host"
  spaces+=("$NS-host")
  ip -n "$NS-host" link set lo up
}
host-switch_start() {
  echo "2. a stand-in for host-switch at http://$HOST:80, the agent in the guest, with no flag but -$ENGINE"
  "${on_host[@]}" "$BIN/examples/host-switch-stand-in" >"$W/host.out" 2>"$W/host-switch.log" &
  pids+=($!)
}
# What its API lists.
host-switch_open() {
  "${on_host[@]}" curl -s --noproxy '*' --max-time 5 "http://$HOST:80/services/forwarder/all" |
    sed 's/},/&\n/g' | sed -n 's/.*"local":"\(.*\):\([0-9]*\)","remote".*"protocol":"\([a-z]*\)".*/\2 \1 \3/p'
}

# --- the demo

echo "1. a guest: a network namespace with $ENGINE"
"${SINK}_namespace"
ip netns add "$NS"
ip link add "$LINK" type veth peer name eth0 netns "$NS"
[ "$SINK" = hostagent ] || ip link set "$LINK" netns "$NS-host"
"${on_host[@]}" ip addr add "$HOST/24" dev "$LINK"
"${on_host[@]}" ip link set "$LINK" up
ip -n "$NS" addr add "$GUEST/24" dev eth0
ip -n "$NS" link set eth0 up
ip -n "$NS" link set lo up
ip -n "$NS" route add default via "$HOST"
"${ENGINE}_start"

"${SINK}_start"
"${ENGINE}_watch"
until_ok 30 "$ENGINE answers" "${ENGINE}_answers"
mkdir "$W/image"
cp /bin/busybox "$W/image/"
cc -static -O1 -o "$W/image/udp_echo" tests/support/udp_echo.c
"${ENGINE}_import" "$W/image"

echo "3. containers with -p 8080:80 -p 127.0.0.1:8081:80 …  and  -p 8082:53/udp …"
"${ENGINE}_run" web "8080:80 127.0.0.1:8081:80" /busybox httpd -f -p 80 -h /
"${ENGINE}_run" echo "8082:53/udp" /udp_echo 53

http() { "${on_host[@]}" curl -s -o /dev/null --max-time 2 -w '%{http_code}' "http://127.0.0.1:$1/busybox"; }
# The shell on the host is to expand these, not this one.
# shellcheck disable=SC2016
echo_udp() {
  # dd, not `read`, which takes a byte at a time and so loses the rest of a datagram.
  "${on_host[@]}" bash -c 'exec 3<>"/dev/udp/127.0.0.1/$1"; echo hello >&3
    [ "$(timeout 1 dd bs=64 count=1 status=none <&3)" = hello ]' bash "$1"
}
until_ok 10 "port 8080 answers" http 8080
until_ok 10 "port 8081 answers" http 8081
until_ok 10 "port 8082/udp answers" echo_udp 8082

row() { printf '   %-24s %-22s %s\n' "$@"; }
row "PUBLISHED IN THE GUEST" "OPEN ON THE HOST" "ANSWER THERE"
# What is open, asked over the host's own loopback.
"${SINK}_open" |
  sort -u | while read -r port ip protocol; do
    case $port in
    8080) published="-p 8080:80" ;;
    8081) published="-p 127.0.0.1:8081:80" ;;
    8082) published="-p 8082:53/udp" ;;
    *) published="?" ;;
    esac
    case $protocol:$ip in
    tcp:127.0.0.1) answer="HTTP $(http "$port")" ;;
    udp:127.0.0.1) answer=$(echo_udp "$port" && echo "hello, echoed") ;;
    *) answer="(IPv6: this guest has no address)" ;;
    esac
    row "$published" "$ip:$port/$protocol" "$answer"
  done

echo "4. the containers go"
"${ENGINE}_remove" web
"${ENGINE}_remove" echo
for port in 8080 8081; do
  until_ok 10 "port $port refuses" "${on_host[@]}" bash -c "! (exec 3<>/dev/tcp/127.0.0.1/$port)"
  row "" "127.0.0.1:$port/tcp" "refused"
done
until_ok 10 "port 8082/udp is closed" "${on_host[@]}" bash -c "! ss -Hlun 'sport = :8082' | grep -q ."
row "" "127.0.0.1:8082/udp" "closed"
left=$("${SINK}_open" | wc -l)
[ "$SINK" = hostagent ] || [ "$left" = 0 ] || { echo "demo: $left forwards are left at host-switch" >&2; exit 1; }
echo "demo: done in $SECONDS s"
