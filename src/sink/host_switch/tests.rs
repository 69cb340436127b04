//! The sink against a server in a thread, for what takes another order of things than a whole agent has.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};

use super::*;
use crate::event::{FailureKind, Owner, Source, Ticket};
use crate::port::Protocol;

type Script = Arc<Mutex<VecDeque<(&'static str, u16, String)>>>;

/// Answers each request as the script has it: the end of its path, the status, the body. Status 0: not at all.
fn server() -> (Script, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (script, address) = (Script::default(), listener.local_addr().unwrap().to_string());
    let steps = script.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            let (mut first, mut length) = (String::new(), 0);
            lines.read_line(&mut first).unwrap();
            loop {
                let mut line = String::new();
                lines.read_line(&mut line).unwrap();
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            lines.read_exact(&mut vec![0; length]).unwrap();
            let (path, status, body) = steps.lock().unwrap().pop_front().expect("no more requests");
            assert!(first.contains(&format!("/{path} ")), "{first} instead of {path}");
            if status != 0 {
                let length = body.len();
                write!(stream, "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
                    .unwrap();
            }
        }
    });
    (script, address)
}

fn sink(address: String) -> HostSwitch {
    HostSwitch::new(HostSwitchConfig {
        base: Base::Tcp(address),
        tap_ip: Ipv4Addr::LOCALHOST,
        token_file: None,
        // Cannot be written, which must change nothing.
        state_file: "/dev/null/state.json".into(),
    })
}

fn binding() -> Binding {
    Binding { protocol: Protocol::Tcp, host_ip: Ipv4Addr::LOCALHOST.into(), host_port: NonZeroU16::new(80).unwrap() }
}

fn document(operation: Operation) -> Document {
    let owner = Owner { source: Source::Docker, key: "c".into() };
    let bindings = [(binding(), NonZeroU16::MIN)].into_iter().collect();
    Document { ticket: Ticket(1), operation, owner, bindings }
}

const OURS: &str = r#"[{"local":"127.0.0.1:80","remote":"127.0.0.1:80","protocol":"tcp"}]"#;

