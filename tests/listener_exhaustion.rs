//! A thousand listeners, and the process without a descriptor left. Its limits are those of the whole process, hence a
//! file with one test.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::num::NonZeroU16;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
use nix::sys::time::TimeValLike as _;
use rancher_desktop_agent::event::{Answer, Document, Failure, FailureKind, Operation, Owner, Source, Ticket};
use rancher_desktop_agent::port::{Binding, Protocol};
use rancher_desktop_agent::sink::Sink as _;
use rancher_desktop_agent::sink::listener::Listener;

const LISTENERS: u16 = 1000;

fn announce(sink: &mut Listener, bindings: &[Binding]) -> Vec<(Binding, Failure)> {
    let owner = Owner { source: Source::Nat, key: "test".into() };
    let bindings = bindings.iter().map(|b| (*b, b.host_port)).collect();
    match sink.carry_out(&Document { ticket: Ticket(1), operation: Operation::Announce, owner, bindings }) {
        Answer::Done { failed } => failed,
        other => panic!("{other:?}"),
    }
}

/// On addresses of 127.0.0.0/8 that nothing else uses, all with the same port.
fn binding(number: u16, port: u16) -> Binding {
    let [high, low] = number.to_be_bytes();
    let host_port = NonZeroU16::new(port).unwrap();
    Binding { protocol: Protocol::Tcp, host_ip: Ipv4Addr::new(127, 79, high, low).into(), host_port }
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

fn cpu_milliseconds() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    usage.user_time().num_milliseconds() + usage.system_time().num_milliseconds()
}

#[test]
fn a_thousand_listeners_on_one_thread_do_not_spin_without_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let enough = hard.min(4096);
    assert!(enough >= u64::from(LISTENERS) + 100, "the limit on open files is too low: {hard}");
    let allow = |files| setrlimit(Resource::RLIMIT_NOFILE, files, hard).unwrap();
    allow(enough);

    let before = threads();
    let mut sink = Listener::start().unwrap();
    let port = TcpListener::bind("127.79.255.1:0").unwrap().local_addr().unwrap().port();
    let all: Vec<Binding> = (1..=LISTENERS).map(|n| binding(n, port)).collect();
    assert_eq!(announce(&mut sink, &all), []);
    assert_eq!(threads(), before + 1, "one thread for all of them");
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let open = descriptors();
    for binding in &all {
        // The reset may be quicker than the client that connects.
        let met = TcpStream::connect(binding.socket_addr()).and_then(|mut stream| stream.read(&mut [0]));
        assert_eq!(met.unwrap_err().kind(), ErrorKind::ConnectionReset, "{binding}");
    }
    assert_eq!(descriptors(), open, "nothing is kept of a connection");

    // A descriptor for the client, and then for nobody.
    let client = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    allow(10);
    let [high, low] = LISTENERS.to_be_bytes();
    connect(client.as_raw_fd(), &SockaddrIn::new(127, 79, high, low, port)).unwrap();
    let mut client = TcpStream::from(client);
    client.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let cpu = cpu_milliseconds();
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "it cannot be accepted");
    let used = cpu_milliseconds() - cpu;
    assert!(used <= 50, "{used} ms of CPU time in a second in which nothing could be done");
    let failed = announce(&mut sink, &[binding(LISTENERS + 1, port)]);
    assert_eq!(failed[0].1.kind, FailureKind::Failed);
    assert!(failed[0].1.reason.contains("the limit is 10"), "{failed:?}");

    allow(enough);
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset, "accepted at last");
    assert_eq!(announce(&mut sink, &[binding(LISTENERS + 1, port)]), []);
}
