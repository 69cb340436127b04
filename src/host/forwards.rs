//! The forwards of this host: what the guest wants, what of it is open, and when to try the rest again.
//!
//! Each binding is handled on its own, and every request may come twice. What is wanted but cannot be opened now is
//! tried again after 1, 2, 3, 4, then every 5 seconds; what the rules forbid is not kept. Does no I/O but through
//! [`Host`], has no clock and writes nothing: changes are handed back.

use std::cell::OnceCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::event::Operation;
use crate::host::policy::{Policy, Refusal};
use crate::host::report::{Change, Outcome};
use crate::net;
use crate::ordered::{Map, Set};
use crate::port::{Binding, Protocol};
use crate::relay::Relay;
use crate::wire::port_mapping_decode::Request;

/// The longest wait between two tries, in seconds.
const RETRY_SECONDS_MAX: u64 = 5;

/// Forwards that are tried again before documents have their turn.
const RETRIES_MAX: usize = 256;

/// What forwards need of the machine they are on.
pub trait Host {
    /// As [`Relay::open`].
    fn open(&self, protocol: Protocol, listen: SocketAddr, target: SocketAddr) -> io::Result<()>;
    /// As [`Relay::close`].
    fn close(&self, protocol: Protocol, listen: SocketAddr) -> bool;
    /// The machine's own addresses.
    fn addresses(&self) -> io::Result<Vec<IpAddr>>;
}

impl Host for Relay {
    fn open(&self, protocol: Protocol, listen: SocketAddr, target: SocketAddr) -> io::Result<()> {
        Relay::open(self, protocol, listen, target)
    }

    fn close(&self, protocol: Protocol, listen: SocketAddr) -> bool {
        Relay::close(self, protocol, listen)
    }

    fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        net::own_addrs()
    }
}

/// A binding that is wanted and allowed.
#[derive(Debug)]
struct Forward {
    target: SocketAddr,
    state: State,
}

#[derive(Debug)]
enum State {
    Open,
    Waiting { until: Instant, tries: u64, trouble: Outcome },
}

/// The forwards of one host end.
#[derive(Debug)]
pub struct Forwards<H> {
    host: H,
    policy: Policy,
    ports_max: usize,
    wanted: Map<Binding, Forward>,
    /// Those of `wanted` that are waiting, by when to try them again.
    retries: Set<(Instant, Binding)>,
}

impl<H: Host> Forwards<H> {
    /// No forwards yet.
    pub fn new(host: H, policy: Policy, ports_max: usize) -> Forwards<H> {
        Forwards { host, policy, ports_max, wanted: Map::new(), retries: Set::new() }
    }

    /// Does what a document asks for, as far as that is allowed and possible.
    pub fn apply(&mut self, request: &Request, now: Instant, changes: &mut Vec<Change>) {
        let named = request.connect.as_deref().unwrap_or_default();
        let own: OnceCell<Option<Vec<IpAddr>>> = OnceCell::new();
        for &binding in request.ports.keys() {
            match request.operation {
                Operation::Withdraw => self.remove(binding, changes),
                Operation::Announce => {
                    // When the host cannot tell its own addresses, every address may be one.
                    let is_own =
                        |ip| own.get_or_init(|| self.host.addresses().ok()).as_ref().is_none_or(|a| a.contains(&ip));
                    match self.policy.target(&binding, named, is_own) {
                        Ok(target) => self.add(binding, target, now, changes),
                        Err(refusal) => self.refuse(binding, &refusal, changes),
                    }
                }
            }
        }
    }

    /// Tries again what it is time for, or [`RETRIES_MAX`] of it: the rest is due at once.
    pub fn retry(&mut self, now: Instant, changes: &mut Vec<Change>) {
        for _ in 0..RETRIES_MAX {
            let Some((_, binding)) = self.retries.first().copied().filter(|(until, _)| *until <= now) else { return };
            self.retries.pop_first();
            if let Some(Forward { target, state: State::Waiting { tries, trouble, .. } }) = self.wanted.remove(&binding)
            {
                self.open(binding, target, tries, Some(trouble), now, changes);
            }
        }
    }

