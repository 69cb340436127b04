//! The nat source against the real kernel, CNI plugins, iptables and nft, in a guest that is a network namespace.
//!
//! Where a tool has to fail, or its runs are counted, a script of that name comes first on the agent's PATH.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::agent::Agent;
use support::cni::{Cni, Port, Variant};
use support::docker::Engine;
use support::receiver::Receiver;
use support::vm::{Namespace, Vm};
use support::{TempDir, eventually, run};

const AGENT: &str = env!("CARGO_BIN_EXE_rancher-desktop-guestagent");

/// Every tool that the source may run.
const TOOLS: &[&str] =
    &["iptables-nft-save", "ip6tables-nft-save", "nft", "iptables-legacy-save", "ip6tables-legacy-save"];

/// Scripts in the place of the tools, which note every run and then do as the real ones.
struct Tools(TempDir);

impl Tools {
    fn new() -> Tools {
        let tools = Tools(TempDir::new());
        for name in TOOLS {
            tools.script(name, "");
        }
        tools
    }

    fn real(name: &str) -> String {
        let name = format!("/usr/sbin/{name}");
        assert!(fs::exists(&name).unwrap(), "no {name}: run scripts/deps.sh cni");
        name
    }

    /// What a tool does before it becomes the real one. `$0.on` is there while [`Tools::switch`] says so.
    fn script(&self, name: &str, body: &str) {
        let (path, real) = (self.0.join(name), Tools::real(name));
        fs::write(&path, format!("#!/bin/sh\necho $$ >>$0.runs\n{body}\nexec {real} \"$@\"\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn switch(&self, name: &str, on: bool) {
        let path = self.0.join(&format!("{name}.on"));
        if on { fs::write(path, "").unwrap() } else { fs::remove_file(path).unwrap() }
    }

    /// The process ids of a tool's runs so far.
    fn runs(&self, name: &str) -> Vec<i32> {
        let runs = fs::read_to_string(self.0.join(&format!("{name}.runs"))).unwrap_or_default();
        runs.lines().map(|line| line.parse().unwrap()).collect()
    }

    fn count(&self) -> usize {
        TOOLS.iter().map(|name| self.runs(name).len()).sum()
    }

    fn agent(&self, vm: &Vm, args: &[&str]) -> Agent {
        let agent = self.start(vm, args);
        agent.wait_log("source ready");
        agent
    }

    /// One whose tools do not all work.
    fn agent_in_trouble(&self, vm: &Vm, args: &[&str]) -> Agent {
        let agent = self.start(vm, args);
        agent.wait_log("source in trouble");
        agent
    }

    fn start(&self, vm: &Vm, args: &[&str]) -> Agent {
        let path = format!("{}:{}", self.0.path().display(), std::env::var("PATH").unwrap());
        let args = [&["-iptables"], args].concat();
        Agent::run_program(AGENT.as_ref(), Some(&vm.guest), &args, &[("PATH", &path)])
    }
}

/// How often the source's thread has waited so far.
fn waits(agent: &Agent) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap();
    let task = tasks.map(|task| task.unwrap().path()).find(|t| fs::read_to_string(t.join("comm")).unwrap() == "nat\n");
    let status = fs::read_to_string(task.unwrap().join("status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches:")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Waits until the source has looked that often.
fn wait_looks(agent: &Agent, looks: u64) {
    let begun = waits(agent);
    eventually("looks", || Some(waits(agent)).filter(|now| *now >= begun + looks).ok_or("not yet"));
}

fn guest(vm: &Vm, command: &[&str]) -> String {
    run(vm.guest.command(command[0]).args(&command[1..]))
}

/// A rule as portmap writes it, by that iptables.
fn rule(vm: &Vm, iptables: &str, verb: &str, port: u16, to: &str) {
    let chain = format!("CNI-DN-{port}");
    if verb == "-A" {
        guest(vm, &[iptables, "-t", "nat", "-N", &chain]);
    }
    let port = port.to_string();
    guest(
        vm,
        &[iptables, "-t", "nat", verb, &chain, "-p", "tcp", "--dport", &port, "-j", "DNAT", "--to-destination", to],
    );
}

/// Gives a program its standard input.
fn feed(namespace: &Namespace, program: &str, args: &[&str], input: &str) {
    let mut command = namespace.command(program);
    let mut child = command.args(args).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program} {args:?}");
}

const TO: &str = "192.168.143.2:80";

#[test]
#[ignore = "needs root, CNI plugins, iptables, nftables (scripts/deps.sh cni)"]
fn s07_host_ports_of_pods_reach_every_sink() {
    for variant in [Variant::Nft, Variant::Legacy] {
        let (vm, sinks) = (Vm::new(), [Receiver::new(), Receiver::new()]);
        let urls = [sinks[0].url(), sinks[1].url()];
        let cni = Cni::new_dual(&vm.guest, variant);
        let port = |host_ip, host_port, protocol| Port { host_ip, host_port, container_port: 80, protocol };
        let before = cni.add("k8s-before", &[port("", 8070, "tcp")]);
        let agent = Agent::run(Some(&vm.guest), &["-iptables", "--sink", &urls[0], "--sink", &urls[1]]);
        let held = |more: &[&str]| {
            let all = [&["127.0.0.1:8070/tcp", "[::1]:8070/tcp"], more].concat();
            sinks.iter().for_each(|sink| sink.wait_held(&all));
        };
        held(&[]);
        let ports =
            [port("", 8080, "tcp"), port("127.0.0.1", 8081, "tcp"), port("", 5353, "udp"), port("::1", 8082, "tcp")];
        let web = cni.add("k8s-web", &ports);
        held(&[
            "127.0.0.1:8080/tcp",
            "[::1]:8080/tcp",
            "127.0.0.1:8081/tcp",
            "127.0.0.1:5353/udp",
            "[::1]:5353/udp",
            "[::1]:8082/tcp",
        ]);
        assert!(agent.log().contains(&format!("owner=nat:k8s-before {}", before.ip)), "{variant:?}: {}", agent.log());
        // portmap names the container last: that changes the owner, and nothing for the host.
        let removals = sinks.iter().flat_map(Receiver::all).filter(|r| r.text.contains("\"remove\":true")).count();
        assert_eq!(removals, 0, "{variant:?}: {:?}", sinks[0].all());
        web.delete();
        held(&[]);
        before.delete();
        sinks.iter().for_each(|sink| sink.wait_held(&[]));
        for wrong in ["skipped", "trying on", "stale"] {
            assert!(!agent.log().contains(wrong), "{variant:?}: {}", agent.log());
        }
        assert_eq!(agent.stop(), Some(0));
    }
}

#[test]
#[ignore = "needs root, CNI plugins, iptables, nftables (scripts/deps.sh cni)"]
fn portmaps_nftables_tables_are_read() {
    let (vm, sink) = (Vm::new(), Receiver::new());
    let agent = Agent::run(Some(&vm.guest), &["-iptables", "--sink", &sink.url()]);
    agent.wait_log("source ready");
    let rules = r#"
        table ip cni_hostport {
            chain hostports {
                tcp dport 8080 dnat to 192.168.143.2:80 comment "web"
                ip daddr 127.0.0.1 udp dport 5353 dnat to 192.168.143.2:53 comment "web"
                tcp dport 9000-9001 dnat ip to 192.168.143.2 comment "web"
                tcp dport { 9100, 9102 } dnat ip addr . port to 192.168.143.2 . 80 comment "web"
                ip saddr 10.0.0.1 tcp dport 6666 dnat to 192.168.143.2:80 comment "evil"
            }
            chain hostip_hostports {
                ip daddr 127.0.0.1 tcp dport 8081 dnat to 192.168.143.2:80 comment "web"
            }
            chain prerouting {
                type nat hook prerouting priority dstnat
                jump hostports
            }
        }
        table ip6 cni_hostport {
            chain hostports {
                tcp dport 8080 dnat to [fd00:143::2]:80 comment "web"
            }
        }"#;
    feed(&vm.guest, "nft", &["-f", "-"], rules);
    let v4 = ["8080/tcp", "9000/tcp", "9001/tcp", "9100/tcp", "9102/tcp", "8081/tcp", "5353/udp"];
    let v4: Vec<String> = v4.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let v4: Vec<&str> = v4.iter().map(String::as_str).collect();
    sink.wait_held(&[&v4[..], &["[::1]:8080/tcp"]].concat());
    assert!(agent.log().contains("saddr"), "the rule left out is named: {}", agent.log());
    guest(&vm, &["nft", "delete", "table", "ip6", "cni_hostport"]);
    sink.wait_held(&v4);
    guest(&vm, &["nft", "flush", "chain", "ip", "cni_hostport", "hostports"]);
    sink.wait_held(&["127.0.0.1:8081/tcp"]);
    guest(&vm, &["nft", "delete", "table", "ip", "cni_hostport"]);
    sink.wait_held(&[]);
    assert_eq!(agent.log().matches("skipped input").count(), 1, "named once: {}", agent.log());
}

#[test]
#[ignore = "needs root, podman, iptables (scripts/deps.sh podman cni)"]
fn a_port_of_two_sources_is_one_forward_until_both_are_gone() {
    let (vm, sink) = (Vm::new(), Receiver::new());
    let engine = Engine::podman(&vm.guest);
    engine.web("web", &["-p", "8080:80", "-p", "8081:80"]);
    let agent = Agent::start(Some(&vm.guest), &engine.socket(), &["-iptables", "--sink", &sink.url()]);
    agent.wait_log("source ready source=nat");
    agent.wait_log("source ready source=docker");
    let both = ["127.0.0.1:8080/tcp", "127.0.0.1:8081/tcp"];
    sink.wait_held(&both);
    let withdrawn = |port: &str| {
        let is = |text: &str| text.contains("\"remove\":true") && text.contains(port);
        sink.all().iter().filter(|received| is(&received.text)).count()
    };
    // netavark's rules go first; that they have been read shows in a rule that is there for that.
    let dump = guest(&vm, &["iptables-save", "-t", "nat"]);
    let chain = dump.split_ascii_whitespace().find(|word| word.starts_with("NETAVARK-DN-")).expect(&dump);
    guest(&vm, &["iptables", "-t", "nat", "-F", chain]);
    rule(&vm, "iptables-nft", "-A", 8082, TO);
    sink.wait_held(&[&both[..], &["127.0.0.1:8082/tcp"]].concat());
    // And then the container, while a rule for one of its ports stays.
    rule(&vm, "iptables-nft", "-A", 8080, TO);
    rule(&vm, "iptables-nft", "-D", 8082, TO);
    sink.wait_held(&both);
    engine.remove("web");
    sink.wait_held(&["127.0.0.1:8080/tcp"]);
    assert_eq!(withdrawn("8080"), 0, "{:?}", sink.all());
    rule(&vm, "iptables-nft", "-D", 8080, TO);
    sink.wait_held(&[]);
    assert_eq!((withdrawn("8080"), withdrawn("8081")), (1, 1), "{:?}", sink.all());
}

#[test]
#[ignore = "needs root, CNI plugins, iptables, nftables (scripts/deps.sh cni)"]
fn s15_nothing_to_do_starts_no_child() {
    let (vm, sink, tools) = (Vm::new(), Receiver::new(), Tools::new());
    rule(&vm, "iptables-nft", "-A", 8080, TO);
    rule(&vm, "iptables-legacy", "-A", 8081, TO);
    let agent = tools.agent(&vm, &["--sink", &sink.url(), "--nat-interval", "10ms"]);
    sink.wait_held(&["127.0.0.1:8080/tcp", "127.0.0.1:8081/tcp"]);
    // A lock that other tests use, in their own guests, has the older rules read.
    let count = || ["iptables-nft-save", "ip6tables-nft-save", "nft"].map(|name| tools.runs(name).len());
    let before = count();
    wait_looks(&agent, 200);
    for _ in 0..20 {
        guest(&vm, &["iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "1", "-j", "ACCEPT"]);
    }
    // Few enough for the queue of the agent's socket, however late it is read: what is lost may be about any table.
    let many: String = (1..=5_000).map(|port| format!("add rule ip other chain1 tcp dport {port} accept\n")).collect();
    feed(&vm.guest, "nft", &["-f", "-"], &format!("add table ip other\nadd chain ip other chain1\n{many}"));
    guest(&vm, &["nft", "delete", "table", "ip", "other"]);
    wait_looks(&agent, 50);
    assert_eq!(count(), before, "{}", agent.log());
    rule(&vm, "iptables-nft", "-D", 8080, TO);
    sink.wait_held(&["127.0.0.1:8081/tcp"]);
    let after = count();
    assert!(after[0] > before[0], "{}", agent.log());
    assert_eq!(after[1..], before[1..], "the readers of other rules have no reason to read: {}", agent.log());
}

#[test]
#[ignore = "needs root, CNI plugins, iptables, nftables (scripts/deps.sh cni)"]
fn s20_stale_rules_are_flagged_and_withdrawn_with_the_rule() {
    let (vm, sink) = (Vm::new(), Receiver::new());
    let cni = Cni::new(&vm.guest, Variant::Nft);
    let port = |host_port| Port { host_ip: "", host_port, container_port: 80, protocol: "tcp" };
    let (killed, alive) = (cni.add("killed", &[port(8080)]), cni.add("alive", &[port(8081)]));
    // The kernel believes in a neighbour for up to 45 s unless told otherwise.
    let soon = ["name", "arp_cache", "dev", "cni0", "base_reachable", "1000", "delay_probe", "500"];
    guest(&vm, &[&["ip", "ntable", "change"], &soon[..]].concat());
    let agent = Agent::run(Some(&vm.guest), &["-iptables", "--sink", &sink.url()]);
    sink.wait_held(&["127.0.0.1:8080/tcp", "127.0.0.1:8081/tcp"]);
    assert!(!agent.log().contains("stale"), "{}", agent.log());
    killed.abandon();
    agent.wait_log("stale: nothing is left of what it leads to owner=nat:killed");
    sink.wait_held(&["127.0.0.1:8080/tcp", "127.0.0.1:8081/tcp"]);
    let dump = run(cni.iptables("iptables-save").args(["-t", "nat"]));
    let jump = dump.lines().find(|line| line.contains("--dports 8080")).unwrap();
    run(cni.iptables("iptables").args(["-t", "nat", "-F", jump.rsplit(' ').next().unwrap()]));
    sink.wait_held(&["127.0.0.1:8081/tcp"]);
    assert_eq!(agent.log().matches("stale").count(), 1, "not the one that is alive: {}", agent.log());
    alive.delete();
    sink.wait_held(&[]);
}

#[test]
#[ignore = "needs root, CNI plugins, iptables, nftables (scripts/deps.sh cni)"]
fn looking_never_loads_a_table() {
    let (vm, sink, tools) = (Vm::new(), Receiver::new(), Tools::new());
    let agent = tools.agent(&vm, &["--sink", &sink.url(), "--nat-interval", "10ms"]);
    // Its use of the lock is heard in every guest.
    rule(&Vm::new(), "iptables-legacy", "-A", 8080, TO);
    wait_looks(&agent, 100);
    for names in ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"] {
        assert_eq!(guest(&vm, &["cat", names]), "");
    }
    assert_eq!(guest(&vm, &["nft", "list", "tables"]), "");
    assert!(tools.runs("iptables-legacy-save").is_empty() && tools.runs("ip6tables-legacy-save").is_empty());
    rule(&vm, "iptables-legacy", "-A", 8080, TO);
    sink.wait_held(&["127.0.0.1:8080/tcp"]);
    rule(&vm, "iptables-legacy", "-D", 8080, TO);
    sink.wait_held(&[]);
    assert!(tools.runs("ip6tables-legacy-save").is_empty());
    assert_eq!(guest(&vm, &["cat", "/proc/net/ip6_tables_names"]), "");
}

#[test]
#[ignore = "needs root, CNI plugins, iptables, nftables (scripts/deps.sh cni)"]
fn a_busy_tool_is_tried_again_and_named_when_that_lasts() {
    let (vm, sink, tools) = (Vm::new(), Receiver::new(), Tools::new());
    tools.script("iptables-nft-save", "[ ! -e $0.on ] || exit 4");
    rule(&vm, "iptables-nft", "-A", 8080, TO);
    let agent = tools.agent(&vm, &["--sink", &sink.url()]);
    sink.wait_held(&["127.0.0.1:8080/tcp"]);
    let runs = || tools.runs("iptables-nft-save").len();
    tools.switch("iptables-nft-save", true);
    let before = runs();
    rule(&vm, "iptables-nft", "-A", 8081, TO);
    eventually("three more runs", || Some(runs()).filter(|now| *now >= before + 3).ok_or(runs()));
    sink.wait_held(&["127.0.0.1:8080/tcp"]);
    assert!(!agent.log().contains("exit code 4"), "{}", agent.log());
    tools.switch("iptables-nft-save", false);
    sink.wait_held(&["127.0.0.1:8080/tcp", "127.0.0.1:8081/tcp"]);
    tools.switch("iptables-nft-save", true);
    rule(&vm, "iptables-nft", "-D", 8081, TO);
    agent.wait_log("exit code 4");
    sink.wait_held(&["127.0.0.1:8080/tcp", "127.0.0.1:8081/tcp"]);
    tools.switch("iptables-nft-save", false);
    sink.wait_held(&["127.0.0.1:8080/tcp"]);
    eventually("two words of being ready", || {
        Some(()).filter(|()| agent.log().matches("source ready").count() == 2).ok_or(agent.log())
    });
}

#[test]
#[ignore = "needs root, CNI plugins, iptables, nftables (scripts/deps.sh cni)"]
fn cut_output_is_never_taken_for_fewer_ports() {
    let (vm, sink, tools) = (Vm::new(), Receiver::new(), Tools::new());
    let cut =
        format!("[ ! -e $0.on ] || {{ {} \"$@\" | /usr/bin/head -c 250; exit 0; }}", Tools::real("iptables-nft-save"));
    tools.script("iptables-nft-save", &cut);
    rule(&vm, "iptables-nft", "-A", 8080, TO);
    let agent = tools.agent(&vm, &["--sink", &sink.url()]);
    sink.wait_held(&["127.0.0.1:8080/tcp"]);
    tools.switch("iptables-nft-save", true);
    rule(&vm, "iptables-nft", "-A", 8081, TO);
    agent.wait_log("what iptables-nft-save printed");
    // The others go on meanwhile.
    rule(&vm, "ip6tables-nft", "-A", 8082, "[fd00:143::2]:80");
    sink.wait_held(&["127.0.0.1:8080/tcp", "[::1]:8082/tcp"]);
    rule(&vm, "ip6tables-nft", "-D", 8082, "[fd00:143::2]:80");
    sink.wait_held(&["127.0.0.1:8080/tcp"]);
    assert_eq!(agent.log().matches("source ready").count(), 1, "{}", agent.log());
    tools.switch("iptables-nft-save", false);
    sink.wait_held(&["127.0.0.1:8080/tcp", "127.0.0.1:8081/tcp"]);
    eventually("the end of trouble", || {
        Some(()).filter(|()| agent.log().matches("source ready").count() == 2).ok_or(agent.log())
    });
}

#[test]
#[ignore = "needs root, CNI plugins, iptables, nftables (scripts/deps.sh cni)"]
fn a_new_owner_does_not_flap_while_a_tool_fails() {
    let (vm, sink, tools) = (Vm::new(), Receiver::new(), Tools::new());
    tools.script("ip6tables-nft-save", "[ ! -e $0.on ] || exit 1");
    tools.switch("ip6tables-nft-save", true);
    let agent = tools.agent_in_trouble(&vm, &["--sink", &sink.url()]);
    rule(&vm, "iptables-nft", "-A", 8080, TO);
    sink.wait_held(&["127.0.0.1:8080/tcp"]);
    // portmap's last rule has the container's name in it.
    let comment = ["-m", "comment", "--comment", "dnat name: \"x\" id: \"web\"", "-j", "CNI-DN-8080"];
    guest(&vm, &[&["iptables-nft", "-t", "nat", "-A", "PREROUTING"], &comment[..]].concat());
    rule(&vm, "iptables-nft", "-A", 8081, TO);
    sink.wait_held(&["127.0.0.1:8080/tcp", "127.0.0.1:8081/tcp"]);
    assert!(sink.all().iter().all(|received| !received.text.contains("\"remove\":true")), "{:?}", sink.all());
    assert!(!agent.log().contains("source ready"), "{}", agent.log());
    tools.switch("ip6tables-nft-save", false);
    agent.wait_log("source ready");
}

#[test]
#[ignore = "needs root, CNI plugins, iptables, nftables (scripts/deps.sh cni)"]
fn a_hanging_tool_delays_no_other_and_dies_with_the_agent() {
    let (vm, sink, tools) = (Vm::new(), Receiver::new(), Tools::new());
    tools.script("iptables-nft-save", "[ ! -e $0.on ] || exec /bin/sleep 1000");
    let mut agent = tools.agent(&vm, &["--sink", &sink.url()]);
    let hang = |port| {
        let before = tools.runs("iptables-nft-save").len();
        rule(&vm, "iptables-nft", "-A", port, TO);
        eventually("a run", || tools.runs("iptables-nft-save").get(before).copied().ok_or("none"))
    };
    let running = |pid: i32| fs::exists(format!("/proc/{pid}")).unwrap();
    tools.switch("iptables-nft-save", true);
    let pid = hang(8080);
    rule(&vm, "ip6tables-nft", "-A", 8081, "[fd00:143::2]:80");
    sink.wait_held(&["[::1]:8081/tcp"]);
    assert!(running(pid), "it hung all the while");
    // Ended by somebody else, it is tried again. The next one is ended by the agent in time.
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    agent.wait_log("was ended by a signal");
    eventually("the next run", || tools.runs("iptables-nft-save").iter().find(|next| **next > pid).copied().ok_or(()));
    tools.switch("iptables-nft-save", false);
    sink.wait_held(&["[::1]:8081/tcp", "127.0.0.1:8080/tcp"]);
    tools.switch("iptables-nft-save", true);
    let pid = hang(8082);
    agent.process.signal(Signal::SIGKILL);
    agent.process.wait();
    eventually("the end of the tool", || Some(()).filter(|()| !running(pid)).ok_or("runs"));
}

#[test]
#[ignore = "needs root, CNI plugins, iptables, nftables (scripts/deps.sh cni)"]
fn a_missing_tool_is_named_when_it_is_needed() {
    let (vm, sink, dir) = (Vm::new(), Receiver::new(), TempDir::new());
    let hiding = |programs: &[&str]| -> PathBuf {
        let path = dir.join("agent");
        let hide: String = programs.iter().map(|p| format!("mount --bind /dev/null {p} && ")).collect();
        fs::write(&path, format!("#!/bin/sh\nexec unshare -m sh -c '{hide} exec {AGENT} \"$@\"' sh \"$@\"\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let (url, multi) = (sink.url(), ["/usr/sbin/xtables-nft-multi", "/usr/sbin/xtables-legacy-multi"]);
    let args = ["-iptables", "--sink", &url];
    let agent = Agent::run_program(&hiding(&["/usr/sbin/nft"]), Some(&vm.guest), &args, &[]);
    agent.wait_log("source ready");
    rule(&vm, "iptables-nft", "-A", 8080, TO);
    sink.wait_held(&["127.0.0.1:8080/tcp"]);
    assert!(!agent.log().contains("install"), "{}", agent.log());
    feed(
        &vm.guest,
        "nft",
        &["-f", "-"],
        "table ip cni_hostport { chain hostports { tcp dport 1 dnat to 10.0.0.1:1; }; }",
    );
    agent.wait_log("install the package nftables");
    rule(&vm, "iptables-nft", "-A", 8081, TO);
    sink.wait_held(&["127.0.0.1:8080/tcp", "127.0.0.1:8081/tcp"]);
    assert_eq!(agent.log().matches("install").count(), 1, "said once: {}", agent.log());
    assert_eq!(agent.stop(), Some(0));
    let none = [&multi[..], &["/usr/sbin/nft"]].concat();
    let agent = Agent::run_program(&hiding(&none), Some(&vm.guest), &args, &[]);
    agent.wait_log("install iptables or nftables");
}

#[test]
#[ignore = "needs root, CNI plugins, iptables, nftables (scripts/deps.sh cni)"]
fn five_thousand_rules_come_and_go() {
    let (vm, sink, tools) = (Vm::new(), Receiver::new(), Tools::new());
    let agent = tools.agent(&vm, &["--sink", &sink.url()]);
    let mut input = "*nat\n".to_owned();
    for n in 0..100 {
        input.push_str(&format!(":CNI-DN-{n} - [0:0]\n"));
    }
    for n in 0..5_000 {
        let (chain, port) = (n / 50, 20_000 + n);
        input.push_str(&format!("-A CNI-DN-{chain} -p tcp -m tcp --dport {port} -j DNAT --to-destination {TO}\n"));
    }
    feed(&vm.guest, "iptables-nft-restore", &["--noflush"], &format!("{input}COMMIT\n"));
    eventually("5,000 forwards", || Some(()).filter(|()| sink.held().len() == 5_000).ok_or(sink.held().len()));
    guest(&vm, &["iptables-nft", "-t", "nat", "-F"]);
    eventually("their end", || Some(()).filter(|()| sink.held().is_empty()).ok_or(sink.held().len()));
    assert!(tools.count() < 40, "{}: reading follows writing, not each rule", tools.count());
    assert!(!agent.log().contains("trying on"), "{}", agent.log());
}

#[test]
#[ignore = "needs root, CNI plugins, iptables, nftables (scripts/deps.sh cni)"]
fn a_tool_that_is_killed_again_and_again_does_not_end_the_source() {
    let (vm, sink, tools) = (Vm::new(), Receiver::new(), Tools::new());
    tools.script("iptables-nft-save", "[ ! -e $0.on ] || kill -9 $$");
    let agent = tools.agent(&vm, &["--sink", &sink.url()]);
    tools.switch("iptables-nft-save", true);
    rule(&vm, "iptables-nft", "-A", 8080, TO);
    let runs = || tools.runs("iptables-nft-save").len();
    eventually("runs", || Some(()).filter(|()| runs() >= 5).ok_or(runs()));
    tools.switch("iptables-nft-save", false);
    sink.wait_held(&["127.0.0.1:8080/tcp"]);
    assert_eq!(agent.log().matches("source in trouble").count(), 1, "said once: {}", agent.log());
}

#[test]
#[ignore = "needs root, CNI plugins, iptables, nftables (scripts/deps.sh cni)"]
fn s20_what_comes_back_is_not_stale_any_more() {
    let (vm, sink) = (Vm::new(), Receiver::new());
    guest(&vm, &["ip", "route", "add", "unreachable", "10.9.9.9"]);
    rule(&vm, "iptables-nft", "-A", 8080, "10.9.9.9:80");
    let agent = Agent::run(Some(&vm.guest), &["-iptables", "--sink", &sink.url()]);
    agent.wait_log("stale: nothing is left of what it leads to owner=nat:CNI-DN-8080");
    sink.wait_held(&["127.0.0.1:8080/tcp"]);
    guest(&vm, &["ip", "route", "del", "unreachable", "10.9.9.9"]);
    guest(&vm, &["ip", "addr", "add", "10.9.9.9/32", "dev", "lo"]);
    // Long before the next look at what is gone: some link goes.
    guest(&vm, &["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"]);
    guest(&vm, &["ip", "link", "del", "v0"]);
    agent.wait_log("not stale any more owner=nat:CNI-DN-8080");
    assert_eq!(agent.log().matches("stale").count(), 2, "{}", agent.log());
    sink.wait_held(&["127.0.0.1:8080/tcp"]);
}

#[test]
#[ignore = "needs root, CNI plugins, iptables, nftables (scripts/deps.sh cni)"]
fn what_refuses_is_not_stale_and_no_question_gets_past_a_router() {
    let (vm, sink) = (Vm::new(), Receiver::new());
    let cni = Cni::new_dual(&vm.guest, Variant::Nft);
    let web = cni.add("web", &[]);
    run(web.command("sysctl").args(["-q", "-w", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"]));
    let rejects = [("iptables-nft", "icmp-host-prohibited"), ("ip6tables-nft", "icmp6-addr-unreachable")];
    for ((tool, reject), ip) in rejects.into_iter().zip(&web.ips) {
        run(web.command(tool).args(["-A", "INPUT", "-p", "tcp", "-j", "REJECT", "--reject-with", reject]));
        let connected = vm.guest.enter(|| TcpStream::connect((*ip, 9)));
        assert_eq!(connected.unwrap_err().kind(), ErrorKind::HostUnreachable, "as one that is gone");
    }
    // The host routes to a third network, on which somebody has that address and says nothing.
    for args in
        ["link add d0 type veth peer d1", "addr add fd00:77::1/64 dev d0 nodad", "link set d0 up", "link set d1 up"]
    {
        run(vm.host.command("ip").args(args.split(' ')));
    }
    let neighbour = "neigh add fd00:77::5 lladdr 02:00:00:00:00:05 dev d0 nud permanent";
    run(vm.host.command("ip").args(neighbour.split(' ')));
    run(vm.host.command("sysctl").args(["-q", "-w", "net.ipv6.conf.all.forwarding=1"]));
    let agent = Agent::run(Some(&vm.guest), &["-iptables", "--sink", &sink.url()]);
    rule(&vm, "iptables-nft", "-A", 8080, &format!("{}:80", web.ips[0]));
    rule(&vm, "ip6tables-nft", "-A", 8081, &format!("[{}]:80", web.ips[1]));
    // Time for the two to be asked.
    agent.wait_log("[::1]:8081/tcp");
    rule(&vm, "ip6tables-nft", "-A", 8082, "[fd00:77::5]:80");
    agent.wait_log("stale: nothing is left of what it leads to owner=nat:CNI-DN-8082");
    sink.wait_held(&["127.0.0.1:8080/tcp", "[::1]:8081/tcp", "[::1]:8082/tcp"]);
    assert_eq!(agent.log().matches("stale").count(), 1, "{}", agent.log());
}

#[test]
#[ignore = "needs root, CNI plugins, iptables, nftables (scripts/deps.sh cni)"]
fn a_table_that_iptables_cannot_print_is_named_and_read_again_when_it_changes() {
    let (vm, sink, tools) = (Vm::new(), Receiver::new(), Tools::new());
    let agent = tools.agent(&vm, &["--sink", &sink.url()]);
    rule(&vm, "iptables-nft", "-A", 8080, TO);
    sink.wait_held(&["127.0.0.1:8080/tcp"]);
    guest(&vm, &["nft", "add chain ip nat mine; add rule ip nat mine tcp dport 90 dnat to 10.4.0.9"]);
    agent.wait_log("table nat is not iptables' alone");
    // The kernel tells of one change in several messages, which may come while it is read already.
    wait_looks(&agent, 4);
    let runs = || tools.runs("iptables-nft-save").len();
    let before = runs();
    // What fails otherwise is tried again meanwhile, after a tenth of a second.
    tools.script("ip6tables-nft-save", "exit 1");
    rule(&vm, "ip6tables-nft", "-A", 8081, "[fd00:143::2]:80");
    eventually("runs", || Some(()).filter(|()| tools.runs("ip6tables-nft-save").len() > 4).ok_or("not yet"));
    assert_eq!(runs(), before, "it would be the same");
    sink.wait_held(&["127.0.0.1:8080/tcp"]);
    guest(&vm, &["nft", "flush chain ip nat mine; delete chain ip nat mine"]);
    rule(&vm, "iptables-nft", "-A", 8082, TO);
    sink.wait_held(&["127.0.0.1:8080/tcp", "127.0.0.1:8082/tcp"]);
}
