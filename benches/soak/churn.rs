//! Containers and plain processes that come and go at random, by several hands at once. A hand is a thread that owns what
//! it has started; ports of different hands never meet.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::engine;
use crate::random::Random;
use crate::support::cni::{Attachment, Port};
use crate::support::containerd::{IMAGE, ports_label};
use crate::support::{Process, unique};
use crate::world::{World, lock};

const WEB: [&str; 6] = ["/busybox", "httpd", "-f", "-h", "/", "-p"];

/// What threads of hands are called.
pub const HAND: &str = "hand";

/// After something failed: whoever is meant is dead or stopped most likely.
const PAUSE: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(20);

/// Ports that a hand may use, from its first on.
const PORTS_EACH: u16 = 2000;
const FIRST_PORT: u16 = 10_000;
/// The widest range that one container publishes.
const RANGE: u16 = 5;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Start and remove.
    Churn,
    /// Leave everything as it is.
    Hold,
    /// Remove everything.
    Drain,
    End,
}

/// What all hands are told, and what they have done.
pub struct Orders {
    /// The pace, and how often it was changed: `4 * changes + pace`.
    pace: AtomicU64,
    /// What each hand, and each thread of faults, has last come to rest with.
    at_rest: Vec<AtomicU64>,
    pub tally: Tally,
}

#[derive(Default)]
pub struct Tally {
    pub docker: AtomicU64,
    pub containerd: AtomicU64,
    pub plain: AtomicU64,
    pub removed: AtomicU64,
    pub refused: AtomicU64,
    pub namespaces: AtomicU64,
    pub alive_max: AtomicU64,
    alive: AtomicU64,
}

impl Tally {
    pub fn containers(&self) -> u64 {
        self.docker.load(Ordering::Relaxed) + self.containerd.load(Ordering::Relaxed)
    }
}

impl Orders {
    pub fn new(threads: usize) -> Orders {
        let at_rest = (0..threads).map(|_| AtomicU64::new(u64::MAX)).collect();
        Orders { pace: AtomicU64::new(Pace::Hold as u64), at_rest, tally: Tally::default() }
    }

    pub fn give(&self, pace: Pace) {
        let changes = self.pace.load(Ordering::SeqCst) / 4 + 1;
        self.pace.store(4 * changes + pace as u64, Ordering::SeqCst);
    }

    /// The pace, and what to come to rest with.
    pub fn read(&self) -> (Pace, u64) {
        let order = self.pace.load(Ordering::SeqCst);
        let pace = [Pace::Churn, Pace::Hold, Pace::Drain, Pace::End][(order % 4) as usize];
        (pace, order)
    }

    pub fn rest(&self, thread: usize, order: u64) {
        self.at_rest[thread].store(order, Ordering::SeqCst);
        std::thread::sleep(POLL);
    }

    /// Waits until everybody has done what was last ordered. `false`: not in time.
    pub fn wait_rest(&self, limit: Duration) -> bool {
        let (order, end) = (self.pace.load(Ordering::SeqCst), Instant::now() + limit);
        while self.at_rest.iter().any(|at| at.load(Ordering::SeqCst) != order) {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    /// Waits, but not for longer than the pace lasts.
    pub fn pause(&self, time: Duration) {
        let ((_, order), end) = (self.read(), Instant::now() + time);
        while self.read().1 == order && Instant::now() < end {
            std::thread::sleep(POLL);
        }
    }
}

/// Ends everybody, also when whoever gives the orders has panicked.
pub struct EndOnDrop<'a>(pub &'a Orders);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.give(Pace::End);
    }
}

/// Something that starts and removes.
pub trait Hand {
    /// How many it has.
    fn alive(&self) -> usize;
    fn start(&mut self, random: &mut Random) -> Result<(), String>;
    fn remove(&mut self, random: &mut Random) -> Result<(), String>;
}

