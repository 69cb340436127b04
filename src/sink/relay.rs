//! The relay sink: the agent's own pipes, from where the host connects to what is published on one address only.
//!
//! The host connects to the guest's address on the connect interface, or on host-switch's network, where a port
//! published on 127.0.0.1 does not answer. The relay does, for the default gateway (the host) alone unless told
//! otherwise. It writes no NAT rule, so a dead agent leaves nothing behind.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::{Sink, cannot_listen};
use crate::cidr::Cidr;
use crate::event::{Answer, Document, Failure, FailureKind, Operation};
use crate::net::{self, Outward};
use crate::ordered::Map;
use crate::port::{Binding, Protocol};
use crate::relay::{Admit, Limits, Relay};

/// How long the list of default gateways is believed.
const GATEWAYS_AGE_MAX: Duration = Duration::from_secs(1);

/// Where something is listened on; ordered by port, since one binding's are all on the same.
type Door = (Protocol, NonZeroU16, IpAddr);

fn door(binding: Binding, ip: IpAddr) -> Door {
    (binding.protocol, binding.host_port, ip)
}

/// Carries bindings over a [`Relay`].
pub struct RelaySink {
    relay: Relay,
    outward: Vec<Outward>,
    /// What is listened on, and the binding it leads to.
    listening: Map<Door, Binding>,
    /// How much of it there may be: each takes a descriptor, and everybody else needs some too.
    listening_max: usize,
}

impl RelaySink {
    /// Starts the relay, with `listening_max` sockets that listen at most. `peers` may use it; none: the default gateways
    /// reached through `outward`.
    pub fn start(
        outward: Vec<Outward>,
        peers: Vec<Cidr>,
        limits: Limits,
        listening_max: usize,
    ) -> io::Result<RelaySink> {
        let relay = Relay::start("relay", limits, admit(outward.clone(), peers))?;
        Ok(RelaySink { relay, outward, listening: Map::new(), listening_max })
    }

    /// After an error the caller closes the binding: some of it may be open.
    fn open(&mut self, binding: Binding, addrs: &[IpAddr]) -> Result<(), Failure> {
        let target = binding.socket_addr();
        let wanted: Vec<IpAddr> = match addrs.contains(&target.ip()) {
            // Published on the connect interface itself: it answers there already.
            true => Vec::new(),
            false => addrs.iter().copied().filter(|ip| ip.is_ipv4() == target.is_ipv4()).collect(),
        };
        if wanted.is_empty() && !addrs.contains(&target.ip()) {
            let family = if target.is_ipv4() { "IPv4" } else { "IPv6" };
            let outward: Vec<String> = self.outward.iter().map(Outward::to_string).collect();
            return Err(failed(format!("{} has no {family} address to relay from", outward.join(", "))));
        }
        self.close_all_but(binding, &wanted);
        for ip in wanted {
            let addr = SocketAddr::new(ip, target.port());
            // The relay would lead what is open elsewhere from now on.
            match self.listening.get(&door(binding, ip)) {
                Some(other) if *other != binding => {
                    let reason = format!("relay: {addr} already leads to {other}");
                    return Err(Failure { kind: FailureKind::Conflict, reason });
                }
                found => {
                    let opened = match found {
                        None if self.listening.len() >= self.listening_max => Err(Errno::EMFILE.into()),
                        Some(_) | None => self.relay.open(binding.protocol, addr, target),
                    };
                    opened.map_err(|error| cannot_listen("relay", binding.protocol, addr, &error))?
                }
            }
            self.listening.insert(door(binding, ip), binding);
        }
        Ok(())
    }

    fn close(&mut self, binding: Binding) {
        self.close_all_but(binding, &[]);
    }

    fn close_all_but(&mut self, binding: Binding, keep: &[IpAddr]) {
        let first = door(binding, Ipv4Addr::UNSPECIFIED.into());
        let of_port = self.listening.range_from(&first).take_while(|(door, _)| (door.0, door.1) == (first.0, first.1));
        let open: Vec<IpAddr> = of_port.filter(|(_, leads_to)| **leads_to == binding).map(|(door, _)| door.2).collect();
        for ip in open.into_iter().filter(|ip| !keep.contains(ip)) {
            self.relay.close(binding.protocol, SocketAddr::new(ip, binding.host_port.get()));
            self.listening.remove(&door(binding, ip));
        }
    }
}

