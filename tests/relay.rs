//! The relay on loopback sockets: what it carries, what it refuses, and how it ends things. Needs no privileges.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs
)]

mod relay_support;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::linger;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, bind, getsockname, send, setsockopt, socket, sockopt,
};
use rancher_desktop_agent::port::Protocol::{Tcp, Udp};
use rancher_desktop_agent::relay::{Limits, Relay};
use relay_support::*;

const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Bytes that repeat late enough for any loss, repetition or swap to show.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

#[test]
fn megabytes_both_ways_at_once() {
    const BYTES: usize = 6 << 20;
    let exchange = |stream: TcpStream, sends: u64, gets: u64| {
        let mut writer = stream.try_clone().unwrap();
        let writing = thread::spawn(move || {
            writer.write_all(&noise(sends, BYTES)).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        (&stream).read_to_end(&mut got).unwrap();
        writing.join().unwrap();
        assert!(got == noise(gets, BYTES), "{} of {BYTES} bytes, or others", got.len());
    };
    for ip in [V4, V6] {
        let (done, server_done) = channel();
        let server = tcp_server(ip, move |stream| {
            exchange(stream, 2, 1);
            done.send(()).unwrap();
        });
        let relay = relay(limits());
        let listen = open(&relay, Tcp, ip, server);
        exchange(client(listen), 1, 2);
        server_done.recv_timeout(PATIENCE).unwrap();
        eventually("connections", || relay.stats().connections, |open| *open == 0);
    }
}

#[test]
fn half_close_is_kept_both_ways() {
    let (heard, hears) = channel();
    let server = tcp_server(V4, move |mut stream| {
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        let mut rest = String::new();
        if first == *b"c" {
            // The client ends first, and is answered.
            stream.read_to_string(&mut rest).unwrap();
            stream.write_all(format!("answer to c{rest}").as_bytes()).unwrap();
        } else {
            // The server ends first, and listens on.
            stream.write_all(b"greeting").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream.read_to_string(&mut rest).unwrap();
            heard.send(rest).unwrap();
        }
    });
    let relay = relay(limits());
    let listen = open(&relay, Tcp, V4, server);

    let (mut stream, mut answer) = (client(listen), String::new());
    stream.write_all(b"client first").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer to client first");

    let (mut stream, mut greeting) = (client(listen), String::new());
    stream.write_all(b"s").unwrap();
    stream.read_to_string(&mut greeting).unwrap();
    assert_eq!(greeting, "greeting");
    stream.write_all(b"still here").unwrap();
    drop(stream);
    assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), "still here");
}

#[test]
fn a_receiver_that_does_not_read_stops_the_sender() {
    // Socket buffers of both connections and a pipe; nothing else may hold data.
    const HELD_MAX: usize = 32 << 20;
    let (go, wait) = channel::<()>();
    let (counted, count) = channel();
    let wait = Mutex::new(wait);
    let server = tcp_server(V4, move |mut stream| {
        wait.lock().unwrap().recv().unwrap();
        counted.send(io::copy(&mut stream, &mut io::sink()).unwrap()).unwrap();
    });
    let relay = relay(limits());
    let mut stream = client(open(&relay, Tcp, V4, server));
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let block = vec![7; 64 * 1024];
    let mut sent = 0;
    let end = loop {
        match stream.write(&block) {
            Ok(bytes) => sent += bytes,
            Err(e) => break e,
        }
        assert!(sent < HELD_MAX, "{sent} bytes taken that nobody has read");
    };
    assert_eq!(end.kind(), io::ErrorKind::WouldBlock, "{end}");
    go.send(()).unwrap();
    drop(stream);
    assert_eq!(count.recv_timeout(PATIENCE).unwrap(), sent as u64);
}

