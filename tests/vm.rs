//! The static agent as an OpenRC service of a real guest, with a real Docker Engine, seen from the host's side of vsock;
//! and in a service of Rancher Desktop's kind, seen from host-switch.
//!
//! QEMU boots a Debian kernel with OpenRC's init; vhost-device-vsock turns the guest's vsock into unix sockets here.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs
)]

#[path = "vm/documents.rs"]
mod documents;
#[path = "vm/drop_in.rs"]
mod drop_in;
#[path = "vm/machine.rs"]
mod machine;

use std::process::Command;
use std::time::Duration;

use documents::Documents;
use machine::Machine;

/// For what takes a second or two on an idle machine.
const SOON: Duration = Duration::from_secs(60);
/// dockerd's start, and each of docker's commands: slow without KVM.
const LATER: Duration = Duration::from_secs(120);

const HANDSHAKE_PORT: u32 = 17382;
const HANDSHAKE: &[u8] = b"github.com/rancher-sandbox/rancher-desktop-vtunnel";
const DOCUMENTS_PORT: u32 = 17381;

/// The container which runs before the agent does.
const EARLY: &str = "80/tcp 0.0.0.0:8080";
const EARLY_ANNOUNCED: &str = concat!(
    r#"{"remove":false,"ports":{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"}]},"#,
    r#""connectAddrs":[{"network":"ip+net","addr":"192.168.143.2/24"}]}"#,
    "\n"
);
/// The one which is started when the agent runs.
const LATE: &str = "90/tcp 127.0.0.1:9090";
const LATE_UDP: &str = "90/udp 127.0.0.1:9091";
const LATE_ANNOUNCED: &str = concat!(
    r#"{"remove":false,"ports":{"90/tcp":[{"HostIp":"127.0.0.1","HostPort":"9090"}],"#,
    r#""90/udp":[{"HostIp":"127.0.0.1","HostPort":"9091"}]},"#,
    r#""connectAddrs":[{"network":"ip+net","addr":"192.168.143.2/24"}]}"#,
    "\n"
);

const CONF: &str = "/etc/conf.d/rancher-desktop-guestagent";
const START: &str = "rc-service rancher-desktop-guestagent start";
const STOP: &str = "rc-service rancher-desktop-guestagent stop";

#[test]
#[ignore = "needs QEMU, apt-get packages and the musl binary: run by make test"]
fn the_service_in_a_guest_keeps_the_host_informed() {
    let prepared = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vm/prepare.sh")).status().unwrap();
    assert!(prepared.success(), "prepare.sh");
    let mut guest = Machine::new();
    let mut host = Documents::listen(guest.host_socket(DOCUMENTS_PORT));
    guest.boot();
    assert_eq!(guest.ok("cat /proc/1/comm", SOON), "openrc-init");
    start_docker(&mut guest);

    run_container(&mut guest, "early", 80, "-p 0.0.0.0:8080:80");
    configure(
        &mut guest,
        &[
            "GUESTAGENT_DOCKER=true",
            "GUESTAGENT_PRIVILEGED_SERVICE=true",
            "GUESTAGENT_ADMIN_INSTALL=true",
            "GUESTAGENT_ARGS=\"--sink vsock://2:17381\"",
            "respawn_delay=1",
        ],
    );
    guest.ok(START, SOON);
    host.wait_for(&[EARLY], SOON);
    assert_eq!(host.seen, [EARLY_ANNOUNCED]);

    run_container(&mut guest, "late", 90, "-p 127.0.0.1:9090:90 -p 127.0.0.1:9091:90/udp");
    host.wait_for(&[EARLY, LATE, LATE_UDP], SOON);
    assert_eq!(host.seen, [EARLY_ANNOUNCED, LATE_ANNOUNCED]);

    // A host that asks for the handshake may have restarted: it is told everything again.
    host.forget();
    assert_eq!(guest.read_from_guest(HANDSHAKE_PORT, SOON), HANDSHAKE, "the handshake, and then the end");
    host.wait_for(&[EARLY, LATE, LATE_UDP], SOON);

    unprivileged(&mut guest);
    announced_again_after_a_kill(&mut guest, &mut host);

    the_log_can_be_rotated(&mut guest);

    guest.ok(STOP, SOON);
    host.wait_for(&[], SOON);
    assert_eq!(agent_pid(&mut guest), None);

    wrong_settings_fail_the_start(&mut guest);
    the_host_end_takes_documents_over_vsock(&mut guest);
    drop_in::takes_the_place_of_rancher_desktops_agent(&mut guest);
}

fn start_docker(guest: &mut Machine) {
    guest.ok("until docker version >/dev/null 2>&1; do sleep 0.5; done", LATER);
    guest.ok("mkdir -p /tmp/image/bin && cp /bin/busybox /tmp/image/bin/", SOON);
    guest.ok("tar -C /tmp/image -c . | docker import - box", LATER);
}

/// The container answers each connection to `port` with its name.
fn run_container(guest: &mut Machine, name: &str, port: u16, publish: &str) {
    let serve = format!("/bin/busybox nc -ll -p {port} -e /bin/busybox echo from {name}");
    guest.ok(&format!("docker run -d --name {name} {publish} box {serve}"), LATER);
}

fn configure(guest: &mut Machine, lines: &[&str]) {
    let quoted: Vec<String> = lines.iter().map(|l| format!("'{l}'")).collect();
    guest.ok(&format!("printf '%s\\n' {} >{CONF}", quoted.join(" ")), SOON);
}

fn agent_pid(guest: &mut Machine) -> Option<u32> {
    guest.sh("pidof rancher-desktop-guestagent", SOON).output.parse().ok()
}

