//! Random edits of Services, with things going wrong in between, against a model of what is then published: the real
//! agent, the stand-in for kube-apiserver, and a receiver of documents as the host end.
//!
//! A run is a list of bursts. After each the receiver has to hold what the model says of the server's own list of
//! Services, and the documents of the burst must have withdrawn nothing that was published all along, and announced
//! nothing that never was. A calm burst is edits alone; in the others the connection, the server or the sink fails.
//!
//! `SEEDS=N` tries N seeds (6 otherwise), a few at a time; a failure prints its seed, and `SEED=S` runs that one alone. The
//! seed decides what is done, not how it falls in time with what the agent does.

#![cfg(feature = "kubernetes")]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod support;

use std::collections::{BTreeSet, VecDeque};
use std::fmt::{self, Write as _};
use std::sync::Mutex;
use std::thread::{self, sleep};
use std::time::Duration;

use support::agent::Agent;
use support::certs::Pki;
use support::kube_server::{Cut, Fault, KubeServer, On, Port, Service};
use support::kubeconfig::KubeConfig;
use support::receiver::{Receiver, read};
use support::{TempDir, eventually};

const ROUNDS: usize = 10;
const CALM_BURSTS: usize = 6;
/// Runs at the same time: they mostly wait.
const AT_ONCE: usize = 6;

/// A watch that has lasted that long counts as a success, after which the agent is quick again to make a new one.
const LASTING: Duration = Duration::from_secs(1);