/// What a hand's thread does: up to `most` at a time, until the end is ordered.
pub fn work(hand: &mut dyn Hand, most: usize, orders: &Orders, thread: usize, mut random: Random) {
    loop {
        let (pace, order) = orders.read();
        let (before, done) = match pace {
            Pace::End => return,
            Pace::Hold => {
                orders.rest(thread, order);
                continue;
            }
            Pace::Drain if hand.alive() == 0 => {
                orders.rest(thread, order);
                continue;
            }
            Pace::Drain => (hand.alive(), attempt(|| hand.remove(&mut random))),
            Pace::Churn => {
                let before = hand.alive();
                // The more there are, the less likely another one is.
                let grow = before == 0 || random.below(2 * most) >= before;
                let start = grow && before < most;
                (before, attempt(|| if start { hand.start(&mut random) } else { hand.remove(&mut random) }))
            }
        };
        let after = hand.alive();
        let tally = &orders.tally;
        tally.alive.fetch_add(after as u64, Ordering::SeqCst);
        let alive = tally.alive.fetch_sub(before as u64, Ordering::SeqCst) - before as u64;
        tally.alive_max.fetch_max(alive, Ordering::Relaxed);
        tally.removed.fetch_add(before.saturating_sub(after) as u64, Ordering::Relaxed);
        if let Err(error) = done {
            tally.refused.fetch_add(1, Ordering::Relaxed);
            if pace == Pace::Drain && std::env::var_os("SOAK_VERBOSE").is_some() {
                eprintln!("  not removed: {error}");
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// `tests/support` panics where a test would fail; here the engine may just have been killed.
fn attempt(f: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| Err("panicked".into()))
}

/// Hands out ports that are not in use, the longest unused ones first.
struct Ports {
    first: u16,
    next: u16,
    used: BTreeSet<u16>,
}

impl Ports {
    fn of(hand: u16) -> Ports {
        Ports { first: FIRST_PORT + hand * PORTS_EACH, next: 0, used: BTreeSet::new() }
    }

    /// The first of so many in a row.
    fn take(&mut self, count: u16) -> u16 {
        loop {
            let port = self.first + self.next;
            self.next = (self.next + count) % (PORTS_EACH - RANGE);
            if (port..port + count).all(|port| !self.used.contains(&port)) {
                self.used.extend(port..port + count);
                return port;
            }
        }
    }

    fn give_back(&mut self, port: u16, count: u16) {
        self.used.retain(|used| !(port..port + count).contains(used));
    }
}

/// Containers of dockerd.
pub struct Docker<'a> {
    world: &'a World,
    tally: &'a Tally,
    ports: Ports,
    /// Id, first port, and how many.
    alive: Vec<(String, u16, u16)>,
}

impl<'a> Docker<'a> {
    pub fn new(world: &'a World, tally: &'a Tally, hand: u16) -> Docker<'a> {
        Docker { world, tally, ports: Ports::of(hand), alive: Vec::new() }
    }

    fn create(&mut self, kind: usize, port: u16) -> Result<String, String> {
        let engine = &self.world.docker;
        let web = [&WEB[..], &["80"]].concat();
        match kind {
            0 | 1 => engine::create(engine, &web, &[("80/tcp", "", port)], None),
            2 | 3 => engine::create(engine, &web, &[("80/tcp", "127.0.0.1", port)], None),
            4 => engine::create(engine, &web, &[("80/tcp", "::", port)], None),
            5 => engine::create(engine, &["/udp_echo", "53"], &[("53/udp", "0.0.0.0", port)], None),
            6 => engine::create(engine, &["/udp_echo", "53"], &[("53/udp", "127.0.0.1", port)], None),
            7 => {
                let keys: Vec<String> = (80..80 + RANGE).map(|port| format!("{port}/tcp")).collect();
                let ports: Vec<_> =
                    keys.iter().zip(port..).map(|(key, port)| (key.as_str(), "0.0.0.0", port)).collect();
                engine::create(engine, &web, &ports, None)
            }
            _ => {
                let ip = if kind == 8 { "0.0.0.0" } else { "127.0.0.1" };
                let listens = format!("{ip}:{port}");
                engine::create(engine, &[&WEB[..], &[&listens]].concat(), &[], Some(&listens))
            }
        }
    }
}

impl Hand for Docker<'_> {
    fn alive(&self) -> usize {
        self.alive.len()
    }

    fn start(&mut self, random: &mut Random) -> Result<(), String> {
        let kind = random.below(10);
        let count = if kind == 7 { RANGE } else { 1 };
        let port = self.ports.take(count);
        let id = match self.create(kind, port) {
            Ok(id) => id,
            Err(error) => {
                self.ports.give_back(port, count);
                return Err(error);
            }
        };
        let started = engine::start(&self.world.docker, &id);
        // Kept where it failed too: it is to be removed.
        self.alive.push((id, port, count));
        if started.is_ok() {
            self.tally.docker.fetch_add(1, Ordering::Relaxed);
        }
        started
    }

    fn remove(&mut self, random: &mut Random) -> Result<(), String> {
        let at = random.below(self.alive.len());
        engine::remove(&self.world.docker, &self.alive[at].0)?;
        let (_, port, count) = self.alive.swap_remove(at);
        self.ports.give_back(port, count);
        Ok(())
    }
}

/// Containers of containerd: with nerdctl's label alone, or with CNI's rules too.
pub struct Ctr<'a> {
    world: &'a World,
    tally: &'a Tally,
    ports: Ports,
    alive: Vec<(String, u16, Option<Attachment>)>,
}

