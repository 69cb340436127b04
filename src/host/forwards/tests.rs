//! Requests and what becomes of them, on a host that is only pretended: its ports can be taken by others.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::*;
use crate::wire::port_mapping_decode::decode;

#[derive(Default)]
struct FakeHost {
    open: RefCell<BTreeMap<(Protocol, SocketAddr), SocketAddr>>,
    taken: RefCell<BTreeMap<SocketAddr, io::ErrorKind>>,
}

impl Host for Rc<FakeHost> {
    fn open(&self, protocol: Protocol, listen: SocketAddr, target: SocketAddr) -> io::Result<()> {
        if let Some(kind) = self.taken.borrow().get(&listen) {
            return Err((*kind).into());
        }
        self.open.borrow_mut().insert((protocol, listen), target);
        Ok(())
    }

    fn close(&self, protocol: Protocol, listen: SocketAddr) -> bool {
        self.open.borrow_mut().remove(&(protocol, listen)).is_some()
    }

    fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        Ok(vec!["192.168.1.9".parse().unwrap()])
    }
}

struct Bench {
    host: Rc<FakeHost>,
    forwards: Forwards<Rc<FakeHost>>,
    start: Instant,
}

impl Bench {
    fn new() -> Bench {
        let host = Rc::new(FakeHost::default());
        let policy = Policy { allow: vec!["127.0.0.0/8:1024-65535".parse().unwrap()], ..Policy::default() };
        Bench { forwards: Forwards::new(Rc::clone(&host), policy, 4), host, start: Instant::now() }
    }

