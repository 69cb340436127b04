//! The agent as a process between an engine made of paper and a receiver of documents: everything that the real
//! engine cannot be made to do at will. Runs for anyone.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rancher_desktop_agent::event::{EVENTS_MAX, Event};
use rancher_desktop_agent::queue;
use rancher_desktop_agent::source::docker;
use rancher_desktop_agent::stop::Stop;
use rancher_desktop_agent::supervisor::Context;
use support::agent::Agent;
use support::engine_stub::{EngineStub, id, name, ports};
use support::receiver::Receiver;
use support::{DEADLINE, Process, TempDir, descriptors, eventually, status_kb, within};

/// The connect interface is the loopback one, so that the documents are the same everywhere.
const CONNECT: &str =
    r#""connectAddrs":[{"network":"ip+net","addr":"127.0.0.1/8"},{"network":"ip+net","addr":"::1/128"}]}"#;

fn start(engine: &EngineStub, receiver: &Receiver, more: &[&str]) -> Agent {
    let url = receiver.url();
    let mut args = vec!["--sink", &url, "-adminInstall", "--connect-interface", "lo"];
    args.extend(more);
    Agent::start(None, &engine.socket(), &args)
}

fn setup(more: &[&str]) -> (EngineStub, Receiver, Agent) {
    let (engine, receiver) = (EngineStub::new(), Receiver::new());
    let agent = start(&engine, &receiver, more);
    engine.wait_subscriptions(1);
    agent.wait_log("source ready");
    (engine, receiver, agent)
}

