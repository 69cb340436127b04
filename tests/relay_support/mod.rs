//! What the tests of the relay share: relays on free ports, small servers, and waiting with a deadline.

// Every test file uses a part of it.
#![allow(dead_code)]

use std::fmt::Debug;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};
use rancher_desktop_agent::port::Protocol;
use rancher_desktop_agent::relay::{Limits, Relay};

/// Longest wait for something that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub fn limits() -> Limits {
    Limits {
        connections_max: 1000,
        flows_max: 1000,
        flow_idle: Duration::from_secs(60),
        connect_timeout: Duration::from_secs(5),
    }
}

pub fn relay(limits: Limits) -> Relay {
    Relay::start("relay-test", limits, Arc::new(|_| true)).unwrap()
}

/// Opens a listener on a free port.
pub fn open(relay: &Relay, protocol: Protocol, ip: IpAddr, target: SocketAddr) -> SocketAddr {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let free = match protocol {
            Protocol::Tcp => TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap(),
            Protocol::Udp => UdpSocket::bind((ip, 0)).unwrap().local_addr().unwrap(),
        };
        match relay.open(protocol, free, target) {
            Ok(()) => return free,
            // Another test was quicker.
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {}
            Err(e) => panic!("{free}: {e}"),
        }
    }
}

/// A server that runs `serve` for each connection, on a thread of its own, until the test process ends.
pub fn tcp_server(ip: IpAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // Out of descriptors, as some tests want it: the connection waits for the next try.
                thread::sleep(Duration::from_millis(1));
                continue;
            };
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream));
        }
    });
    addr
}

/// Sends back what it gets, until the end or an error.
pub fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(bytes) = stream.read(&mut buffer) {
        if bytes == 0 || stream.write_all(&buffer[..bytes]).is_err() {
            return;
        }
    }
}

pub fn udp_echo_server(ip: IpAddr) -> SocketAddr {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    let addr = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 65_535];
        while let Ok((bytes, client)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..bytes], client).unwrap();
        }
    });
    addr
}

/// A connection whose reads and writes do not wait for ever.
pub fn client(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub fn udp_client(ip: IpAddr) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends and has the same bytes come back.
pub fn ping(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, bytes);
}

/// How a connection that is refused, or ended by force, ends: never with a clean end of data.
pub fn assert_reset(stream: &mut TcpStream) {
    let end = stream.read(&mut [0]).unwrap_err();
    assert_eq!(end.kind(), io::ErrorKind::ConnectionReset, "{end}");
}

/// Has the peer see a reset when the stream is dropped.
pub fn reset_on_drop(stream: &TcpStream) {
    setsockopt(stream, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 }).unwrap();
}

/// Waits until `see` gives what `wanted` accepts.
pub fn eventually<T: Debug>(what: &str, see: impl Fn() -> T, wanted: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = see();
        if wanted(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "{what}: still {seen:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// CPU time that this process' threads of that name have used, in clock ticks (1/100 s).
pub fn cpu_ticks(thread_name: &str) -> u64 {
    let mut ticks = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        // The thread may have ended meanwhile.
        let Ok(stat) = std::fs::read_to_string(task.join("stat")) else { continue };
        let (name, rest) = stat.split_once('(').unwrap().1.rsplit_once(") ").unwrap();
        if name == thread_name {
            let fields: Vec<&str> = rest.split(' ').collect();
            ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        }
    }
    ticks
}

/// Watches the threads of that name for a second: a thread that spins uses some 100 ticks.
pub fn assert_quiet(thread_name: &str) {
    let before = cpu_ticks(thread_name);
    thread::sleep(Duration::from_secs(1));
    let used = cpu_ticks(thread_name).saturating_sub(before);
    assert!(used <= 5, "{used} ticks of CPU time in a second in which nothing happened");
}
