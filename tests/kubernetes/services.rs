//! What Services publish, and how it follows their changes: every document counts, not only the end.

use serde_json::json;

use crate::support::kube_server::{Port, Service};
use crate::world::{World, count, node_port};

fn balancer(name: &str, ports: &[Port], ingress: &[&str]) -> Service {
    Service::load_balancer("default", name, ports, ingress)
}

const BALANCER: &str = "192.168.143.2";

#[test]
#[ignore = "needs openssl"]
fn s23_type_flips_move_only_what_changes() {
    let (world, agent) = World::running(&[node_port("other", 30001)], &[]);
    let ports = [Port::tcp(80, 30080)];
    let mut expect = vec!["+ 0.0.0.0:30001/tcp"];
    for (service, documents) in [
        (node_port("web", 30080), &["+ 0.0.0.0:30080/tcp"][..]),
        // The node port stays while the load balancer is on its way, and afterwards.
        (balancer("web", &ports, &[]), &[]),
        (balancer("web", &ports, &[BALANCER]), &["+ 0.0.0.0:80/tcp"]),
        (node_port("web", 30080), &["- 0.0.0.0:80/tcp"]),
        (balancer("web", &ports, &[BALANCER]), &["+ 0.0.0.0:80/tcp"]),
        (Service::cluster_ip("default", "web", &[Port::tcp(80, 0)]), &["- 0.0.0.0:30080/tcp 0.0.0.0:80/tcp"]),
        (node_port("web", 30090), &["+ 0.0.0.0:30090/tcp"]),
        (Service::new("ExternalName", "default", "web", &[Port::tcp(80, 0)]), &["- 0.0.0.0:30090/tcp"]),
        (node_port("web", 30091), &["+ 0.0.0.0:30091/tcp"]),
    ] {
        world.server.apply(service);
        expect.extend(documents);
        world.wait_documents(&agent, &expect);
    }
    world.server.delete("default", "web");
    expect.push("- 0.0.0.0:30091/tcp");
    world.wait_marker(&agent, &expect);
    world.receiver.wait_held(&["0.0.0.0:30001/tcp", "0.0.0.0:32767/tcp"]);
    assert!(!agent.log().contains(" WARN "), "{}", agent.log());
}

#[test]
#[ignore = "needs openssl"]
fn s23_one_port_of_three_changes() {
    let service =
        |second: Port| Service::node_port("default", "web", &[Port::tcp(1, 30001), second, Port::udp(3, 30003)]);
    let (world, agent) = World::running(&[service(Port::tcp(2, 30002))], &[]);
    let mut expect = vec!["+ 0.0.0.0:30001/tcp 0.0.0.0:30002/tcp 0.0.0.0:30003/udp"];
    world.wait_documents(&agent, &expect);
    for (second, documents) in [
        (Port::tcp(2, 30012), &["- 0.0.0.0:30002/tcp", "+ 0.0.0.0:30012/tcp"][..]),
        (Port::udp(2, 30012), &["- 0.0.0.0:30012/tcp", "+ 0.0.0.0:30012/udp"]),
        // No change to who may connect where.
        (Port { name: "renamed".into(), ..Port::udp(2, 30012) }, &[]),
        (Port { target: "http".into(), ..Port::udp(2, 30012) }, &[]),
        (Port::udp(2, 0), &["- 0.0.0.0:30012/udp"]),
        (Port::tcp(2, 30022), &["+ 0.0.0.0:30022/tcp"]),
    ] {
        world.server.apply(service(second));
        expect.extend(documents);
        world.wait_marker_after(&agent, &mut expect);
    }
    let flaps = |document: &&str| document.contains("30001") || document.contains("30003");
    assert_eq!(expect.iter().filter(|document| flaps(document)).count(), 1, "what nobody touched: {expect:?}");
    // Ports come and go one by one.
    world.server.apply(Service::node_port("default", "web", &[Port::udp(3, 30003)]));
    expect.push("- 0.0.0.0:30001/tcp 0.0.0.0:30022/tcp");
    world.wait_documents(&agent, &expect);
    world.server.apply(service(Port::tcp(2, 30002)));
    expect.push("+ 0.0.0.0:30001/tcp 0.0.0.0:30002/tcp");
    world.wait_documents(&agent, &expect);
}

