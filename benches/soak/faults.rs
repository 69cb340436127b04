//! What goes wrong while containers come and go. Each fault has an end, after which it is waited for that the agent says
//! that the source or sink is right again; the agent's process is to stay the same.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::churn::{Orders, Pace};
use crate::random::Random;
use crate::world::{START, Stopped, World, lock, wait_state};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    DockerKilled,
    DockerStopped,
    ContainerdKilled,
    ContainerdStopped,
    EventsKilled,
    SwitchKilled,
    SwitchStopped,
    HostagentKilled,
    HostagentStopped,
    AgentKilled,
    AgentStopped,
    DiskFull,
    LinkDown,
}

use Fault::{
    AgentKilled, AgentStopped, ContainerdKilled, ContainerdStopped, DiskFull, DockerKilled, DockerStopped,
    EventsKilled, HostagentKilled, HostagentStopped, LinkDown, SwitchKilled, SwitchStopped,
};

/// Each list has a thread of its own, so that faults of different lists meet.
pub const ENGINES: &[Fault] = &[DockerKilled, DockerStopped, ContainerdKilled, ContainerdStopped, EventsKilled];
pub const OTHERS: &[Fault] =
    &[SwitchKilled, SwitchStopped, HostagentKilled, HostagentStopped, AgentKilled, AgentStopped, DiskFull, LinkDown];

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            DockerKilled => "dockerd: SIGKILL, and a new one",
            DockerStopped => "dockerd: SIGSTOP, SIGCONT",
            ContainerdKilled => "containerd: SIGKILL, and a new one",
            ContainerdStopped => "containerd: SIGSTOP, SIGCONT",
            EventsKilled => "the agent's `ctr events`: SIGKILL",
            SwitchKilled => "host-switch: SIGKILL, and a new one that holds nothing",
            SwitchStopped => "host-switch: SIGSTOP, SIGCONT",
            HostagentKilled => "hostagent: SIGKILL, and a new one that holds nothing",
            HostagentStopped => "hostagent: SIGSTOP, SIGCONT",
            AgentKilled => "the agent: SIGKILL, and a new one (and a new hostagent)",
            AgentStopped => "the agent: SIGSTOP, SIGCONT",
            DiskFull => "the state file's disk: full, and empty again",
            LinkDown => "the guest's interface: down, and up again",
        }
    }

    /// What the agent is to say of it afterwards: a list of `status`, a name in it, and a state.
    fn afterwards(self) -> Option<(&'static str, &'static str, &'static str)> {
        match self {
            DockerKilled | DockerStopped | AgentKilled | AgentStopped => Some(("sources", "docker", "ready")),
            ContainerdKilled | ContainerdStopped | EventsKilled => Some(("sources", "containerd", "ready")),
            SwitchKilled | SwitchStopped | LinkDown => Some(("sinks", "host-switch", "reachable")),
            HostagentKilled | HostagentStopped => Some(("sinks", "vtunnel", "reachable")),
            DiskFull => None,
        }
    }
}

/// How long what is stopped, full or down stays so.
#[derive(Clone, Copy)]
pub struct Lasting(pub Duration, pub Duration);

/// How often each fault was, and the longest time from its end until the agent said that all is well.
#[derive(Default)]
pub struct Record(Mutex<BTreeMap<Fault, (u64, Duration)>>);

impl Record {
    pub fn of(&self, fault: Fault) -> (u64, Duration) {
        lock(&self.0).get(&fault).copied().unwrap_or_default()
    }

    /// Whether each fault has come up.
    pub fn complete(&self) -> bool {
        lock(&self.0).len() == ENGINES.len() + OTHERS.len()
    }

    pub fn all(&self) -> u64 {
        lock(&self.0).values().map(|(count, _)| count).sum()
    }

    fn add(&self, fault: Fault, recovery: Duration) {
        let mut all = lock(&self.0);
        let entry = all.entry(fault).or_default();
        *entry = (entry.0 + 1, entry.1.max(recovery));
    }
}