#[test]
fn a_client_that_gives_up_is_noticed_though_its_data_is_stuck() {
    let (_keep, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let deaf = tcp_server(V4, move |stream| {
        let _ = wait.lock().unwrap().recv();
        drop(stream);
    });
    let relay = relay(Limits { connect_timeout: Duration::from_secs(600), ..limits() });
    let mut stuck = client(open(&relay, Tcp, V4, deaf));
    stuck.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    while stuck.write(&[7; 64 * 1024]).is_ok() {}
    let (silent, _queue, _listener) = silent_target();
    let connecting = client(open(&relay, Tcp, V4, silent));
    eventually("connections", || relay.stats().connections, |open| *open == 2);
    for stream in [stuck, connecting] {
        reset_on_drop(&stream);
    }
    eventually("connections", || relay.stats().connections, |open| *open == 0);
}

#[test]
fn a_reset_is_passed_on_as_a_reset() {
    let (ended, end) = channel();
    let server = tcp_server(V4, move |mut stream| {
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        if first == *b"s" {
            return reset_on_drop(&stream);
        }
        stream.write_all(b"!").unwrap();
        ended.send(stream.read(&mut [0]).map_err(|e| e.kind())).unwrap();
    });
    let relay = relay(limits());
    let listen = open(&relay, Tcp, V4, server);
    let mut stream = client(listen);
    stream.write_all(b"s").unwrap();
    assert_reset(&mut stream);

    let mut stream = client(listen);
    stream.write_all(b"c").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    reset_on_drop(&stream);
    drop(stream);
    assert_eq!(end.recv_timeout(PATIENCE).unwrap(), Err(io::ErrorKind::ConnectionReset));
}

#[test]
fn a_target_that_refuses_resets_the_client() {
    // Bound, so that nobody else takes the port, but not listening.
    let bound = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(bound.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let target = getsockname::<SockaddrIn>(bound.as_raw_fd()).unwrap().into();
    let relay = relay(limits());
    let listen = open(&relay, Tcp, V4, target);
    assert_reset(&mut client(listen));
    eventually("connections", || relay.stats().connections, |open| *open == 0);
}

/// A target that does not answer at all, and what keeps it so: its queue is full, and the kernel drops what comes.
fn silent_target() -> (SocketAddr, Vec<TcpStream>, TcpListener) {
    let listener = TcpListener::bind((V4, 0)).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut queue = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(300)) {
        queue.push(stream);
        assert!(queue.len() < 10, "the queue does not fill");
    }
    (addr, queue, listener)
}

#[test]
fn a_silent_target_resets_the_client_after_the_time_out() {
    let (target, _queue, _listener) = silent_target();
    let relay = relay(Limits { connect_timeout: Duration::from_millis(200), ..limits() });
    let listen = open(&relay, Tcp, V4, target);
    let start = Instant::now();
    assert_reset(&mut client(listen));
    assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
}

#[test]
fn waiting_for_a_silent_target_does_not_hold_up_the_end() {
    let (target, _queue, _listener) = silent_target();
    let relay = relay(Limits { connect_timeout: Duration::from_secs(600), ..limits() });
    let mut stream = client(open(&relay, Tcp, V4, target));
    eventually("connections", || relay.stats().connections, |open| *open == 1);
    drop(relay);
    assert_reset(&mut stream);
}

#[test]
fn only_those_admitted_get_in() {
    let admitted = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&admitted);
    let admit = Arc::new(move |ip| ip == V4 && asked.load(Ordering::SeqCst));
    let relay = Relay::start("relay-test", limits(), admit).unwrap();
    let tcp = open(&relay, Tcp, V4, tcp_server(V4, echo));
    let udp = open(&relay, Udp, V4, udp_echo_server(V4));
    assert_reset(&mut client(tcp));
    assert_eq!(relay.stats().not_admitted, 1);
    let datagrams = udp_client(V4);
    datagrams.send_to(b"no", udp).unwrap();
    eventually("refused", || relay.stats().not_admitted, |refused| *refused == 2);
    admitted.store(true, Ordering::SeqCst);
    ping(&mut client(tcp), b"yes");
    datagrams.send_to(b"yes", udp).unwrap();
    let mut answer = [0; 8];
    assert_eq!(datagrams.recv(&mut answer).unwrap(), 3);
}

