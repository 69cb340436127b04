//! The rules file: what is refused before anything starts, and what SIGHUP changes while the agent runs.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use support::TempDir;

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
    fs::write(&path, b"deny tcp/22 # caf\xe9\n").unwrap();
    refused(&path, "not UTF-8");
    fs::write(&path, format!("#{}\n", "x".repeat(65_536))).unwrap();
    refused(&path, "longer than 65536 bytes");
    fs::write(&path, "deny tcp/22\n".repeat(1025)).unwrap();
    refused(&path, "more than 1024 rules");
    if nix::unistd::geteuid().is_root() {
        fs::write(&path, "deny *\n").unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        refused(&path, "it belongs to user 65534");
    }
}
