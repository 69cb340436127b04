//! Commands against an agent that is a few lines of a test: what it never does, a broken one might.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Process, TempDir, within};

/// Answers each connection's first request with these lines; then closes it, or waits for the other end to.
struct StandIn {
    dir: TempDir,
}

impl StandIn {
    fn new(answer: impl Into<Vec<u8>>, closes: bool) -> StandIn {
        let (dir, answer) = (TempDir::new(), answer.into());
        let listener = UnixListener::bind(dir.join("s")).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let answer = answer.clone();
                std::thread::spawn(move || serve(stream, &answer, closes));
            }
        });
        StandIn { dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("s")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rancher-desktop-guestagent"));
        command.args(words).arg("--socket").arg(self.socket()).stdin(Stdio::null());
        command
    }

    fn ask(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }
}

fn serve(stream: UnixStream, answer: &[u8], closes: bool) {
    let mut requests = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    let _ = requests.read_line(&mut line);
    let mut writer = &stream;
    let _ = writer.write_all(answer);
    if !closes {
        let _ = requests.read_to_end(&mut Vec::new());
    }
}

fn ends(output: &Output, code: i32, expect: &str) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(message.contains(expect), "{message}");
    assert!(!message.bytes().any(|b| b.is_ascii_control() && b != b'\n'), "{message:?}");
}

const END: &str = "{\"schema\":1,\"type\":\"end\",\"count\":0}\n";

#[test]
fn an_answer_that_is_none_is_exit_code_1() {
    let long = vec![b'x'; (1 << 20) + 100_000];
    for (answer, expect) in [
        (&b""[..], "the agent went away: it closed the connection"),
        (b"{\"schema\":1,\"type\":\"status\"}\n", "the agent went away"),
        (b"{\"schema\":1,\"type\":\"stat", "the agent went away"),
        (b"HTTP/1.1 400 Bad Request\r\n", "what answers there is no agent: a line that is not JSON"),
        (b"\xff\xfe\n", "it does not send UTF-8"),
        (b"[]\n", "a document without a schema"),
        (b"{\"schema\":2,\"type\":\"status\"}\n", "the agent speaks schema 2"),
        (&long, "a line of more than 1 MB"),
        (END.as_bytes(), "the agent's answer is empty"),
        (
            b"{\"schema\":1,\"type\":\"error\",\"code\":\"request\",\"message\":\"no\\u001b[2J\xc2\x9b\"}\n",
            "the agent refuses (request): no\\u{1b}[2J\\u{9b}",
        ),
        (b"{\"schema\":1,\"type\":\"error\",\"code\":\"stopping\",\"message\":\"x\"}\n", "the agent has ended"),
        (
            b"{\"schema\":1,\"type\":\"error\",\"code\":\"busy\",\"message\":\"48 watch\"}\n",
            "closed the connection: 48 watch",
        ),
    ] {
        ends(&StandIn::new(answer, true).ask(&["status"]), 1, expect);
    }
}

#[test]
fn no_agent_is_exit_code_4_with_what_to_do() {
    let not_allowed = b"{\"schema\":1,\"type\":\"error\",\"code\":\"not-allowed\",\"message\":\"uid 7\"}\n";
    ends(&StandIn::new(&not_allowed[..], true).ask(&["ports"]), 4, "root and its own user alone: uid 7");
    let dir = TempDir::new();
    let path = dir.join("nobody").display().to_string();
    let agent = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rancher-desktop-guestagent"));
        command.args(words).args(["--socket", &path]).output().unwrap()
    };
    for command in [&["status"][..], &["ports"], &["watch"], &["explain", "80"], &["reset"]] {
        let output = agent(command);
        ends(&output, 4, &format!("no agent answers at {path}: No such file"));
        ends(&output, 4, "Is it running?");
        assert!(output.stdout.is_empty());
    }
    // A socket that nobody listens on any more.
    drop(UnixListener::bind(&path).unwrap());
    ends(&agent(&["status"]), 4, "Connection refused");
    let begun = Instant::now();
    ends(&agent(&["wait", "--port", "80", "--timeout", "100ms"]), 4, "no agent answers");
    assert!(begun.elapsed() >= Duration::from_millis(80), "it may come yet");
}

