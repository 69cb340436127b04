//! The agent against a real containerd, driven by `ctr` with nerdctl's labels and real CNI plugins, in a guest that is a
//! network namespace. Each test has its own namespaces and its own containerd.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use support::agent::Agent;
use support::cni::{Attachment, Cni, Port, Variant};
use support::containerd::{Containerd, ports_label};
use support::receiver::Receiver;
use support::vm::{HOST, Vm};
use support::{TempDir, eventually, run, within};

/// A guest with containerd and the agent, and a receiver of its documents.
struct World {
    agent: Agent,
    receiver: Receiver,
    containerd: Containerd,
    vm: Vm,
}

const SLEEP: [&str; 3] = ["/busybox", "sleep", "1000"];

impl World {
    fn new() -> World {
        let vm = Vm::new();
        let containerd = Containerd::start(&vm.guest);
        let world = World::around(vm, containerd, Receiver::new());
        world.agent.wait_log("source ready");
        world
    }

    /// With an agent for what there is already.
    fn around(vm: Vm, containerd: Containerd, receiver: Receiver) -> World {
        let agent = start(&vm, &containerd, &["--sink", &receiver.url()]);
        World { agent, receiver, containerd, vm }
    }

    /// A container in the namespace `default` that publishes these TCP ports.
    fn publish(&self, id: &str, ports: &[u16]) {
        publish(&self.containerd, "default", id, ports);
    }

    fn wait_held(&self, ports: &[u16]) {
        let mut expect: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}/tcp")).collect();
        expect.sort();
        eventually(&format!("{expect:?}"), || match self.receiver.held() {
            held if held == expect => Ok(()),
            held => Err((held, self.agent.log())),
        });
    }

    /// Children of the agent.
    fn children(&self) -> Vec<i32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.agent.pid())).unwrap();
        let of = |task: std::io::Result<fs::DirEntry>| fs::read_to_string(task.ok()?.path().join("children")).ok();
        let all: String = tasks.filter_map(of).collect();
        all.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }

    fn events_child(&self) -> i32 {
        eventually("one child", || match self.children()[..] {
            [child] => Ok(child),
            ref others => Err(others.to_vec()),
        })
    }
}

fn start(vm: &Vm, containerd: &Containerd, more: &[&str]) -> Agent {
    let socket = containerd.socket().display().to_string();
    let args = ["-containerd", "-containerdSock", &socket, "--engine-grace", "60s"];
    Agent::run(Some(&vm.guest), &[&args[..], more].concat())
}

fn publish(containerd: &Containerd, ns: &str, id: &str, ports: &[u16]) {
    let ports: Vec<_> = ports.iter().map(|port| ("0.0.0.0", *port, 80, "tcp")).collect();
    containerd.run(ns, id, &[("nerdctl/ports", &ports_label(&ports))], None, &SLEEP);
}

/// A web server whose ports are published as nerdctl does it: recorded, and led to it by CNI's rules.
fn web(containerd: &Containerd, cni: &Cni, id: &str, ports: &[(&str, u16)]) -> Attachment {
    let mapped: Vec<Port> = ports
        .iter()
        .map(|(host_ip, host_port)| Port { host_ip, host_port: *host_port, container_port: 80, protocol: "tcp" })
        .collect();
    let attachment = cni.add(&format!("default-{id}"), &mapped);
    let recorded: Vec<_> = ports.iter().map(|(ip, port)| (*ip, *port, 80, "tcp")).collect();
    containerd.web("default", id, &[("nerdctl/ports", &ports_label(&recorded))], Some(&attachment.netns));
    attachment
}

