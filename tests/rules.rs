//! The rules file: what is refused before anything starts, and what SIGHUP changes while the agent runs.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;
use support::agent::Agent;
use support::engine_stub::{EngineStub, id, ports};
use support::receiver::Receiver;
use support::{TempDir, eventually};

/// A rules file with that text.
fn rules_file(text: &str) -> (TempDir, String) {
    let dir = TempDir::new();
    let path = dir.join("rules");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

/// Runs the agent with arguments that do not let it run for long. The exit code, standard output, standard error.
fn agent(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rancher-desktop-guestagent"));
    let output = command.args(["-docker", "--sink", "stdout:", "--control-socket", ""]).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn refused(path: &str, expect: &str) {
    for more in [&["--check"][..], &[]] {
        let (code, out, error) = agent(&[&["--rules-file", path], more].concat());
        assert_eq!((code, out.as_str()), (Some(2), ""), "{error}");
        assert!(error.contains(path) && error.contains(expect) && error.lines().count() == 1, "{error}");
    }
}

#[test]
fn check_shows_the_rules_behind_those_of_the_command_line() {
    let (_dir, path) = rules_file("# ours\nallow tcp/8080\ndeny tcp/8000-8999@docker # the rest\n");
    let (code, out, error) = agent(&["--check", "--rules-file", &path, "--deny", "tcp/22"]);
    assert_eq!(code, Some(0), "{error}");
    let expect = "exposure=loopback --deny tcp/22 allow tcp/8080 deny tcp/8000-8999@docker\n";
    assert!(out.ends_with(expect), "{out}");
}

#[test]
fn a_bad_rule_is_refused_with_its_line() {
    let (_dir, path) = rules_file("deny tcp/22\n\ndeny tcp/0\n");
    refused(&path, "line 3: 'deny tcp/0': expected allow RULE or deny RULE");
}

/// The agent gives up the right to pass over permissions: what it could not read again, it does not begin with.
#[test]
#[ignore = "needs root (make test)"]
fn a_file_that_its_user_may_not_reach_is_refused() {
    let (dir, path) = rules_file("deny tcp/22\n");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534)).unwrap();
    refused(&path, "Permission denied");
}

