//! The agent next to wsl-proxy: what it is told, byte for byte, and what it holds after each side's restarts.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::time::{Duration, Instant};

use support::agent::Agent;
use support::engine_stub::{EngineStub, id, ports};
use support::host_switch::{Fault, HostSwitch};
use support::wsl_proxy::WslProxy;
use support::{TempDir, eventually, within};

/// Longer than it takes to notice a restart, by much.
const NOTICED: Duration = Duration::from_secs(8);

#[cfg(feature = "kubernetes")]
const API_SERVER: &str = concat!(
    r#"{"remove":false,"ports":{"6443/tcp":[{"HostIp":"127.0.0.1","HostPort":"6443"}]},"connectAddrs":null}"#,
    "\n"
);

fn agent(engine: &EngineStub, proxy: &WslProxy, more: &[&str]) -> Agent {
    Agent::start(None, &engine.socket(), &[&["--sink", &proxy.url()], more].concat())
}

/// An announcement of that one binding: `("80/tcp", "127.0.0.1", "8080")`.
fn announced((key, ip, port): (&str, &str, &str)) -> String {
    document("false", key, ip, port)
}

fn withdrawn((key, ip, port): (&str, &str, &str)) -> String {
    document("true", key, ip, port)
}

fn document(remove: &str, key: &str, ip: &str, port: &str) -> String {
    let binding = format!(r#"{{"HostIp":"{ip}","HostPort":"{port}"}}"#);
    format!(r#"{{"remove":{remove},"ports":{{"{key}":[{binding}]}},"connectAddrs":null}}"#) + "\n"
}

#[test]
fn documents_byte_for_byte() {
    let (engine, proxy) = (EngineStub::new(), WslProxy::new());
    let agent = agent(&engine, &proxy, &["-adminInstall"]);
    engine.wait_subscriptions(1);
    // TCP and UDP on one port are two, and IPv6 is left out.
    let dns = ports(&[
        ("53/tcp", "0.0.0.0", "5300"),
        ("53/tcp", "::", "5300"),
        ("53/udp", "0.0.0.0", "5300"),
        ("53/udp", "::", "5300"),
    ]);
    engine.start(&id(1), dns);
    let both = |remove| {
        let binding = r#"[{"HostIp":"0.0.0.0","HostPort":"5300"}]"#;
        format!(r#"{{"remove":{remove},"ports":{{"53/tcp":{binding},"53/udp":{binding}}},"connectAddrs":null}}"#) + "\n"
    };
    proxy.wait_documents(&[&both("false")]);
    proxy.wait_open(&["tcp 0.0.0.0:5300", "udp 0.0.0.0:5300"]);
    engine.end(&id(1));
    proxy.wait_documents(&[&both("false"), &both("true")]);
    engine.start(&id(2), ports(&[("80/tcp", "::1", "8080")]));
    agent.wait_log("left out binding=[::1]:8080/tcp");
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(proxy.documents().len(), 2);
    assert_eq!(proxy.log(), [""; 0]);
}

#[test]
fn s10_udp_is_udp_and_no_tcp() {
    let (engine, proxy) = (EngineStub::new(), WslProxy::new());
    let _agent = agent(&engine, &proxy, &[]);
    engine.wait_subscriptions(1);
    engine.start(&id(1), ports(&[("1234/udp", "0.0.0.0", "1234")]));
    // Without admin rights, the host's loopback.
    proxy.wait_documents(&[&announced(("1234/udp", "127.0.0.1", "1234"))]);
    proxy.wait_open(&["udp 127.0.0.1:1234"]);
}

/// wsl-proxy knows ports by their number alone.
#[test]
fn two_addresses_with_one_port_are_told_as_one() {
    let (engine, proxy) = (EngineStub::new(), WslProxy::new());
    let agent = agent(&engine, &proxy, &["-adminInstall"]);
    engine.wait_subscriptions(1);
    let (first, second, third) =
        (("80/tcp", "127.0.0.1", "8080"), ("81/tcp", "127.0.0.2", "8080"), ("82/tcp", "127.0.0.3", "8080"));
    let forwarding = |(_, ip, port): (&str, &str, &str)| agent.wait_log(&format!("forwarding binding={ip}:{port}/tcp"));
    for (n, port) in [(1, first), (2, second), (3, third)] {
        engine.start(&id(n), ports(&[port]));
        forwarding(port);
    }
    proxy.wait_documents(&[&announced(first)]);

    // One that wsl-proxy was not told of goes without a word.
    engine.end(&id(2));
    agent.wait_log("withdrawn binding=127.0.0.2:8080/tcp");
    proxy.wait_documents(&[&announced(first)]);

    engine.end(&id(1));
    proxy.wait_documents(&[&announced(first), &withdrawn(first), &announced(third)]);
    proxy.wait_open(&["tcp 127.0.0.3:8080"]);

    // As one document, too.
    engine.start(&id(4), ports(&[("80/tcp", "127.0.0.1", "9090"), ("80/tcp", "127.0.0.2", "9090")]));
    proxy.wait_open(&["tcp 127.0.0.3:8080", "tcp 127.0.0.1:9090"]);
    engine.end(&id(4));
    proxy.wait_open(&["tcp 127.0.0.3:8080"]);
    engine.end(&id(3));
    proxy.wait_open(&[]);
    assert_eq!(proxy.log(), [""; 0]);
}

/// The static mapping of the API server comes once for each start of wsl-proxy, and goes with the agent.
#[test]
fn s02_a_restarted_wsl_proxy_is_told_everything_again() {
    let (engine, proxy) = (EngineStub::new(), WslProxy::new());
    let agent = agent(&engine, &proxy, &["-iptables=false"]);
    engine.wait_subscriptions(1);
    engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8080"), ("53/udp", "0.0.0.0", "5300")]));
    let all = ["tcp 127.0.0.1:8080", "udp 127.0.0.1:5300"];
    proxy.wait_open(&all);
    for _ in 0..2 {
        proxy.restart();
        within(NOTICED, "told again", || if proxy.open() == all { Ok(()) } else { Err(proxy.open()) });
        assert_eq!(proxy.documents().len(), 1);
    }
    agent.wait_log("wsl-proxy has restarted");
    // It goes while there is something to say, and comes back.
    proxy.stop();
    engine.start(&id(2), ports(&[("80/tcp", "0.0.0.0", "8081")]));
    agent.wait_log("No such file");
    let named = format!("wsl-proxy: {}", proxy.path().display());
    assert!(agent.log().contains(&named), "{}", agent.log());
    proxy.start();
    proxy.wait_open(&["tcp 127.0.0.1:8080", "tcp 127.0.0.1:8081", "udp 127.0.0.1:5300"]);
    // Killed: its socket's file stays, and refuses.
    proxy.die();
    engine.end(&id(2));
    agent.wait_log("Connection refused");
    proxy.stop();
    proxy.start();
    proxy.wait_open(&all);
    let empty: Vec<String> = proxy.log().into_iter().filter(|line| line.contains("not a document")).collect();
    assert_eq!(empty, [""; 0], "it is connected to with a document, or not at all");
    assert_eq!(agent.stop(), Some(0));
    proxy.wait_open(&[]);
}

#[cfg(feature = "kubernetes")]
#[test]
fn the_api_server_is_announced_once_for_each_start_of_wsl_proxy() {
    let proxy = WslProxy::new();
    let args = ["-kubernetes", "-kubeconfig", "/nonexistent", "-iptables=false", "--sink", &proxy.url()];
    let agent = Agent::run(None, &args);
    proxy.wait_documents(&[API_SERVER]);
    proxy.restart();
    within(NOTICED, "told again", || if proxy.documents() == [API_SERVER] { Ok(()) } else { Err(proxy.documents()) });
    assert_eq!(agent.stop(), Some(0));
    proxy.wait_documents(&[API_SERVER, &withdrawn(("6443/tcp", "127.0.0.1", "6443"))]);
    proxy.wait_open(&[]);
}

#[test]
fn s08_wsl_proxy_comes_up_later() {
    let (engine, proxy) = (EngineStub::new(), WslProxy::absent());
    engine.add(&id(1), ports(&[("80/tcp", "0.0.0.0", "8080")]));
    let agent = agent(&engine, &proxy, &[]);
    agent.wait_log("sink unreachable");
    proxy.start();
    proxy.wait_open(&["tcp 127.0.0.1:8080"]);
    agent.wait_log("sink reachable");
    assert_eq!(agent.log().matches("sink unreachable").count(), 1, "{}", agent.log());
}

/// A host without wsl-proxy: one line, and an end without a wait.
#[test]
fn s03_a_host_without_wsl_proxy_is_one_line() {
    let (engine, proxy) = (EngineStub::new(), WslProxy::absent());
    engine.add(&id(1), ports(&[("80/tcp", "0.0.0.0", "8080")]));
    let agent = agent(&engine, &proxy, &["--sink", "stdout:"]);
    agent.wait_log("sink unreachable");
    for n in 2..20 {
        engine.start(&id(n), ports(&[("80/tcp", "0.0.0.0", &format!("{}", 8080 + n))]));
    }
    eventually("nineteen changes on standard output", || match agent.out().lines().count() {
        19 => Ok(()),
        n => Err(n),
    });
    assert_eq!(agent.log().matches("sink unreachable").count(), 1, "{}", agent.log());
    let begun = Instant::now();
    assert_eq!(agent.stop(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

/// wsl-proxy has died for good: its ports died with it, and the agent ends at once.
#[test]
fn a_wsl_proxy_that_is_gone_does_not_hold_the_end_up() {
    let (engine, proxy) = (EngineStub::new(), WslProxy::new());
    engine.add(&id(1), ports(&[("80/tcp", "0.0.0.0", "8080")]));
    let agent = agent(&engine, &proxy, &[]);
    proxy.wait_open(&["tcp 127.0.0.1:8080"]);
    proxy.stop();
    let begun = Instant::now();
    assert_eq!(agent.stop(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[test]
fn s29_a_slow_wsl_proxy_delays_nobody_else() {
    let (engine, proxy) = (EngineStub::new(), WslProxy::absent());
    proxy.start_slow(Duration::from_secs(4));
    let agent = agent(&engine, &proxy, &["--sink", "stdout:"]);
    engine.wait_subscriptions(1);
    let begun = Instant::now();
    for n in 1..=5 {
        engine.start(&id(n), ports(&[("80/tcp", "0.0.0.0", &format!("{}", 8080 + n))]));
    }
    eventually("five changes on standard output", || match agent.out().lines().count() {
        5 => Ok(()),
        n => Err(n),
    });
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(proxy.documents(), [""; 0], "wsl-proxy is still busy with the first");
    let open: Vec<String> = (1..=5).map(|n| format!("tcp 127.0.0.1:{}", 8080 + n)).collect();
    proxy.wait_open(&open.iter().map(String::as_str).collect::<Vec<_>>());
}

/// With host-switch as Rancher Desktop has it: whoever connects at wsl-proxy ends up there.
struct Switched {
    switch: HostSwitch,
    proxy: WslProxy,
    engine: EngineStub,
    agent: Agent,
    _dir: TempDir,
}

impl Switched {
    fn start(more: &[&str]) -> Switched {
        let (switch, proxy, engine, dir) = (HostSwitch::start(), WslProxy::new(), EngineStub::new(), TempDir::new());
        let agent = Switched::agent(&engine, &switch, &proxy, &dir, more);
        engine.wait_subscriptions(1);
        Switched { switch, proxy, engine, agent, _dir: dir }
    }

    fn agent(engine: &EngineStub, switch: &HostSwitch, proxy: &WslProxy, dir: &TempDir, more: &[&str]) -> Agent {
        let (url, state) = (switch.url(), dir.join("state").display().to_string());
        let switched = ["--sink", &url, "-tap-interface-ip", "127.0.0.77", "-sockets=false", "--state-file", &state];
        agent(engine, proxy, &[&switched[..], more].concat())
    }
}

#[test]
fn wsl_proxy_is_told_after_host_switch() {
    let Switched { switch, proxy, engine, agent, _dir } = Switched::start(&[]);
    switch.set_fault(Fault::Stall);
    engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8080"), ("53/udp", "0.0.0.0", "5300")]));
    eventually("a request", || match switch.requests() {
        requests if requests.is_empty() => Err("none"),
        requests => Ok(requests),
    });
    assert_eq!(proxy.documents(), [""; 0]);
    switch.set_fault(Fault::None);
    proxy.wait_open(&["tcp 127.0.0.1:8080", "udp 127.0.0.1:5300"]);
    let both = ["tcp 127.0.0.1:8080 127.0.0.77:8080", "udp 127.0.0.1:5300 127.0.0.77:5300"];
    switch.wait_forwards(&both);

    engine.end(&id(1));
    switch.wait_forwards(&[]);
    proxy.wait_open(&[]);
    engine.start(&id(2), ports(&[("80/tcp", "0.0.0.0", "8082")]));
    proxy.wait_open(&["tcp 127.0.0.1:8082"]);
    assert_eq!(agent.stop(), Some(0));
    switch.wait_forwards(&[]);
    proxy.wait_open(&[]);
}

#[test]
fn s13_wsl_proxy_is_not_told_of_a_conflict_until_it_is_resolved() {
    let Switched { switch, proxy, engine, agent, _dir } = Switched::start(&[]);
    switch.busy("127.0.0.1:8080", Some("listen tcp 127.0.0.1:8080: bind: address already in use"));
    engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8080"), ("81/tcp", "0.0.0.0", "8081")]));
    agent.wait_log("conflict binding=127.0.0.1:8080/tcp");
    proxy.wait_open(&["tcp 127.0.0.1:8081"]);
    proxy.wait_documents(&[&announced(("81/tcp", "127.0.0.1", "8081"))]);
    switch.busy("127.0.0.1:8080", None);
    proxy.wait_open(&["tcp 127.0.0.1:8080", "tcp 127.0.0.1:8081"]);
}

/// wsl-proxy cannot be asked what it holds; what an earlier run left at host-switch, that run has told it of.
#[test]
fn s24_what_a_killed_agent_left_goes_from_wsl_proxy_too() {
    let Switched { switch, proxy, engine, agent, _dir } = Switched::start(&[]);
    engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8080")]));
    engine.start(&id(2), ports(&[("80/tcp", "0.0.0.0", "8081")]));
    proxy.wait_open(&["tcp 127.0.0.1:8080", "tcp 127.0.0.1:8081"]);
    agent.process.signal(nix::sys::signal::Signal::SIGKILL);
    drop(agent);
    engine.forget(&id(2));
    let again = Switched::agent(&engine, &switch, &proxy, &_dir, &[]);
    proxy.wait_open(&["tcp 127.0.0.1:8080"]);
    switch.wait_forwards(&["tcp 127.0.0.1:8080 127.0.0.77:8080"]);
    assert_eq!(again.stop(), Some(0));
    proxy.wait_open(&[]);
}

/// A restart of wsl-proxy changes nothing at host-switch.
#[test]
fn s02_host_switch_does_not_notice_a_restart_of_wsl_proxy() {
    let Switched { switch, proxy, engine, agent: _agent, _dir } = Switched::start(&[]);
    engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8080")]));
    proxy.wait_open(&["tcp 127.0.0.1:8080"]);
    switch.forget_requests();
    proxy.restart();
    proxy.wait_open(&["tcp 127.0.0.1:8080"]);
    let changes = switch.requests().iter().filter(|request| request.path.ends_with("expose")).count();
    assert_eq!(changes, 0);
}
