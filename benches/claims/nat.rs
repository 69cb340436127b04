//! How long it takes from a NAT rule until the host end has the document, with rules of both kinds of iptables, and
//! what 5,000 rules cost.
//!
//! The rules have the shape of those that CNI's portmap plugin writes. A rule of nftables' is written when the kernel
//! notifies of it; one of the legacy kind, of which nobody is notified, when iptables has ended.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};

use super::containerd::announcements;
use crate::report::{Program, Row, Samples, thousands};
use crate::support::agent::Agent;
use crate::support::receiver::Receiver;
use crate::support::vm::{Namespace, Vm};
use crate::support::{eventually, run};

const NFT_RULES: u16 = 200;
const LEGACY_RULES: u16 = 60;
const MANY: u16 = 5_000;
const CHANGES: u16 = 20;
const CHAIN: &str = "CNI-DN-0123456789abcdef01234";
const FIRST_PORT: u16 = 20_000;

/// What `--nat-interval` is unless given.
const INTERVAL_MS: f64 = 250.0;
const NFT_MEDIAN_MS_MAX: f64 = 20.0;
const NFT_P99_MS_MAX: f64 = 60.0;
const LEGACY_MS_MAX: f64 = INTERVAL_MS + 20.0;
const MANY_MS_MAX: f64 = 50.0;

/// NFNLGRP_NFTABLES.
const GROUP_NFTABLES: u32 = 1 << 6;

pub fn measure() -> Vec<Row> {
    let mut rows = nft();
    rows.push(legacy());
    rows.push(many());
    rows
}

struct World {
    receiver: Receiver,
    agent: Agent,
    vm: Vm,
    build: &'static str,
}

impl World {
    fn new() -> World {
        let (vm, receiver, program) = (Vm::new(), Receiver::new(), Program::agent());
        let args = ["-iptables", "--sink", &receiver.url()];
        let agent = Agent::run_program(&program.path, Some(&vm.guest), &args, &[]);
        agent.wait_log("source ready");
        World { receiver, agent, vm, build: program.build }
    }

    fn iptables(&self, tool: &str, args: &[&str]) {
        run(self.vm.guest.command(tool).args(["-w", "-t", "nat"]).args(args));
    }

    /// Writes a rule; the moment at which iptables has ended.
    fn add(&self, tool: &str, port: u16) -> Instant {
        let port = port.to_string();
        let rule = ["-A", CHAIN, "-p", "tcp", "--dport", &port, "-j", "DNAT", "--to-destination", "10.4.0.9:80"];
        self.iptables(tool, &rule);
        Instant::now()
    }

    /// Writes a rule; the moment at which the kernel notifies of it, taken by a thread that waits for nothing else.
    fn add_notified(&self, port: u16) -> Instant {
        let notifications = Notifications::of(&self.vm.guest);
        std::thread::scope(|scope| {
            let heard = scope.spawn(|| notifications.next());
            self.add("iptables-nft", port);
            heard.join().unwrap()
        })
    }

    /// Milliseconds from each of those moments to the document that announces the port.
    fn latencies(&self, written: &BTreeMap<u16, Instant>) -> Samples {
        let last = written.keys().last().unwrap();
        self.wait(*last);
        let documents = announcements(&self.receiver);
        // A document that is there before iptables has ended took no time.
        let latency = |(port, at): (&u16, &Instant)| {
            documents[&port.to_string()].at.saturating_duration_since(*at).as_secs_f64() * 1e3
        };
        Samples::new(written.iter().map(latency).collect())
    }

    fn wait(&self, port: u16) {
        let address = format!("127.0.0.1:{port}/tcp");
        let held = || if self.receiver.held().contains(&address) { Ok(()) } else { Err(self.agent.log()) };
        eventually(&address, held);
    }
}

/// Hears of changed rules, as the agent does.
struct Notifications(OwnedFd);