#[test]
#[ignore = "needs root"]
fn who_may_not_ask_is_told_so_at_once() {
    let dir = TempDir::new();
    let (program, closed) = (dir.join("agent"), dir.join("closed"));
    fs::copy(env!("CARGO_BIN_EXE_rancher-desktop-guestagent"), &program).unwrap();
    fs::DirBuilder::new().mode(0o700).create(&closed).unwrap();
    let _listener = UnixListener::bind(closed.join("s")).unwrap();
    let socket = closed.join("s").display().to_string();
    let nobody = |words: &[&str], runtime_dir: Option<&str>| {
        let mut command = Command::new(&program);
        command.args(words).uid(65_534).gid(65_534).env_remove("XDG_RUNTIME_DIR");
        command.envs(runtime_dir.map(|dir| ("XDG_RUNTIME_DIR", dir))).output().unwrap()
    };
    let expect = format!("may not ask the agent at {socket}: it answers root and its own user; try sudo");
    ends(&nobody(&["status", "--socket", &socket], None), 4, &expect);
    let begun = Instant::now();
    ends(&nobody(&["wait", "--port", "80", "--socket", &socket], None), 4, &expect);
    assert!(begun.elapsed() < Duration::from_secs(10), "it is not going to be allowed");
    ends(&nobody(&["status"], None), 4, "XDG_RUNTIME_DIR is not set");
    ends(&nobody(&["status"], Some("/nonexistent")), 4, "/nonexistent/rancher-desktop-guestagent/control.sock");
}

#[test]
fn wrong_usage_is_exit_code_2_before_anybody_is_asked() {
    let nobody = "--socket=/nonexistent";
    for (words, expect) in [
        (&["wait", nobody][..], "which port?"),
        (&["wait", "--port", "80", "--state", "up", nobody], "expected forwarding, "),
        (&["wait", "--port", "80", "--timeout", "soon", nobody], "expected a duration"),
        (&["explain", nobody], "which port?"),
        (&["explain", "http", nobody], "expected a port"),
        (&["explain", "80", "81", nobody], "unexpected argument"),
        (&["ports", "--port", "80/tcp", "--protocol", "udp", nobody], "another protocol"),
        (&["reset", "--timeout", "15", nobody], "expected a duration"),
        (&["status", "--json", "--prometheus", nobody], "not together with --json"),
        (&["status", &format!("--socket={}", "x".repeat(108))], "107 bytes at most"),
        (&["status", "--socket="], "107 bytes at most"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_rancher-desktop-guestagent")).args(words).output().unwrap();
        ends(&output, 2, expect);
        ends(&output, 2, &format!("Try 'rancher-desktop-guestagent {} --help'.", words[0]));
    }
}

#[test]
fn an_agent_that_says_nothing_is_not_waited_for_without_end() {
    let stuck = StandIn::new("", false);
    ends(&stuck.ask(&["wait", "--port", "80", "--timeout", "200ms"]), 5, "port 80 is not forwarding in time");
    ends(&stuck.ask(&["reset", "--timeout", "200ms"]), 5, "has not withdrawn everything in time");
}

#[test]
fn an_agent_that_comes_late_ends_or_loses_changes_is_asked_again() {
    let dir = TempDir::new();
    let socket = dir.join("s").display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rancher-desktop-guestagent"));
    command.args(["wait", "--port", "80", "--timeout", "20s", "--json", "--socket", &socket]);
    let mut wait = Process::spawn(command.stdout(Stdio::piped()));
    assert!(wait.is_running(), "nobody answers yet");
    let listener = UnixListener::bind(&socket).unwrap();
    let forward = |sink: &str, state: &str| {
        format!(
            "{{\"schema\":1,\"type\":\"forward\",\"protocol\":\"tcp\",\"port\":80,\"sink\":\"{sink}\",\
             \"state\":\"{state}\"}}\n"
        )
    };
    let (relay, pending) = (forward("relay", "forwarding"), forward("stdout:", "pending"));
    let stopping = "{\"schema\":1,\"type\":\"error\",\"code\":\"stopping\",\"message\":\"x\"}\n".to_owned();
    let lost = "{\"schema\":1,\"type\":\"lost\",\"count\":1}\n".to_owned();
    let odd = "{\"schema\":1,\"type\":\"a-newer-one\"}\n".to_owned();
    for answer in [String::new(), relay.clone() + &pending + &stopping, lost] {
        let mut stream = listener.accept().unwrap().0;
        let mut request = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut request).unwrap();
        assert_eq!(request, "{\"op\":\"watch\",\"port\":80,\"replay\":true,\"schema\":1}\n");
        stream.write_all(answer.as_bytes()).unwrap();
    }
    let mut stream = listener.accept().unwrap().0;
    let there = forward("stdout:", "forwarding");
    stream.write_all((odd + &relay + &there).as_bytes()).unwrap();
    assert_eq!(wait.wait(), Some(0));
    let mut out = String::new();
    wait.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert_eq!(out, there, "the agent's own relay is not what is waited for");
}

