//! The agent's command line as a process: exit codes, messages, and what runs without any privilege.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fs;
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
    refused(&["-iptables=false"], "at least one source");
    refused(&["-docker=false", "-containerd=false", "-kubernetes=false", "-iptables=false"], "at least one source");
}

#[cfg(not(feature = "kubernetes"))]
#[test]
fn what_was_left_out_of_the_build_says_so() {
    refused(&["-kubernetes", "--check"], "built without it");
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
    let output = agent(&["-containerd", "-containerdSock", "/run/c.sock", "-privilegedService", "--check"]);
    let expect = "source=containerd:/run/c.sock sink=tcp://127.0.0.1:3040 sink=listener:<containerd relay=eth0 \
                  exposure=loopback\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expect);
    #[cfg(feature = "kubernetes")]
    {
        let output =
            agent(&["-kubernetes", "-kubeconfig", "/k.yaml", "-privilegedService", "-iptables=false", "--check"]);
        let expect =
            "source=kubernetes:/k.yaml services=0.0.0.0 sink=tcp://127.0.0.1:3040 relay=eth0 exposure=loopback\n";
        assert_eq!(String::from_utf8_lossy(&output.stdout), expect);
        let output = agent(&["-kubernetes", "--insecure-kubernetes-tls", "--sink", "stdout:", "--check"]);
        let expect = "source=kubernetes:/etc/rancher/k3s/k3s.yaml services=0.0.0.0 insecure-kubernetes-tls source=nat sink=stdout: \
                      exposure=loopback\n";
        assert_eq!(String::from_utf8_lossy(&output.stdout), expect);
    }
    let output = agent(&["--check"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "source=nat sink=listener: exposure=loopback\n");
    let output = agent(&["-docker", "--deny", "tcp/22@sockets", "--check"]);
    let expect = "source=docker:/var/run/docker.sock source=sockets sink=http://192.168.127.1:80 \
                  sink=wsl-proxy:///run/wsl-proxy.sock relay=192.168.127.2 exposure=loopback --deny tcp/22@sockets\n";
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
        "insecure-kubernetes-tls",
        "adminInstall",
        "ctr",
        "iptables",
        "nat-interval",
        "privilegedService",
        "vtunnelAddr",
        "k8sAPIPort",
        "sockets",
        "socket-interval",
        "tap-interface-ip",
        "api-token-file",
        "state-file",
        "allow",
        "deny",
        "sink",
        "connect-interface",
        "relay-peer",
        "engine-grace",
        "log-format",
        "log-level",
        "rules-file",
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

const COMMANDS: [&str; 9] = ["status", "ports", "watch", "wait", "explain", "reset", "doctor", "completions", "help"];

#[test]
fn the_help_names_every_command_and_each_has_its_own() {
    let help = agent(&["--help"]);
    let help = String::from_utf8_lossy(&help.stdout);
    for command in COMMANDS {
        assert!(help.lines().any(|line| line.starts_with(&format!("  {command} "))), "{command}: {help}");
        let own = agent(&[command, "--help"]);
        let text = String::from_utf8_lossy(&own.stdout);
        assert_eq!(own.status.code(), Some(0), "{command}");
        assert!(text.lines().count() <= 25, "{command}: {text}");
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{command}: {text}");
        assert!(text.contains("Example") && text.contains("Exit codes: 0"), "{command}: {text}");
        assert_eq!(agent(&["help", command]).stdout, own.stdout, "{command}");
    }
    assert_eq!(String::from_utf8_lossy(&agent(&["help"]).stdout), help);
}

#[test]
fn wrong_commands_and_their_flags_are_exit_code_2() {
    refused(&["stauts"], "unknown command \"stauts\"; did you mean status?");
    refused(&["help", "prots"], "did you mean ports?");
    refused(&["zzzzzz"], "unknown command \"zzzzzz\"\n");
    refused(&[""], "unknown command");
    refused(&["\u{1b}[31mx\u{202e}"], "unknown command \"\\u{1b}[31mx\\u{202e}\"");
    refused(
        &["status", "--jsno"],
        "unknown flag --jsno; did you mean --json?\nTry 'rancher-desktop-guestagent status --help'",
    );
    refused(&["status", "now"], "unexpected argument");
    refused(&["-docker", "status"], "status is a command: it comes before all flags");
    refused(&["doctor", "-docker"], "--docker is a flag of the agent; it comes behind --");
    refused(&["status", "--deny", "*"], "--deny is a flag of the agent, not of this command");
    refused(&["explain", "tcp/80"], "guestagent: \"tcp/80\": expected a port");
    refused(&["ports", "--socket"], "--socket needs a value");
}

#[test]
#[ignore = "needs make"]
fn make_install_names_its_directory_and_keeps_settings() {
    let dir = std::env::temp_dir().join(format!("rda-install-{}", std::process::id()));
    let (built, root) = (dir.join("built"), dir.join("the root"));
    fs::create_dir_all(&built).unwrap();
    for program in ["rancher-desktop-guestagent", "rancher-desktop-hostagent"] {
        fs::copy("/bin/true", built.join(program)).unwrap();
    }
    let install = || {
        let mut make = Command::new("make");
        make.arg("install").arg(format!("MUSL={}", built.display())).arg(format!("DESTDIR={}", root.display()));
        make.arg("PREFIX=/usr").current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap().status.success()
    };
    assert!(install());
    assert!(root.join("usr/bin/rancher-desktop-hostagent").exists());
    let service = fs::read_to_string(root.join("etc/init.d/rancher-desktop-guestagent")).unwrap();
    assert!(service.contains(":=/usr/bin/rancher-desktop-guestagent") && !service.contains("/local"), "{service}");
    let share = root.join("usr/share");
    assert!(share.join("man/man8/rancher-desktop-guestagent.8").exists());
    assert!(share.join("bash-completion/completions/rancher-desktop-guestagent").exists());
    let settings = root.join("etc/conf.d/rancher-desktop-guestagent");
    fs::write(&settings, "GUESTAGENT_DOCKER=true\n").unwrap();
    assert!(install());
    assert_eq!(fs::read_to_string(&settings).unwrap(), "GUESTAGENT_DOCKER=true\n");
    // The first program cannot be installed, the second can.
    let agent = root.join("usr/bin/rancher-desktop-guestagent");
    fs::remove_file(&agent).unwrap();
    fs::create_dir_all(agent.join("rancher-desktop-guestagent")).unwrap();
    assert!(!install());
    fs::remove_dir_all(&dir).unwrap();
}
