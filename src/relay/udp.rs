//! The UDP listeners and their flows: a client's datagrams go out through a socket of its own, and answers to that
//! socket go back to the client, from the address it had sent to.
//!
//! Never keeps a datagram: what cannot be sent at once is dropped, as UDP may. Never lets in a datagram of anyone but
//! the target: the sockets towards it are connected.

use std::io::{IoSlice, IoSliceMut, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::Instant;

use log::debug;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg};

use super::context::Context;
use super::socket;
use crate::ordered::{Map, Set};

/// Datagrams taken from one socket before the others get their turn.
const BATCH_MAX: usize = 64;

/// No datagram is larger.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// All UDP listeners and flows of a relay.
pub(super) struct Udp {
    listeners: Map<u64, Listener>,
    flows: Map<u64, Flow>,
    /// When to see whether a flow is idle: one entry per flow, so that a datagram only has to note its time.
    checks: Set<(Instant, u64)>,
    buffers: Buffers,
}

struct Listener {
    socket: UdpSocket,
    target: SocketAddr,
    /// Its flows.
    clients: Map<Client, u64>,
}

/// Who sent a datagram, and to which of our addresses: the two between which a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Client {
    addr: SocketAddr,
    /// Known, and needed, only for a listener on a wildcard address.
    local: Option<IpAddr>,
}

struct Flow {
    listener: u64,
    client: Client,
    upstream: UdpSocket,
    /// The last datagram either way.
    last: Instant,
    /// Its entry in `checks`.
    check: Instant,
}

/// Room for one datagram and what the kernel tells about it; every datagram is sent on before the next is read.
struct Buffers {
    datagram: Vec<u8>,
    control: Vec<u8>,
}

impl Default for Udp {
    fn default() -> Udp {
        let buffers = Buffers { datagram: vec![0; DATAGRAM_BYTES_MAX], control: cmsg_space!(in6_pktinfo) };
        Udp { listeners: Map::new(), flows: Map::new(), checks: Set::new(), buffers }
    }
}

impl Udp {
    pub(super) fn open(&mut self, cx: &mut Context, listen: SocketAddr, target: SocketAddr) -> Result<u64> {
        let listener = Listener { socket: socket::udp_listener(listen)?, target, clients: Map::new() };
        let token = cx.watch(&listener.socket)?;
        self.listeners.insert(token, listener);
        Ok(token)
    }

    /// Flows to the target before are ended: a client that keeps sending would stay with it for ever.
    pub(super) fn retarget(&mut self, cx: &Context, token: u64, target: SocketAddr) {
        let Some(listener) = self.listeners.get_mut(&token).filter(|listener| listener.target != target) else {
            return;
        };
        listener.target = target;
        for flow in std::mem::take(&mut listener.clients).into_values() {
            self.end_flow(cx, flow);
        }
    }

    pub(super) fn close(&mut self, cx: &Context, token: u64) {
        if let Some(listener) = self.listeners.remove(&token) {
            for flow in listener.clients.into_values() {
                self.end_flow(cx, flow);
            }
        }
    }

    /// Moves the datagrams that wait at the socket of that token. `false`: there is none.
    pub(super) fn ready(&mut self, cx: &mut Context, token: u64, now: Instant) -> bool {
        if self.flows.contains_key(&token) {
            self.carry_answers(token, now);
        } else if self.listeners.contains_key(&token) {
            self.carry_datagrams(cx, token, now);
        } else {
            return false;
        }
        true
    }

