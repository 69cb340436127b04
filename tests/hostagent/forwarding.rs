//! What is asked for is opened, and nothing else is.

use std::net::TcpListener;

use rancher_desktop_agent::event::Operation;
use rancher_desktop_agent::port::Protocol::{Tcp, Udp};

use crate::support::{HostAgent, ask_tcp, ask_udp, document, free_port, guest, is_refused};

#[test]
fn tcp_and_udp_answer_through_and_are_closed_again() {
    let agent = HostAgent::start();
    let port = free_port();
    guest("one", port);
    agent.add(&[(Tcp, "127.0.0.1", port), (Udp, "127.0.0.1", port)]);
    assert_eq!(ask_tcp("127.0.0.1", port).unwrap(), "one hello\n");
    assert_eq!(ask_udp("127.0.0.1", port).unwrap(), "one hello\n");
    let opened = agent.wait_event("opened", port);
    assert_eq!(opened["connect"], format!("127.0.0.2:{port}"));
    assert_eq!((&opened["protocol"], &opened["hostIp"]), (&"tcp".into(), &"127.0.0.1".into()));

    agent.remove(&[(Tcp, "127.0.0.1", port)]);
    assert!(is_refused(ask_tcp("127.0.0.1", port)));
    assert_eq!(ask_udp("127.0.0.1", port).unwrap(), "one hello\n");
    agent.remove(&[(Udp, "127.0.0.1", port)]);
    assert!(is_refused(ask_udp("127.0.0.1", port)));
}

#[test]
fn the_same_document_twice_changes_nothing() {
    let agent = HostAgent::start();
    let port = free_port();
    guest("one", port);
    for _ in 0..3 {
        agent.add(&[(Tcp, "127.0.0.1", port)]);
    }
    assert_eq!(ask_tcp("127.0.0.1", port).unwrap(), "one hello\n");
    for _ in 0..3 {
        agent.remove(&[(Tcp, "127.0.0.1", port)]);
    }
    assert!(is_refused(ask_tcp("127.0.0.1", port)));
    agent.wait_event("closed", port);
    assert_eq!(agent.events().len(), 2, "{:?}", agent.events());
}

#[test]
fn s13_a_busy_port_is_a_conflict_and_is_taken_when_free() {
    let agent = HostAgent::start();
    let (busy, other) = (free_port(), free_port());
    guest("busy", busy);
    guest("other", other);
    let holder = TcpListener::bind(("127.0.0.1", busy)).unwrap();
    agent.add(&[(Tcp, "127.0.0.1", busy), (Tcp, "127.0.0.1", other)]);
    assert_eq!(ask_tcp("127.0.0.1", other).unwrap(), "other hello\n");
    let conflict = agent.wait_event("conflict", busy);
    assert!(conflict["reason"].as_str().unwrap().contains("another program"), "{conflict}");
    drop(holder);
    agent.wait_event("opened", busy);
    assert_eq!(ask_tcp("127.0.0.1", busy).unwrap(), "busy hello\n");
    assert_eq!(agent.count("conflict"), 1);
}

#[test]
fn s27_families_with_different_ports_are_kept_apart() {
    let agent = HostAgent::start();
    let (v4, v6) = (free_port(), free_port());
    guest("four", v4);
    guest("six", v6);
    agent.add(&[(Tcp, "127.0.0.1", v4), (Tcp, "::1", v6), (Udp, "::1", v6)]);
    assert_eq!(ask_tcp("127.0.0.1", v4).unwrap(), "four hello\n");
    assert_eq!(ask_tcp("::1", v6).unwrap(), "six hello\n");
    assert_eq!(ask_udp("::1", v6).unwrap(), "six hello\n");
    assert!(is_refused(ask_tcp("::1", v4)));
    assert!(is_refused(ask_tcp("127.0.0.1", v6)));
}

#[test]
fn the_default_policy_denies_what_is_not_loopback_or_below_1024() {
    let agent = HostAgent::with(&["--connect-address", "127.0.0.2"]);
    let (wide, good) = (free_port(), free_port());
    guest("good", good);
    agent.add(&[(Tcp, "0.0.0.0", wide), (Tcp, "::", wide), (Tcp, "127.0.0.1", 80), (Tcp, "127.0.0.1", good)]);
    assert_eq!(ask_tcp("127.0.0.1", good).unwrap(), "good hello\n");
    assert!(agent.wait_event("denied", 80)["reason"].as_str().unwrap().contains("--allow 127.0.0.1:80 would"));
    assert!(is_refused(ask_tcp("127.0.0.1", wide)));
    assert_eq!(agent.count("denied"), 3);
}

#[test]
fn an_allow_rule_allows_what_it_says() {
    let (one, two) = (free_port(), free_port());
    let rule = format!("127.0.0.5:{two}");
    let agent = HostAgent::with(&["--allow", &rule, "--connect-address", "127.0.0.2"]);
    guest("two", two);
    agent.add(&[(Tcp, "127.0.0.1", two), (Tcp, "127.0.0.5", one), (Tcp, "127.0.0.5", two)]);
    assert_eq!(ask_tcp("127.0.0.5", two).unwrap(), "two hello\n");
    agent.wait_event("denied", one);
    assert_eq!((agent.count("denied"), agent.count("opened")), (2, 1));
}

#[test]
fn by_default_a_guest_cannot_point_the_host_at_itself() {
    let agent = HostAgent::with(&[]);
    let port = free_port();
    guest("secret", port);
    agent.add(&[(Tcp, "127.0.0.1", port)]);
    assert!(agent.wait_event("denied", port)["reason"].as_str().unwrap().contains("127.0.0.2"));
    assert!(is_refused(ask_tcp("127.0.0.1", port)));
    let other = free_port();
    agent.send(&document(Operation::Announce, &[(Tcp, "127.0.0.1", other)], &["169.254.1.1", "fd00::2"]));
    assert!(agent.wait_event("failed", other)["reason"].as_str().unwrap().contains("--connect-address"));
}

#[test]
fn another_connect_address_replaces_the_first() {
    let agent = HostAgent::start();
    let port = free_port();
    guest("two", port);
    agent.send(&document(Operation::Announce, &[(Tcp, "127.0.0.1", port)], &["127.0.0.3"]));
    agent.wait_event("opened", port);
    agent.add(&[(Tcp, "127.0.0.1", port)]);
    assert_eq!(ask_tcp("127.0.0.1", port).unwrap(), "two hello\n");
    assert_eq!(agent.count("opened"), 2);
}
