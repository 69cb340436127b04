//! The relay when the process has no descriptors left. Takes them from the whole process, hence a file with one test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs
)]

mod relay_support;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike;
use rancher_desktop_agent::port::Protocol::{Tcp, Udp};
use relay_support::*;

/// Of the whole process, since /proc cannot be read without descriptors.
fn cpu_milliseconds() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    usage.user_time().num_milliseconds() + usage.system_time().num_milliseconds()
}

#[test]
fn running_out_of_descriptors_neither_spins_nor_kills() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 256.min(hard), hard).unwrap();
    let relay = relay(limits());
    let tcp = open(&relay, Tcp, V4, tcp_server(V4, echo));
    let udp = open(&relay, Udp, V4, udp_echo_server(V4));
    let (old_flow, new_flow) = (udp_client(V4), udp_client(V4));
    old_flow.send_to(b"one", udp).unwrap();
    assert_eq!(old_flow.recv(&mut [0; 8]).unwrap(), 3);

    // Until there has been none for a while: what other threads still had for a moment is taken too.
    let (mut hoard, mut last) = (Vec::new(), Instant::now());
    while last.elapsed() < Duration::from_millis(200) {
        match File::open("/dev/null") {
            Ok(file) => {
                hoard.push(file);
                last = Instant::now();
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    // The client takes the last one.
    hoard.pop();
    let mut stream = client(tcp);
    stream.write_all(b"hungry").unwrap();
    new_flow.send_to(b"two", udp).unwrap();
    eventually("refused", || relay.stats().over_limit, |refused| *refused == 1);
    let cpu = cpu_milliseconds();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    let used = cpu_milliseconds() - cpu;
    assert!(used <= 50, "{used} ms of CPU time in a second in which nothing could be done");
    old_flow.send_to(b"three", udp).unwrap();
    assert_eq!(old_flow.recv(&mut [0; 8]).unwrap(), 5);

    drop(hoard);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hungry");
    new_flow.send_to(b"two", udp).unwrap();
    assert_eq!(new_flow.recv(&mut [0; 8]).unwrap(), 3);
}
