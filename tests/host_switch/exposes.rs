//! What is asked for on the wire, and what becomes of refusals.

use std::net::TcpListener;

use crate::support::engine_stub::{id, ports};
use crate::support::host_switch::{Fault, HostSwitch};
use crate::support::{TempDir, eventually};
use crate::world::{World, lines};

#[test]
fn bodies_are_exactly_those_of_the_api() {
    let world = World::new();
    let agent = world.agent(&[]);
    world.engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8080")]));
    world.wait(&["127.0.0.1:8080"], &[]);
    world.engine.end(&id(1));
    world.wait(&[], &[]);
    let posted: Vec<(String, String)> = (world.server.requests().into_iter())
        .filter(|request| !request.path.ends_with("/all"))
        .map(|request| (request.path, request.body))
        .collect();
    let tap = &world.tap;
    let expect = [
        (
            "/services/forwarder/expose",
            format!(r#"{{"local":"127.0.0.1:8080","remote":"{tap}:8080","protocol":"tcp"}}"#),
        ),
        ("/services/forwarder/unexpose", r#"{"local":"127.0.0.1:8080","protocol":"tcp"}"#.to_owned()),
    ];
    assert_eq!(posted, expect.map(|(path, body)| (path.to_owned(), body)));
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn admin_keeps_addresses_and_udp_is_told_apart() {
    let world = World::new();
    let agent = world.agent(&["-adminInstall=true"]);
    world.engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8081"), ("53/udp", "0.0.0.0", "8081")]));
    let (tcp, udp) = (world.forward("tcp", "0.0.0.0:8081"), world.forward("udp", "0.0.0.0:8081"));
    world.server.wait_forwards(&[&tcp, &udp]);
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(world.server.forwards(), [""; 0], "SIGTERM withdraws everything");
    let left = std::fs::read_to_string(world.state_file()).unwrap();
    assert!(left.contains("\"forwards\":[]"), "{left}");
}

#[test]
fn s12_loopback_stays_loopback() {
    let world = World::new();
    let agent = world.agent(&["-adminInstall=true"]);
    world.engine.start(&id(1), ports(&[("80/tcp", "127.0.0.1", "18082"), ("81/tcp", "0.0.0.0", "18083")]));
    world.wait(&["127.0.0.1:18082", "0.0.0.0:18083"], &[]);
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn s27_ipv6_is_mapped_where_it_is_equal_and_reported_otherwise() {
    let world = World::new();
    let agent = world.agent(&[]);
    let dual = [("80/tcp", "0.0.0.0", "8084"), ("80/tcp", "::", "8084")];
    world.engine.start(&id(1), ports(&[dual[0], dual[1], ("81/tcp", "0.0.0.0", "8085"), ("81/tcp", "::", "8086")]));
    world.wait(&["127.0.0.1:8084", "127.0.0.1:8085"], &[]);
    agent.wait_log("left out binding=[::]:8086/tcp");
    assert!(!agent.log().contains("left out binding=[::]:8084/tcp"), "{}", agent.log());
    assert_eq!(world.count("/expose"), 2);
}

#[test]
fn s06_a_removal_that_fails_once_is_tried_again() {
    let world = World::new();
    let agent = world.agent(&[]);
    world.engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8087")]));
    world.wait(&["127.0.0.1:8087"], &[]);
    world.server.set_fault(Fault::FailOnce { path: "/unexpose" });
    world.engine.end(&id(1));
    world.wait(&[], &[]);
    agent.wait_log("temporary failure");
    agent.wait_log("withdrawn binding=127.0.0.1:8087/tcp");
}

#[test]
fn s13_a_busy_port_is_a_conflict_that_others_do_not_suffer_from() {
    let world = World::new();
    world.server.busy("127.0.0.1:8088", Some("listen tcp 127.0.0.1:8088: bind: address already in use"));
    world.server.busy("127.0.0.1:81", Some("listen tcp 127.0.0.1:81: bind: permission denied"));
    world.server.insert("tcp", "127.0.0.1:8090", "192.168.127.9:8090");
    let agent = world.agent(&[]);
    let published = ["8088", "81", "8089", "8090"].map(|port| ("80/tcp", "0.0.0.0", port));
    world.engine.start(&id(1), ports(&published));
    let other = "tcp 127.0.0.1:8090 192.168.127.9:8090";
    world.wait(&["127.0.0.1:8089"], &[other]);
    agent.wait_log("conflict binding=127.0.0.1:8088/tcp");
    agent.wait_log("listen tcp 127.0.0.1:8088: bind: address already in use");
    agent.wait_log("denied binding=127.0.0.1:81/tcp");
    agent.wait_log("host-switch: 127.0.0.1:8090/tcp already leads to 192.168.127.9:8090");
    world.server.busy("127.0.0.1:8088", None);
    world.wait(&["127.0.0.1:8088", "127.0.0.1:8089"], &[other]);
    world.server.remove("tcp", "127.0.0.1:8090");
    world.wait(&["127.0.0.1:8088", "127.0.0.1:8089", "127.0.0.1:8090"], &[]);
    assert_eq!(lines(&agent, "conflict binding=127.0.0.1:8088/tcp"), 1, "{}", agent.log());
}

#[test]
fn s25_no_http_proxy_ever_sees_a_request() {
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    proxy.set_nonblocking(true).unwrap();
    let url = format!("http://{}", proxy.local_addr().unwrap());
    let names = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"];
    let env = names.map(|name| (name, url.as_str()));
    let world = World::new();
    let agent = world.agent_with(&world.server.url(), &[], &env);
    world.engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8091")]));
    world.wait(&["127.0.0.1:8091"], &[]);
    assert_eq!(agent.stop(), Some(0));
    assert!(proxy.accept().is_err(), "somebody connected to the proxy");
}

#[test]
fn a_unix_socket_serves_as_well() {
    let dir = TempDir::new();
    let world = World::with(HostSwitch::start_unix(&dir.join("gvproxy.sock")));
    let agent = world.agent(&[]);
    world.engine.start(&id(1), ports(&[("80/tcp", "0.0.0.0", "8092")]));
    world.wait(&["127.0.0.1:8092"], &[]);
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(world.server.forwards(), [""; 0]);
}

#[test]
fn idle_connections_are_not_used_after_the_server_has_closed_them() {
    let world = World::new();
    let agent = world.agent(&[]);
    world.server.set_fault(Fault::CloseIdle);
    for n in 1..6 {
        world.engine.start(&id(n), ports(&[("80/tcp", "0.0.0.0", &(8100 + n).to_string())]));
    }
    eventually("five forwards", || match world.server.forwards().len() {
        5 => Ok(()),
        n => Err(n),
    });
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(world.server.forwards(), [""; 0]);
}