/// Whether OpenRC would start the agent again.
fn supervised(guest: &mut Machine) -> bool {
    guest.sh("ps -o args | grep '[s]upervise-daemon rancher-desktop-guestagent'", SOON).status == 0
}

/// The agent has given up what it does not need: it cannot gain privileges, nor use root's.
fn unprivileged(guest: &mut Machine) {
    let pid = agent_pid(guest).expect("the agent runs");
    let status = guest.ok(&format!("grep -E '^(NoNewPrivs|CapEff):' /proc/{pid}/status"), SOON);
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {status}"));
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(field("NoNewPrivs:"), "1");
    const CAP_NET_BIND_SERVICE: u64 = 1 << 10;
    let effective = u64::from_str_radix(&field("CapEff:"), 16).unwrap();
    assert_eq!(effective & !CAP_NET_BIND_SERVICE, 0, "CapEff {effective:x}");
}

fn announced_again_after_a_kill(guest: &mut Machine, host: &mut Documents) {
    let killed = agent_pid(guest).expect("the agent runs");
    assert!(supervised(guest));
    host.forget();
    guest.ok(&format!("kill -9 {killed}"), SOON);
    host.wait_for(&[EARLY, LATE, LATE_UDP], SOON);
    let respawned = agent_pid(guest).expect("the agent runs again");
    assert_ne!(respawned, killed);
}

/// logrotate's entry is right, and the log is held open for appending: after the rotation it does not begin with a hole.
fn the_log_can_be_rotated(guest: &mut Machine) {
    const LOG: &str = "/var/log/rancher-desktop-guestagent.log";
    assert_eq!(guest.ok(&format!("stat -c '%a %u' {LOG}"), SOON), "640 0");
    guest.ok(&format!("test -s {LOG} && logrotate -f -s /tmp/state /etc/logrotate.d/rancher-desktop-guestagent"), SOON);
    guest.ok(&format!("gunzip -c {LOG}.1.gz | grep -q ."), SOON);
    let pid = agent_pid(guest).expect("the agent runs");
    let held = guest.ok(&format!("grep flags /proc/{pid}/fdinfo/2"), SOON);
    let flags = u32::from_str_radix(held.split_whitespace().nth(1).unwrap(), 8).unwrap();
    const O_APPEND: u32 = 0o2000;
    assert_ne!(flags & O_APPEND, 0, "{held}");
}

/// Wrong settings are refused once, with a reason, and leave nothing behind which would try again.
fn wrong_settings_fail_the_start(guest: &mut Machine) {
    for (settings, reason) in [
        (["GUESTAGENT_IPTABLES=false"], "source"),
        (["GUESTAGENT_DOCKER=perhaps"], "perhaps"),
        (["GUESTAGENT_K8S_SVC_ADDR=\"0.0.0.0; touch /run/executed\""], "touch /run/executed"),
    ] {
        configure(guest, &settings);
        let start = guest.sh(START, SOON);
        assert_ne!(start.status, 0, "{settings:?}: {}", start.output);
        assert!(start.output.contains(reason), "{settings:?}: {}", start.output);
        assert_eq!(agent_pid(guest), None, "{settings:?}");
        assert!(!supervised(guest), "{settings:?}");
    }
    assert_ne!(guest.sh("ls /run/executed", SOON).status, 0, "a setting was executed");
}

/// `rancher-desktop-hostagent` on vsock. It runs in the guest too, in the network namespace that is the guest's gateway,
/// and documents reach it through vsock_loopback: a sender on the same machine has CID 1.
fn the_host_end_takes_documents_over_vsock(guest: &mut Machine) {
    const NC: &str = "ip netns exec host timeout 5 nc 127.0.0.1";
    configure(guest, &["GUESTAGENT_DOCKER=true", "GUESTAGENT_ARGS=\"--sink vsock://1:17999\""]);

    // Another guest than that of --guest-cid: its documents are not read.
    start_host_end(guest, "--listen vsock://17999 --guest-cid 4");
    guest.ok(START, SOON);
    guest.ok("until grep 'guest 1 was refused' /var/log/hostagent.log; do sleep 0.1; done", SOON);
    guest.ok(STOP, SOON);
    stop_host_end(guest);
    assert_eq!(guest.ok("cat /tmp/hostagent.out", SOON), "");

    start_host_end(guest, "--listen vsock://17999");
    guest.ok(START, SOON);
    for (port, name) in [(8080, "early"), (9090, "late")] {
        // The second is published on the guest's loopback, which the agent's relay makes reachable for the gateway.
        let read = format!("{NC} {port}");
        guest.ok(&format!("until [ \"$({read})\" = 'from {name}' ]; do sleep 0.1; done"), SOON);
    }
    guest.ok(STOP, SOON);
    for port in [8080, 9090] {
        guest.ok(&format!("while {NC} {port}; do sleep 0.1; done"), SOON);
    }
    stop_host_end(guest);
}

fn start_host_end(guest: &mut Machine, args: &str) {
    let run = format!("ip netns exec host rancher-desktop-hostagent {args}");
    guest.ok(&format!("{run} >/tmp/hostagent.out 2>/var/log/hostagent.log &"), SOON);
    guest.ok("until grep ready /var/log/hostagent.log; do sleep 0.1; done", SOON);
}

fn stop_host_end(guest: &mut Machine) {
    guest.ok("kill $(pidof rancher-desktop-hostagent)", SOON);
    guest.ok("while pidof rancher-desktop-hostagent; do sleep 0.1; done", SOON);
}