pub struct Faults<'a> {
    pub world: &'a World,
    pub orders: &'a Orders,
    pub record: &'a Record,
    pub lasting: Lasting,
    /// The agent is killed until then: its figures are those of its last life.
    pub kill_until: Instant,
    /// Between two faults, at most.
    pub gap: Duration,
}

impl Faults<'_> {
    /// What a thread does: one fault after another, each of the list before any comes again.
    pub fn work(&self, list: &[Fault], thread: usize, mut random: Random) {
        let mut deck: Vec<Fault> = list.to_vec();
        random.shuffle(&mut deck);
        // It has to come up while it still may: taken from the end, and not always first.
        if let Some(at) = deck.iter().position(|fault| *fault == AgentKilled) {
            let kill = deck.remove(at);
            deck.insert(deck.len() - random.below(2), kill);
        }
        loop {
            let (pace, order) = self.orders.read();
            match pace {
                Pace::End => return,
                Pace::Hold | Pace::Drain => self.orders.rest(thread, order),
                Pace::Churn => {
                    // Containers are not started while an engine is away: most of the time it is to be there.
                    let gap = if list == ENGINES { 2 * self.gap } else { self.gap };
                    self.orders.pause(random.between(gap / 4, gap));
                    if self.orders.read().0 != Pace::Churn {
                        continue;
                    }
                    if deck.is_empty() {
                        deck = list.to_vec();
                        random.shuffle(&mut deck);
                    }
                    let Some(fault) = deck.pop() else { return };
                    if fault != AgentKilled || Instant::now() < self.kill_until {
                        self.inject(fault, &mut random);
                    }
                }
            }
        }
    }

    fn inject(&self, fault: Fault, random: &mut Random) {
        self.carry_out(fault, random);
        let ended = Instant::now();
        if let Some((list, name, state)) = fault.afterwards() {
            wait_state(self.world, list, name, state, START);
        }
        self.record.add(fault, ended.elapsed());
        // Nobody starts it again but `AgentKilled`, so it is the same one.
        assert!(lock(&self.world.agent).process.is_running(), "{}: the agent has ended", fault.name());
    }

    fn carry_out(&self, fault: Fault, random: &mut Random) {
        let world = self.world;
        let Lasting(least, most) = self.lasting;
        let time = random.between(least, most);
        let end = |pid: u32| {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        };
        let stop = |pid: u32| {
            let _stopped = Stopped::new(pid);
            std::thread::sleep(time);
        };
        let engine = || world.engine.read().unwrap_or_else(PoisonError::into_inner).pid();
        let containerd = || world.containerd.read().unwrap_or_else(PoisonError::into_inner).pid();
        match fault {
            DockerKilled => {
                end(engine());
                world.engine.write().unwrap_or_else(PoisonError::into_inner).relaunch();
            }
            DockerStopped => stop(engine()),
            ContainerdKilled => {
                end(containerd());
                world.containerd.write().unwrap_or_else(PoisonError::into_inner).relaunch();
            }
            ContainerdStopped => stop(containerd()),
            EventsKilled => {
                if let Some(child) = world.events_child() {
                    let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
                }
            }
            SwitchKilled => {
                *lock(&world.switch) = None;
                std::thread::sleep(time / 4);
                world.launch_switch();
            }
            SwitchStopped => stop(lock(&world.switch).as_ref().unwrap().pid()),
            HostagentKilled => {
                *lock(&world.hostagent) = None;
                std::thread::sleep(time / 4);
                world.launch_hostagent();
            }
            HostagentStopped => stop(lock(&world.hostagent).as_ref().unwrap().pid()),
            AgentKilled => {
                world.replace_agent();
                // Nobody tells it what ended meanwhile, and it cannot ask: README.md says to restart it then.
                *lock(&world.hostagent) = None;
                world.launch_hostagent();
            }
            AgentStopped => stop(world.pid()),
            DiskFull => {
                world.fill_disk();
                std::thread::sleep(time);
                world.empty_disk();
            }
            LinkDown => {
                world.link(false);
                std::thread::sleep(time / 2);
                world.link(true);
            }
        }
    }
}