    /// When [`Forwards::retry`] will have something to do.
    pub fn due(&self) -> Option<Instant> {
        self.retries.first().map(|(until, _)| *until)
    }

    /// Closes everything.
    pub fn close_all(&mut self, changes: &mut Vec<Change>) {
        while let Some((&binding, _)) = self.wanted.first_key_value() {
            self.remove(binding, changes);
        }
    }

    fn add(&mut self, binding: Binding, target: SocketAddr, now: Instant, changes: &mut Vec<Change>) {
        let full = self.wanted.len() >= self.ports_max;
        match self.wanted.get_mut(&binding) {
            Some(forward) if forward.target == target => return,
            Some(Forward { target: old, state: State::Waiting { .. } }) => {
                *old = target;
                return;
            }
            Some(Forward { state: State::Open, .. }) => {}
            None if full => {
                let reason = format!("{} ports are open already; --ports-max sets how many may be", self.ports_max);
                changes.push(Change { binding, outcome: Outcome::Denied(reason) });
                return;
            }
            None => {}
        }
        self.open(binding, target, 0, None, now, changes);
    }

    /// Opens a binding, or has it wait. Reports that, unless it has been `reported` the last time.
    fn open(
        &mut self,
        binding: Binding,
        target: SocketAddr,
        tries: u64,
        reported: Option<Outcome>,
        now: Instant,
        changes: &mut Vec<Change>,
    ) {
        let (state, outcome) = match self.host.open(binding.protocol, binding.socket_addr(), target) {
            Ok(()) => (State::Open, Outcome::Opened(target)),
            Err(error) => {
                // What is open already can have no error: nothing is left to be closed.
                let until = now + Duration::from_secs((tries + 1).min(RETRY_SECONDS_MAX));
                self.retries.insert((until, binding));
                let trouble = trouble_of(&error);
                (State::Waiting { until, tries: tries + 1, trouble: trouble.clone() }, trouble)
            }
        };
        self.wanted.insert(binding, Forward { target, state });
        if reported.as_ref() != Some(&outcome) {
            changes.push(Change { binding, outcome });
        }
    }

    fn remove(&mut self, binding: Binding, changes: &mut Vec<Change>) {
        let Some(forward) = self.wanted.remove(&binding) else { return };
        match forward.state {
            State::Open => {
                self.host.close(binding.protocol, binding.socket_addr());
            }
            State::Waiting { until, .. } => {
                self.retries.remove(&(until, binding));
            }
        }
        changes.push(Change { binding, outcome: Outcome::Closed });
    }

    /// The guest's last word about this binding cannot be followed: what an earlier one opened is not kept either.
    fn refuse(&mut self, binding: Binding, refusal: &Refusal, changes: &mut Vec<Change>) {
        self.remove(binding, changes);
        let outcome = match refusal {
            Refusal::NotAllowed(_) | Refusal::ConnectDenied(_) | Refusal::Itself => {
                Outcome::Denied(refusal.to_string())
            }
            Refusal::NoAddress => Outcome::Failed(refusal.to_string()),
        };
        changes.push(Change { binding, outcome });
    }
}

fn trouble_of(error: &io::Error) -> Outcome {
    let kind = error.kind();
    if kind == io::ErrorKind::AddrInUse {
        Outcome::Conflict("another program of the host has this address and port".to_owned())
    } else if kind == io::ErrorKind::PermissionDenied {
        Outcome::Failed("not permitted: ports below 1024 need the capability CAP_NET_BIND_SERVICE".to_owned())
    } else if kind == io::ErrorKind::AddrNotAvailable {
        Outcome::Failed("the host does not have this address".to_owned())
    } else {
        Outcome::Failed(error.to_string())
    }
}

#[cfg(test)]
mod tests;
