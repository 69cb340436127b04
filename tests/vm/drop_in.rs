//! The agent in the place of Rancher Desktop's, in a service like that of its main branch: host-switch is told.
//!
//! The guest has the address 192.168.127.2; behind its gateway, in the network namespace `host`, our stand-in of
//! host-switch forwards from that namespace's addresses.

use serde_json::Value;

use super::machine::Machine;
use super::{CONF, LATER, SOON, START, STOP, agent_pid, configure, run_container};

const SERVICE: &str = "/etc/init.d/rancher-desktop-guestagent";
const LOG: &str = "/var/log/rancher-desktop-guestagent.log";
const SWITCH_LOG: &str = "/var/log/host-switch.log";

/// As Rancher Desktop writes it, but for its first line, and without `GUESTAGENT_DEBUG`.
const SETTINGS: [&str; 3] = ["GUESTAGENT_KUBERNETES=false", "GUESTAGENT_DOCKER=true", "GUESTAGENT_CONTAINERD=false"];

/// The containers `early` and `late` run.
pub fn takes_the_place_of_rancher_desktops_agent(guest: &mut Machine) {
    set_up(guest);
    let early = "tcp 0.0.0.0:8080 192.168.127.2:8080";
    let late = ["tcp 127.0.0.1:9090 192.168.127.2:9090", "udp 127.0.0.1:9091 192.168.127.2:9091"];
    let more = "tcp 0.0.0.0:8090 192.168.127.2:8090";

    start(guest, "true");
    wait_for(guest, &[early, late[0], late[1]]);
    run_container(guest, "more", 80, "-p 8090:80");
    wait_for(guest, &[early, late[0], late[1], more]);
    // Published on the guest's loopback: by the relay, from the tap address.
    for (port, name) in [(8080, "early"), (9090, "late"), (8090, "more")] {
        let read = format!("ip netns exec host timeout 5 nc 127.0.0.1 {port}");
        guest.ok(&format!("until [ \"$({read})\" = 'from {name}' ]; do sleep 0.1; done"), SOON);
    }

    // Nothing is lost and nothing doubled by a kill, and what went meanwhile goes.
    let killed = agent_pid(guest).expect("the agent runs");
    guest.ok(&format!("kill -9 {killed}"), SOON);
    guest.ok("docker rm -f more", LATER);
    wait_for(guest, &[early, late[0], late[1]]);
    let respawned = agent_pid(guest).expect("the agent runs again");
    assert_ne!(respawned, killed);
    assert_eq!(
        guest.sh(&format!("grep 'already running' {SWITCH_LOG} {LOG}"), SOON).status,
        1,
        "taken over, not asked for"
    );

    // What the service says is there: variables, the log, and logrotate's entry.
    guest.ok(&format!("tr '\\0' '\\n' </proc/{respawned}/environ | grep -x RD_IN_ENVIRONMENT=1"), SOON);
    guest.ok(&format!("grep -q 'forwarding binding=0.0.0.0:8080/tcp' {LOG}"), SOON);
    guest.ok(&format!("grep -q {LOG} /etc/logrotate.d/guestagent"), SOON);

    guest.ok(STOP, SOON);
    assert_eq!(forwards(guest), [""; 0], "all is withdrawn when the service has stopped");
    assert_eq!(agent_pid(guest), None);

    // Without admin rights.
    start(guest, "false");
    wait_for(guest, &[&early.replace("0.0.0.0", "127.0.0.1"), late[0], late[1]]);
    guest.ok(STOP, SOON);
    assert_eq!(forwards(guest), [""; 0]);
}

fn set_up(guest: &mut Machine) {
    for step in [
        "ip link add tap0 type veth peer name tap0 netns host",
        "ip addr add 192.168.127.2/24 dev tap0 && ip link set tap0 up",
        "ip -n host addr add 192.168.127.1/24 dev tap0 && ip -n host link set tap0 up",
        "ip route replace default via 192.168.127.1",
        "echo RD_IN_ENVIRONMENT=1 >/etc/environment",
        // Nothing of our own service is left, but the program.
        &format!("rm -f {CONF} /etc/logrotate.d/rancher-desktop-guestagent {LOG}"),
        &format!("cp /opt/rd/rancher-desktop-guestagent.initd {SERVICE} && rc-update -u"),
    ] {
        guest.ok(step, SOON);
    }
    let run = "/opt/host-switch/ld-linux-*.so.* --library-path /opt/host-switch /opt/host-switch/stand-in";
    guest.ok(&format!("ip netns exec host {run} >{SWITCH_LOG} 2>&1 &"), SOON);
    guest.ok("until wget -qO- http://192.168.127.1/services/forwarder/all; do sleep 0.1; done", SOON);
}

fn start(guest: &mut Machine, admin: &str) {
    let admin = format!("GUESTAGENT_ADMIN_INSTALL={admin}");
    configure(guest, &[&[admin.as_str()], &SETTINGS[..]].concat());
    guest.ok(START, SOON);
}

/// What host-switch forwards: `tcp 127.0.0.1:80 192.168.127.2:80`, in order.
fn forwards(guest: &mut Machine) -> Vec<String> {
    let all = guest.ok("wget -qO- http://192.168.127.1/services/forwarder/all", SOON);
    let all: Value = serde_json::from_str(&all).unwrap_or_else(|error| panic!("{all}: {error}"));
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
    let shown = |entry: &Value| ["protocol", "local", "remote"].map(|key| text(entry, key)).join(" ");
    let mut forwards: Vec<String> = all.as_array().unwrap().iter().map(shown).collect();
    forwards.sort();
    forwards
}

fn wait_for(guest: &mut Machine, expected: &[&str]) {
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    super::machine::poll(&format!("forwards {expected:?}"), SOON, || (forwards(guest) == expected).then_some(()));
}