#[test]
fn a_file_that_cannot_be_trusted_or_read_is_refused() {
    let (dir, path) = rules_file("deny *\n");
    refused(dir.join("nothing").to_str().unwrap(), "No such file or directory");
    refused(dir.path().to_str().unwrap(), "no regular file");
    for mode in [0o664, 0o646] {
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        refused(&path, &format!("its mode {mode:o} lets others in"));
    }
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let fifo = dir.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    refused(fifo.to_str().unwrap(), "no regular file");
    fs::write(&path, "").unwrap();
    refused(&path, "it is empty: where no rule is wanted, write a comment (#)");
    fs::write(&path, b"deny tcp/22 # caf\xe9\n").unwrap();
    refused(&path, "not UTF-8");
    fs::write(&path, format!("#{}\n", "x".repeat(65_536))).unwrap();
    refused(&path, "longer than 65536 bytes");
    fs::write(&path, "deny tcp/22\n".repeat(1025)).unwrap();
    refused(&path, "more than 1024 rules");
    if nix::unistd::geteuid().is_root() {
        fs::write(&path, "deny *\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        refused(&path, "it belongs to user 65534");
    }
}

/// The agent between an engine with three published ports and a receiver, with that rules file and more arguments.
fn running(path: &str, more: &[&str]) -> (EngineStub, Receiver, Agent) {
    let (engine, receiver) = (EngineStub::new(), Receiver::new());
    for (n, port) in (1..).zip(["8001", "8002", "8003"]) {
        engine.add(&id(n), ports(&[("80/tcp", "0.0.0.0", port)]));
    }
    let url = receiver.url();
    let args = ["--sink", &url, "-adminInstall", "--connect-interface", "lo", "--rules-file", path];
    let agent = Agent::start(None, &engine.socket(), &[&args[..], more].concat());
    agent.wait_log("source ready");
    (engine, receiver, agent)
}

fn reread(agent: &Agent, path: &str, text: &str) {
    fs::write(path, text).unwrap();
    agent.process.signal(Signal::SIGHUP);
}

/// What `status` says of the policy.
fn policy(agent: &Agent) -> Value {
    let output = agent.ask(&["status", "--json"]).output().unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    status["policy"].clone()
}

/// The rules that are not the agent's own, as `status` has them.
fn shown(policy: &Value) -> Vec<&str> {
    let rules = policy["rules"].as_array().unwrap().iter().map(|rule| rule.as_str().unwrap());
    rules.filter(|rule| !rule.contains("@sockets")).collect()
}

#[test]
fn sighup_takes_the_rules_that_are_in_the_file_then() {
    let (_dir, path) = rules_file("deny tcp/8001\n");
    let (engine, receiver, agent) = running(&path, &["--allow", "tcp/8003"]);
    receiver.wait_held(&["0.0.0.0:8002/tcp", "0.0.0.0:8003/tcp"]);
    agent.wait_log("rule=\"deny tcp/8001 (rules file, line 1)\"");
    assert_eq!(shown(&policy(&agent)), ["--allow tcp/8003", "deny tcp/8001 (rules file, line 1)"]);
    // Denied is withdrawn, allowed is announced, and what the command line allows stays.
    reread(&agent, &path, "# turned around\nallow tcp/8001\ndeny *\n");
    receiver.wait_held(&["0.0.0.0:8001/tcp", "0.0.0.0:8003/tcp"]);
    agent.wait_log("rules file read rules=2");
    let about_8003 = receiver.all().iter().filter(|document| document.text.contains("8003")).count();
    assert_eq!(about_8003, 1, "what stays is not touched");
    // New ports are under the new rules, too.
    engine.start(&id(4), ports(&[("80/tcp", "0.0.0.0", "8004")]));
    agent.wait_log("0.0.0.0:8004/tcp owner=docker:000000000000 rule=\"deny * (rules file, line 3)\"");
    reread(&agent, &path, "# none\n");
    receiver.wait_held(&["0.0.0.0:8001/tcp", "0.0.0.0:8002/tcp", "0.0.0.0:8003/tcp", "0.0.0.0:8004/tcp"]);
    assert_eq!(shown(&policy(&agent)), ["--allow tcp/8003"]);
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn a_file_that_is_bad_then_leaves_the_rules_before_it() {
    let (_dir, path) = rules_file("deny tcp/8001\n");
    let (_engine, receiver, agent) = running(&path, &[]);
    receiver.wait_held(&["0.0.0.0:8002/tcp", "0.0.0.0:8003/tcp"]);
    assert_eq!(policy(&agent)["problem"], Value::Null);
    let problem = || policy(&agent)["problem"].as_str().map(str::to_owned);
    let says = |expect: &str| {
        eventually(expect, || match problem() {
            Some(problem) if problem.contains(expect) && problem.contains(&path) => Ok(()),
            other => Err(other),
        });
    };
    reread(&agent, &path, "allow *\ndeny tcp/70000\n");
    says("line 2: 'deny tcp/70000'");
    agent.wait_log("rules file not taken, the rules before it stay");
    fs::remove_file(&path).unwrap();
    agent.process.signal(Signal::SIGHUP);
    says("No such file");
    fs::write(&path, "allow *\n").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    agent.process.signal(Signal::SIGHUP);
    says("lets others in");
    assert_eq!(shown(&policy(&agent)), ["deny tcp/8001 (rules file, line 1)"]);
    assert_eq!(receiver.held(), ["0.0.0.0:8002/tcp", "0.0.0.0:8003/tcp"]);
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    agent.process.signal(Signal::SIGHUP);
    receiver.wait_held(&["0.0.0.0:8001/tcp", "0.0.0.0:8002/tcp", "0.0.0.0:8003/tcp"]);
    assert_eq!(problem(), None);
}