impl<'a> Ctr<'a> {
    pub fn new(world: &'a World, tally: &'a Tally, hand: u16) -> Ctr<'a> {
        Ctr { world, tally, ports: Ports::of(hand), alive: Vec::new() }
    }

    /// `ctr`, to its end.
    fn ctr(&self, args: &[&str]) -> Result<String, String> {
        let containerd = self.world.containerd.read().unwrap_or_else(PoisonError::into_inner);
        let out = containerd.ctr("default").args(args).output().map_err(|error| error.to_string())?;
        if out.status.success() {
            return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
        }
        Err(format!("ctr {args:?}: {}", String::from_utf8_lossy(&out.stderr).trim()))
    }

    fn run(&self, id: &str, label: &str, attachment: Option<&Attachment>) -> Result<(), String> {
        let root = self.world.dir.join("runc").display().to_string();
        let (cgroup, label) = (format!("soak-{}-{id}", std::process::id()), format!("nerdctl/ports={label}"));
        let network = attachment.map(|attachment| format!("network:{}", attachment.netns.display()));
        let mut args = vec!["run", "-d", "--null-io", "--cgroup", &cgroup, "--runc-root", &root, "--label", &label];
        if let Some(network) = &network {
            args.extend(["--with-ns", network]);
        }
        args.extend([IMAGE, id]);
        args.extend(WEB);
        args.push("80");
        self.ctr(&args).map(drop)
    }
}

impl Hand for Ctr<'_> {
    fn alive(&self) -> usize {
        self.alive.len()
    }

    fn start(&mut self, random: &mut Random) -> Result<(), String> {
        let (id, port) = (format!("c{}", unique()), self.ports.take(1));
        let ip = if random.one_in(3) { "127.0.0.1" } else { "0.0.0.0" };
        let attachment = random.one_in(2).then(|| {
            let port = Port { host_ip: ip, host_port: port, container_port: 80, protocol: "tcp" };
            self.world.cni.add(&format!("default-{id}"), &[port])
        });
        lock(&self.world.labels).insert(id.clone(), vec![(ip.to_owned(), port, "tcp")]);
        if attachment.is_some() {
            lock(&self.world.attached).insert(id.clone(), (ip.to_owned(), port, "tcp"));
        }
        let started = self.run(&id, &ports_label(&[(ip, port, 80, "tcp")]), attachment.as_ref());
        self.alive.push((id, port, attachment));
        if started.is_ok() {
            self.tally.containerd.fetch_add(1, Ordering::Relaxed);
        }
        started
    }

    fn remove(&mut self, random: &mut Random) -> Result<(), String> {
        let at = random.below(self.alive.len());
        let id = self.alive[at].0.clone();
        if let Some(attachment) = self.alive[at].2.as_ref().filter(|_| random.one_in(4)) {
            // The namespace goes first, as when whoever runs the container has crashed: the rules lead to nothing then.
            let name = attachment.netns.file_name().unwrap_or_default();
            let _ = Command::new("ip").args(["netns", "del"]).arg(name).output();
            let _ = self.ctr(&["task", "kill", "-s", "9", &id]);
            self.tally.namespaces.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(random.between(Duration::from_millis(100), Duration::from_secs(1)));
        }
        let _ = self.ctr(&["task", "rm", "-f", &id]);
        if let Err(error) = self.ctr(&["container", "rm", &id]) {
            // Refused where its task runs; there was none where its start was cut off.
            if !error.contains("not found") {
                return Err(error);
            }
        }
        // Rules first; where they cannot be taken away now, the container is tried again as a whole.
        if let Some(attachment) = &mut self.alive[at].2 {
            attachment.try_detach()?;
        }
        lock(&self.world.attached).remove(&id);
        let (id, port, _) = self.alive.swap_remove(at);
        lock(&self.world.labels).remove(&id);
        self.ports.give_back(port, 1);
        Ok(())
    }
}

/// Processes of the guest that are in no container.
pub struct Plain<'a> {
    world: &'a World,
    tally: &'a Tally,
    ports: Ports,
    alive: Vec<(Process, u16)>,
}

impl<'a> Plain<'a> {
    pub fn new(world: &'a World, tally: &'a Tally, hand: u16) -> Plain<'a> {
        Plain { world, tally, ports: Ports::of(hand), alive: Vec::new() }
    }
}

impl Hand for Plain<'_> {
    fn alive(&self) -> usize {
        self.alive.len()
    }

    fn start(&mut self, random: &mut Random) -> Result<(), String> {
        let ip = if random.one_in(2) { "127.0.0.1" } else { "0.0.0.0" };
        let port = self.ports.take(1);
        let mut command = self.world.vm.guest.command("/bin/busybox");
        command.args(["httpd", "-f", "-h", "/bin", "-p"]).arg(format!("{ip}:{port}"));
        let process = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
        lock(&self.world.plain).insert(process.pid(), (ip.to_owned(), port, "tcp"));
        self.alive.push((process, port));
        self.tally.plain.fetch_add(1, Ordering::Relaxed);
        // Not what this is about, and cheap: no more than a few a second.
        std::thread::sleep(random.between(Duration::from_millis(100), Duration::from_millis(600)));
        Ok(())
    }

    fn remove(&mut self, random: &mut Random) -> Result<(), String> {
        let (process, port) = self.alive.swap_remove(random.below(self.alive.len()));
        let pid = process.pid();
        drop(process);
        lock(&self.world.plain).remove(&pid);
        self.ports.give_back(port, 1);
        std::thread::sleep(random.between(Duration::from_millis(50), Duration::from_millis(300)));
        Ok(())
    }
}
