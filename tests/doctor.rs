//! `doctor`, against running agents, and against what an agent with some flags would need of a broken VM.
//!
//! What no agent here would say (a clock that was set back, another version, silence) is said by a stand-in.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::TempDir;
use support::agent::Agent;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rancher-desktop-guestagent");

/// The exit code, and the check of each name.
struct Seen {
    code: Option<i32>,
    checks: Vec<Value>,
}

impl Seen {
    fn of(command: &mut Command) -> Seen {
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let checks = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        Seen { code: output.status.code(), checks }
    }

    fn check(&self, name: &str) -> &Value {
        self.checks
            .iter()
            .find(|check| check["check"] == name)
            .unwrap_or_else(|| panic!("no {name}: {:#?}", self.checks))
    }

    /// That check has that result, and both texts hold these.
    fn expect(&self, name: &str, result: &str, detail: &str, remedy: &str) {
        let check = self.check(name);
        assert_eq!(check["result"], result, "{check}");
        assert!(check["detail"].as_str().unwrap().contains(detail), "{detail:?} in {check}");
        match result {
            "ok" => assert_eq!(check["remedy"], Value::Null, "{check}"),
            _ => assert!(check["remedy"].as_str().unwrap().contains(remedy), "{remedy:?} in {check}"),
        }
    }
}

/// What an agent with these flags would need; there is none.
fn needs(dir: &TempDir, flags: &[&str], env: &[(&str, &str)]) -> Seen {
    let mut command = Command::new(PROGRAM);
    command.args(["doctor", "--json", "--socket"]).arg(dir.join("nobody.sock")).arg("--").args(flags);
    Seen::of(command.env_remove("DOCKER_HOST").envs(env.iter().copied()))
}

fn path(dir: &TempDir, name: &str) -> String {
    dir.join(name).display().to_string()
}

#[test]
fn a_healthy_agent_has_nothing_to_say() {
    let agent = Agent::run(None, &["-sockets", "-iptables=false", "--sink", "stdout:", "--deny", "*"]);
    agent.wait_log("source ready source=sockets");
    let seen = Seen::of(&mut agent.ask(&["doctor", "--json"]));
    assert_eq!(seen.code, Some(0), "{:#?}", seen.checks);
    seen.expect("agent", "ok", &format!("version {}, process {}", env!("CARGO_PKG_VERSION"), agent.pid()), "");
    seen.expect("control-socket", "ok", "mode 600", "");
    for name in ["health", "source sockets", "sink stdout:", "clock", "configuration", "privileges", "open-files"] {
        seen.expect(name, "ok", "", "");
    }
    let page = include_str!("../docs/control.md").split("### `check`").nth(1).unwrap();
    for check in &seen.checks {
        for field in check.as_object().unwrap().keys() {
            assert!(page.contains(&format!("\n| `{field}` | ")), "{field}");
        }
        let fields: Vec<&String> = check.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["check", "detail", "remedy", "result", "schema", "type"]);
        assert_eq!((&check["schema"], &check["type"]), (&json!(1), &json!("check")));
    }
    let text = agent.ask(&["doctor"]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.lines().all(|line| line.starts_with("ok    ")) && text.contains("\nok    health: ok\n"), "{text}");
}

#[test]
fn an_agent_without_its_engine_is_not_well() {
    let dir = TempDir::new();
    let socket = dir.join("engine.sock");
    let agent = Agent::start(None, &socket, &["--sink", "stdout:"]);
    agent.wait_log("source lost");
    let seen = Seen::of(&mut agent.ask(&["doctor", "--json"]));
    assert_eq!(seen.code, Some(3));
    seen.expect("health", "fail", "docker", "");
    seen.expect("source docker", "fail", "No such file", "start the engine");
    // The agent's own DOCKER_HOST, not ours.
    seen.expect("docker-socket", "fail", &format!("{}: No such file", socket.display()), "DOCKER_HOST=unix://PATH");
    let text = String::from_utf8(agent.ask(&["doctor"]).output().unwrap().stdout).unwrap();
    assert!(
        text.contains("fail  docker-socket: ") && text.contains("\n      start the engine, or name its socket: "),
        "{text}"
    );
    fs::set_permissions(agent.control(), Permissions::from_mode(0o666)).unwrap();
    let seen = Seen::of(&mut agent.ask(&["doctor", "--json"]));
    seen.expect("control-socket", "fail", "mode 666: others may connect", "chmod 600");
}