impl Notifications {
    fn of(namespace: &Namespace) -> Notifications {
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter).unwrap();
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP_NFTABLES)).unwrap();
            socket
        };
        Notifications(namespace.enter(open))
    }

    /// Spins until there is one, and takes all.
    fn next(&self) -> Instant {
        let mut buffer = [0; 65536];
        let mut heard = None;
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(_) => drop(heard.get_or_insert_with(Instant::now)),
                Err(_) => {
                    if let Some(heard) = heard {
                        return heard;
                    }
                }
            }
        }
    }
}

fn nft() -> Vec<Row> {
    let world = World::new();
    world.iptables("iptables-nft", &["-N", CHAIN]);
    let mut written = BTreeMap::new();
    for n in 0..NFT_RULES {
        let port = FIRST_PORT + n;
        written.insert(port, world.add_notified(port));
        world.wait(port);
    }
    let latency = world.latencies(&written);
    let claim = format!("NAT rule (iptables-nft) written to the document at the sink ({})", world.build);
    let shown = format!("{:.1} ms (n = {})", latency.median(), latency.n());
    vec![
        Row::at_most(&format!("{claim}, median"), NFT_MEDIAN_MS_MAX, "ms", latency.median(), shown),
        Row::at_most(
            &format!("{claim}, 99th percentile / max"),
            NFT_P99_MS_MAX,
            "ms",
            latency.p99(),
            format!("{:.1} / {:.1} ms", latency.p99(), latency.max()),
        ),
    ]
}

fn legacy() -> Row {
    let world = World::new();
    world.iptables("iptables-legacy", &["-N", CHAIN]);
    let mut written = BTreeMap::new();
    for n in 0..LEGACY_RULES {
        let port = FIRST_PORT + n;
        written.insert(port, world.add("iptables-legacy", port));
        world.wait(port);
        // At another moment of the interval each time.
        std::thread::sleep(Duration::from_millis(u64::from(n) * 37 % 250));
    }
    let latency = world.latencies(&written);
    Row::at_most(
        &format!("NAT rule (iptables-legacy) written to the document at the sink ({}), max", world.build),
        LEGACY_MS_MAX,
        "ms",
        latency.max(),
        format!("{:.1} ms (median {:.1}, n = {})", latency.max(), latency.median(), latency.n()),
    )
}

/// What one more rule costs among thousands, and how much of that is the tool that reads them.
fn many() -> Row {
    let world = World::new();
    let mut rules = format!("*nat\n:{CHAIN} - [0:0]\n");
    for n in 0..MANY {
        let port = FIRST_PORT + n;
        rules += &format!("-A {CHAIN} -p tcp -m tcp --dport {port} -j DNAT --to-destination 10.4.0.9:80\n");
    }
    rules += "COMMIT\n";
    let mut restore = world.vm.guest.command("iptables-nft-restore").stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut restore.stdin.take().unwrap(), rules.as_bytes()).unwrap();
    assert!(restore.wait().unwrap().success());
    world.wait(FIRST_PORT + MANY - 1);
    let mut written = BTreeMap::new();
    let mut tool = Vec::new();
    for n in 0..CHANGES {
        let port = FIRST_PORT + MANY + n;
        written.insert(port, world.add_notified(port));
        world.wait(port);
        let begun = Instant::now();
        run(world.vm.guest.command("iptables-nft-save").args(["-t", "nat"]));
        tool.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let (latency, tool) = (world.latencies(&written), Samples::new(tool));
    let beyond = latency.median() - tool.median();
    Row::at_most(
        &format!(
            "{} NAT rules: one more rule to its document, beyond the tool's own time, median",
            thousands(MANY.into())
        ),
        MANY_MS_MAX,
        "ms",
        beyond,
        format!(
            "{beyond:.1} ms ({:.1} ms in all, of which `iptables-nft-save` takes {:.1} ms; n = {})",
            latency.median(),
            tool.median(),
            latency.n()
        ),
    )
}
