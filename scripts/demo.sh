#!/usr/bin/env bash
# Shows the main job: a guest (a network namespace) with dockerd and the agent, this machine as its host with the host
# end, a container whose published ports answer on this machine's loopback, and refuse once it is gone. Needs root.
# Everything it starts and makes is gone afterwards, on failure too.
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=$PWD/target/release
[ "$(id -u)" = 0 ] || { echo "demo: needs root, for a network namespace and dockerd" >&2; exit 1; }

W=$(mktemp -d /tmp/rda-demo.XXXX)
NS=rda-demo-$$
LINK=rdademo$(($$ % 100000))
GUEST=192.168.143.2
SOCKET=$W/docker.sock
pids=()
docker() { command docker -H "unix://$SOCKET" "$@"; }

finish() {
  status=$?
  [ ! -S "$SOCKET" ] || docker rm -f web echo >/dev/null 2>&1 || true
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do tail --pid="$pid" -f /dev/null; done
  if [ $status != 0 ]; then
    echo "demo: failed; the last lines of each log:" >&2
    tail -n 5 "$W"/*.log >&2 2>/dev/null || true
  fi
  ip netns del "$NS" 2>/dev/null || true
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

# What runs inside the guest. nsenter, not `ip netns exec`, which would hide the cgroups from dockerd.
in_guest=(nsenter --net="/var/run/netns/$NS")

if ip -4 addr show | grep -q ' 192\.168\.143\.'; then
  echo "demo: this machine uses 192.168.143.0/24 already, which the demo's guest needs" >&2
  exit 1
fi
for port in 8080 8081; do
  ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "demo: port $port of this machine is taken" >&2; exit 1; }
done

echo "1. a guest: a network namespace with dockerd"
ip netns add "$NS"
ip link add "$LINK" type veth peer name eth0 netns "$NS"
ip addr add 192.168.143.1/24 dev "$LINK"
ip link set "$LINK" up
ip -n "$NS" addr add $GUEST/24 dev eth0
ip -n "$NS" link set eth0 up
ip -n "$NS" link set lo up
ip -n "$NS" route add default via 192.168.143.1
"${in_guest[@]}" dockerd --data-root "$W/data" --exec-root "$W/exec" -H "unix://$SOCKET" -p "$W/docker.pid" --bip 172.30.0.1/16 \
  >"$W/dockerd.log" 2>&1 &
pids+=($!)

echo "2. the host end on this machine, the agent in the guest"
"$BIN/rancher-desktop-hostagent" --listen "unix://$W/host.sock" >"$W/host.out" 2>"$W/hostagent.log" &
pids+=($!)
DOCKER_HOST=unix://$SOCKET "${in_guest[@]}" "$BIN/rancher-desktop-guestagent" -docker --sink "unix://$W/host.sock" 2>"$W/agent.log" &
pids+=($!)
until_ok 30 "dockerd answers" docker version
mkdir "$W/image"
cp /bin/busybox "$W/image/"
cc -static -O1 -o "$W/image/udp_echo" tests/support/udp_echo.c
tar -C "$W/image" -c . | docker import - demo:local >/dev/null

echo "3. docker run -p 8080:80 -p 127.0.0.1:8081:80 …  and  docker run -p 8082:53/udp …"
docker run -d --name web -p 8080:80 -p 127.0.0.1:8081:80 demo:local /busybox httpd -f -p 80 -h / >/dev/null
docker run -d --name echo -p 8082:53/udp demo:local /udp_echo 53 >/dev/null

http() { curl -s -o /dev/null --max-time 2 -w '%{http_code}' "http://127.0.0.1:$1/busybox"; }
echo_udp() {
  exec 3<>"/dev/udp/127.0.0.1/$1"
  echo hello >&3
  # Not `read`, which takes a byte at a time and so loses the rest of a datagram.
  local answer
  answer=$(timeout 1 dd bs=64 count=1 status=none <&3) || true
  exec 3>&-
  [ "$answer" = hello ]
}
until_ok 10 "port 8080 answers" http 8080
until_ok 10 "port 8081 answers" http 8081
until_ok 10 "port 8082/udp answers" echo_udp 8082

row() { printf '   %-24s %-22s %s\n' "$@"; }
row "PUBLISHED IN THE GUEST" "OPEN ON THIS HOST" "ANSWER THERE"
# What the host end says it has opened, asked over this machine's own loopback.
sed -n 's/.*"event":"opened".*"protocol":"\([a-z]*\)","hostIp":"\([^"]*\)","hostPort":\([0-9]*\).*/\3 \2 \1/p' "$W/host.out" |
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

echo "4. docker rm -f web echo"
docker rm -f web echo >/dev/null
for port in 8080 8081; do
  until_ok 10 "port $port refuses" bash -c "! (exec 3<>/dev/tcp/127.0.0.1/$port)"
  row "" "127.0.0.1:$port/tcp" "refused"
done
until_ok 10 "port 8082/udp is closed" bash -c "! ss -Hlun 'sport = :8082' | grep -q ."
row "" "127.0.0.1:8082/udp" "closed"
echo "demo: done in $SECONDS s"