fn loopback_publish_without_a_rule(variant: Variant) {
    let (vm, dir) = (Vm::new(), TempDir::new());
    let containerd = Containerd::start(&vm.guest);
    let cni = Cni::new(&vm.guest, variant);
    let _web = web(&containerd, &cni, "web", &[("127.0.0.1", 8080), ("0.0.0.0", 8081)]);
    let rules = || {
        let rules = run(&mut cni.iptables("iptables-save"));
        rules.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = rules();
    assert!(before.iter().any(|rule| rule.contains("8080")), "{before:#?}");
    let url = format!("unix://{}", dir.join("host").display());
    let _host = Agent::host(Some(&vm.host), &["--listen", &url]);
    let agent = start(&vm, &containerd, &["--sink", &url]);
    vm.wait_200("127.0.0.1:8080", &agent);
    vm.wait_200("127.0.0.1:8081", &agent);
    assert_eq!(rules(), before, "the agent has rules of its own");
    containerd.remove("default", "web");
    vm.wait_refused("127.0.0.1:8080");
    vm.wait_refused("127.0.0.1:8081");
    assert_eq!(agent.stop(), Some(0));
}

#[test]
#[ignore = "needs root, containerd, CNI (scripts/deps.sh containerd cni)"]
fn s01_loopback_publish_reaches_the_host_without_a_nat_rule() {
    loopback_publish_without_a_rule(Variant::Nft);
}

#[test]
#[ignore = "needs root, containerd, CNI (scripts/deps.sh containerd cni)"]
fn s01_loopback_publish_with_legacy_iptables() {
    loopback_publish_without_a_rule(Variant::Legacy);
}

#[test]
#[ignore = "needs root, containerd, CNI (scripts/deps.sh containerd cni)"]
fn s02_containerd_restart_loses_and_leaves_nothing() {
    let mut world = World::new();
    world.publish("keep", &[8080]);
    world.publish("lose", &[8081]);
    world.wait_held(&[8080, 8081]);
    let tasks = run(world.containerd.ctr("default").args(["task", "ls"]));
    let lose = tasks.lines().find(|line| line.starts_with("lose")).unwrap();
    let lose: i32 = lose.split_whitespace().nth(1).unwrap().parse().unwrap();
    let pid = world.agent.pid();
    world.containerd.halt();
    world.agent.wait_log("source lost");
    kill(Pid::from_raw(lose), Signal::SIGKILL).unwrap();
    world.containerd.launch();
    world.wait_held(&[8080]);
    world.publish("new", &[8082]);
    world.wait_held(&[8080, 8082]);
    assert!(world.agent.process.is_running() && world.agent.pid() == pid);
    let log = world.agent.log();
    assert!(log.contains("withdrawn binding=127.0.0.1:8081/tcp"), "{log}");
    assert!(!log.contains("withdrawn binding=127.0.0.1:8080/tcp"), "it flapped: {log}");
}

#[test]
#[ignore = "needs root, containerd, CNI (scripts/deps.sh containerd cni)"]
fn s02_a_killed_ctr_comes_back() {
    let world = World::new();
    world.publish("keep", &[8080]);
    world.wait_held(&[8080]);
    let child = world.events_child();
    kill(Pid::from_raw(child), Signal::SIGKILL).unwrap();
    world.agent.wait_log("source lost");
    world.publish("new", &[8081]);
    world.containerd.remove("default", "keep");
    world.wait_held(&[8081]);
    assert_ne!(world.events_child(), child);
}

#[test]
#[ignore = "needs root, containerd, CNI (scripts/deps.sh containerd cni)"]
fn s04_force_removed_container_is_withdrawn() {
    let world = World::new();
    for round in 0..5 {
        world.publish("web", &[8080]);
        world.wait_held(&[8080]);
        run(world.containerd.ctr("default").args(["task", "rm", "-f", "web"]));
        run(world.containerd.ctr("default").args(["container", "rm", "web"]));
        world.wait_held(&[]);
        assert!(!world.agent.log().contains("WARN"), "round {round}: {}", world.agent.log());
    }
    // Killed, and neither task nor container removed.
    world.publish("web", &[8080]);
    world.wait_held(&[8080]);
    world.containerd.kill("default", "web");
    world.wait_held(&[]);
}

#[test]
#[ignore = "needs root, containerd, CNI (scripts/deps.sh containerd cni)"]
fn s05_exec_exit_keeps_ports() {
    let world = World::new();
    world.publish("web", &[8080]);
    world.wait_held(&[8080]);
    world.containerd.exec("default", "web", &["/busybox", "true"]);
    // Events come in order: the exit has been read when this has.
    world.publish("after", &[8081]);
    world.wait_held(&[8080, 8081]);
    assert!(!world.agent.log().contains("withdrawn"), "{}", world.agent.log());
}

#[test]
#[ignore = "needs root, containerd, CNI (scripts/deps.sh containerd cni)"]
fn s08_container_that_started_before_agent_and_sink_arrives() {
    let vm = Vm::new();
    let containerd = Containerd::start(&vm.guest);
    publish(&containerd, "default", "before", &[8080]);
    let receiver = Receiver::absent();
    let world = World::around(vm, containerd, receiver);
    world.publish("after", &[8081]);
    run(world.containerd.ctr("default").args(["task", "pause", "before"]));
    world.agent.wait_log("sink unreachable");
    world.receiver.listen();
    world.wait_held(&[8080, 8081]);
    // A paused container keeps its ports, also for an agent that finds it so.
    let World { agent, receiver, containerd, vm } = world;
    agent.stop();
    receiver.forget();
    let world = World::around(vm, containerd, receiver);
    world.wait_held(&[8080, 8081]);
    run(world.containerd.ctr("default").args(["task", "resume", "before"]));
}

#[test]
#[ignore = "needs root, containerd, CNI (scripts/deps.sh containerd cni)"]
fn s10_udp_publish_makes_no_tcp_forward() {
    let world = World::new();
    let label = ports_label(&[("0.0.0.0", 1234, 1234, "udp")]);
    world.containerd.run("default", "udp", &[("nerdctl/ports", &label)], None, &SLEEP);
    world.receiver.wait_held(&["127.0.0.1:1234/udp"]);
    world.containerd.remove("default", "udp");
    world.receiver.wait_held(&[]);
    assert_eq!(world.receiver.all().len(), 2);
}

#[test]
#[ignore = "needs root, containerd, CNI (scripts/deps.sh containerd cni)"]
fn s12_loopback_publish_stays_on_the_hosts_loopback() {
    let (vm, dir) = (Vm::new(), TempDir::new());
    let containerd = Containerd::start(&vm.guest);
    let cni = Cni::new(&vm.guest, Variant::Nft);
    let url = format!("unix://{}", dir.join("host").display());
    // Even where everything else may be bound everywhere.
    let all = ["--allow", "0.0.0.0/0:1-65535", "--allow", "[::/0]:1-65535"];
    let _host = Agent::host(Some(&vm.host), &[&["--listen", &url][..], &all].concat());
    let agent = start(&vm, &containerd, &["--sink", &url, "-adminInstall"]);
    let _web = web(&containerd, &cni, "web", &[("127.0.0.1", 8000), ("0.0.0.0", 8001)]);
    vm.wait_200("127.0.0.1:8000", &agent);
    vm.wait_200("127.0.0.1:8001", &agent);
    vm.wait_200(&format!("{HOST}:8001"), &agent);
    vm.wait_refused(&format!("{HOST}:8000"));
}

#[test]
#[ignore = "needs root, containerd, CNI (scripts/deps.sh containerd cni)"]
fn s21_churn_in_other_namespaces_is_no_trouble() {
    let world = World::new();
    world.publish("web", &[8080]);
    world.wait_held(&[8080]);
    for round in 0..5 {
        // Gone before anybody can look, as CRI's pods and BuildKit's steps are.
        for ns in ["k8s.io", "buildkit", "moby"] {
            world.containerd.import_into(ns);
            let id = format!("c{round}");
            let image = support::containerd::IMAGE;
            run(world.containerd.ctr(ns).args(["run", "--rm", "--null-io", image, &id, "/busybox", "true"]));
        }
    }
    for (ns, port) in [("buildkit", 8090), ("moby", 8091)] {
        publish(&world.containerd, ns, "labelled", &[port]);
    }
    world.containerd.run("k8s.io", "pod", &[("io.kubernetes.pod.name", "p")], None, &SLEEP);
    // nerdctl works in k8s.io too. And once more with all of them there.
    publish(&world.containerd, "k8s.io", "nerdctls", &[8092]);
    world.wait_held(&[8080, 8092]);
    kill(Pid::from_raw(world.events_child()), Signal::SIGKILL).unwrap();
    world.agent.wait_log("source lost");
    eventually("ready again", || match world.agent.log().matches("source ready").count() {
        2 => Ok(()),
        n => Err(n),
    });
    world.wait_held(&[8080, 8092]);
    let log = world.agent.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("source lost"), "{warnings:#?}");
}