#[test]
fn without_an_agent_the_flags_count() {
    let dir = TempDir::new();
    let (socket, ctr) = (dir.join("engine.sock"), path(&dir, "ctr"));
    let host = format!("unix://{}", socket.display());
    let docker = |expect: &str, remedy: &str| {
        let seen = needs(&dir, &["-docker", "--sink", "stdout:"], &[("DOCKER_HOST", &host)]);
        seen.expect("agent", "warn", "no agent answers", "--socket PATH");
        let result = if expect.is_empty() { ("ok", 0) } else { ("fail", 3) };
        assert_eq!(seen.code, Some(result.1));
        seen.expect("docker-socket", result.0, expect, remedy);
    };
    docker("No such file", "start the engine");
    let listener = UnixListener::bind(&socket).unwrap();
    docker("", "");
    fs::set_permissions(&socket, Permissions::from_mode(0o000)).unwrap();
    // Root's right to pass over permissions is not the agent's.
    docker("Permission denied", "in its group");
    fs::set_permissions(&socket, Permissions::from_mode(0o600)).unwrap();
    drop(listener);
    docker("Connection refused", "start the engine");

    let containerd = ["-containerd", "-containerdSock", &ctr, "--ctr", &ctr, "--sink", "stdout:"];
    let seen = needs(&dir, &containerd, &[]);
    seen.expect("containerd-socket", "fail", "No such file", "start containerd");
    seen.expect("ctr", "fail", "No such file", "--ctr PATH");

    let seen = needs(&dir, &["-docker", "--sink", "unix:///nobody", "--connect-interface", "none0"], &[]);
    seen.expect("connect-interface", "fail", "the interface none0 has no address", "--connect-interface NAME");
    let seen = needs(&dir, &["-docker", "--sink", "unix:///nobody", "--connect-interface", "lo"], &[]);
    seen.expect("connect-interface", "ok", "lo: 127.0.0.1", "");
}

#[test]
fn without_agent_and_flags_only_what_is_general_is_checked() {
    let dir = TempDir::new();
    let mut command = Command::new(PROGRAM);
    let seen = Seen::of(command.args(["doctor", "--json", "--socket"]).arg(dir.join("nobody.sock")));
    assert_eq!(seen.code, Some(3));
    seen.expect("agent", "fail", "no agent answers", "Is it running?");
    seen.expect("configuration", "warn", "not known", "give its flags");
    let seen = needs(&dir, &["-dokcer"], &[]);
    assert_eq!(seen.code, Some(3));
    seen.expect("configuration", "fail", "did you mean --docker?", "--help");
}

