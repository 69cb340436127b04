//! The agent's command line as a process: exit codes, messages, and what runs without any privilege.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::process::{Command, Output};

fn agent(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rancher-desktop-guestagent"));
    command.args(args).env_remove("DOCKER_HOST").output().unwrap()
}

fn refused(args: &[&str], expect: &str) {
    let output = agent(args);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
    assert!(message.contains(expect), "{args:?}: {message}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

#[test]
fn s28_nothing_to_do_is_exit_code_2_with_a_reason() {
    refused(&[], "at least one source");
    refused(&["-docker=false", "-containerd=false", "-kubernetes=false", "-iptables=false"], "at least one source");
    refused(&["-docker"], "nobody to tell");
}

#[test]
fn what_is_not_built_yet_says_so() {
    for flag in ["-containerd", "-kubernetes", "-iptables"] {
        refused(&[flag, "-docker", "--sink", "stdout:"], "not in this version");
    }
}

#[test]
fn wrong_flags_name_the_flag() {
    refused(&["-dockre"], "did you mean --docker");
    refused(&["-docker=maybe"], "--docker");
    refused(&["-docker", "--sink"], "needs a value");
    refused(&["-docker", "--sink", "ftp://x"], "ftp://x");
    refused(&["-docker", "extra"], "extra");
    refused(&["-docker", "--sink", "stdout:", "-k8sServiceListenerAddr", "1.2.3.4"], "0.0.0.0 or 127.0.0.1");
}

#[test]
fn check_says_what_would_run() {
    let output = agent(&["-docker", "-privilegedService", "-adminInstall", "--check"]);
    assert_eq!(output.status.code(), Some(0));
    let expect = "source=docker:/var/run/docker.sock sink=tcp://127.0.0.1:3040 relay=eth0 exposure=as-published\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expect);
}

#[test]
fn help_shows_every_flag_of_the_agent_it_replaces() {
    let output = agent(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8_lossy(&output.stdout);
    for flag in [
        "debug",
        "docker",
        "containerd",
        "containerdSock",
        "kubernetes",
        "kubeconfig",
        "k8sServiceListenerAddr",
        "adminInstall",
        "iptables",
        "privilegedService",
        "vtunnelAddr",
        "k8sAPIPort",
        "tap-interface-ip",
        "sink",
        "connect-interface",
        "relay-peer",
        "engine-grace",
        "log-format",
        "check",
        "version",
    ] {
        assert!(help.contains(&format!("--{flag}")), "{flag} is missing:\n{help}");
    }
    assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    let version = agent(&["--version"]);
    assert_eq!(
        String::from_utf8_lossy(&version.stdout),
        concat!("rancher-desktop-guestagent ", env!("CARGO_PKG_VERSION"), "\n")
    );
}
