//! How long it takes from a socket's `listen()` until the host end has the document, and what a look at the sockets costs
//! while tens of thousands of connections are open.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::sockopt::ReuseAddr;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, setsockopt, socket};

use super::containerd::announcements;
use crate::report::{Program, Row, Samples, thousands};
use crate::support::agent::Agent;
use crate::support::receiver::Receiver;
use crate::support::vm::{Namespace, Vm};
use crate::support::{Process, eventually};

const LISTENS: u16 = 60;
const FIRST_PORT: u16 = 8000;
const CONNECTIONS: usize = 50_000;
/// One process may have 20,000 descriptors on some machines.
const CONNECTIONS_EACH: usize = 10_000;
const WATCHED: Duration = Duration::from_secs(10);

/// What `--socket-interval` is unless given.
const INTERVAL_MS: f64 = 200.0;
const LISTEN_MS_MAX: f64 = 2.0 * INTERVAL_MS + 20.0;
const LOOK_MS_MAX: f64 = 2.0;

/// This program as one that only holds connections.
const MARK: &str = "__connections";

pub fn measure() -> Vec<Row> {
    vec![listening(), connected()]
}

fn listening() -> Row {
    let (vm, receiver, program) = (Vm::new(), Receiver::new(), Program::agent());
    let args = ["-sockets", "-iptables=false", "--sink", &receiver.url()];
    let agent = Agent::run_program(&program.path, Some(&vm.guest), &args, &[]);
    agent.wait_log("source ready");
    let mut opened = Vec::new();
    for n in 0..LISTENS {
        // At another moment of the interval each time.
        std::thread::sleep(Duration::from_millis(u64::from(n) * 37 % 200));
        let port = FIRST_PORT + n;
        let listener = vm.guest.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        opened.push((port, Instant::now(), listener));
        let address = format!("127.0.0.1:{port}/tcp");
        eventually(&address, || if receiver.held().contains(&address) { Ok(()) } else { Err(agent.log()) });
    }
    let documents = announcements(&receiver);
    let latency = opened.iter().map(|(port, at, _)| (documents[&port.to_string()].at - *at).as_secs_f64() * 1e3);
    let latency = Samples::new(latency.collect());
    Row::at_most(
        &format!("A socket's `listen()` to the document at the sink ({}), max", program.build),
        LISTEN_MS_MAX,
        "ms",
        latency.max(),
        format!("{:.0} ms (median {:.0}, n = {})", latency.max(), latency.median(), latency.n()),
    )
}

fn connected() -> Row {
    let (vm, receiver, program) = (Vm::new(), Receiver::new(), Program::agent());
    let args = ["-sockets", "-iptables=false", "--deny=*", "--sink", &receiver.url()];
    let agent = Agent::run_program(&program.path, Some(&vm.guest), &args, &[]);
    agent.wait_log("source ready");
    let without = look(agent.pid());
    // A connection that nobody has accepted yet is one like others.
    vm.guest.enter(|| fs::write("/proc/sys/net/core/somaxconn", "65535").unwrap());
    let holders: Vec<Process> = (0..CONNECTIONS / CONNECTIONS_EACH).map(|n| Holder::start(&vm.guest, n)).collect();
    let count = || established(&vm.guest);
    eventually("the connections", || match count() {
        found if found >= 2 * CONNECTIONS => Ok(()),
        found => Err(found),
    });
    let with = look(agent.pid());
    assert!(count() >= 2 * CONNECTIONS, "some are gone");
    drop(holders);
    Row::at_most(
        &format!("CPU of one look at the sockets, {} connections being open", thousands(CONNECTIONS as u64)),
        LOOK_MS_MAX,
        "ms",
        with,
        format!("{with:.3} ms ({without:.3} ms without them; {})", program.build),
    )
}

/// Milliseconds on a CPU of the thread that looks, per look: it waits for nothing but the next one.
fn look(pid: u32) -> f64 {
    let begun = Instant::now();
    let before = usage(pid);
    std::thread::sleep(WATCHED);
    let after = usage(pid);
    let looks = after.1 - before.1;
    let expect = begun.elapsed().as_secs_f64() * 1e3 / INTERVAL_MS;
    assert!((expect * 0.8..expect * 1.2).contains(&(looks as f64)), "{looks} looks, not {expect}");
    (after.0 - before.0) as f64 / 1e6 / looks as f64
}

/// Nanoseconds on a CPU, and waits, of the sockets source's thread.
fn usage(pid: u32) -> (u64, u64) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|entry| entry.unwrap().path());
    let is_source = |path: &std::path::PathBuf| fs::read_to_string(path.join("comm")).unwrap().trim() == "sockets";
    let task = tasks.into_iter().find(is_source).expect("a thread named sockets");
    let schedstat = fs::read_to_string(task.join("schedstat")).unwrap();
    let status = fs::read_to_string(task.join("status")).unwrap();
    let waits = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    (schedstat.split(' ').next().unwrap().parse().unwrap(), waits.trim().parse().unwrap())
}

/// TCP sockets in that state; a connection within the namespace is two.
fn established(namespace: &Namespace) -> usize {
    let table = namespace.enter(|| fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
    table.lines().filter(|line| line.split_ascii_whitespace().nth(3) == Some("01")).count()
}

struct Holder;

impl Holder {
    fn start(namespace: &Namespace, n: usize) -> Process {
        let mut command: Command = namespace.command(std::env::current_exe().unwrap());
        Process::spawn(command.args([MARK, &(10 + n).to_string()]).stdin(Stdio::null()))
    }
}

/// What such a process does, if this is one: connects to itself on an address of its own, until it is killed.
pub fn hold_connections(args: &[String]) -> Option<ExitCode> {
    let [mark, last] = args else { return None };
    if mark != MARK {
        return None;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let addr = SockaddrIn::new(127, 0, 0, last.parse().unwrap(), 7000);
    let listener = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&listener, ReuseAddr, &true).unwrap();
    bind(listener.as_raw_fd(), &addr).unwrap();
    listen(&listener, Backlog::MAXALLOWABLE).unwrap();
    let to = (addr.ip(), addr.port());
    let open: io::Result<Vec<TcpStream>> = (0..CONNECTIONS_EACH).map(|_| TcpStream::connect(to)).collect();
    let _open = open.unwrap();
    loop {
        std::thread::park();
    }
}