#[test]
fn files_are_looked_at() {
    let dir = TempDir::new();
    let rules = dir.join("rules");
    let with_rules = || needs(&dir, &["-docker", "--sink", "stdout:", "--rules-file", rules.to_str().unwrap()], &[]);
    with_rules().expect("rules-file", "fail", "No such file", "SIGHUP");
    for (text, mode, result, expect) in [
        ("deny tcp/0\n", 0o644, "fail", "line 1"),
        ("deny tcp/22\n", 0o666, "fail", "666"),
        ("deny tcp/22\n", 0o644, "ok", "1 rules"),
    ] {
        fs::write(&rules, text).unwrap();
        fs::set_permissions(&rules, Permissions::from_mode(mode)).unwrap();
        with_rules().expect("rules-file", result, expect, "correct it");
    }

    let (state, token, proxy) = (dir.join("state/agent/state.json"), dir.join("token"), path(&dir, "wsl-proxy"));
    let proxy_sink = format!("wsl-proxy://{proxy}");
    let flags = [
        "-docker",
        "--sink",
        "http://127.0.0.1:1",
        "--sink",
        &proxy_sink,
        "-tap-interface-ip",
        "203.0.113.77",
        "--state-file",
        state.to_str().unwrap(),
        "--api-token-file",
        token.to_str().unwrap(),
    ];
    let seen = needs(&dir, &flags, &[]);
    seen.expect("tap-address", "fail", "no interface has the address 203.0.113.77", "-tap-interface-ip");
    seen.expect("state-file", "ok", "state.json", "");
    seen.expect("token-file", "fail", "No such file", "0600");
    seen.expect("wsl-proxy", "warn", "No such file", "no wsl-proxy");
    fs::write(&token, "secret-1\n").unwrap();
    fs::set_permissions(&token, Permissions::from_mode(0o644)).unwrap();
    fs::create_dir(dir.join("state")).unwrap();
    fs::set_permissions(dir.join("state"), Permissions::from_mode(0o500)).unwrap();
    let _proxy = UnixListener::bind(&proxy).unwrap();
    let seen = needs(&dir, &flags, &[]);
    seen.expect("state-file", "fail", "state: Permission denied", "--state-file PATH");
    seen.expect("token-file", "fail", "644", "0600");
    seen.expect("wsl-proxy", "ok", &proxy, "");
    fs::set_permissions(&token, Permissions::from_mode(0o600)).unwrap();
    let seen = needs(&dir, &flags, &[]);
    seen.expect("token-file", "ok", "token", "");
    assert!(!format!("{:?}", seen.checks).contains("secret"));
}

#[cfg(feature = "kubernetes")]
#[test]
fn a_kubeconfig_is_read() {
    let dir = TempDir::new();
    let file = dir.join("kubeconfig");
    let flags = ["-kubernetes", "-iptables=false", "--sink", "stdout:", "-kubeconfig", file.to_str().unwrap()];
    needs(&dir, &flags, &[]).expect("kubeconfig", "fail", "No such file", "-kubeconfig PATH");
    fs::write(&file, "clusters: [").unwrap();
    needs(&dir, &flags, &[]).expect("kubeconfig", "fail", &file.display().to_string(), "correct it");
}

#[test]
fn vsock_s_device_is_looked_for_and_not_opened() {
    let dir = TempDir::new();
    let seen = needs(&dir, &["-docker", "--sink", "vsock://2", "--connect-interface", "lo"], &[]);
    let there = Path::new("/dev/vsock").exists();
    seen.expect("vsock-device", if there { "ok" } else { "fail" }, "/dev/vsock", "modprobe");
}

#[test]
#[ignore = "needs root (make test)"]
fn missing_programs_are_named() {
    let dir = TempDir::new();
    // Where systems keep programs there is nothing, in a mount namespace of its own.
    let script = "for dir in /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin; do mount -t tmpfs none $dir; done 2>/dev/null; \
                  exec \"$@\"";
    let hide = "mount() { \"$MOUNT\" \"$@\"; }; ";
    let busybox = fs::copy("/bin/busybox", dir.join("mount")).map(|_| path(&dir, "mount")).expect("busybox-static");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "/bin/sh", "-c"]).arg(format!("{hide}{script}")).arg("sh");
    command.arg(PROGRAM).args(["doctor", "--json", "--socket", "/nobody", "--", "-containerd", "-iptables"]);
    let seen = Seen::of(command.args(["--sink", "stdout:"]).env("MOUNT", busybox).env("PATH", "/nothing:/usr/bin"));
    assert_eq!(seen.code, Some(3));
    seen.expect("ctr", "fail", "there is no program ctr on the PATH", "comes with containerd");
    seen.expect("nat-tools", "fail", "there is no program iptables-nft-save", "iptables and nftables");
}