#[test]
fn connections_over_the_limit_are_reset_until_there_is_room() {
    let relay = relay(Limits { connections_max: 2, ..limits() });
    let listen = open(&relay, Tcp, V4, tcp_server(V4, echo));
    let (mut first, mut second) = (client(listen), client(listen));
    ping(&mut first, b"first");
    ping(&mut second, b"second");
    assert_reset(&mut client(listen));
    let stats = relay.stats();
    assert_eq!((stats.connections, stats.over_limit), (2, 1));
    drop(first);
    eventually("connections", || relay.stats().connections, |open| *open == 1);
    ping(&mut client(listen), b"third");
    ping(&mut second, b"second again");
}

#[test]
fn close_ends_connections_and_frees_the_port() {
    let (ended, end) = channel();
    let server = tcp_server(V4, move |stream| {
        echo(stream);
        ended.send(()).unwrap();
    });
    let relay = relay(limits());
    let (listen, other) = (open(&relay, Tcp, V4, server), open(&relay, Tcp, V4, server));
    let (mut stream, mut stays) = (client(listen), client(other));
    ping(&mut stream, b"live");
    ping(&mut stays, b"live");
    assert!(relay.close(Tcp, listen));
    assert_reset(&mut stream);
    end.recv_timeout(PATIENCE).unwrap();
    TcpListener::bind(listen).unwrap();
    assert!(!relay.close(Tcp, listen));
    assert!(!relay.close(Udp, other));
    ping(&mut stays, b"still live");
}

#[test]
fn what_is_in_use_is_an_error() {
    let taken = TcpListener::bind((V4, 0)).unwrap().local_addr().unwrap();
    let holder = TcpListener::bind(taken).unwrap();
    let relay = relay(limits());
    assert_eq!(relay.open(Tcp, taken, taken).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    drop(holder);
    relay.open(Tcp, taken, tcp_server(V4, echo)).unwrap();
    ping(&mut client(taken), b"free now");
}

#[test]
fn opening_again_changes_the_target_of_what_comes_after() {
    let answering = |answer: &'static [u8]| {
        tcp_server(
            V4,
            move |mut stream| while stream.read_exact(&mut [0]).is_ok() && stream.write_all(answer).is_ok() {},
        )
    };
    let (a, b) = (answering(b"a"), answering(b"b"));
    let ask = |stream: &mut TcpStream| {
        let mut answer = [0];
        stream.write_all(b"?").unwrap();
        stream.read_exact(&mut answer).unwrap();
        answer[0]
    };
    let relay = relay(limits());
    let listen = open(&relay, Tcp, V4, a);
    let mut old = client(listen);
    assert_eq!(ask(&mut old), b'a');
    relay.open(Tcp, listen, a).unwrap();
    relay.open(Tcp, listen, b).unwrap();
    assert_eq!(ask(&mut client(listen)), b'b');
    assert_eq!(ask(&mut old), b'a');

    let udp = open(&relay, Udp, V4, udp_echo_server(V4));
    relay.open(Udp, udp, udp_echo_server(V6)).unwrap();
    let datagrams = udp_client(V4);
    datagrams.send_to(b"across families", udp).unwrap();
    assert_eq!(datagrams.recv(&mut [0; 32]).unwrap(), 15);
}

#[test]
fn both_families_share_a_port() {
    let relay = relay(limits());
    let server = tcp_server(V4, echo);
    let port = (0..20).find_map(|_| {
        let v6 = open(&relay, Tcp, "::".parse().unwrap(), server);
        // Another test may happen to hold the IPv4 port, but not twenty times.
        relay.open(Tcp, SocketAddr::new("0.0.0.0".parse().unwrap(), v6.port()), server).ok().map(|()| v6.port())
    });
    let port = port.expect("[::] holds 0.0.0.0 as well");
    ping(&mut client(SocketAddr::new(V6, port)), b"six");
    ping(&mut client(SocketAddr::new(V4, port)), b"four");
}

