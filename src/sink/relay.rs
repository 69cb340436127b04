//! The relay sink: the agent's own pipes, from the connect interface to what is published on one address only.
//!
//! The host connects to the guest's address on the connect interface, where a port published on 127.0.0.1 does not
//! answer. The relay does, for the default gateway (the host) alone unless told otherwise. It writes no NAT rule, so
//! a dead agent leaves nothing behind.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Sink;
use crate::cidr::Cidr;
use crate::event::{Answer, Document, Failure, FailureKind, Operation};
use crate::net;
use crate::port::Binding;
use crate::relay::{Admit, Limits, Relay};

/// How long the list of default gateways is believed.
const GATEWAYS_AGE_MAX: Duration = Duration::from_secs(1);

/// Carries bindings over a [`Relay`].
pub struct RelaySink {
    relay: Relay,
    interface: String,
    /// Where each binding is listened for.
    listening: BTreeMap<Binding, Vec<SocketAddr>>,
}

impl RelaySink {
    /// Starts the relay. `peers` may use it; none: the default gateways of the interface.
    pub fn start(interface: String, peers: Vec<Cidr>, limits: Limits) -> io::Result<RelaySink> {
        let relay = Relay::start("relay", limits, admit(interface.clone(), peers))?;
        Ok(RelaySink { relay, interface, listening: BTreeMap::new() })
    }

    fn open(&mut self, binding: Binding, addrs: &[IpAddr]) -> Result<(), Failure> {
        let target = binding.socket_addr();
        let same_family = |ip: &&IpAddr| ip.is_ipv4() == target.is_ipv4();
        let wanted: Vec<SocketAddr> = match addrs.contains(&target.ip()) {
            // Published on the connect interface itself: it answers there already.
            true => Vec::new(),
            false => addrs.iter().filter(same_family).map(|ip| SocketAddr::new(*ip, target.port())).collect(),
        };
        if wanted.is_empty() && !addrs.contains(&target.ip()) {
            let family = if target.is_ipv4() { "IPv4" } else { "IPv6" };
            return Err(failed(format!("{} has no {family} address to relay from", self.interface)));
        }
        let before = self.listening.remove(&binding).unwrap_or_default();
        for addr in before.iter().filter(|addr| !wanted.contains(addr)) {
            self.relay.close(binding.protocol, *addr);
        }
        for (i, addr) in wanted.iter().enumerate() {
            if let Err(error) = self.relay.open(binding.protocol, *addr, target) {
                for addr in wanted.iter().take(i) {
                    self.relay.close(binding.protocol, *addr);
                }
                return Err(explain(*addr, &error));
            }
        }
        self.listening.insert(binding, wanted);
        Ok(())
    }

    fn close(&mut self, binding: Binding) {
        for addr in self.listening.remove(&binding).unwrap_or_default() {
            self.relay.close(binding.protocol, addr);
        }
    }
}

impl Sink for RelaySink {
    fn carry_out(&mut self, document: &Document) -> Answer {
        let mut refused = Vec::new();
        match document.operation {
            Operation::Announce => {
                let addrs = match net::interface_addrs(&self.interface) {
                    Ok(addrs) => addrs.iter().map(|a| a.ip).filter(|ip| !net::is_link_local(*ip)).collect(),
                    Err(error) => {
                        let failure = failed(error.to_string());
                        return Answer::Done {
                            failed: document.bindings.keys().map(|b| (*b, failure.clone())).collect(),
                        };
                    }
                };
                let addrs: Vec<IpAddr> = addrs;
                for binding in document.bindings.keys() {
                    if let Err(failure) = self.open(*binding, &addrs) {
                        self.close(*binding);
                        refused.push((*binding, failure));
                    }
                }
            }
            Operation::Withdraw => document.bindings.keys().for_each(|binding| self.close(*binding)),
        }
        Answer::Done { failed: refused }
    }
}

fn failed(reason: String) -> Failure {
    Failure { kind: FailureKind::Failed, reason }
}

fn explain(addr: SocketAddr, error: &io::Error) -> Failure {
    match error.kind() {
        ErrorKind::AddrInUse => {
            Failure { kind: FailureKind::Conflict, reason: format!("relay: {addr} is in use in the guest") }
        }
        ErrorKind::PermissionDenied => Failure {
            kind: FailureKind::Denied,
            reason: format!("relay: may not listen on {addr}: ports below 1024 need root or CAP_NET_BIND_SERVICE"),
        },
        _ => failed(format!("relay: cannot listen on {addr}: {error}")),
    }
}

fn admit(interface: String, peers: Vec<Cidr>) -> Admit {
    if !peers.is_empty() {
        return Arc::new(move |ip| peers.iter().any(|peer| peer.contains(ip)));
    }
    let known: Mutex<(Option<Instant>, Vec<IpAddr>)> = Mutex::default();
    Arc::new(move |ip| {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0.is_none_or(|read| read.elapsed() > GATEWAYS_AGE_MAX) {
            *known = (Some(Instant::now()), net::default_gateways(&interface));
        }
        known.1.contains(&ip)
    })
}
