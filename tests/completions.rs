//! Completions, as the shells themselves make them: bash and fish are asked, zsh's function is called with what zsh's own
//! helpers would be given.
//!
//! bash is on every machine that the tests run on. zsh and fish are asked where they are installed; that all commands and
//! flags are there, and quoted as those shells want, is looked at in any case.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::process::{Command, Stdio};

use rancher_desktop_agent::config::commands::COMMANDS;
use rancher_desktop_agent::config::usage::USAGE;

fn completions(shell: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rancher-desktop-guestagent"));
    let output = command.args(["completions", shell]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a shell prints for a script that begins with its completions; `None`: it is not installed.
fn shell(program: &str, args: &[&str], script: &str) -> Option<String> {
    let command = Command::new(program).args(args).arg(script).stdin(Stdio::null()).output();
    let output = match command {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        other => other.unwrap(),
    };
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{program}: {}\n{error}", output.status);
    Some(String::from_utf8(output.stdout).unwrap())
}

/// What bash offers for the last of these words.
fn bash(words: &[&str]) -> BTreeSet<String> {
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let script = format!(
        "{}\nCOMP_WORDS=(rancher-desktop-guestagent {}); COMP_CWORD={}\n_rancher_desktop_guestagent\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
        completions("bash"),
        quoted.join(" "),
        words.len()
    );
    let out = shell("bash", &["--norc", "-u", "-c"], &script).expect("bash");
    out.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn bash_completes_commands_flags_and_values() {
    for (words, expect) in [
        (&["st"][..], &["status"][..]),
        (&["wa"], &["watch", "wait"]),
        (&["-doc"], &["-docker"]),
        (&["--doc"], &["--docker"]),
        (&["-docker", "--sta"], &["--state-file"]),
        (&["status", "--j"], &["--json"]),
        (&["status", "-pro"], &["-prometheus"]),
        (&["status", ""], &["--json", "--prometheus", "--socket", "--help"]),
        (&["ports", "--state", "c"], &["conflict"]),
        (&["ports", "--state", "=", "le"], &["left-out"]),
        (&["ports", "--protocol", "="], &["tcp", "udp"]),
        (&["ports", "--port", ""], &[]),
        (&["-log-format", ""], &["json", "text"]),
        (&["completions", ""], &["bash", "fish", "zsh"]),
        (&["help", "ex"], &["explain"]),
        (&["doctor", "--", "-doc"], &["-docker"]),
        (&["doctor", "--"], &["--json", "--socket", "--help"]),
        (&["xyz", "x"], &[]),
    ] {
        assert_eq!(bash(words), set(expect), "{words:?}");
    }
    let all: BTreeSet<String> = COMMANDS.iter().map(|command| command.name.to_owned()).collect();
    assert_eq!(bash(&[""]), all);
    let flags: BTreeSet<String> = USAGE.sections.iter().flat_map(|s| s.flags).map(|f| format!("-{}", f.name)).collect();
    assert_eq!(bash(&["-"]), flags);
    assert!(bash(&["status", "--socket", "/et"]).contains("/etc"), "paths");
}

/// What zsh's helpers are given for these words: the calls, one argument a line.
fn zsh(words: &[&str]) -> Option<String> {
    let script = format!(
        "compdef() {{ : }}\n_describe() {{ print -rl -- \"_describe $*\" ${{(P)2}} }}\n_arguments() {{ print -rl -- _arguments \"$words $CURRENT\" \
         \"$@\" }}\n{}\nwords=(rancher-desktop-guestagent {}); CURRENT={}\n_rancher-desktop-guestagent\n",
        completions("zsh"),
        words.join(" "),
        words.len() + 1
    );
    shell("zsh", &["-f", "-c"], &script)
}

#[test]
fn zsh_is_told_of_commands_and_flags() {
    let text = completions("zsh");
    for (name, flags) in every_flag() {
        for flag in flags {
            assert!(text.contains(&format!("{{-,--}}{flag}")), "{name} --{flag}");
        }
    }
    assert!(text.contains(r"'how the agent is\: sources") || text.contains(r"'status:how the agent is\: sources"));
    assert!(text.contains(r"a shell'\''s completions"), "a quote within quotes");
    assert!(text.starts_with("#compdef rancher-desktop-guestagent\n"));
    let Some(commands) = zsh(&["st"]) else { return };
    for command in &COMMANDS {
        let line = format!("{}:{}", command.name, command.about.replace(':', "\\:"));
        assert!(commands.lines().any(|l| l == line), "{line}\n{commands}");
    }
    let ports = zsh(&["ports", "--s"]).unwrap();
    assert!(ports.starts_with("_arguments\nports --s 2\n"), "{ports}");
    let state = "--state=[pending, forwarding, conflict, denied, failed, left-out, or in watch withdrawn]:value:(pending forwarding conflict denied failed left-out withdrawn)";
    assert!(ports.lines().any(|line| line == state), "{ports}");
    let agent = zsh(&["-doc"]).unwrap();
    assert!(agent.contains("\n-containerdSock=[containerd's socket]:path:_files\n"), "{agent}");
    assert!(agent.contains("\n*--sink=[tell this peer,"), "repeatable: {agent}");
}

fn every_flag() -> Vec<(&'static str, Vec<&'static str>)> {
    let lines = COMMANDS.iter().map(|command| (command.name, command.usage)).chain([("", &USAGE)]);
    lines.map(|(name, usage)| (name, usage.sections.iter().flat_map(|s| s.flags).map(|f| f.name).collect())).collect()
}

#[test]
fn fish_completes_commands_and_flags() {
    let text = completions("fish");
    for (name, flags) in every_flag() {
        let when = match name {
            "" => "-n __fish_use_subcommand".to_owned(),
            name => format!("-n '__fish_seen_subcommand_from {name}'"),
        };
        for flag in flags {
            let wanted = format!("{when} -o {flag} -l {flag} ");
            assert!(text.lines().any(|line| line.contains(&wanted)), "{wanted}");
        }
    }
    assert!(text.contains(r"a shell\'s completions"), "a quote within quotes");
    for line in text.lines() {
        let quotes = line.replace("\\\\", "").replace("\\'", "").matches('\'').count();
        assert_eq!(quotes % 2, 0, "{line}");
    }
    for (words, expect) in
        [("st", "status"), ("ports --state c", "conflict"), ("status --j", "--json"), ("--doc", "--docker")]
    {
        let script = format!("{text}\ncomplete -C 'rancher-desktop-guestagent {words}'");
        let Some(out) = shell("fish", &["--no-config", "-c"], &script) else { return };
        assert!(out.lines().any(|line| line.split('\t').next() == Some(expect)), "{words}: {out}");
    }
}

#[test]
fn another_shell_is_refused() {
    for args in [&["completions"][..], &["completions", "tcsh"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_rancher-desktop-guestagent")).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("completions bash, zsh or fish"), "{output:?}");
    }
}