#[test]
fn udp_clients_are_kept_apart() {
    for ip in [V4, V6] {
        let relay = relay(limits());
        let listen = open(&relay, Udp, ip, udp_echo_server(ip));
        let clients = [udp_client(ip), udp_client(ip)];
        for round in 0..20u8 {
            for (number, client) in (0u8..).zip(&clients) {
                client.send_to(&[number, round], listen).unwrap();
            }
            for (number, client) in (0u8..).zip(&clients) {
                let mut answer = [0; 8];
                let (bytes, from) = client.recv_from(&mut answer).unwrap();
                assert_eq!((&answer[..bytes], from), (&[number, round][..], listen));
            }
        }
        assert_eq!(relay.stats().flows, 2);
        assert!(relay.close(Udp, listen));
        assert_eq!(relay.stats().flows, 0);
        std::net::UdpSocket::bind(listen).unwrap();
    }
}

#[test]
fn udp_datagrams_of_any_size() {
    for ip in [V4, V6] {
        let relay = relay(limits());
        let listen = open(&relay, Udp, ip, udp_echo_server(ip));
        let client = udp_client(ip);
        let mut answer = vec![0; 65_535];
        for size in [0, 1, 1472, 60_000, 65_507] {
            let datagram = noise(size as u64, size);
            client.send_to(&datagram, listen).unwrap();
            let bytes = client.recv(&mut answer).unwrap();
            assert!(answer[..bytes] == datagram, "{bytes} of {size} bytes, or others");
        }
    }
}

#[test]
fn udp_answers_come_from_the_address_that_was_asked() {
    let relay = relay(limits());
    for (any, asked) in [("0.0.0.0", "127.0.0.1"), ("0.0.0.0", "127.0.0.2"), ("::", "::1")] {
        let listen = open(&relay, Udp, any.parse().unwrap(), udp_echo_server(V4));
        let asked = SocketAddr::new(asked.parse().unwrap(), listen.port());
        let client = udp_client(any.parse().unwrap());
        client.send_to(b"who?", asked).unwrap();
        let (_, from) = client.recv_from(&mut [0; 8]).unwrap();
        assert_eq!(from, asked);
    }
}