/// As often as they are named.
const TYPES: [&str; 6] = ["NodePort", "NodePort", "LoadBalancer", "LoadBalancer", "ClusterIP", "ExternalName"];
const PROTOCOLS: [&str; 5] = ["TCP", "TCP", "UDP", "UDP", "SCTP"];
const FAMILIES: [&[&str]; 4] = [&["IPv4"], &["IPv6"], &["IPv4", "IPv6"], &["IPv6", "IPv4"]];
/// Few, so that Services meet on them: a real server lets load balancers do so, and this one all.
const PORTS: [u16; 4] = [53, 80, 443, 30_001];
const NODE_PORTS: u64 = 16;
const FIRST_NODE_PORT: u16 = 30_000;
/// The same name in two namespaces is two Services.
const NAMESPACES: [&str; 2] = ["default", "kube-system"];
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[test]
#[ignore = "needs openssl (scripts/deps.sh openssl)"]
fn whatever_happens_the_host_holds_what_services_publish() {
    let number = |name| std::env::var(name).ok().map(|n| n.parse().unwrap_or_else(|_| panic!("{name} is a number")));
    let seeds: VecDeque<u64> = match number("SEED") {
        Some(seed) => VecDeque::from([seed]),
        None => (0..number("SEEDS").unwrap_or(6)).collect(),
    };
    let (seeds, failed) = (Mutex::new(seeds), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(seed) = { seeds.lock().unwrap().pop_front() } {
                    // Its own thread, whose panic is printed with its name.
                    let name = thread::Builder::new().name(format!("SEED={seed}"));
                    if name.spawn(move || run(seed)).unwrap().join().is_err() {
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "failed, each to be run again with SEED=S: {failed:?}");
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..ROUNDS {
        for _ in 0..CALM_BURSTS {
            for _ in 0..world.random.below(10) {
                world.edit();
            }
            world.settle();
        }
        world.wait_lasting();
        for _ in 0..1 + world.random.below(4) {
            for _ in 0..world.random.below(5) {
                world.edit();
            }
            world.harm();
        }
        for _ in 0..world.random.below(5) {
            world.edit();
        }
        world.mend();
        world.settle();
    }
    println!("seed {seed}: {} edits, {} faults, {} documents", world.edits, world.faults, world.documents);
    let World { agent, receiver, .. } = world;
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(receiver.held(), Vec::<String>::new(), "something is left behind");
}

/// What the host is to hold: facts of Kubernetes, and the agent's rule for where it may be exposed.
fn published(services: &[Service], admin: bool) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for service in services {
        for port in &service.ports {
            let node_port = service.kind == "NodePort" || service.kind == "LoadBalancer";
            // Somebody answers for it.
            let own_port = service.kind == "LoadBalancer" && !service.ingress.is_empty();
            let numbers = [(node_port, port.node_port), (own_port, port.port)];
            for (_, number) in numbers.into_iter().filter(|(open, number)| *open && *number != 0) {
                for family in &service.ip_families {
                    let ip = match (family.as_str(), admin) {
                        ("IPv4", true) => "0.0.0.0",
                        ("IPv4", false) => "127.0.0.1",
                        (_, true) => "[::]",
                        (_, false) => "[::1]",
                    };
                    match port.protocol.as_str() {
                        "TCP" => all.insert(format!("{ip}:{number}/tcp")),
                        "UDP" => all.insert(format!("{ip}:{number}/udp")),
                        // Nobody can forward SCTP.
                        _ => false,
                    };
                }
            }
        }
    }
    all
}

struct World {
    random: Random,
    server: KubeServer,
    receiver: Receiver,
    agent: Agent,
    kubeconfig: KubeConfig,
    dir: TempDir,
    _pki: Pki,
    admin: bool,
    /// The sink is away.
    absent: bool,
    /// The server takes no connections.
    refusing: bool,
    edits: usize,
    faults: usize,
    /// Of the receiver's documents, those that were checked.
    documents: usize,
    /// What was done since the receiver last held what it should.
    history: Vec<String>,
    /// What was published then, and after each edit since.
    states: Vec<BTreeSet<String>>,
}

impl World {
    /// An agent that finds some Services there already.
    fn new(seed: u64) -> World {
        let (pki, receiver, dir) = (Pki::new(), Receiver::new(), TempDir::new());
        let server = KubeServer::start(&pki, "127.0.0.1:0");
        let kubeconfig = KubeConfig::new(&pki, &server.url());
        let path = dir.join("kubeconfig");
        kubeconfig.write(&path);
        let mut random = Random(seed);
        let admin = random.one_of(2);
        for _ in 0..random.below(5) {
            let (namespace, name) = (random.choose(&NAMESPACES), random.choose(&NAMES));
            server.apply(random.service(namespace, name));
        }
        let (url, path) = (receiver.url(), path.display().to_string());
        let mut args = vec!["-kubernetes", "-iptables=false", "-kubeconfig", &path, "--sink", &url];
        args.extend(["--connect-interface", "lo", "-debug"]);
        args.extend(admin.then_some("-adminInstall"));
        let agent = Agent::run(None, &args);
        let mut world = World {
            random,
            server,
            receiver,
            agent,
            kubeconfig,
            dir,
            _pki: pki,
            admin,
            absent: false,
            refusing: false,
            edits: 0,
            faults: 0,
            documents: 0,
            history: Vec::new(),
            states: Vec::new(),
        };
        world.note("start".to_owned());
        world.settle();
        world
    }

    /// Notes what was done.
    fn note(&mut self, what: String) {
        self.history.push(what);
        self.states.push(published(&self.server.services(), self.admin));
    }

    fn apply(&mut self, service: Service) {
        self.edits += 1;
        let what = shown(&service);
        self.server.apply(service);
        self.note(what);
    }

    fn delete(&mut self, service: &Service) {
        self.edits += 1;
        self.server.delete(&service.namespace, &service.name);
        self.note(format!("delete {}/{}", service.namespace, service.name));
    }

    /// One edit by a user, or by a controller: two where something is made anew.
    fn edit(&mut self) {
        let (namespace, name) = (self.random.choose(&NAMESPACES), self.random.choose(&NAMES));
        let there = self.server.services().into_iter().find(|s| s.namespace == namespace && s.name == name);
        let Some(mut service) = there else {
            let service = self.random.service(namespace, name);
            return self.apply(service);
        };
        let random = &mut self.random;
        match random.below(12) {
            0 => return self.delete(&service),
            1 => {
                let again = random.service(namespace, name);
                self.delete(&service);
                return self.apply(again);
            }
            2 | 3 => service.kind = random.choose(&TYPES).to_owned(),
            4 => service.ports.push(random.port()),
            5 if service.ports.len() > 1 => {
                let at = random.below(service.ports.len() as u64) as usize;
                service.ports.remove(at);
            }
            6 | 7 => *random.choose_mut(&mut service.ports) = random.port(),
            8 => random.choose_mut(&mut service.ports).protocol = random.choose(&PROTOCOLS).to_owned(),
            9 => service.ip_families = random.families(),
            10 => service.ingress = random.ingress(),
            // Nothing that counts has changed.
            _ => {}
        }
        random.complete(&mut service);
        self.apply(service);
    }

    /// Something goes wrong, for as long as it takes to go on, or until it is mended.
    fn harm(&mut self) {
        self.faults += 1;
        let what = match self.random.below(16) {
            0 => {
                self.server.restart();
                self.refusing = false;
                "restart".to_owned()
            }
            1 => {
                self.server.stop();
                self.refusing = true;
                "stop".to_owned()
            }
            2 => {
                self.server.refuse();
                self.refusing = true;
                self.cut()
            }
            3 | 4 => {
                // Of these edits the watch does not hear, nor can the one that follows where it left off.
                self.server.stall_watches(true);
                (0..3).for_each(|_| self.edit());
                self.server.compact();
                self.server.cut_watches(Cut::InOrder);
                self.server.stall_watches(false);
                "compact".to_owned()
            }
            5 => {
                self.server.expire_watches();
                "expire".to_owned()
            }
            6..9 => self.refuse_requests(),
            9 => {
                self.server.fault(self.random.choose(&[On::List, On::Watch]), Fault::DropAfterHead, Some(1));
                self.cut()
            }
            10 | 11 => self.send_nonsense(),
            12 => {
                self.server.advance(self.random.below(100));
                self.server.bookmark();
                "bookmark".to_owned()
            }
            13 => {
                let stalled = self.random.one_of(2);
                self.server.stall_watches(stalled);
                format!("stalled: {stalled}")
            }
            14 => {
                self.kubeconfig.write(&self.dir.join("kubeconfig"));
                self.server.raw_list(Some(b"{\"kind\":\"ServiceList\",\"items\":[".to_vec()));
                self.cut()
            }
            _ => {
                if !self.absent {
                    self.receiver.close();
                }
                self.absent = true;
                "sink absent".to_owned()
            }
        };
        let pause = Duration::from_millis(self.random.below(4) * 60);
        self.note(format!("{what}, {pause:?}"));
        sleep(pause);
    }

    fn cut(&mut self) -> String {
        let how = self.random.choose(&[Cut::MidLine, Cut::BetweenLines, Cut::InOrder]);
        self.server.cut_watches(how);
        format!("{how:?}")
    }

    /// The next request, or some, are answered with an error.
    fn refuse_requests(&mut self) -> String {
        let code = self.random.choose(&[401, 403, 410, 410, 429, 429, 500, 503, 503]);
        let retry_after = (code == 503 && self.random.one_of(4)).then_some(1);
        let on = self.random.choose(&[On::List, On::Watch, On::Any]);
        let times = 1 + self.random.below(3) as usize;
        self.server.fault(on, Fault::Status { code, retry_after }, Some(times));
        format!("{on:?} gets {code} {times} times, {}", self.cut())
    }

    fn send_nonsense(&mut self) -> String {
        let lines: [&[u8]; 9] = [
            b"{\"type\":\"ADDED\",\"object\":17}\n",
            b"{\"type\":\"DELETED\",\"object\":{\"kind\":\"Service\"}}\n",
            b"{\"type\":\"ODD\",\"object\":{\"kind\":\"Service\",\"metadata\":{\"resourceVersion\":\"1\"}}}\n",
            b"{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":500,\"message\":\"no\"}}\n",
            b"{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":410,\"reason\":\"Expired\"}}\n",
            // What comes next makes it a line.
            b"{\"type\":\"MODIFIED\",\"obj",
            b"\xff\xfe\x00\n",
            b"[]\n",
            b"\n\n",
        ];
        let line = self.random.choose(&lines);
        self.server.raw_event(line);
        String::from_utf8_lossy(line).escape_debug().to_string()
    }

    fn mend(&mut self) {
        self.server.clear_faults();
        self.server.raw_list(None);
        self.server.stall_watches(false);
        if std::mem::take(&mut self.refusing) {
            self.server.resume();
        }
        if std::mem::take(&mut self.absent) {
            self.receiver.listen();
        }
    }

    /// Waits until the receiver holds what it should, and looks at the documents on the way there.
    fn settle(&mut self) {
        // Everything that was sent because of earlier edits is there once the last one's document is.
        let port = FIRST_NODE_PORT + 1000 + (self.edits % 1000) as u16;
        self.apply(Service::node_port("default", "last", &[Port::tcp(port, port)]));
        let expect = self.states.last().unwrap().clone();
        eventually("what Services publish", || {
            let held: BTreeSet<String> = self.receiver.held().into_iter().collect();
            if held == expect { Ok(()) } else { Err(self.story(&held, &expect)) }
        });
        let always = |binding: &String| self.states.iter().all(|state| state.contains(binding));
        let ever = |binding: &String| self.states.iter().any(|state| state.contains(binding));
        let documents = self.receiver.all();
        for document in &documents[self.documents..] {
            let (remove, bindings) = read(&document.text);
            for binding in bindings {
                let story = || self.story(&expect, &expect);
                assert!(!remove || !always(&binding), "{binding} was there all along, and withdrawn: {:?}", story());
                assert!(remove || ever(&binding), "{binding} was never there, and announced: {:?}", story());
            }
        }
        self.documents = documents.len();
        self.history.clear();
        self.states = vec![expect];
    }

    /// Waits until there is a watch that counts as a success.
    fn wait_lasting(&self) {
        eventually("a watch that lasts", || {
            let requests = self.server.requests();
            let last = requests.iter().rev().find(|request| request.is_watch());
            let lasts = self.server.watches() > 0 && last.is_some_and(|request| request.at.elapsed() > LASTING);
            if lasts { Ok(()) } else { Err(Text(self.agent.log())) }
        });
    }

    fn story(&self, held: &BTreeSet<String>, expect: &BTreeSet<String>) -> Text {
        let mut text = format!("\nmissing {:?}\n", expect.difference(held).collect::<Vec<_>>());
        writeln!(text, "too many {:?}\nafter", held.difference(expect).collect::<Vec<_>>()).unwrap();
        self.history.iter().for_each(|step| writeln!(text, "  {step}").unwrap());
        let log = self.agent.log();
        let from = log.char_indices().rev().nth(6000).map_or(0, |(at, _)| at);
        Text(format!("{text}...{}", &log[from..]))
    }
}

/// Is printed as it is.
struct Text(String);

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn shown(service: &Service) -> String {
    let Service { namespace, name, kind, ports, ingress, ip_families, .. } = service;
    let ports: Vec<String> =
        ports.iter().map(|port| format!("{}:{}/{}", port.node_port, port.port, port.protocol)).collect();
    format!("{namespace}/{name} {kind} {} ingress {ingress:?} {ip_families:?}", ports.join(" "))
}

/// xorshift64*, with its seed spread first, as 0 would stay 0.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        if self.0 < 1 << 32 {
            self.0 = (self.0 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Once in so many times.
    fn one_of(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn choose<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    fn choose_mut<'a, T>(&mut self, of: &'a mut [T]) -> &'a mut T {
        let at = self.below(of.len() as u64) as usize;
        &mut of[at]
    }

    fn families(&mut self) -> Vec<String> {
        self.choose(&FAMILIES).iter().map(ToString::to_string).collect()
    }

    fn ingress(&mut self) -> Vec<String> {
        (0..self.below(3)).map(|n| format!("192.168.1.{n}")).collect()
    }

    fn port(&mut self) -> Port {
        let (protocol, port) = (self.choose(&PROTOCOLS), self.choose(&PORTS));
        Port::new(protocol, port, 0)
    }

    fn service(&mut self, namespace: &str, name: &str) -> Service {
        let ports: Vec<Port> = (0..1 + self.below(3)).map(|_| self.port()).collect();
        let mut service = Service::new(self.choose(&TYPES), namespace, name, &ports);
        (service.ip_families, service.ingress) = (self.families(), self.ingress());
        service.allocate_load_balancer_node_ports = !self.one_of(3);
        self.complete(&mut service);
        service
    }

    /// Gives and takes node ports, as the server does. An ingress stays until a controller takes it away.
    fn complete(&mut self, service: &mut Service) {
        let has = match service.kind.as_str() {
            "NodePort" => true,
            "LoadBalancer" => service.allocate_load_balancer_node_ports,
            _ => false,
        };
        for port in &mut service.ports {
            match (has, port.node_port) {
                (true, 0) => port.node_port = FIRST_NODE_PORT + self.below(NODE_PORTS) as u16,
                (true, _) => {}
                (false, _) => port.node_port = 0,
            }
        }
    }
}