#[test]
#[ignore = "needs root (make test)"]
fn an_agent_of_another_user_is_seen_with_its_rights() {
    let dir = TempDir::new();
    let (program, socket) = (dir.join("agent"), dir.join("engine.sock"));
    fs::copy(PROGRAM, &program).unwrap();
    fs::create_dir(dir.join("run")).unwrap();
    let _engine = UnixListener::bind(&socket).unwrap();
    let mut chown = Command::new("chown");
    support::run(chown.args(["-R", "65534:65534"]).arg(dir.join("run")));
    fs::set_permissions(&socket, Permissions::from_mode(0o660)).unwrap();
    let control = dir.join("run/control.sock");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    command
        .args(["-docker", "--sink", "unix:///nobody", "--connect-interface", "lo", "--control-socket"])
        .arg(&control);
    command
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .stderr(fs::File::create(dir.join("log")).unwrap());
    let _agent = support::Process::spawn(&mut command);
    let seen = support::eventually("an answer", || {
        let mut doctor = Command::new(PROGRAM);
        let seen = Seen::of(doctor.args(["doctor", "--json", "--socket"]).arg(&control));
        if seen.check("agent")["result"] == "ok" { Ok(seen) } else { Err(seen.checks) }
    });
    seen.expect("control-socket", "ok", "of user 65534, mode 600", "");
    seen.expect("privileges", "warn", "user 65534 without CAP_NET_BIND_SERVICE", "as root");
    seen.expect("docker-socket", "fail", "Permission denied", "in its group");
}

/// Answers one `status` with that, or nothing.
fn stand_in(dir: &TempDir, status: Option<Value>) -> Seen {
    let socket = dir.join("control.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, Permissions::from_mode(0o600)).unwrap();
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        reader.read_line(&mut String::new()).unwrap();
        if let Some(status) = status {
            writeln!(stream, "{status}").unwrap();
        }
        // Until the client has gone.
        reader.read_line(&mut String::new()).unwrap();
    });
    let mut command = Command::new(PROGRAM);
    let seen = Seen::of(command.args(["doctor", "--json", "--socket"]).arg(&socket));
    answer.join().unwrap();
    seen
}

#[test]
fn a_clock_that_was_set_back_and_another_version_are_told() {
    let dir = TempDir::new();
    let later = humantime::format_rfc3339_millis(std::time::SystemTime::now() + Duration::from_secs(3600)).to_string();
    let status = json!({
        "schema": 1, "type": "status", "health": "degraded", "problems": ["source nat: x\u{1b}[2J"], "version": "0.0.9",
        "pid": std::process::id(), "started": "2026-01-01T00:00:00.000Z", "docker_host": null,
        "arguments": ["-sockets", "-iptables=false", "--sink", "stdout:"],
        "sources": [{"source": "sockets", "state": "ready", "reason": null, "last_event": later}],
        "sinks": [{"sink": "wsl-proxy:/run/x", "state": "unreachable", "reason": "No such file"}],
    });
    let seen = stand_in(&dir, Some(status));
    assert_eq!(seen.code, Some(0), "warnings alone: {:#?}", seen.checks);
    seen.expect("agent", "warn", "version 0.0.9", "restart the agent");
    seen.expect("health", "warn", "degraded: source nat: x\u{1b}[2J", "");
    seen.expect("clock", "warn", "s in the future", "set the clock");
    seen.expect("sink wsl-proxy:/run/x", "warn", "unreachable: No such file", "no wsl-proxy");
}

#[test]
fn an_agent_that_does_not_answer_is_not_waited_for() {
    let dir = TempDir::new();
    let begun = Instant::now();
    let seen = stand_in(&dir, None);
    assert_eq!(seen.code, Some(3));
    seen.expect("agent", "fail", "does not answer in time", "restart it");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