#[test]
fn udp_flows_over_the_limit_are_dropped() {
    let relay = relay(Limits { flows_max: 1, ..limits() });
    let listen = open(&relay, Udp, V4, udp_echo_server(V4));
    let (first, second) = (udp_client(V4), udp_client(V4));
    let ping = |bytes: &[u8]| {
        first.send_to(bytes, listen).unwrap();
        assert_eq!(first.recv(&mut [0; 8]).unwrap(), bytes.len());
    };
    ping(b"one");
    second.send_to(b"two", listen).unwrap();
    eventually("refused", || relay.stats().over_limit, |refused| *refused == 1);
    ping(b"three");
    second.set_nonblocking(true).unwrap();
    assert_eq!(second.recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(relay.stats().flows, 1);
}

#[test]
fn a_busy_udp_client_follows_to_a_new_target() {
    let relay = relay(limits());
    let old = std::net::UdpSocket::bind((V4, 0)).unwrap();
    let listen = open(&relay, Udp, V4, old.local_addr().unwrap());
    let client = udp_client(V4);
    client.send_to(b"one", listen).unwrap();
    old.set_read_timeout(Some(PATIENCE)).unwrap();
    old.recv(&mut [0; 8]).unwrap();
    relay.open(Udp, listen, old.local_addr().unwrap()).unwrap();
    assert_eq!(relay.stats().flows, 1);
    relay.open(Udp, listen, udp_echo_server(V4)).unwrap();
    client.send_to(b"three", listen).unwrap();
    assert_eq!(client.recv(&mut [0; 8]).unwrap(), 5);
    assert_eq!(relay.stats().flows, 1);
}

#[test]
fn udp_flows_end_when_idle_and_not_before() {
    let relay = relay(Limits { flow_idle: Duration::from_secs(1), ..limits() });
    let server = std::net::UdpSocket::bind((V4, 0)).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let listen = open(&relay, Udp, V4, server.local_addr().unwrap());
    let client = udp_client(V4);
    client.send_to(b"hello", listen).unwrap();
    let (_, flow) = server.recv_from(&mut [0; 8]).unwrap();
    // Datagrams either way keep it; should this machine stall, the flow may rightly go.
    let start = Instant::now();
    let mut last = start;
    for round in 0..16 {
        thread::sleep(Duration::from_millis(150));
        if last.elapsed() > Duration::from_millis(900) {
            println!("stalled for {:?} in round {round}: nothing to be seen", last.elapsed());
            break;
        }
        last = Instant::now();
        if round < 8 {
            client.send_to(b"up", listen).unwrap();
            assert_eq!(server.recv_from(&mut [0; 8]).unwrap().1, flow);
        } else {
            server.send_to(b"down", flow).unwrap();
            client.recv(&mut [0; 8]).unwrap();
        }
    }
    eventually("flows", || relay.stats().flows, |flows| *flows == 0);
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    client.send_to(b"again", listen).unwrap();
    assert_eq!(server.recv(&mut [0; 8]).unwrap(), 5);
}

#[test]
fn a_udp_flow_survives_a_target_that_comes_late() {
    // An address of its own: no other test takes the port meanwhile.
    let ip: IpAddr = "127.0.0.9".parse().unwrap();
    let target = std::net::UdpSocket::bind((ip, 0)).unwrap().local_addr().unwrap();
    let relay = relay(limits());
    let listen = open(&relay, Udp, V4, target);
    let client = udp_client(V4);
    for _ in 0..3 {
        client.send_to(b"early", listen).unwrap();
    }
    eventually("flows", || relay.stats().flows, |flows| *flows == 1);
    let server = std::net::UdpSocket::bind(target).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"in time", listen).unwrap();
    let mut got = [0; 8];
    loop {
        let (bytes, flow) = server.recv_from(&mut got).unwrap();
        // An early one may come late enough.
        if &got[..bytes] == b"in time" {
            server.send_to(b"welcome", flow).unwrap();
            break;
        }
    }
    assert_eq!(client.recv(&mut [0; 8]).unwrap(), 7);
    assert_eq!(relay.stats().flows, 1);
}