#[test]
#[ignore = "needs openssl"]
fn s30_a_load_balancer_that_nobody_answers_for_is_not_announced() {
    let ports = [Port::tcp(80, 30080)];
    let (world, agent) = World::running(&[balancer("first", &ports, &[BALANCER])], &[]);
    let mut expect = vec!["+ 0.0.0.0:30080/tcp 0.0.0.0:80/tcp"];
    world.wait_documents(&agent, &expect);
    // On a port that is taken it stays pending: only its node port can be used.
    let ports = [Port::tcp(80, 30081), Port::tcp(81, 30082)];
    for (ingress, document) in [
        (&[][..], "+ 0.0.0.0:30081/tcp 0.0.0.0:30082/tcp"),
        (&[BALANCER], "+ 0.0.0.0:81/tcp"),
        (&[], "- 0.0.0.0:81/tcp"),
        (&["192.168.143.9", BALANCER], "+ 0.0.0.0:81/tcp"),
    ] {
        world.server.apply(balancer("second", &ports, ingress));
        expect.push(document);
        world.wait_documents(&agent, &expect);
    }
    // Port 80 has two claimants now, and stays until both are gone.
    world.server.delete("default", "first");
    expect.push("- 0.0.0.0:30080/tcp");
    world.wait_documents(&agent, &expect);
    world.server.delete("default", "second");
    expect.push("- 0.0.0.0:30081/tcp 0.0.0.0:30082/tcp 0.0.0.0:80/tcp 0.0.0.0:81/tcp");
    world.wait_documents(&agent, &expect);
}