#[test]
#[ignore = "needs root, containerd, CNI (scripts/deps.sh containerd cni)"]
fn s26_5000_ports_and_200_containers() {
    const FIRST: u16 = 20_000;
    let (vm, state) = (Vm::new(), TempDir::new());
    let containerd = Containerd::start(&vm.guest);
    let ids: Vec<String> = (0..200).map(|n| format!("c{n}")).collect();
    let side_by_side = |work: &(dyn Fn(usize, &str) + Sync)| {
        std::thread::scope(|scope| {
            for lane in 0..4 {
                let ids = ids.iter().enumerate().filter(move |(n, _)| n % 4 == lane);
                scope.spawn(move || ids.for_each(|(n, id)| work(n, id)));
            }
        });
    };
    side_by_side(&|n, id| publish(&containerd, "default", id, &[10_000 + u16::try_from(n).unwrap()]));
    record(state.path(), FIRST..FIRST + 5000);
    run_recorded(&containerd, "many", state.path());
    let begun = Instant::now();
    let world = World::around(vm, containerd, Receiver::new());
    let wait_count = |count: usize| {
        eventually(&format!("{count} forwards"), || match world.receiver.held().len() {
            n if n == count => Ok(()),
            n => Err(n),
        });
    };
    wait_count(5200);
    println!("{:?} until the host had 5,200 forwards", begun.elapsed());
    let removed = Instant::now();
    world.containerd.remove("default", "many");
    wait_count(200);
    println!("{:?} until it had 200", removed.elapsed());
    // And by events.
    run_recorded(&world.containerd, "many", state.path());
    wait_count(5200);
    side_by_side(&|_, id| world.containerd.remove("default", id));
    world.containerd.remove("default", "many");
    wait_count(0);
    assert!(world.agent.log().lines().count() < 2000, "{} lines of log", world.agent.log().lines().count());
    assert!(support::status_kb(world.agent.pid(), "VmHWM:") < 60_000);
}