#[test]
fn documents_are_what_go_writes() {
    let (engine, receiver, agent) = setup(&[]);
    let all = ports(&[
        ("80/tcp", "0.0.0.0", "8080"),
        ("80/tcp", "::", "8080"),
        ("443/tcp", "127.0.0.1", "8443"),
        ("53/udp", "0.0.0.0", "5353"),
    ]);
    engine.start(&id(1), all);
    receiver.wait_held(&["0.0.0.0:8080/tcp", "[::]:8080/tcp", "127.0.0.1:8443/tcp", "0.0.0.0:5353/udp"]);
    engine.end(&id(1));
    receiver.wait_held(&[]);
    let ports = r#""ports":{"443/tcp":[{"HostIp":"127.0.0.1","HostPort":"8443"}],"53/udp":[{"HostIp":"0.0.0.0","HostPort":"5353"}],"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"},{"HostIp":"::","HostPort":"8080"}]}"#;
    let texts: Vec<String> = receiver.all().into_iter().map(|d| d.text).collect();
    assert_eq!(texts, [false, true].map(|remove| format!("{{\"remove\":{remove},{ports},{CONNECT}\n")));
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn one_document_for_an_owners_change() {
    let (engine, receiver, _agent) = setup(&[]);
    engine.start(&id(1), ports(&[("1/tcp", "0.0.0.0", "1001"), ("2/tcp", "0.0.0.0", "1002"), ("3/udp", "::", "1003")]));
    receiver.wait_held(&["0.0.0.0:1001/tcp", "0.0.0.0:1002/tcp", "[::]:1003/udp"]);
    assert_eq!(receiver.all().len(), 1);
    engine.end(&id(1));
    receiver.wait_held(&[]);
    assert_eq!(receiver.all().len(), 2);
}

#[test]
fn s02_engine_restart_keeps_then_compares() {
    let (engine, receiver, mut agent) = setup(&[]);
    let port = |n: &'static str| ports(&[("80/tcp", "0.0.0.0", n)]);
    for (n, p) in (0..).zip(["8001", "8002"]) {
        engine.start(&id(n), port(p));
    }
    receiver.wait_held(&["0.0.0.0:8001/tcp", "0.0.0.0:8002/tcp"]);
    engine.down(true);
    engine.hang_up();
    agent.wait_log("down down");
    assert_eq!(receiver.held().len(), 2, "kept for the grace time");
    engine.forget(&id(1));
    engine.add(&id(2), port("8003"));
    engine.down(false);
    receiver.wait_held(&["0.0.0.0:8001/tcp", "0.0.0.0:8003/tcp"]);
    let about_8001 = receiver.all().iter().filter(|d| d.text.contains("8001")).count();
    assert_eq!(about_8001, 1, "what stayed did not flap");
    assert!(agent.process.is_running());
}

#[test]
fn s02_engine_that_stays_away_is_withdrawn_after_the_grace_time() {
    let (engine, receiver, _agent) = setup(&["--engine-grace", "300ms"]);
    engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8001")]));
    receiver.wait_held(&["0.0.0.0:8001/tcp"]);
    engine.down(true);
    engine.hang_up();
    receiver.wait_held(&[]);
    engine.down(false);
    receiver.wait_held(&["0.0.0.0:8001/tcp"]);
}

#[test]
fn s03_log_stays_bounded_over_10000_events() {
    let (engine, receiver, agent) = setup(&[]);
    for n in 0..5_000 {
        engine.start(&id(n), ports(&[("80/tcp", "0.0.0.0", &format!("{}", 10_000 + n))]));
        engine.end(&id(n));
    }
    engine.start(&id(9_999), ports(&[("80/tcp", "0.0.0.0", "80")]));
    receiver.wait_held(&["0.0.0.0:80/tcp"]);
    let log = agent.log();
    assert!(log.lines().count() < 300 && log.len() < 64 * 1024, "{} lines, {} bytes", log.lines().count(), log.len());
}

/// What is kept of those that are gone, such as the names of the last thousand, has a limit.
#[test]
fn s26_memory_is_flat_over_thousands_of_containers() {
    let (engine, receiver, agent) = setup(&[]);
    let mut number = 0;
    let mut rss_after = |containers: u32| {
        for _ in 0..containers {
            number += 1;
            engine.start(&id(number), ports(&[("80/tcp", "0.0.0.0", &format!("{}", 10_000 + number))]));
            engine.end(&id(number));
        }
        engine.start(&id(99_999), ports(&[("80/tcp", "0.0.0.0", "80")]));
        receiver.wait_held(&["0.0.0.0:80/tcp"]);
        engine.end(&id(99_999));
        receiver.wait_held(&[]);
        receiver.forget();
        status_kb(agent.pid(), "VmRSS:")
    };
    let (before, after) = (rss_after(2_000), rss_after(6_000));
    assert!(after <= before + 400, "{before} KiB after 2,000 containers, {after} after 6,000 more");
}

#[test]
fn s03_repeated_failures_are_one_line() {
    let (engine, receiver) = (EngineStub::new(), Receiver::absent());
    let agent = start(&engine, &receiver, &[]);
    engine.wait_subscriptions(1);
    for n in 0..50 {
        engine.start(&id(n), ports(&[("80/tcp", "0.0.0.0", &format!("{}", 10_000 + n))]));
    }
    agent.wait_log("sink unreachable");
    // Long enough for several attempts: 100, 200, 400 and 800 ms apart.
    std::thread::sleep(Duration::from_millis(1600));
    assert_eq!(agent.log().matches("unreachable").count(), 1, "{}", agent.log());
}

#[test]
fn json_lines_have_the_details_as_fields_and_levels_leave_out_the_rest() {
    let (engine, receiver, agent) = setup(&["--log-format", "json"]);
    engine.start(&id(1), ports(&[("80/tcp", "192.0.2.1", "8001")]));
    receiver.wait_held(&["127.0.0.1:8001/tcp"]);
    // The relay says so, too.
    agent.wait_log(&format!(
        "\"binding\":\"127.0.0.1:8001/tcp\",\"owner\":\"docker:000000000000\",\"sink\":\"{}\"}}",
        receiver.url()
    ));
    let log = agent.log();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = |message: &str| lines.iter().find(|line| line["message"] == message).unwrap_or_else(|| panic!("{log}"));
    assert!(line("started")["configuration"].as_str().unwrap().contains("exposure=as-published"), "{log}");
    let forwarding = lines.iter().find(|line| line["sink"] == receiver.url().as_str()).unwrap();
    assert_eq!((&forwarding["level"], &forwarding["message"]), (&"INFO".into(), &"forwarding".into()));
    let narrowed = line("exposed on the host's loopback only");
    assert_eq!((&narrowed["level"], &narrowed["published"]), (&"WARN".into(), &"192.0.2.1:8001/tcp".into()));
    assert_eq!(agent.stop(), Some(0));

    let mut command = Command::new(env!("CARGO_BIN_EXE_rancher-desktop-guestagent"));
    command.args(["-docker", "-adminInstall", "--connect-interface", "lo", "--sink", &receiver.url()]);
    command.args(["--log-level", "warn", "--control-socket", ""]);
    command.env("DOCKER_HOST", format!("unix://{}", engine.socket().display()));
    let mut agent = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()));
    receiver.wait_held(&["127.0.0.1:8001/tcp"]);
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait(), Some(0));
    let mut log = String::new();
    agent.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("WARN") && !log.contains("INFO"), "{log}");
}

