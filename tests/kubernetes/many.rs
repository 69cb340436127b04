//! As many Services as a cluster has node ports for, and as many others besides.

use std::time::{Duration, Instant};

use crate::support::agent::Agent;
use crate::support::kube_server::{Port, Service};
use crate::support::{status_kb, within};
use crate::world::{LONG_GRACE, World, node_port};

const NODE_PORTS: u16 = 2700;
const OTHERS: u16 = 2300;

/// An unoptimized build, and other tests at the same time; seconds in fact.
const LIMIT: Duration = Duration::from_secs(60);

fn services() -> Vec<Service> {
    let published = (0..NODE_PORTS).map(|n| node_port(&format!("published-{n:04}"), 30000 + n));
    let inner = |n| Service::cluster_ip("default", &format!("inner-{n:04}"), &[Port::tcp(80, 0)]);
    published.chain((0..OTHERS).map(inner)).collect()
}

fn wait_count(world: &World, agent: &Agent, expect: usize) {
    within(LIMIT, &format!("{expect} forwards"), || match world.receiver.held().len() {
        held if held == expect => Ok(()),
        held => Err((held, agent.log().lines().last().map(str::to_owned))),
    });
}

fn rss(agent: &Agent) -> u64 {
    status_kb(agent.pid(), "VmRSS:")
}

/// What a round leaves behind. The first one also pays for what an allocator keeps for the next.
struct Bounds {
    agent: Agent,
    rss: Vec<u64>,
    begun: Instant,
}

impl Bounds {
    fn new(agent: Agent) -> Bounds {
        Bounds { rss: vec![rss(&agent)], agent, begun: Instant::now() }
    }

    fn round(&mut self) {
        self.rss.push(rss(&self.agent));
        println!("{:?} KiB, {:?}", self.rss, self.begun.elapsed());
    }

    fn check(&self) {
        let log = self.agent.log();
        let (lines, bytes) = (log.lines().count(), log.len());
        assert!(lines < 400 && bytes < 128 << 10, "{lines} lines, {bytes} bytes");
        assert!(self.begun.elapsed() < 2 * LIMIT, "{:?}", self.begun.elapsed());
        let (before, first, last) = (self.rss[0], self.rss[1], self.rss[self.rss.len() - 1]);
        assert!(first < before + 8192 && last < first + 1024, "{:?} KiB", self.rss);
        assert!(status_kb(self.agent.pid(), "VmHWM:") < 32 << 10);
    }
}

#[test]
#[ignore = "needs openssl"]
fn s26_5000_services_come_and_go_through_lists() {
    let (world, agent) = World::running(&[], &LONG_GRACE);
    let mut bounds = Bounds::new(agent);
    for round in 1..=3 {
        world.server.stop();
        for service in services() {
            world.server.apply(service);
        }
        world.server.resume();
        wait_count(&world, &bounds.agent, NODE_PORTS.into());
        // The list of all of them again changes nothing.
        world.server.restart();
        world.server.wait_watches(1);
        world.server.stop();
        for service in services() {
            world.server.delete(&service.namespace, &service.name);
        }
        world.server.resume();
        wait_count(&world, &bounds.agent, 0);
        let documents = round * 2 * usize::from(NODE_PORTS);
        assert_eq!(world.receiver.all().len(), documents, "each announced once and withdrawn once");
        bounds.round();
    }
    bounds.check();
}

#[test]
#[ignore = "needs openssl"]
fn s26_5000_services_come_and_go_through_events() {
    let (world, agent) = World::running(&[], &LONG_GRACE);
    let mut bounds = Bounds::new(agent);
    for round in 1..=3 {
        for service in services() {
            world.server.apply(service);
        }
        wait_count(&world, &bounds.agent, NODE_PORTS.into());
        for service in services() {
            world.server.delete(&service.namespace, &service.name);
        }
        wait_count(&world, &bounds.agent, 0);
        assert_eq!(world.receiver.all().len(), round * 2 * usize::from(NODE_PORTS));
        bounds.round();
    }
    assert_eq!(world.server.watches_opened(), 1, "one watch had it all");
    bounds.check();
}