    /// When to call [`Udp::expire`], if at all.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.checks.first().map(|(check, _)| *check)
    }

    /// Ends the flows that have been idle for long enough.
    pub(super) fn expire(&mut self, cx: &Context, now: Instant) {
        while let Some((_, token)) = self.checks.first().copied().filter(|(check, _)| *check <= now) {
            self.checks.pop_first();
            let Some(flow) = self.flows.get_mut(&token) else { continue };
            let idle_at = flow.last + cx.limits.flow_idle;
            if idle_at <= now {
                let Flow { listener, client, .. } = *flow;
                if let Some(listener) = self.listeners.get_mut(&listener) {
                    listener.clients.remove(&client);
                }
                self.end_flow(cx, token);
            } else {
                flow.check = idle_at;
                self.checks.insert((idle_at, token));
            }
        }
    }

    fn end_flow(&mut self, cx: &Context, token: u64) {
        if let Some(flow) = self.flows.remove(&token) {
            self.checks.remove(&(flow.check, token));
            cx.counters.flows.store(self.flows.len(), Ordering::Relaxed);
        }
    }

    /// Client to target.
    fn carry_datagrams(&mut self, cx: &mut Context, token: u64, now: Instant) {
        for _ in 0..BATCH_MAX {
            let Some(listener) = self.listeners.get(&token) else { return };
            let (bytes, client) = match self.buffers.receive(&listener.socket) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return,
                Err(e) => return debug!("{}: udp receive: {e}", cx.name),
            };
            let flow = match listener.clients.get(&client) {
                Some(flow) => Some(*flow),
                None => self.open_flow(cx, token, client, now),
            };
            let Some(flow) = flow.and_then(|flow| self.flows.get_mut(&flow)) else { continue };
            flow.last = now;
            let datagram = self.buffers.datagram.get(..bytes).unwrap_or_default();
            // A refusal reported now is that of an earlier datagram, and has kept this one from being sent.
            let sent = match flow.upstream.send(datagram) {
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => flow.upstream.send(datagram),
                other => other,
            };
            if let Err(e) = sent {
                debug!("{}: udp datagram of {}: {e}", cx.name, client.addr);
            }
        }
    }

    /// Target to client.
    fn carry_answers(&mut self, token: u64, now: Instant) {
        let Some(flow) = self.flows.get_mut(&token) else { return };
        let Some(listener) = self.listeners.get(&flow.listener) else { return };
        for _ in 0..BATCH_MAX {
            let bytes = match flow.upstream.recv(&mut self.buffers.datagram) {
                Ok(bytes) => bytes,
                // The target does not listen, for now: the flow goes on until it is idle.
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => continue,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(e) => return debug!("udp answer to {}: {e}", flow.client.addr),
            };
            flow.last = now;
            let datagram = self.buffers.datagram.get(..bytes).unwrap_or_default();
            if let Err(e) = flow.client.send(&listener.socket, datagram) {
                debug!("udp answer to {}: {e}", flow.client.addr);
            }
        }
    }

    /// A flow for a client that has none. `None`: not admitted, or over a limit.
    fn open_flow(&mut self, cx: &mut Context, token: u64, client: Client, now: Instant) -> Option<u64> {
        if !(cx.admit)(client.addr.ip().to_canonical()) {
            cx.counters.not_admitted.fetch_add(1, Ordering::Relaxed);
            debug!("{}: udp datagram from {} is not admitted", cx.name, client.addr);
            return None;
        }
        if self.flows.len() >= cx.limits.flows_max {
            cx.counters.over_limit.fetch_add(1, Ordering::Relaxed);
            cx.over_flows.hit(now);
            return None;
        }
        let listener = self.listeners.get_mut(&token)?;
        let upstream = socket::udp_to(listener.target);
        let (upstream, flow) = match upstream.and_then(|upstream| Ok((cx.watch(&upstream)?, upstream))) {
            Ok((flow, upstream)) => (upstream, flow),
            Err(e) => {
                debug!("{}: udp flow of {} to {}: {e}", cx.name, client.addr, listener.target);
                cx.counters.over_limit.fetch_add(1, Ordering::Relaxed);
                cx.exhausted.hit(now);
                return None;
            }
        };
        let check = now + cx.limits.flow_idle;
        listener.clients.insert(client, flow);
        self.checks.insert((check, flow));
        self.flows.insert(flow, Flow { listener: token, client, upstream, last: now, check });
        cx.counters.flows.store(self.flows.len(), Ordering::Relaxed);
        Some(flow)
    }
}

impl Buffers {
    /// Receives a datagram into the buffer: its length, and where it came from.
    fn receive(&mut self, socket: &UdpSocket) -> nix::Result<(usize, Client)> {
        let mut parts = [IoSliceMut::new(&mut self.datagram)];
        let control = Some(self.control.as_mut_slice());
        let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, control, MsgFlags::empty())?;
        let from = message.address.ok_or(Errno::EAFNOSUPPORT)?;
        let addr = match (from.as_sockaddr_in(), from.as_sockaddr_in6()) {
            (Some(v4), _) => SocketAddr::V4((*v4).into()),
            (_, Some(v6)) => SocketAddr::V6((*v6).into()),
            (None, None) => return Err(Errno::EAFNOSUPPORT),
        };
        let local = message.cmsgs()?.find_map(|control| local_addr(&control));
        Ok((message.bytes, Client { addr, local }))
    }
}

impl Client {
    /// Sends a datagram to the client, from the address it had sent to.
    fn send(&self, socket: &UdpSocket, datagram: &[u8]) -> nix::Result<()> {
        let (v4, v6);
        let control = match self.local {
            Some(IpAddr::V4(ip)) => {
                let local = in_addr { s_addr: u32::from(ip).to_be() };
                v4 = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: local, ipi_addr: in_addr { s_addr: 0 } };
                Some(ControlMessage::Ipv4PacketInfo(&v4))
            }
            Some(IpAddr::V6(ip)) => {
                // The interface of a link-local client is in its address; for all others routing knows it.
                v6 = in6_pktinfo { ipi6_addr: in6_addr { s6_addr: ip.octets() }, ipi6_ifindex: 0 };
                Some(ControlMessage::Ipv6PacketInfo(&v6))
            }
            None => None,
        };
        let parts = [IoSlice::new(datagram)];
        let to = SockaddrStorage::from(self.addr);
        sendmsg(socket.as_raw_fd(), &parts, control.as_slice(), MsgFlags::empty(), Some(&to)).map(drop)
    }
}

/// Which of our addresses a datagram was for. A multicast address is nobody's own, and cannot be answered from.
fn local_addr(control: &ControlMessageOwned) -> Option<IpAddr> {
    if let ControlMessageOwned::Ipv4PacketInfo(info) = control {
        return Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr))));
    }
    if let ControlMessageOwned::Ipv6PacketInfo(info) = control {
        return Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr))).filter(|ip| !ip.is_multicast());
    }
    None
}
