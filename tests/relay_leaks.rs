//! What the relay leaves behind: nothing. Counts the descriptors and threads of the whole process, so the tests here
//! take turns, and are in a file, hence a process, of their own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs
)]

mod relay_support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rancher_desktop_agent::port::Protocol::{Tcp, Udp};
use relay_support::*;

static TURNS: Mutex<()> = Mutex::new(());

/// What has to be back. The kernel takes a moment to take a thread off the list, so this is to be asked repeatedly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: usize,
}

fn held() -> Held {
    let entries = |dir| std::fs::read_dir(dir).unwrap().count();
    Held { descriptors: entries("/proc/self/fd"), threads: entries("/proc/self/task") }
}

impl Held {
    fn is_within(&self, before: &Held) -> bool {
        self.descriptors <= before.descriptors && self.threads <= before.threads
    }
}

/// Once what came before, such as another test's end, is over.
fn settled() -> Held {
    let pair = || {
        let first = held();
        thread::sleep(Duration::from_millis(100));
        (first, held())
    };
    eventually("held", pair, |(first, second)| first == second).1
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// An echo server on a fixed number of threads, one connection each. Ends a connection after a `q`.
fn pool(threads: usize) -> SocketAddr {
    let listener = TcpListener::bind((V4, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    for _ in 0..threads {
        let listener = listener.try_clone().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let mut buffer = [0; 64];
                while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..bytes]).is_err() || buffer[0] == b'q' {
                        break;
                    }
                }
            }
        });
    }
    addr
}

/// One short connection, ended in one of the ways in which connections end.
fn visit(listen: SocketAddr, number: usize) {
    let mut stream = client(listen);
    let question: &[u8] = if number % 4 == 0 { b"quit" } else { b"go on" };
    ping(&mut stream, question);
    match number % 4 {
        0 => assert_eq!(stream.read(&mut [0]).unwrap(), 0),
        1 => {
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
        2 => reset_on_drop(&stream),
        _ => {}
    }
}

fn visit_often(listen: SocketAddr, connections: usize) {
    const AT_ONCE: usize = 16;
    thread::scope(|scope| {
        for first in 0..AT_ONCE {
            scope.spawn(move || (first..connections).step_by(AT_ONCE).for_each(|number| visit(listen, number)));
        }
    });
}

fn connections_leave_nothing_behind(connections: usize) {
    let _turn = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    let relay = relay(limits());
    let listen = open(&relay, Tcp, V4, pool(48));
    // The allocator's arenas and the cache of thread stacks have their size only after a while.
    visit_often(listen, 1000);
    eventually("connections", || relay.stats().connections, |open| *open == 0);
    let before = settled();
    let resident_before = resident_kib();

    let start = Instant::now();
    visit_often(listen, connections);
    println!("{connections} connections in {:?}", start.elapsed());

    eventually("held", held, |now| now.is_within(&before));
    let resident = resident_kib();
    println!("before: {before:?}, {resident_before} KiB resident; after: {:?}, {resident} KiB", held());
    assert!(resident < resident_before + 4096, "{resident_before} KiB resident became {resident} KiB");
    assert_eq!(relay.stats(), Default::default());
}

#[test]
fn s17_connections_leave_nothing_behind() {
    connections_leave_nothing_behind(10_000);
}

#[test]
#[ignore = "long: 100,000 connections"]
fn s17_connections_leave_nothing_behind_long() {
    connections_leave_nothing_behind(100_000);
}

#[test]
fn a_dropped_relay_leaves_nothing_behind() {
    let _turn = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
    let (tcp, udp) = (pool(8), udp_echo_server(V4));
    let before = settled();
    for _ in 0..3 {
        let relay = relay(limits());
        let listen = open(&relay, Tcp, V4, tcp);
        let mut streams: Vec<_> = (0..8).map(|_| client(listen)).collect();
        streams.iter_mut().for_each(|stream| ping(stream, b"live"));
        let datagrams = udp_client(V4);
        datagrams.send_to(b"live", open(&relay, Udp, V4, udp)).unwrap();
        datagrams.recv(&mut [0; 8]).unwrap();
        // More than the relay's own thread and its descriptors.
        assert!(held().threads >= before.threads + 9, "{:?}", held());
        let start = Instant::now();
        drop(relay);
        assert!(start.elapsed().as_millis() < 1500, "{:?}", start.elapsed());
        streams.iter_mut().for_each(assert_reset);
        assert_eq!(std::net::TcpStream::connect(listen).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        drop((streams, datagrams));
        eventually("held", held, |now| now.is_within(&before));
    }
}