fn steps(script: &Script, steps: &[(&'static str, u16, &str)]) {
    let mut script = script.lock().unwrap();
    assert!(script.is_empty(), "not asked for: {script:?}");
    script.extend(steps.iter().map(|(path, status, body)| (*path, *status, (*body).to_owned())));
}

fn done() -> Answer {
    Answer::Done { failed: Vec::new() }
}

#[test]
fn catches_what_is_carried_out_after_it_was_cut_off() {
    let (script, address) = server();
    let mut sink = sink(address);
    steps(&script, &[("all", 200, "[]"), ("expose", 0, "")]);
    let answer = sink.carry_out(&document(Operation::Announce));
    assert!(matches!(answer, Answer::Uncertain(_)), "{answer:?}");
    // It is not there, not even now; then it is.
    let not_there = ("unexpose", 500, "proxy not found\n");
    steps(&script, &[("all", 200, "[]"), not_there, ("all", 200, "[]")]);
    assert_eq!(sink.carry_out(&document(Operation::Withdraw)), done());
    sink.due = Instant::now();
    steps(&script, &[("all", 200, OURS)]);
    sink.beat();
    assert_eq!(sink.take_news(), Some(News::Found([binding()].into_iter().collect())));
    steps(&script, &[("unexpose", 200, "")]);
    assert_eq!(sink.carry_out(&document(Operation::Withdraw)), done());
    assert_eq!(sink.take_news(), None);
    steps(&script, &[]);
}

#[test]
fn what_came_since_the_list_was_read_is_withdrawn() {
    let (script, address) = server();
    let mut sink = sink(address);
    steps(&script, &[("all", 200, "[]"), ("expose", 0, "")]);
    assert!(matches!(sink.carry_out(&document(Operation::Announce)), Answer::Uncertain(_)));
    steps(&script, &[("all", 200, "[]"), ("unexpose", 200, "")]);
    assert_eq!(sink.carry_out(&document(Operation::Withdraw)), done());
    steps(&script, &[]);
}

#[test]
fn what_was_cut_off_and_then_made_is_missed_like_the_rest() {
    let (script, address) = server();
    let mut sink = sink(address);
    steps(&script, &[("all", 200, "[]"), ("expose", 0, "")]);
    assert!(matches!(sink.carry_out(&document(Operation::Announce)), Answer::Uncertain(_)));
    sink.due = Instant::now();
    steps(&script, &[("all", 200, "[]")]);
    sink.beat();
    assert_eq!(sink.take_news(), None, "it may still come");
    steps(&script, &[("expose", 200, "")]);
    assert_eq!(sink.carry_out(&document(Operation::Announce)), done());
    sink.due = Instant::now();
    steps(&script, &[("all", 200, "[]")]);
    sink.beat();
    assert!(matches!(sink.take_news(), Some(News::Reset(_))), "the server has restarted");
}

#[test]
fn a_refusal_is_looked_into() {
    let (script, address) = server();
    let mut sink = sink(address);
    let running = "proxy already running for tcp on 127.0.0.1:80\n";
    steps(&script, &[("all", 200, "[]"), ("expose", 500, running), ("all", 200, OURS)]);
    assert_eq!(sink.carry_out(&document(Operation::Announce)), done());
    steps(&script, &[("unexpose", 500, "proxy not found\n"), ("all", 200, "[]")]);
    assert_eq!(sink.carry_out(&document(Operation::Withdraw)), done());
    let told = |sink: &mut HostSwitch| match sink.carry_out(&document(Operation::Announce)) {
        Answer::Done { failed } => (failed[0].1.kind, failed[0].1.reason.clone()),
        answer => panic!("{answer:?}"),
    };
    let theirs = OURS.replace("\"remote\":\"127.0.0.1:80\"", "\"remote\":\"192.168.127.9:80\"");
    steps(&script, &[("expose", 500, running), ("all", 200, &theirs)]);
    let leads = "host-switch: 127.0.0.1:80/tcp already leads to 192.168.127.9:80".to_owned();
    assert_eq!(told(&mut sink), (FailureKind::Conflict, leads));
    for (words, kind) in [
        ("listen tcp 127.0.0.1:80: bind: address already in use\n", FailureKind::Conflict),
        ("listen tcp 127.0.0.1:80: bind: Only one usage of each socket address", FailureKind::Conflict),
        ("listen tcp 127.0.0.1:80: bind: permission denied\n", FailureKind::Denied),
        ("… in a way forbidden by its access permissions.", FailureKind::Denied),
        ("invalid remote addr\n", FailureKind::Failed),
    ] {
        steps(&script, &[("expose", 500, words), ("all", 200, "[]")]);
        assert_eq!(told(&mut sink), (kind, format!("host-switch: {}", words.trim())));
    }
    assert!(sink.ours.is_empty());
}

#[test]
fn what_waits_behind_a_failure_does_not_ask_again() {
    let (script, address) = server();
    let mut sink = sink(address);
    steps(&script, &[("all", 404, "404 page not found\n")]);
    let answer = sink.carry_out(&document(Operation::Announce));
    assert!(matches!(&answer, Answer::Unreachable(why) if why.contains("answers 404")), "{answer:?}");
    sink.lost.as_mut().unwrap().0 = Instant::now();
    assert_eq!(sink.carry_out(&document(Operation::Announce)), answer);
    assert!(sink.heartbeat().unwrap() <= HEARTBEAT_LOST);
    sink.due = Instant::now();
    steps(&script, &[("all", 200, OURS)]);
    sink.beat();
    assert_eq!(sink.take_news(), Some(News::Reset("it answers again".into())));
    assert_eq!(sink.carry_out(&document(Operation::Announce)), done(), "it is there");
    // It disappears, which is told once.
    for expect in [true, false] {
        sink.due = Instant::now();
        steps(&script, &[("all", 200, "[]")]);
        sink.beat();
        assert_eq!(sink.take_news().is_some(), expect);
    }
    steps(&script, &[]);
}

#[test]
fn ipv6_is_refused_alone() {
    let (script, address) = server();
    let mut sink = sink(address);
    let mut document = document(Operation::Announce);
    let other = binding().on("::".parse().unwrap());
    document.bindings.insert(other, NonZeroU16::MIN);
    steps(&script, &[("all", 200, "[]"), ("expose", 200, "")]);
    let Answer::Done { failed } = sink.carry_out(&document) else { panic!("not done") };
    assert_eq!(failed.len(), 1);
    assert_eq!((failed[0].0, failed[0].1.kind), (other, FailureKind::Denied));
}