#[test]
#[ignore = "needs openssl"]
fn s30_an_ingress_by_name_is_one() {
    let (world, agent) = World::running(&[], &[]);
    let mut expect = Vec::new();
    for (ingress, document) in [
        (json!([{"hostname": "lb.example.test", "ports": [{"port": 80, "protocol": "TCP"}]}]), "+ 0.0.0.0:80/tcp"),
        (json!([{}]), "- 0.0.0.0:80/tcp"),
        (json!([{"ip": "", "hostname": "x"}]), "+ 0.0.0.0:80/tcp"),
        (json!([{"ip": "", "hostname": ""}]), "- 0.0.0.0:80/tcp"),
        (json!([{"ip": "fd00::1", "ipMode": "Proxy"}]), "+ 0.0.0.0:80/tcp"),
        (json!(null), "- 0.0.0.0:80/tcp"),
    ] {
        world.server.advance(1);
        let metadata =
            json!({"namespace": "default", "name": "web", "resourceVersion": world.server.version().to_string()});
        let spec = json!({"type": "LoadBalancer", "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            "allocateLoadBalancerNodePorts": false, "ipFamilies": ["IPv4"]});
        let status = json!({"loadBalancer": {"ingress": ingress}});
        let object =
            json!({"kind": "Service", "apiVersion": "v1", "metadata": metadata, "spec": spec, "status": status});
        world.server.raw_event(format!("{}\n", json!({"type": "MODIFIED", "object": object})).as_bytes());
        expect.push(document);
        world.wait_documents(&agent, &expect);
    }
}

#[test]
#[ignore = "needs openssl"]
fn s30_load_balancers_without_node_ports() {
    let ports = [Port::tcp(80, 0), Port::udp(53, 0)];
    let (world, agent) = World::running(&[balancer("web", &ports, &[]).without_node_ports()], &[]);
    world.wait_marker(&agent, &[]);
    world.server.apply(balancer("web", &ports, &[BALANCER]).without_node_ports());
    world.wait_documents(&agent, &["+ 0.0.0.0:32767/tcp", "+ 0.0.0.0:53/udp 0.0.0.0:80/tcp"]);
    assert!(!agent.log().contains(" WARN "), "{}", agent.log());
}

#[test]
#[ignore = "needs openssl"]
fn s30_sctp_is_named_and_left_out() {
    let ports = [Port::tcp(80, 30080), Port::new("SCTP", 3868, 30868), Port::udp(80, 30080)];
    let (world, agent) = World::running(&[], &[]);
    world.server.apply(Service::node_port("telco", "diameter", &ports));
    world.wait_marker(&agent, &["+ 0.0.0.0:30080/tcp 0.0.0.0:30080/udp"]);
    let log = agent.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("SCTP")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("telco/diameter") && lines[0].contains("port 3868"), "{log}");
    assert_eq!(count(&log, " WARN "), 1, "{log}");
}

#[test]
#[ignore = "needs openssl"]
fn s30_two_services_and_one_port_are_one_forward() {
    let (world, agent) = World::running(&[node_port("a", 30080)], &[]);
    world.wait_documents(&agent, &["+ 0.0.0.0:30080/tcp"]);
    world.server.apply(balancer("b", &[Port::tcp(30080, 31080)], &[BALANCER]));
    let expect = ["+ 0.0.0.0:30080/tcp", "+ 0.0.0.0:31080/tcp"];
    world.wait_documents(&agent, &expect);
    // As names go, another Service: the namespace tells them apart.
    world.server.apply(Service::node_port("other", "a", &[Port::tcp(80, 30080)]));
    world.server.delete("default", "a");
    world.wait_marker(&agent, &expect);
    world.server.apply(Service::cluster_ip("default", "b", &[Port::tcp(30080, 0)]));
    let expect = [&expect[..], &["+ 0.0.0.0:32767/tcp", "- 0.0.0.0:31080/tcp"]].concat();
    world.wait_documents(&agent, &expect);
    world.server.delete("other", "a");
    world.wait_documents(&agent, &[&expect[..], &["- 0.0.0.0:30080/tcp"]].concat());
}

#[test]
#[ignore = "needs openssl"]
fn s30_families_of_ip() {
    let service = |families: &[&str]| node_port("web", 30080).families(families);
    let (world, agent) = World::running(&[service(&["IPv6"])], &[]);
    let mut expect = vec!["+ [::]:30080/tcp"];
    world.wait_documents(&agent, &expect);
    for (families, document) in [
        (&["IPv6", "IPv4"][..], "+ 0.0.0.0:30080/tcp"),
        (&["IPv4"], "- [::]:30080/tcp"),
        (&["IPv4", "IPv6"], "+ [::]:30080/tcp"),
    ] {
        world.server.apply(service(families));
        expect.push(document);
        world.wait_documents(&agent, &expect);
    }
}

/// Such a port goes through the relay, since the host cannot reach the guest's loopback itself.
#[test]
#[ignore = "needs openssl"]
fn s30_services_on_the_loopback_only() {
    let services = [node_port("web", 31873).families(&["IPv4", "IPv6"])];
    let (world, agent) = World::running(&services, &["-k8sServiceListenerAddr", "127.0.0.1"]);
    world.receiver.wait_held(&["127.0.0.1:31873/tcp", "[::1]:31873/tcp"]);
    world.server.delete("default", "web");
    world.receiver.wait_held(&[]);
    assert!(!agent.log().contains(" WARN "), "{}", agent.log());
}

#[test]
#[ignore = "needs openssl"]
fn s30_without_admin_rights_everything_is_on_the_hosts_loopback() {
    let (world, _administrator) = World::running(&[node_port("web", 30080).families(&["IPv4", "IPv6"])], &[]);
    world.receiver.wait_held(&["0.0.0.0:30080/tcp", "[::]:30080/tcp"]);
    let plain = World { receiver: crate::support::receiver::Receiver::new(), ..world };
    let _agent = plain.plain_agent(&[]);
    plain.receiver.wait_held(&["127.0.0.1:30080/tcp", "[::1]:30080/tcp"]);
}