#[test]
fn s04_removal_never_asks_the_engine() {
    let (engine, receiver, _agent) = setup(&[]);
    engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8001")]));
    receiver.wait_held(&["0.0.0.0:8001/tcp"]);
    let asked = || engine.requests().iter().filter(|request| request.contains(&id(1))).count();
    assert_eq!(asked(), 1);
    engine.end(&id(1));
    receiver.wait_held(&[]);
    assert_eq!(asked(), 1, "{:?}", engine.requests());
    // Gone before it could be looked at: inspect answers 404.
    engine.event("container", "start", &id(2));
    engine.start(&id(3), ports(&[("80/tcp", "0.0.0.0", "8003")]));
    receiver.wait_held(&["0.0.0.0:8003/tcp"]);
}

#[test]
fn s08_sink_that_comes_up_later_gets_everything() {
    let (engine, receiver) = (EngineStub::new(), Receiver::absent());
    engine.add(&id(1), ports(&[("80/tcp", "0.0.0.0", "8001")]));
    let agent = start(&engine, &receiver, &[]);
    agent.wait_log("sink unreachable");
    engine.start(&id(2), ports(&[("80/tcp", "0.0.0.0", "8002")]));
    receiver.listen();
    receiver.wait_held(&["0.0.0.0:8001/tcp", "0.0.0.0:8002/tcp"]);
    agent.wait_log("sink reachable");
}

#[test]
fn s08_restarted_sink_is_told_again() {
    let (engine, receiver, agent) = setup(&[]);
    engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8001")]));
    receiver.wait_held(&["0.0.0.0:8001/tcp"]);
    receiver.close();
    engine.start(&id(2), ports(&[("80/tcp", "0.0.0.0", "8002")]));
    agent.wait_log("sink unreachable");
    receiver.forget();
    receiver.listen();
    receiver.wait_held(&["0.0.0.0:8001/tcp", "0.0.0.0:8002/tcp"]);
}