#[test]
fn a_forward_that_goes_without_a_word_is_not_waited_for_again() {
    let pending = "{\"schema\":1,\"type\":\"forward\",\"protocol\":\"tcp\",\"port\":80,\"host_ip\":\"127.0.0.1\",\
                   \"sink\":\"stdout:\",\"state\":\"pending\",\"since\":\"x\"}\n";
    let replayed = "{\"schema\":1,\"type\":\"replayed\",\"count\":1}\n";
    let dir = TempDir::new();
    let listener = UnixListener::bind(dir.join("s")).unwrap();
    let socket = dir.join("s").display().to_string();
    let words = ["wait", "--port", "80", "--state", "withdrawn", "--timeout", "20s", "--socket", &socket];
    let mut wait = Process::spawn(Command::new(env!("CARGO_BIN_EXE_rancher-desktop-guestagent")).args(words));
    let first = listener.accept().unwrap().0;
    (&first).write_all(format!("{pending}{replayed}").as_bytes()).unwrap();
    let second = listener.accept().unwrap().0;
    assert!(wait.is_running());
    (&second).write_all(replayed.as_bytes()).unwrap();
    assert_eq!(wait.wait(), Some(0));
}

#[test]
fn watching_ends_with_the_agent_or_with_the_reader() {
    let lost = "{\"schema\":1,\"type\":\"lost\",\"count\":7}\n";
    let output = StandIn::new(lost, true).ask(&["watch", "--json"]);
    ends(
        &output,
        1,
        "7 changes came faster than they were read, and are lost\nrancher-desktop-guestagent: the agent went",
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), lost);
    // The agent is quiet, and nobody reads: there is nothing to write that would fail.
    let quiet = StandIn::new("", false);
    let ends = |watching: &mut Process| {
        let ended = || watching.0.try_wait().unwrap().ok_or("running");
        assert_eq!(within(Duration::from_secs(2), "the end of watch", ended).code(), Some(0));
    };
    let mut watching = Process::spawn(quiet.command(&["watch"]).stdout(Stdio::piped()));
    drop(watching.0.stdout.take());
    ends(&mut watching);
    // The same where standard output is a socket.
    let (ours, its) = UnixStream::pair().unwrap();
    let mut watching = Process::spawn(quiet.command(&["watch"]).stdout(OwnedFd::from(its)));
    drop(ours);
    ends(&mut watching);
}

#[test]
fn what_is_long_is_shown_whole_or_not_at_all() {
    let forward = |port: u32| {
        format!(
            "{{\"schema\":1,\"type\":\"forward\",\"protocol\":\"tcp\",\"port\":{port},\"host_ip\":\"127.0.0.1\",\
             \"published_ip\":\"0.0.0.0\",\"sink\":\"stdout:\",\"state\":\"forwarding\",\"source\":\"docker\",\
             \"owner\":\"x\\u202e\",\"name\":\"web\u{202e}\",\"since\":\"2026-01-01T00:00:00.000Z\"}}\n"
        )
    };
    let all: String = (1..=16_384).map(forward).collect();
    let agent = StandIn::new(all.clone() + END, false);
    let output = agent.ask(&["ports"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1 + 16_384);
    assert!(text.lines().all(|line| line.chars().count() <= 80) && !text.contains('\u{202e}'));
    let json = String::from_utf8(agent.ask(&["ports", "--json"]).stdout).unwrap();
    assert_eq!(json, all.replace('\u{202e}', "\\u202e"), "as it came, but for what is hidden");
    // A reader that has enough.
    let mut ports = Process::spawn(agent.command(&["ports"]).stdout(Stdio::piped()));
    let mut head = [0; 10];
    ports.0.stdout.take().unwrap().read_exact(&mut head).unwrap();
    assert_eq!(ports.wait(), Some(0));
    ends(&StandIn::new(all, true).ask(&["ports"]), 1, "went away");
}

#[test]
fn what_is_over_is_still_said() {
    let begun = "{\"schema\":1,\"type\":\"reset\",\"state\":\"begun\",\"left\":0,\"time\":\"x\"}\n";
    let done = "{\"schema\":1,\"type\":\"reset\",\"state\":\"done\",\"left\":3,\"time\":\"x\"}\n";
    let output = StandIn::new(format!("{begun}{done}{END}"), false).ask(&["reset"]);
    ends(&output, 1, "3 forwards could not be withdrawn; starting over");
    assert!(output.stdout.is_empty());
}