#[test]
fn quiet_connections_use_no_cpu() {
    const NAME: &str = "relay-quiet";
    const BYTES: usize = 32 << 20;
    let (sent, sends) = channel();
    let server = tcp_server(V4, move |mut stream| {
        let mut question = Vec::new();
        stream.read_to_end(&mut question).unwrap();
        // More than all buffers hold, so the server's end comes to a relay that is waiting for the client.
        let answer = if question == b"much" { vec![7; BYTES] } else { Vec::new() };
        stream.write_all(&answer).unwrap();
        // Waits on close until all has arrived at the relay.
        setsockopt(&stream, sockopt::Linger, &linger { l_onoff: 1, l_linger: 20 }).unwrap();
        drop(stream);
        sent.send(()).unwrap();
    });
    let half_closed_server = tcp_server(V4, |mut stream| {
        stream.shutdown(Shutdown::Write).unwrap();
        let _ = stream.read(&mut [0]);
    });
    // Longer than this test: the time of a thread that ends is lost to the count.
    let limits = Limits { connect_timeout: Duration::from_secs(600), ..limits() };
    let relay = Relay::start(NAME, limits, Arc::new(|_| true)).unwrap();
    let udp = open(&relay, Udp, V4, udp_echo_server(V4));
    udp_client(V4).send_to(b"a flow", udp).unwrap();

    let mut server_ended = client(open(&relay, Tcp, V4, half_closed_server));
    assert_eq!(server_ended.read(&mut [0]).unwrap(), 0);
    let (held, _queue, _listener) = silent_target();
    let client_ended = client(open(&relay, Tcp, V4, held));
    client_ended.shutdown(Shutdown::Write).unwrap();
    let mut does_not_read = client(open(&relay, Tcp, V4, server));
    does_not_read.write_all(b"much").unwrap();
    does_not_read.shutdown(Shutdown::Write).unwrap();
    eventually("connections", || relay.stats().connections, |open| *open == 3);
    // Let the buffers fill first.
    eventually(
        "ticks",
        || {
            let before = cpu_ticks(NAME);
            thread::sleep(Duration::from_millis(300));
            cpu_ticks(NAME).saturating_sub(before)
        },
        |ticks| *ticks <= 1,
    );
    assert_quiet(NAME);

    // Reads until the server has ended while the relay still has data for the client: its socket to the server is then
    // shut both ways, and there is nothing yet to be done about it.
    let mut got = 0;
    let mut buffer = vec![0; 64 * 1024];
    while sends.try_recv().is_err() {
        got += does_not_read.read(&mut buffer).unwrap();
    }
    assert_quiet(NAME);
    let mut rest = Vec::new();
    does_not_read.read_to_end(&mut rest).unwrap();
    assert_eq!(got + rest.len(), BYTES);
}

#[test]
fn thousands_of_listeners_come_and_go() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let ports = 1000.min((hard.saturating_sub(500) / 2) as u16);
    // An address that no other test uses, hence these ports are free.
    let ip: IpAddr = "127.0.77.1".parse().unwrap();
    let relay = relay(limits());
    let (tcp, udp) = (tcp_server(V4, echo), udp_echo_server(V4));
    for round in 0..2 {
        let start = Instant::now();
        for port in 20_000..20_000 + ports {
            relay.open(Tcp, (ip, port).into(), tcp).unwrap();
            relay.open(Udp, (ip, port).into(), udp).unwrap();
        }
        ping(&mut client((ip, 20_000 + ports - 1).into()), b"the last of them");
        for port in 20_000..20_000 + ports {
            assert!(relay.close(Tcp, (ip, port).into()));
            assert!(relay.close(Udp, (ip, port).into()));
        }
        println!("round {round}: {} listeners in {:?}", 2 * ports, start.elapsed());
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    }
}

#[test]
fn urgent_data_is_carried_in_its_place() {
    const NAME: &str = "relay-urgent";
    let (heard, hears) = channel();
    let server = tcp_server(V4, move |mut stream| {
        let mut got = Vec::new();
        let mut buffer = [0; 64];
        while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
            got.extend_from_slice(&buffer[..bytes]);
            heard.send(got.clone()).unwrap();
        }
    });
    let relay = Relay::start(NAME, limits(), Arc::new(|_| true)).unwrap();
    let listen = open(&relay, Tcp, V4, server);
    let urge = |stream: &TcpStream, bytes: &[u8]| send(stream.as_raw_fd(), bytes, MsgFlags::MSG_OOB).unwrap();

    let mut stream = client(listen);
    urge(&stream, b"!");
    stream.write_all(b"behind").unwrap();
    while hears.recv_timeout(PATIENCE).unwrap() != b"!behind" {}
    assert_quiet(NAME);
    stream.write_all(b" it").unwrap();
    while hears.recv_timeout(PATIENCE).unwrap() != b"!behind it" {}

    // Urgent data and the end, both there before the relay looks.
    let mut stream = client(listen);
    stream.write_all(b"a").unwrap();
    urge(&stream, b"!");
    stream.write_all(b"b").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(hears.try_iter().last().unwrap(), b"a!b");
}