#[test]
fn s08_peer_that_took_connections_while_its_host_restarted_is_told_again() {
    let engine = EngineStub::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    let (down, (sender, documents)) = (Arc::new(AtomicBool::new(false)), std::sync::mpsc::channel());
    let is_down = down.clone();
    // As vtunnel's peer does: it always accepts, and drops the connection when the host is not there.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut text = String::new();
            if is_down.load(Ordering::SeqCst) {
                let _ = stream.peek(&mut [0]);
            } else if stream.read_to_string(&mut text).is_ok() {
                let _ = sender.send(text);
            }
        }
    });
    engine.add(&id(1), ports(&[("80/tcp", "0.0.0.0", "8001")]));
    let args = ["--sink", &url, "-adminInstall", "--connect-interface", "lo"];
    let agent = Agent::start(None, &engine.socket(), &args);
    let next = || documents.recv_timeout(DEADLINE).unwrap();
    assert!(next().contains("8001"));
    down.store(true, Ordering::SeqCst);
    engine.start(&id(2), ports(&[("80/tcp", "0.0.0.0", "8002")]));
    agent.wait_log("did not take the document");
    down.store(false, Ordering::SeqCst);
    let again = [next(), next()].concat();
    assert!(again.contains("8001") && again.contains("8002"), "{again}");
}

#[test]
fn s10_udp_publish_is_one_udp_forward() {
    let (engine, receiver, _agent) = setup(&[]);
    engine.start(&id(1), ports(&[("1234/udp", "0.0.0.0", "1234")]));
    receiver.wait_held(&["0.0.0.0:1234/udp"]);
    assert_eq!(receiver.all().len(), 1);
}

#[test]
fn s26_five_thousand_ports_start_and_stop() {
    let (engine, receiver, agent) = setup(&[]);
    let numbers: Vec<String> = (20_000..25_000).map(|n| n.to_string()).collect();
    let keys: Vec<String> = numbers.iter().map(|n| format!("{n}/tcp")).collect();
    let entries: Vec<(&str, &str, &str)> =
        keys.iter().zip(&numbers).flat_map(|(k, n)| [(&**k, "0.0.0.0", &**n), (&**k, "::", &**n)]).collect();
    let begun = Instant::now();
    engine.start(&id(1), ports(&entries));
    eventually("10,000 forwards", || Some(receiver.held().len()).filter(|n| *n == 10_000).ok_or(receiver.held().len()));
    engine.end(&id(1));
    receiver.wait_held(&[]);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(receiver.all().len() <= 8, "{} documents", receiver.all().len());
    assert!(agent.log().lines().count() < 300, "{}", agent.log().lines().count());
    let rss = status_kb(agent.pid(), "VmRSS:");
    assert!(rss < 64 * 1024, "{rss} KiB (a debug build)");
}

#[test]
fn s27_families_keep_their_own_ports() {
    let (engine, receiver, _agent) = setup(&[]);
    engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "49153"), ("80/tcp", "::", "49154")]));
    receiver.wait_held(&["0.0.0.0:49153/tcp", "[::]:49154/tcp"]);
}

/// The host end of the crate, which may connect to this machine.
fn host_end(dir: &TempDir) -> Agent {
    let url = format!("unix://{}", dir.join("host").display());
    Agent::host(None, &["--listen", &url, "--connect-address", "127.0.0.2"])
}

#[test]
fn s02_host_end_restarted_while_nothing_changes_is_told_again() {
    let (engine, dir) = (EngineStub::new(), TempDir::new());
    let host = host_end(&dir);
    let url = format!("unix://{}", dir.join("host").display());
    let agent = Agent::start(None, &engine.socket(), &["--sink", &url, "--connect-interface", "lo"]);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    engine.start(&id(1), ports(&[("80/tcp", "127.0.0.1", &port)]));
    let opened = |host: &Agent| {
        eventually("the port is opened", || match host.out() {
            out if out.contains("opened") && out.contains(&port) => Ok(()),
            out => Err((out, host.log())),
        });
    };
    opened(&host);
    assert_eq!(host.stop(), Some(0));
    // Nothing happens in the guest: only the heartbeat can find out.
    let host = host_end(&dir);
    opened(&host);
    agent.wait_log("the host end has restarted");
    assert!(!agent.log().contains("unreachable"), "{}", agent.log());
}