/// Writes the record of ports of a nerdctl from 2.1.3.
fn record(dir: &Path, ports: std::ops::Range<u16>) {
    let entry = |port| json!({"HostPort": port, "ContainerPort": port, "Protocol": "tcp", "HostIP": "0.0.0.0"});
    let config = json!({"portMappings": ports.map(entry).collect::<Vec<_>>()});
    fs::write(dir.join("network-config.json"), config.to_string()).unwrap();
}

fn run_recorded(containerd: &Containerd, id: &str, dir: &Path) {
    containerd.run("default", id, &[("nerdctl/state-dir", dir.to_str().unwrap())], None, &SLEEP);
}

#[test]
#[ignore = "needs root, containerd, CNI (scripts/deps.sh containerd cni)"]
fn the_record_of_newer_nerdctl_is_read() {
    let (world, dir) = (World::new(), TempDir::new());
    record(dir.path(), 8080..8082);
    run_recorded(&world.containerd, "web", dir.path());
    world.wait_held(&[8080, 8081]);
    // A record that is gone matters no more than one that changed: the container's end counts.
    drop(dir);
    world.containerd.remove("default", "web");
    world.wait_held(&[]);
    assert!(!world.agent.log().contains("WARN"), "{}", world.agent.log());
}

#[test]
#[ignore = "needs root, containerd, CNI (scripts/deps.sh containerd cni)"]
fn an_update_replaces() {
    let world = World::new();
    world.publish("web", &[8080, 8081]);
    world.wait_held(&[8080, 8081]);
    let relabel = |ports: &[(&str, u16, u16, &str)]| {
        let label = format!("nerdctl/ports={}", ports_label(ports));
        run(world.containerd.ctr("default").args(["container", "label", "web", &label]));
    };
    relabel(&[("0.0.0.0", 8081, 80, "tcp"), ("0.0.0.0", 8082, 80, "tcp")]);
    world.wait_held(&[8081, 8082]);
    let log = world.agent.log();
    assert!(log.contains("withdrawn binding=127.0.0.1:8080/tcp"), "{log}");
    assert!(!log.contains("withdrawn binding=127.0.0.1:8081/tcp"), "it flapped: {log}");
    relabel(&[]);
    world.wait_held(&[]);
    relabel(&[("0.0.0.0", 8083, 80, "tcp")]);
    world.wait_held(&[8083]);
}

