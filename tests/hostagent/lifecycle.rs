//! The process: command line, sockets, handshake, signals.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;

use nix::sys::signal::Signal;
use rancher_desktop_agent::event::Operation;
use rancher_desktop_agent::port::Protocol::{Tcp, Udp};

use crate::support::{
    BINARY, Guarded, HostAgent, TempDir, ask_tcp, document, free_port, guest, is_refused, send_to, wait_for,
};

fn output(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn sigterm_closes_everything_and_removes_the_socket() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut agent = HostAgent::start();
        let (one, two) = (free_port(), free_port());
        guest("one", one);
        agent.add(&[(Tcp, "127.0.0.1", one), (Tcp, "127.0.0.1", two), (Udp, "127.0.0.1", two)]);
        assert_eq!(ask_tcp("127.0.0.1", one).unwrap(), "one hello\n");
        agent.signal(signal);
        assert_eq!(agent.wait_exit(), Some(0), "{}", agent.stderr());
        wait_for("three closed", || agent.stdout(), || (agent.count("closed") == 3).then_some(()));
        assert!(is_refused(ask_tcp("127.0.0.1", one)));
        assert!(!agent.socket.exists());
    }
}

/// With a pipe as its stdout, and a document on the way: the process is ready when that is taken.
fn with_piped_stdout(dir: &TempDir, document: &[u8]) -> (Guarded, PathBuf) {
    let socket = dir.path("docs.sock");
    let child = Command::new(BINARY)
        .args(["--connect-address=127.0.0.2", &format!("--listen=unix://{}", socket.display())])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let process = Guarded(child.unwrap());
    wait_for("the socket", String::new, || send_to(&socket, document).ok());
    (process, socket)
}

#[test]
fn it_goes_on_when_nobody_reads_its_stdout() {
    let dir = TempDir::new();
    let port = free_port();
    guest("one", port);
    let add = document(Operation::Announce, &[(Tcp, "127.0.0.1", port)], &[]);
    let remove = document(Operation::Withdraw, &[(Tcp, "127.0.0.1", port)], &[]);
    let (mut process, socket) = with_piped_stdout(&dir, &remove);
    drop(process.0.stdout.take());
    for _ in 0..3 {
        send_to(&socket, &add).unwrap();
        assert_eq!(ask_tcp("127.0.0.1", port).unwrap(), "one hello\n");
        send_to(&socket, &remove).unwrap();
    }
}

#[test]
fn it_goes_on_and_stops_when_nobody_reads_what_it_says() {
    let dir = TempDir::new();
    let socket = dir.path("docs.sock");
    let (_unread, said) = UnixStream::pair().unwrap();
    let child = Command::new(BINARY)
        .args(["--connect-address=127.0.0.2", &format!("--listen=unix://{}", socket.display())])
        .stdout(OwnedFd::from(said.try_clone().unwrap()))
        .stderr(OwnedFd::from(said))
        .spawn();
    let mut process = Guarded(child.unwrap());
    // More lines than fit, and nobody reads them.
    let ports: Vec<_> = (24_000..26_000).map(|port| (Tcp, "127.0.0.8", port)).collect();
    let flood = document(Operation::Announce, &ports, &[]);
    wait_for("the socket", String::new, || send_to(&socket, &flood).ok());
    for _ in 0..3 {
        send_to(&socket, b"garbage\n").unwrap();
    }
    let port = free_port();
    guest("one", port);
    send_to(&socket, &document(Operation::Announce, &[(Tcp, "127.0.0.1", port)], &[])).unwrap();
    assert_eq!(ask_tcp("127.0.0.1", port).unwrap(), "one hello\n");
    process.signal(Signal::SIGTERM);
    let status = wait_for("the end", String::new, || process.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn it_survives_its_terminal_under_nohup() {
    let dir = TempDir::new();
    let socket = dir.path("docs.sock");
    let script = format!("trap '' HUP; exec {BINARY} --listen=unix://{}", socket.display());
    let process = Guarded(Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).spawn().unwrap());
    wait_for("the socket", String::new, || send_to(&socket, b"{}\n").ok());
    process.signal(Signal::SIGHUP);
    thread::sleep(std::time::Duration::from_millis(300));
    send_to(&socket, b"{}\n").unwrap();
}

#[test]
fn it_keeps_no_privilege_but_that_of_low_ports() {
    let agent = HostAgent::start();
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        let capabilities = u64::from_str_radix(field(set), 16).unwrap();
        assert_eq!(capabilities & !(1 << 10), 0, "{set} {capabilities:x}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
}

#[test]
fn the_socket_is_private_and_a_stale_one_is_replaced() {
    let dir = TempDir::new();
    let path = dir.path("docs.sock");
    drop(UnixListener::bind(&path).unwrap());
    let agent = HostAgent::spawn(dir, path, &["--connect=127.0.0.0/8"]);
    agent.wait_stderr("ready");
    assert_eq!(fs::metadata(&agent.socket).unwrap().permissions().mode() & 0o777, 0o600);
    agent.assert_takes_documents();

    let url = format!("--listen=unix://{}", agent.socket.display());
    let second = output(&[&url]);
    let stderr = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("another program listens there"), "{stderr}");
    agent.assert_takes_documents();
}

#[test]
fn a_file_in_the_way_is_left_alone() {
    let dir = TempDir::new();
    let path = dir.path("file");
    fs::write(&path, "data").unwrap();
    let refused = output(&["--listen", &format!("unix://{}", path.display())]);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(&path.display().to_string()) && stderr.contains("not a socket"), "{stderr}");
    assert_eq!(fs::read(&path).unwrap(), b"data");

    let refused = output(&["--listen", &format!("unix://{}", dir.path("none/x.sock").display())]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("make its directory first"));
}

