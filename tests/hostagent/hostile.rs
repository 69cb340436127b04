//! What a broken or hostile guest may send: none of it stops the next good document.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rancher_desktop_agent::event::Operation;
use rancher_desktop_agent::port::Protocol::Tcp;

use crate::support::{DEADLINE, HostAgent, document, free_port, send_to, wait_for};

#[test]
fn bad_documents_are_refused_one_by_one() {
    let agent = HostAgent::start();
    let good = document(Operation::Announce, &[(Tcp, "127.0.0.1", free_port())], &["127.0.0.2"]);
    for bad in [
        &b"\n"[..],
        b"\0\0\0\0\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"{}{}\n",
        b"{\"remove\":\"yes\"}\n",
        b"{\"ports\":[1,2]}\n",
        b"{\"ports\":{\"80/tcp\":{}}}\n",
        b"{\"ports\":null,\"connectAddrs\":null}\n",
        b"{\"ports\":{\"80/tcp\":null,\"81/tcp\":[]}}\n",
        b"{\"ports\":{\"80/tcp\":[{\"HostIp\":\"\",\"HostPort\":\"0\"},{\"HostIp\":\"\",\"HostPort\":\"70000\"}]}}\n",
    ] {
        agent.send(bad);
        agent.assert_takes_documents();
    }
    assert!(!agent.stdout().contains("\"hostPort\":0,"));
    // Cut off anywhere, ended by the end of the stream.
    for cut in (1..good.len() - 1).step_by(7) {
        let mut stream = UnixStream::connect(&agent.socket).unwrap();
        stream.write_all(&good[..cut]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "{cut}");
    }
    agent.assert_takes_documents();
    let warnings = agent.stderr().lines().filter(|line| line.contains("WARN")).count();
    assert!(warnings <= 12, "{}", agent.stderr());
}

#[test]
fn a_document_without_a_newline_ends_with_the_stream() {
    let agent = HostAgent::start();
    let port = free_port();
    let bytes = document(Operation::Announce, &[(Tcp, "127.0.0.1", port)], &["127.0.0.2"]);
    let mut stream = UnixStream::connect(&agent.socket).unwrap();
    stream.write_all(bytes.trim_ascii_end()).unwrap();
    drop(stream);
    agent.wait_event("opened", port);
}

#[test]
fn an_oversized_document_is_refused() {
    let agent = HostAgent::start();
    agent.send(&vec![b' '; 10 << 20]);
    agent.wait_stderr("larger than");
    agent.assert_takes_documents();
}

#[test]
fn nothing_of_the_guest_s_is_printed_raw() {
    let agent = HostAgent::with(&["--debug"]);
    agent.send(b"{\"ports\":{\"\\u001b]0;owned\\u0007/tcp\":[],\"80/tcp\":[{\"HostIp\":\"\\u001b[2J\",\"HostPort\":\"1\"}]}}\n");
    agent.wait_stderr("2 entries of a document were refused");
    agent.send(b"\x1b[31m\n");
    agent.wait_stderr("not a JSON document");
    for text in [agent.stdout(), agent.stderr()] {
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }
}

#[test]
fn a_stalled_document_delays_nobody_and_is_cut() {
    let agent = HostAgent::start();
    let mut stalled = UnixStream::connect(&agent.socket).unwrap();
    stalled.write_all(b"{\"remove\":").unwrap();
    let start = Instant::now();
    agent.assert_takes_documents();
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    stalled.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(stalled.read(&mut [0]).unwrap(), 0);
    agent.wait_stderr("not complete in time, after 10 bytes");
}

#[test]
fn silent_connections_give_way() {
    let agent = HostAgent::start();
    for _ in 0..100 {
        drop(UnixStream::connect(&agent.socket).unwrap());
    }
    agent.assert_takes_documents();
    let silent: Vec<_> = (0..200).map(|_| UnixStream::connect(&agent.socket).unwrap()).collect();
    agent.assert_takes_documents();
    drop(silent);
    agent.assert_takes_documents();
    assert!(!agent.stderr().contains("WARN"), "{}", agent.stderr());
}

#[test]
fn stalled_documents_give_way_as_well() {
    let agent = HostAgent::start();
    let stalled = |_| {
        let mut stream = UnixStream::connect(&agent.socket).unwrap();
        stream.write_all(b"{").unwrap();
        stream
    };
    let stalled: Vec<_> = (0..200).map(stalled).collect();
    let start = Instant::now();
    agent.assert_takes_documents();
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    drop(stalled);
}

/// Peak resident memory, in KiB.
fn peak_memory(agent: &HostAgent) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn no_document_takes_many_times_its_size() {
    let agent = HostAgent::start();
    for part in ["{\"\":0},", "{\"a\":{}},", "[],", "[0],", "0,", "\"\","] {
        let parts = part.repeat((1 << 20) / part.len() - 4);
        agent.send(format!("{{\"x\":[{parts}0]}}\n").as_bytes());
    }
    agent.assert_takes_documents();
    println!("peak: {} KiB", peak_memory(&agent));
    assert!(peak_memory(&agent) < 24 * 1024, "{} KiB", peak_memory(&agent));
}

#[test]
fn a_flood_of_documents_is_bounded_in_time_memory_and_log() {
    let agent = HostAgent::start();
    let port = free_port();
    let documents = [
        document(Operation::Announce, &[(Tcp, "127.0.0.1", port)], &["127.0.0.2"]),
        document(Operation::Announce, &[(Tcp, "0.0.0.0", port)], &["127.0.0.2"]),
        b"garbage\n".to_vec(),
        b"{\"ports\":{\"80/tcp\":[{\"HostIp\":\"x\",\"HostPort\":\"y\"}]}}\n".to_vec(),
    ];
    let start = Instant::now();
    for i in 0..100_000 {
        send_to(&agent.socket, &documents[i % documents.len()]).unwrap();
    }
    let seconds = start.elapsed().as_secs();
    agent.assert_takes_documents();
    let (events, warnings) = (agent.events().len(), agent.stderr().lines().count());
    println!("100,000 documents: {seconds} s, {} KiB, {events} events, {warnings} lines", peak_memory(&agent));
    assert!(seconds < 120, "{seconds} s");
    assert!(peak_memory(&agent) < 32 * 1024, "{} KiB", peak_memory(&agent));
    assert!(events <= 4 + (seconds as usize + 2) * 51, "{events} events in {seconds} s");
    assert!(warnings <= 10 + (seconds as usize / 10 + 1) * 6, "{warnings} lines in {seconds} s");
    wait_for("a count", || agent.stdout(), || (agent.count("suppressed") > 0).then_some(()));
}

#[test]
fn s26_many_ports_are_opened_and_closed() {
    // Ports that may be taken: what counts is that each has its event.
    let ports: Vec<_> = (20_000..22_000).map(|port| (Tcp, "127.0.0.9", port)).collect();
    let agent = HostAgent::start();
    let start = Instant::now();
    agent.add(&ports);
    println!("2,000 ports opened: {:?}", start.elapsed());
    wait_for("2,000 events", || agent.stdout(), || (agent.events().len() >= 2000).then_some(()));
    agent.remove(&ports);
    wait_for("2,000 closed", || agent.stdout(), || (agent.count("closed") >= 2000).then_some(()));
}