impl Sink for RelaySink {
    fn carry_out(&mut self, document: &Document) -> Answer {
        let mut refused = Vec::new();
        match document.operation {
            Operation::Announce => {
                let addrs = match net::outward_addrs(&self.outward) {
                    Ok(addrs) => addrs,
                    Err(error) => {
                        // What has failed is not withdrawn later: it is closed now, or never.
                        document.bindings.keys().for_each(|binding| self.close(*binding));
                        let failure = failed(error.to_string());
                        return Answer::Done {
                            failed: document.bindings.keys().map(|b| (*b, failure.clone())).collect(),
                        };
                    }
                };
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

fn admit(outward: Vec<Outward>, peers: Vec<Cidr>) -> Admit {
    if !peers.is_empty() {
        return Arc::new(move |ip| peers.iter().any(|peer| peer.contains(ip)));
    }
    let known: Mutex<(Option<Instant>, Vec<IpAddr>)> = Mutex::default();
    Arc::new(move |ip| {
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0.is_none_or(|read| read.elapsed() > GATEWAYS_AGE_MAX) {
            *known = (Some(Instant::now()), outward.iter().flat_map(Outward::gateways).collect());
        }
        known.1.contains(&ip)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Owner, Source, Ticket};
    use std::net::{TcpListener, TcpStream};

    const LIMITS: Limits = Limits {
        connections_max: 8,
        flows_max: 8,
        flow_idle: Duration::from_secs(90),
        connect_timeout: Duration::from_secs(5),
    };

    fn relay() -> RelaySink {
        let peers = vec![Cidr::parse("127.0.0.0/8").unwrap()];
        RelaySink::start(vec![Outward::Interface("lo".into())], peers, LIMITS, 2).unwrap()
    }

    fn announce(relay: &mut RelaySink, binding: Binding) -> Vec<String> {
        let owner = Owner { source: Source::Docker, key: "web".into() };
        let bindings = std::iter::once((binding, binding.host_port)).collect();
        let document = Document { ticket: Ticket(1), operation: Operation::Announce, owner, bindings };
        match relay.carry_out(&document) {
            Answer::Done { failed } => failed.into_iter().map(|(_, failure)| failure.reason).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 77, last])
    }

    fn free_port() -> std::num::NonZeroU16 {
        let port = TcpListener::bind((ip(1), 0)).unwrap().local_addr().unwrap().port();
        port.try_into().unwrap()
    }

    fn answers(addr: IpAddr, port: std::num::NonZeroU16) -> bool {
        TcpStream::connect((addr, port.get())).is_ok()
    }

    #[test]
    fn two_bindings_never_share_an_address_and_port() {
        let mut relay = relay();
        let first = Binding { protocol: Protocol::Tcp, host_ip: ip(1), host_port: free_port() };
        let second = first.on(ip(2));
        relay.open(first, &[ip(9)]).unwrap();
        let refused = relay.open(second, &[ip(9)]).unwrap_err();
        assert_eq!(refused.kind, FailureKind::Conflict, "{refused:?}");
        relay.close(second);
        assert!(answers(ip(9), first.host_port), "the first one's is left alone");
        relay.open(first, &[ip(9)]).unwrap();
        relay.close(first);
        relay.open(second, &[ip(9)]).unwrap();
    }

    #[test]
    fn nothing_is_left_when_one_of_several_addresses_fails() {
        let mut relay = relay();
        let binding = Binding { protocol: Protocol::Tcp, host_ip: ip(1), host_port: free_port() };
        relay.open(binding, &[ip(9)]).unwrap();
        let _busy = TcpListener::bind((ip(8), binding.host_port.get())).unwrap();
        let refused = relay.open(binding, &[ip(8), ip(9)]).unwrap_err();
        assert_eq!(refused.kind, FailureKind::Conflict, "{refused:?}");
        relay.close(binding);
        assert!(!answers(ip(9), binding.host_port), "closed with the rest");
    }

    #[test]
    fn nothing_is_left_when_the_addresses_cannot_be_told_any_more() {
        let mut relay = relay();
        let binding = Binding { protocol: Protocol::Tcp, host_ip: ip(1), host_port: free_port() };
        assert_eq!(announce(&mut relay, binding), [""; 0]);
        assert!(answers(Ipv4Addr::LOCALHOST.into(), binding.host_port));
        relay.outward = vec![Outward::Interface("no-such-interface".into())];
        assert_eq!(announce(&mut relay, binding).len(), 1);
        assert!(!answers(Ipv4Addr::LOCALHOST.into(), binding.host_port));
    }

    #[test]
    fn descriptors_are_left_for_others() {
        let mut relay = relay();
        let [first, second] =
            [ip(1), ip(2)].map(|host_ip| Binding { protocol: Protocol::Tcp, host_ip, host_port: free_port() });
        relay.open(first, &[ip(8), ip(9)]).unwrap();
        let refused = relay.open(second, &[ip(9)]).unwrap_err();
        assert!(refused.reason.contains("needs a descriptor"), "{refused:?}");
        relay.open(first, &[ip(8), ip(9)]).unwrap();
        relay.close(first);
        relay.open(second, &[ip(9)]).unwrap();
    }
}