/// Fills a listener's queue: from then on the kernel drops what is sent to connect, as a firewall would.
fn black_hole() -> (TcpListener, Vec<TcpStream>, String) {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, socket};
    use std::os::fd::AsRawFd as _;
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    listen(&fd, Backlog::new(0).unwrap()).unwrap();
    let listener = TcpListener::from(fd);
    let address = listener.local_addr().unwrap();
    let mut open = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        open.push(stream);
        assert!(open.len() < 1000, "the queue never filled");
    }
    (listener, open, format!("tcp://{address}"))
}

#[test]
fn s29_hanging_sink_delays_no_other() {
    let (_listener, _open, hole) = black_hole();
    let (engine, receiver, agent) = setup(&["--sink", &hole]);
    for n in 0..5 {
        let begun = Instant::now();
        engine.start(&id(n), ports(&[("80/tcp", "0.0.0.0", &format!("800{n}"))]));
        within(Duration::from_secs(2), "the document at the other sink", || {
            Some(()).filter(|()| receiver.held().len() == n as usize + 1).ok_or(begun.elapsed())
        });
    }
    agent.wait_log("sink unreachable");
    let begun = Instant::now();
    assert_eq!(agent.stop(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    receiver.wait_held(&[]);
}

#[test]
fn network_changes_are_looked_up_only_for_running_containers() {
    let (engine, receiver, _agent) = setup(&[]);
    engine.start(&id(1), ports(&[]));
    engine.add(&id(1), ports(&[("80/tcp", "0.0.0.0", "8001")]));
    engine.event("network", "connect", &id(1));
    receiver.wait_held(&["0.0.0.0:8001/tcp"]);
    engine.add(&id(1), ports(&[]));
    engine.event("network", "disconnect", &id(1));
    receiver.wait_held(&[]);
    let asked = |n| engine.requests().iter().filter(|r| r.contains(&id(n))).count();
    engine.event("network", "connect", &id(2));
    engine.start(&id(3), ports(&[("80/tcp", "0.0.0.0", "8003")]));
    receiver.wait_held(&["0.0.0.0:8003/tcp"]);
    assert_eq!((asked(1), asked(2)), (3, 0));
}

#[test]
fn names_come_before_the_claims_they_belong_to() {
    let engine = EngineStub::new();
    engine.add(&id(1), ports(&[("80/tcp", "0.0.0.0", "8001")]));
    engine.add(&id(2), ports(&[]));
    let (sender, events) = queue::bounded(EVENTS_MAX);
    let context = Context { events: sender, stop: Stop::new().unwrap() };
    let (socket, stop) = (engine.socket(), context.stop.clone());
    let session = std::thread::spawn(move || docker::session(&socket, &context).0);
    let (mut names, mut snapshots) = (BTreeMap::new(), 0);
    // Takes events until one makes that true. What publishes something has a name by then.
    type Done<'a> = &'a dyn Fn(&BTreeMap<String, String>, usize, &Event) -> bool;
    let mut until = |done: Done<'_>| {
        loop {
            let event = events.recv(Some(DEADLINE)).unwrap();
            let claims: Vec<&Arc<str>> = match &event {
                Event::Named { names: more, .. } => {
                    names.extend(more.iter().map(|(key, name)| (key.to_string(), name.to_string())));
                    Vec::new()
                }
                Event::Snapshot { claims, .. } => {
                    snapshots += 1;
                    claims.iter().filter(|(_, bindings)| !bindings.is_empty()).map(|(key, _)| key).collect()
                }
                Event::Claim { owner, bindings } if !bindings.is_empty() => vec![&owner.key],
                _ => Vec::new(),
            };
            assert!(claims.iter().all(|key| names.contains_key(&***key)), "{event:?} after {names:?}");
            if done(&names, snapshots, &event) {
                return;
            }
        }
    };
    let claims = |event: &Event, n| matches!(event, Event::Claim { owner, .. } if *owner.key == id(n));
    until(&|_, snapshots, _| snapshots == 1);
    engine.start(&id(3), ports(&[("80/tcp", "0.0.0.0", "8003")]));
    until(&|names, _, event| claims(event, 3) && names[&id(3)] == name(&id(3)));
    engine.rename(&id(9), "stopped");
    engine.rename(&id(3), "shop");
    until(&|names, _, _| names[&id(3)] == "shop");
    engine.start(&id(4), ports(&[]));
    until(&|_, _, event| claims(event, 4));
    // The list is read once more at the first line a second later, or in the next silence.
    std::thread::sleep(Duration::from_millis(1100));
    engine.raw(b"\n");
    until(&|_, snapshots, _| snapshots == 2);
    let expect = [(id(1), "web-1"), (id(3), "shop")].map(|(id, name)| (id, name.to_owned()));
    assert_eq!(names, BTreeMap::from(expect), "what publishes nothing needs no name");
    stop.raise();
    assert!(session.join().unwrap());
}

#[test]
fn bad_events_are_counted_and_the_list_is_read_again() {
    let (engine, receiver, agent) = setup(&[]);
    let mut oversized = vec![b'x'; 3 << 20];
    oversized.push(b'\n');
    let deep = format!("{}{}\n", "[".repeat(126), "]".repeat(126));
    let bad: [&[u8]; 7] = [
        deep.as_bytes(),
        b"{\"Type\":\"container\",\"Action\":\"sta\n",
        &oversized,
        b"\xff\xfe\x00\n",
        b"{\"Type\":7,\"Action\":[]}\n",
        b"{\"Type\":\"container\",\"Action\":\"start\",\"Actor\":{\"ID\":\"../etc\"}}\n",
        b"null\n",
    ];
    for (n, line) in bad.iter().enumerate() {
        engine.raw(line);
        agent.wait_log(&format!("count={} ", n + 1));
    }
    engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8001")]));
    receiver.wait_held(&["0.0.0.0:8001/tcp"]);
    // What a bad line would have said is found in the list.
    engine.add(&id(2), ports(&[("80/tcp", "0.0.0.0", "8002")]));
    std::thread::sleep(Duration::from_millis(1100));
    engine.raw(b"half an event\n");
    receiver.wait_held(&["0.0.0.0:8001/tcp", "0.0.0.0:8002/tcp"]);
    assert!(!agent.log().contains("source lost"), "{}", agent.log());
}

/// Docker writes what it lists from after it has told of a container's end.
#[test]
fn a_list_that_is_older_than_an_end_brings_nothing_back() {
    let (engine, receiver, _agent) = setup(&[]);
    engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8001")]));
    engine.start(&id(2), ports(&[("80/tcp", "0.0.0.0", "8002")]));
    receiver.wait_held(&["0.0.0.0:8001/tcp", "0.0.0.0:8002/tcp"]);
    let lists = || engine.requests().iter().filter(|request| request.contains("/containers/json")).count();
    // Lists are a second apart at least.
    std::thread::sleep(Duration::from_millis(1100));
    let before = lists();
    engine.event("container", "die", &id(1));
    engine.event("container", "die", &id(2));
    engine.event("container", "start", &id(2));
    engine.raw(b"a line that has the list read again\n");
    eventually("a list", || if lists() > before { Ok(()) } else { Err(lists()) });
    engine.start(&id(3), ports(&[("80/tcp", "0.0.0.0", "8003")]));
    receiver.wait_held(&["0.0.0.0:8002/tcp", "0.0.0.0:8003/tcp"]);
    let about_8001 = receiver.all().iter().filter(|d| d.text.contains("8001")).count();
    assert_eq!(about_8001, 2, "announced and withdrawn once: {:?}", receiver.all());
    // What is listed still, a second later, runs.
    std::thread::sleep(Duration::from_millis(1100));
    engine.raw(b"\n");
    receiver.wait_held(&["0.0.0.0:8001/tcp", "0.0.0.0:8002/tcp", "0.0.0.0:8003/tcp"]);
}

#[test]
fn bad_ports_do_not_cost_the_good_ones() {
    let (engine, receiver, agent) = setup(&[]);
    let mut mixed = ports(&[("80/tcp", "0.0.0.0", "0"), ("80/tcp", "0.0.0.0", "70000"), ("81/tcp", "0.0.0.0", "8081")]);
    mixed["82/tcp"] = serde_json::Value::Null;
    mixed["83/tcp"] = serde_json::json!([]);
    engine.start(&id(1), mixed);
    receiver.wait_held(&["0.0.0.0:8081/tcp"]);
    agent.wait_log("count=2 ");
}

#[test]
fn half_a_line_and_silence_is_a_lost_engine() {
    let (engine, receiver, agent) = setup(&[]);
    engine.raw(b"{\"Type\":\"contai");
    agent.wait_log("stalled in the middle of a line");
    engine.wait_subscriptions(2);
    engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8001")]));
    receiver.wait_held(&["0.0.0.0:8001/tcp"]);
}

#[test]
fn engine_that_appears_later_is_found_with_one_line_in_the_log() {
    let (dir, receiver) = (TempDir::new(), Receiver::new());
    let socket = dir.join("docker.sock");
    let url = receiver.url();
    let agent = Agent::start(None, &socket, &["--sink", &url, "-adminInstall", "--connect-interface", "lo"]);
    agent.wait_log("No such file");
    // A file in the socket's place: another line, since it is other news.
    fs::write(&socket, "").unwrap();
    agent.wait_log("Connection refused");
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(agent.log().matches("source lost").count(), 2, "{}", agent.log());
    let engine = EngineStub::new();
    engine.add(&id(1), ports(&[("80/tcp", "0.0.0.0", "8001")]));
    fs::remove_file(&socket).unwrap();
    std::os::unix::fs::symlink(engine.socket(), &socket).unwrap();
    receiver.wait_held(&["0.0.0.0:8001/tcp"]);
}

#[test]
fn engine_of_another_age_is_refused_by_name() {
    for (version, expect) in [
        (r#"{"ApiVersion":"1.60","MinAPIVersion":"1.55"}"#, "API 1.55 to 1.60"),
        (r#"{"ApiVersion":"1.12"}"#, "API 1.12"),
        (r#"{"ApiVersion":7}"#, "ApiVersion"),
        ("nonsense", "not JSON"),
    ] {
        let (engine, receiver) = (EngineStub::with_version(version), Receiver::new());
        let agent = start(&engine, &receiver, &[]);
        agent.wait_log(expect);
    }
    let engine = EngineStub::with_version(r#"{"ApiVersion":"1.54","MinAPIVersion":"1.44"}"#);
    let receiver = Receiver::new();
    let _agent = start(&engine, &receiver, &[]);
    engine.wait_subscriptions(1);
    assert!(engine.requests()[1].starts_with("/v1.52/events?"), "{:?}", engine.requests());
}

#[test]
fn engine_that_answers_nothing_is_not_waited_for() {
    let dir = TempDir::new();
    let socket = dir.join("docker.sock");
    let _silent = UnixListener::bind(&socket).unwrap();
    let receiver = Receiver::new();
    let url = receiver.url();
    let agent = Agent::start(None, &socket, &["--sink", &url, "--connect-interface", "lo"]);
    agent.wait_log("timeout");
    let begun = Instant::now();
    assert_eq!(agent.stop(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[test]
fn sigterm_withdraws_everything_and_a_restart_announces_it_again() {
    let (engine, receiver, agent) = setup(&[]);
    engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8001"), ("81/tcp", "127.0.0.1", "8002")]));
    receiver.wait_held(&["0.0.0.0:8001/tcp", "127.0.0.1:8002/tcp"]);
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(receiver.held(), Vec::<String>::new());
    let mut agent = start(&engine, &receiver, &[]);
    receiver.wait_held(&["0.0.0.0:8001/tcp", "127.0.0.1:8002/tcp"]);
    // The terminal it was started from is closed.
    agent.process.signal(Signal::SIGHUP);
    assert_eq!(agent.process.wait(), Some(0));
    assert_eq!(receiver.held(), Vec::<String>::new());
}

#[test]
fn sigterm_withdraws_everything_at_a_receiver_that_closes_late() {
    let (engine, dir) = (EngineStub::new(), TempDir::new());
    let listener = UnixListener::bind(dir.join("late")).unwrap();
    let (sender, documents) = std::sync::mpsc::channel();
    // Takes every document at once, as the Privileged Service does, and closes when it has been carried out.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut line = String::new();
                let _ = BufReader::new(&stream).read_line(&mut line);
                let _ = sender.send(line);
                std::thread::sleep(Duration::from_millis(900));
            });
        }
    });
    for n in 0..8 {
        engine.add(&id(n), ports(&[("80/tcp", "0.0.0.0", &format!("800{n}"))]));
    }
    let url = format!("unix://{}", dir.join("late").display());
    let agent = Agent::start(None, &engine.socket(), &["--sink", &url, "--connect-interface", "lo"]);
    let announced: Vec<String> = documents.iter().take(8).collect();
    assert!(announced.iter().all(|line| line.contains("\"remove\":false")), "{announced:?}");
    assert_eq!(agent.stop(), Some(0));
    let withdrawn: Vec<String> = (0..8).map_while(|_| documents.recv_timeout(Duration::from_secs(2)).ok()).collect();
    assert!(withdrawn.len() == 8 && withdrawn.iter().all(|line| line.contains("\"remove\":true")), "{withdrawn:?}");
}

#[test]
fn second_signal_ends_at_once() {
    let (_listener, _open, hole) = black_hole();
    let (engine, receiver, mut agent) = setup(&["--sink", &hole]);
    engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8001")]));
    receiver.wait_held(&["0.0.0.0:8001/tcp"]);
    agent.process.signal(Signal::SIGTERM);
    // As timeout(1) has it: at once to the program, and again to its group.
    agent.process.signal(Signal::SIGTERM);
    agent.wait_log("stopping");
    assert!(agent.process.is_running(), "{}", agent.log());
    let begun = Instant::now();
    while agent.process.is_running() {
        agent.process.signal(Signal::SIGTERM);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(agent.process.wait(), Some(143));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn an_agent_whose_log_nobody_reads_goes_on_and_stops() {
    let (engine, receiver) = (EngineStub::new(), Receiver::new());
    let mut command = Command::new(env!("CARGO_BIN_EXE_rancher-desktop-guestagent"));
    command.args(["-docker", "-debug", "-adminInstall", "--connect-interface", "lo", "--sink", &receiver.url()]);
    command.env("DOCKER_HOST", format!("unix://{}", engine.socket().display()));
    let mut agent = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()));
    engine.wait_subscriptions(1);
    // A line in the log for each: more than a pipe takes.
    engine.raw("x\n".repeat(5000).as_bytes());
    engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8001")]));
    receiver.wait_held(&["0.0.0.0:8001/tcp"]);
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait(), Some(0));
    receiver.wait_held(&[]);
}

#[test]
fn descriptors_and_threads_do_not_grow_with_reconnections() {
    let (engine, receiver, agent) = setup(&[]);
    engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8001")]));
    receiver.wait_held(&["0.0.0.0:8001/tcp"]);
    let before = (descriptors(agent.pid()), status_kb(agent.pid(), "Threads:"));
    for n in 0..10 {
        engine.hang_up();
        engine.wait_subscriptions(n + 2);
    }
    eventually("the same descriptors and threads as before", || {
        let now = (descriptors(agent.pid()), status_kb(agent.pid(), "Threads:"));
        if now == before { Ok(()) } else { Err(now) }
    });
}