#[test]
#[ignore = "needs root, containerd, CNI (scripts/deps.sh containerd cni)"]
fn evil_state_directories_are_named_and_not_read() {
    let (world, dir) = (World::new(), TempDir::new());
    let file = |name: &str| dir.join(name).join("network-config.json");
    let names = ["link", "fifo", "device", "directory", "huge", "text"];
    names.iter().for_each(|name| fs::create_dir(dir.join(name)).unwrap());
    symlink("/etc/shadow", file("link")).unwrap();
    nix::unistd::mkfifo(&file("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    run(Command::new("mknod").arg(file("device")).args(["c", "1", "5"]));
    fs::create_dir(file("directory")).unwrap();
    fs::File::create(file("huge")).unwrap().set_len(100 << 20).unwrap();
    symlink(dir.join("text"), dir.join("linked")).unwrap();
    fs::write(file("text"), "root:hunter2:").unwrap();
    for name in names.iter().chain(&["linked", "missing"]) {
        run_recorded(&world.containerd, name, &dir.join(name));
    }
    run_recorded(&world.containerd, "relative", Path::new("../../etc"));
    run_recorded(&world.containerd, "dots", Path::new("/tmp/../etc"));
    world.containerd.run("default", "label", &[("nerdctl/ports", "nonsense")], None, &SLEEP);
    world.publish("web", &[8080]);
    world.wait_held(&[8080]);
    for name in names.iter().chain(&["linked", "relative", "dots", "label"]) {
        world.agent.wait_log(&format!("default/{name}: "));
    }
    let log = world.agent.log();
    for reason in ["is not a regular file", "is larger than 1048576 bytes", "an absolute path without . and .."] {
        assert!(log.contains(reason), "{reason}: {log}");
    }
    assert!(!log.contains("hunter2") && !log.contains("default/missing"), "{log}");
    assert_eq!(log.matches("skipped input").count(), names.len() + 4, "{log}");
    assert_eq!(world.agent.stop(), Some(0));
}

#[test]
#[ignore = "needs root, containerd, CNI (scripts/deps.sh containerd cni)"]
fn the_agents_end_leaves_no_ctr() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let world = World::new();
        let child = Path::new("/proc").join(world.events_child().to_string());
        world.agent.process.signal(signal);
        let World { mut agent, .. } = world;
        agent.process.wait();
        within(Duration::from_secs(5), "the end of ctr", || if child.exists() { Err(signal) } else { Ok(()) });
    }
}

#[test]
#[ignore = "needs root, containerd, CNI (scripts/deps.sh containerd cni)"]
fn a_container_restarted_at_once_keeps_its_ports() {
    let world = World::new();
    world.publish("web", &[8080]);
    world.wait_held(&[8080]);
    for _ in 0..5 {
        world.containerd.kill("default", "web");
        run(world.containerd.ctr("default").args(["task", "rm", "web"]));
        run(world.containerd.ctr("default").args(["task", "start", "-d", "--null-io", "web"]));
    }
    world.wait_held(&[8080]);
    world.containerd.remove("default", "web");
    world.wait_held(&[]);
}