    fn send(&mut self, remove: bool, addrs: &[&str], connect: &str) -> Vec<String> {
        let list = addrs.iter().map(|addr| {
            let addr: SocketAddr = addr.parse().unwrap();
            format!(r#"{{"HostIp":"{}","HostPort":"{}"}}"#, addr.ip(), addr.port())
        });
        let list = list.collect::<Vec<_>>().join(",");
        let json = format!(
            r#"{{"remove":{remove},"ports":{{"80/tcp":[{list}]}},"connectAddrs":[{{"network":"ip+net","addr":"{connect}/24"}}]}}"#
        );
        let mut changes = Vec::new();
        self.forwards.apply(&decode(json.as_bytes()).unwrap(), self.start, &mut changes);
        shown(&changes)
    }

    fn add(&mut self, addrs: &[&str]) -> Vec<String> {
        self.send(false, addrs, "10.0.0.2")
    }

    fn retry_at(&mut self, seconds: u64) -> Vec<String> {
        let mut changes = Vec::new();
        self.forwards.retry(self.start + Duration::from_secs(seconds), &mut changes);
        shown(&changes)
    }

    fn due(&self) -> Option<u64> {
        self.forwards.due().map(|due| (due - self.start).as_secs())
    }

    fn take(&self, addr: &str, kind: io::ErrorKind) {
        self.host.taken.borrow_mut().insert(addr.parse().unwrap(), kind);
    }
}

fn shown(changes: &[Change]) -> Vec<String> {
    let word = |outcome: &Outcome| match outcome {
        Outcome::Opened(target) => format!("to {target}"),
        Outcome::Closed => "closed".to_owned(),
        Outcome::Conflict(_) => "conflict".to_owned(),
        Outcome::Denied(_) => "denied".to_owned(),
        Outcome::Failed(_) => "failed".to_owned(),
    };
    changes.iter().map(|c| format!("{} {}", c.binding.host_port, word(&c.outcome))).collect()
}

#[test]
fn opens_once_and_closes_once() {
    let mut bench = Bench::new();
    assert_eq!(bench.add(&["127.0.0.1:8080"]), ["8080 to 10.0.0.2:8080"]);
    assert!(bench.add(&["127.0.0.1:8080"]).is_empty());
    assert_eq!(bench.send(true, &["127.0.0.1:8080"], "10.0.0.2"), ["8080 closed"]);
    assert!(bench.send(true, &["127.0.0.1:8080"], "10.0.0.2").is_empty());
    assert!(bench.host.open.borrow().is_empty());
}

#[test]
fn another_target_replaces_and_a_forbidden_one_closes() {
    let mut bench = Bench::new();
    bench.add(&["127.0.0.1:8080"]);
    assert_eq!(bench.send(false, &["127.0.0.1:8080"], "10.0.0.3"), ["8080 to 10.0.0.3:8080"]);
    assert_eq!(bench.send(false, &["127.0.0.1:8080"], "192.168.1.9"), ["8080 closed", "8080 denied"]);
    assert_eq!(bench.send(false, &["127.0.0.1:8080"], "fd00::2"), ["8080 failed"]);
    assert!(bench.host.open.borrow().is_empty() && bench.forwards.wanted.is_empty());
}

#[test]
fn s13_a_busy_port_waits_and_is_taken_when_free() {
    let mut bench = Bench::new();
    bench.take("127.0.0.1:8080", io::ErrorKind::AddrInUse);
    assert_eq!(bench.add(&["127.0.0.1:8080", "127.0.0.1:8081"]), ["8080 conflict", "8081 to 10.0.0.2:8081"]);
    assert!(bench.add(&["127.0.0.1:8080"]).is_empty());
    let mut dues = Vec::new();
    for _ in 0..7 {
        let due = bench.due().unwrap();
        dues.push(due);
        assert!(bench.retry_at(due - 1).is_empty());
        assert!(bench.retry_at(due).is_empty(), "said again");
    }
    assert_eq!(dues, [1, 3, 6, 10, 15, 20, 25]);
    bench.host.taken.borrow_mut().clear();
    assert_eq!(bench.retry_at(30), ["8080 to 10.0.0.2:8080"]);
    assert_eq!(bench.due(), None);
}

#[test]
fn other_trouble_is_told_apart_and_tried_again_too() {
    let mut bench = Bench::new();
    bench.take("127.0.0.1:8080", io::ErrorKind::PermissionDenied);
    assert_eq!(bench.add(&["127.0.0.1:8080"]), ["8080 failed"]);
    bench.take("127.0.0.1:8080", io::ErrorKind::AddrInUse);
    assert_eq!(bench.retry_at(1), ["8080 conflict"]);
    // Its target may change while it waits.
    assert!(bench.send(false, &["127.0.0.1:8080"], "10.0.0.3").is_empty());
    bench.host.taken.borrow_mut().clear();
    assert_eq!(bench.retry_at(3), ["8080 to 10.0.0.3:8080"]);
}

#[test]
fn what_is_withdrawn_while_waiting_is_not_tried_again() {
    let mut bench = Bench::new();
    bench.take("127.0.0.1:8080", io::ErrorKind::AddrInUse);
    bench.add(&["127.0.0.1:8080"]);
    assert_eq!(bench.send(true, &["127.0.0.1:8080"], "10.0.0.2"), ["8080 closed"]);
    assert_eq!(bench.due(), None);
}

#[test]
fn ports_are_limited_and_refused_ones_take_no_room() {
    let mut bench = Bench::new();
    assert_eq!(bench.add(&["127.0.0.1:80", "0.0.0.0:8080"]), ["8080 denied", "80 denied"]);
    let ports = ["127.0.0.1:8001", "127.0.0.1:8002", "127.0.0.1:8003", "127.0.0.1:8004", "127.0.0.1:8005"];
    assert_eq!(bench.add(&ports).last().unwrap(), "8005 denied");
    assert_eq!(bench.forwards.wanted.len(), 4);
    let mut changes = Vec::new();
    bench.forwards.close_all(&mut changes);
    assert_eq!(shown(&changes), ["8001 closed", "8002 closed", "8003 closed", "8004 closed"]);
    assert!(bench.host.open.borrow().is_empty());
}

#[test]
fn a_storm_of_retries_leaves_room_for_documents() {
    let mut bench = Bench::new();
    bench.forwards.ports_max = 1000;
    let addrs: Vec<String> = (8000..9000).map(|port| format!("127.0.0.1:{port}")).collect();
    addrs.iter().for_each(|addr| bench.take(addr, io::ErrorKind::AddrInUse));
    bench.add(&addrs.iter().map(String::as_str).collect::<Vec<_>>());
    bench.host.taken.borrow_mut().clear();
    let opened: Vec<usize> = (0..5).map(|_| bench.retry_at(1).len()).collect();
    assert_eq!(opened, [256, 256, 256, 232, 0]);
    assert_eq!(bench.due(), None);
}
