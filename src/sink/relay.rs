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

    /// After an error a part of it may be open: [`RelaySink::close`] closes that.
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
        if let Some(other) = self.shares(binding, &wanted) {
            // The host cannot tell them apart: what is meant for the one must not reach the other.
            let reason = format!("relay: {other} is already relayed from the same address and port");
            return Err(Failure { kind: FailureKind::Conflict, reason });
        }
        // Noted before it is done, so that closing finds whatever was opened.
        let before = self.listening.insert(binding, wanted.clone()).unwrap_or_default();
        for addr in before.iter().filter(|addr| !wanted.contains(addr)) {
            self.relay.close(binding.protocol, *addr);
        }
        wanted.iter().try_for_each(|addr| {
            self.relay.open(binding.protocol, *addr, target).map_err(|error| explain(*addr, &error))
        })
    }

    /// Another binding that is listened for on one of the addresses.
    fn shares(&self, binding: Binding, wanted: &[SocketAddr]) -> Option<Binding> {
        let alike = |other: &Binding| other.protocol == binding.protocol && other.host_port == binding.host_port;
        let mut others = self.listening.iter().filter(|(other, _)| alike(other) && **other != binding);
        others.find(|(_, addrs)| addrs.iter().any(|addr| wanted.contains(addr))).map(|(other, _)| *other)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Protocol;
    use std::net::TcpListener;

    const ETH: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 66, 1));
    const NEW: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 66, 2));

    fn sink() -> RelaySink {
        let limits = Limits {
            connections_max: 8,
            flows_max: 8,
            flow_idle: Duration::from_secs(9),
            connect_timeout: Duration::from_secs(9),
        };
        RelaySink::start("lo".into(), Vec::new(), limits).unwrap()
    }

    fn binding(addr: &str) -> Binding {
        let addr: SocketAddr = addr.parse().unwrap();
        Binding { protocol: Protocol::Tcp, host_ip: addr.ip(), host_port: addr.port().try_into().unwrap() }
    }

    #[test]
    fn two_bindings_never_share_a_listener() {
        let mut sink = sink();
        let (one, two) = (binding("127.0.0.2:9101"), binding("127.0.0.3:9101"));
        sink.open(one, &[ETH]).unwrap();
        assert_eq!(sink.open(two, &[ETH]).unwrap_err().kind, FailureKind::Conflict);
        sink.close(two);
        assert!(TcpListener::bind((ETH, 9101)).is_err(), "closing the one refused has closed the other");
        sink.open(one, &[ETH]).unwrap();
        sink.close(one);
        sink.open(two, &[ETH]).unwrap();
    }

    #[test]
    fn nothing_of_a_binding_stays_open_when_a_part_of_it_cannot_be() {
        let mut sink = sink();
        let binding = binding("127.0.0.2:9102");
        sink.open(binding, &[ETH]).unwrap();
        let _busy = TcpListener::bind((NEW, 9102)).unwrap();
        assert_eq!(sink.open(binding, &[NEW, ETH]).unwrap_err().kind, FailureKind::Conflict);
        sink.close(binding);
        TcpListener::bind((ETH, 9102)).unwrap();
    }
}