#[test]
fn documents_come_in_over_tcp_too() {
    let (listen, port) = (free_port(), free_port());
    let agent = HostAgent::with(&["--connect-address=127.0.0.2", &format!("--listen=tcp://127.0.0.1:{listen}")]);
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", listen)).unwrap();
    stream.write_all(&document(Operation::Announce, &[(Tcp, "127.0.0.1", port)], &[])).unwrap();
    agent.wait_event("opened", port);
    let busy = output(&["--listen", &format!("tcp://127.0.0.1:{listen}")]);
    assert_eq!(busy.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&busy.stderr).contains("another program has this address and port"));
}

/// A hypervisor's socket, pretended: its first answer is that nobody listens in the guest, its second the agent's.
#[test]
fn the_handshake_goes_through_the_hypervisor_s_socket() {
    let dir = TempDir::new();
    let uds = dir.path("vm.sock");
    let hypervisor = UnixListener::bind(&uds).unwrap();
    let answering = thread::spawn(move || {
        for tries in 0..2 {
            let (mut stream, _) = hypervisor.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            assert_eq!(request, "CONNECT 17382\n");
            if tries == 1 {
                stream.write_all(b"OK 1073741824\n").unwrap();
                stream.write_all(b"github.com/rancher-sandbox/rancher-desktop-vtunnel").unwrap();
            }
        }
    });
    let documents = dir.path("vm.sock_17381");
    let socket = dir.path("docs.sock");
    let agent = HostAgent::spawn(dir, socket, &["--uds", uds.to_str().unwrap(), "--connect=127.0.0.0/8"]);
    agent.wait_stderr("it announces everything again");
    answering.join().unwrap();
    let port = free_port();
    send_to(&documents, &document(Operation::Announce, &[(Tcp, "127.0.0.1", port)], &["127.0.0.2"])).unwrap();
    agent.wait_event("opened", port);
}

#[test]
fn sigterm_does_not_wait_for_a_handshake() {
    let dir = TempDir::new();
    let (uds, socket) = (dir.path("vm.sock"), dir.path("docs.sock"));
    let mut agent = HostAgent::spawn(dir, socket, &["--uds", uds.to_str().unwrap()]);
    agent.wait_stderr("ready");
    assert!(UnixStream::connect(agent.dir.path("vm.sock_17381")).is_ok());
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait_exit(), Some(0));
    assert!(!agent.dir.path("vm.sock_17381").exists());
}

#[test]
fn the_command_line_is_checked() {
    for (args, code, stdout, stderr) in [
        (&["--lisen", "x"][..], 2, "", "unknown flag --lisen; did you mean --listen?"),
        (&[], 2, "", "for example --listen unix:///"),
        (&["--check"], 2, "", "nothing to listen on"),
        (&["--check", "--listen", "unix:///nowhere/x"], 0, "", ""),
        (&["--listen", "x", "--check"], 2, "", "--listen \"x\": use unix://PATH"),
        (&["--uds", "/x", "--allow", "::1:80"], 2, "", "in brackets"),
        (&["--help"], 0, "Usage: rancher-desktop-hostagent", ""),
        (&["--version"], 0, env!("CARGO_PKG_VERSION"), ""),
    ] {
        let output = output(args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{args:?}: {err}");
        assert!(out.contains(stdout) && err.contains(stderr), "{args:?}: {out}{err}");
    }
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let status = Command::new(BINARY).arg("--lisen").stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(2), "a message that cannot be written");
}

#[test]
fn messages_can_be_json() {
    let agent = HostAgent::with(&["--log-format=json"]);
    let stderr = agent.stderr();
    let line: serde_json::Value = serde_json::from_str(stderr.lines().last().unwrap()).unwrap();
    assert_eq!(line["level"], "INFO");
    assert!(line["message"].as_str().unwrap().starts_with("ready: listening on unix://"), "{line}");
}
