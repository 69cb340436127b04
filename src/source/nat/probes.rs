//! Finds out whether what rules lead to is still there: rules of a container that was killed may stay.
//!
//! Asks by a TCP connection to port 9 (discard) of the address: one packet that a living address answers, mostly with a
//! refusal, and for which the kernel says that there is no such host (or no way to it) when it is gone. Anything else,
//! silence too, is no proof; nor are the same words from a firewall. An address is asked when it is new, when some link
//! has gone, and from time to time while it is gone. Silence is asked again for two minutes, since the kernel goes on
//! believing in a neighbour for up to 45 s: that is how long it takes at most, and some seconds more, until what was there
//! a moment ago is known to be gone.
//! Nothing is ever sent over such a connection, and only what is directly connected is asked: over IPv6, which has no such
//! option, by a hop limit that no router passes on.

use crate::ordered::{Map, Set};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::sockopt::{DontRoute, Ipv4RecvErr, Ipv6RecvErr, Ipv6Ttl, SocketError};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, getsockopt, recvmsg,
    setsockopt, socket,
};

/// The port asked.
const PORT: u16 = 9;

/// Questions under way at a time.
const OPEN_MAX: usize = 256;

/// How long an answer is waited for. The kernel gives a neighbour up after 3 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

/// After a silence, how soon to ask again, and how often: longer than the kernel believes in a neighbour unasked.
const SILENCE_PAUSE: Duration = Duration::from_secs(5);
const SILENCES_MAX: u8 = 12;

/// Between a link's end and the question: more mostly follow, and Podman takes a container's rules away after its link.
const LINK_PAUSE: Duration = Duration::from_secs(2);

/// How often what is gone is asked for again.
const GONE_INTERVAL: Duration = Duration::from_secs(30);

/// Codes of ICMP's "destination unreachable" that only firewalls use.
const ICMP_PROHIBITED: [u8; 3] = [9, 10, 13];

/// What is known of one address.
#[derive(Debug)]
struct State {
    gone: bool,
    silences: u8,
    next: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Verdict {
    Gone,
    There,
    Silent,
}

/// All addresses that are looked after.
pub struct Probes {
    epoll: Epoll,
    states: Map<IpAddr, State>,
    open: Map<u64, (IpAddr, OwnedFd, Instant)>,
    asked: u64,
}

impl Probes {
    /// None yet.
    pub fn new() -> nix::Result<Probes> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Probes { epoll, states: Map::new(), open: Map::new(), asked: 0 })
    }

    /// From now on these, and no others.
    pub fn watch(&mut self, addresses: &Set<IpAddr>, now: Instant) {
        self.states.retain(|address, _| addresses.contains(address));
        self.open.retain(|_, (address, ..)| addresses.contains(address));
        for address in addresses.iter() {
            self.states.entry(*address).or_insert(State { gone: false, silences: 0, next: Some(now) });
        }
    }

    /// A link has gone: any of them may have been behind it.
    pub fn link_lost(&mut self, now: Instant) {
        for state in self.states.values_mut() {
            let soon = now + LINK_PAUSE;
            state.next = Some(state.next.map_or(soon, |next| next.min(soon)));
            state.silences = 0;
        }
    }

    /// Takes answers and asks what is due. `true`: what is gone may have changed.
    pub fn advance(&mut self, now: Instant) -> bool {
        let mut changed = false;
        let mut events = [EpollEvent::empty(); 64];
        // An error leaves the questions open until their time is over.
        let ready = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or_default();
        for event in events.iter().take(ready) {
            if let Some((address, socket, _)) = self.open.remove(&event.data()) {
                let verdict = match getsockopt(&socket, SocketError).map(Errno::from_raw) {
                    Ok(_) | Err(_) if is_refusal(&socket, address) => Verdict::There,
                    Ok(errno) | Err(errno) => verdict(errno),
                };
                changed |= self.note(address, verdict, now);
            }
        }
        let over: Vec<u64> = self.open.iter().filter(|(_, (.., end))| *end <= now).map(|(id, _)| *id).collect();
        for (address, ..) in over.iter().filter_map(|id| self.open.remove(id)).collect::<Vec<_>>() {
            changed |= self.note(address, Verdict::Silent, now);
        }
        let room = OPEN_MAX - self.open.len();
        let due = |(_, state): &(&IpAddr, &State)| state.next.is_some_and(|next| next <= now);
        let due: Vec<IpAddr> = self.states.iter().filter(due).map(|(address, _)| *address).take(room).collect();
        for address in due {
            if let Some(state) = self.states.get_mut(&address) {
                state.next = None;
            }
            if let Err(errno) = self.ask(address, now) {
                changed |= self.note(address, verdict(errno), now);
            }
        }
        changed
    }

    fn ask(&mut self, address: IpAddr, now: Instant) -> nix::Result<()> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Stream, flags, None)?;
        // To a neighbour or nowhere: with its bridge gone, the question must not leave by the default route.
        if address.is_ipv4() {
            setsockopt(&socket, DontRoute, &true)?;
            setsockopt(&socket, Ipv4RecvErr, &true)?;
        } else {
            setsockopt(&socket, Ipv6Ttl, &1)?;
            setsockopt(&socket, Ipv6RecvErr, &true)?;
        }
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, PORT))) {
            Err(Errno::EINPROGRESS) => {}
            done => return done.and(Err(Errno::EISCONN)),
        }
        self.asked += 1;
        self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLOUT, self.asked))?;
        self.open.insert(self.asked, (address, socket, now + ANSWER_TIMEOUT));
        Ok(())
    }

    /// `true`: it is another answer than before.
    fn note(&mut self, address: IpAddr, verdict: Verdict, now: Instant) -> bool {
        let Some(state) = self.states.get_mut(&address) else { return false };
        let gone = verdict == Verdict::Gone;
        let next = match verdict {
            Verdict::Gone => Some(now + GONE_INTERVAL),
            Verdict::Silent if state.silences < SILENCES_MAX => Some(now + SILENCE_PAUSE),
            Verdict::Silent | Verdict::There => None,
        };
        state.silences = if verdict == Verdict::Silent { state.silences.saturating_add(1) } else { 0 };
        // A link that went meanwhile has it asked sooner.
        state.next = state.next.into_iter().chain(next).min();
        std::mem::replace(&mut state.gone, gone) != gone
    }

    /// Whether that address is known to be gone.
    pub fn is_gone(&self, address: IpAddr) -> bool {
        self.states.get(&address).is_some_and(|state| state.gone)
    }

    /// When to call [`Probes::advance`] again, whatever its descriptor does.
    pub fn deadline(&self) -> Option<Instant> {
        let next = self.states.values().filter_map(|state| state.next).min();
        // With no room, an answer or its time-out comes first.
        let next = next.filter(|_| self.open.len() < OPEN_MAX);
        self.open.values().map(|(.., end)| *end).chain(next).min()
    }
}

fn verdict(errno: Errno) -> Verdict {
    match errno {
        Errno::EHOSTUNREACH | Errno::ENETUNREACH => Verdict::Gone,
        _ => Verdict::There,
    }
}

/// Whether the error that a socket got, if it is known where it came from (Linux 5.8), is the address's own word or that
/// of a firewall: `REJECT --reject-with icmp-host-prohibited` looks like a host that is not there.
fn is_refusal(socket: &OwnedFd, address: IpAddr) -> bool {
    let mut control = cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let flags = MsgFlags::MSG_ERRQUEUE;
    let Ok(message) = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut [], Some(&mut control), flags) else {
        return false;
    };
    message.cmsgs().is_ok_and(|mut errors| {
        errors.any(|error| match error {
            ControlMessageOwned::Ipv4RecvErr(error, from) => {
                let from = from.map(|from| IpAddr::from(from.sin_addr.s_addr.to_ne_bytes()));
                from == Some(address) || ICMP_PROHIBITED.contains(&error.ee_code)
            }
            ControlMessageOwned::Ipv6RecvErr(_, from) => {
                from.map(|from| IpAddr::from(from.sin6_addr.s6_addr)) == Some(address)
            }
            _ => false,
        })
    })
}

impl AsFd for Probes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(address: &str, now: Instant) -> (Probes, IpAddr) {
        let address: IpAddr = address.parse().unwrap();
        let mut probes = Probes::new().unwrap();
        probes.watch(&Set::from_iter([address]), now);
        (probes, address)
    }

    #[test]
    fn what_answers_is_there_and_asked_again_only_when_a_link_goes() {
        let begun = Instant::now();
        let (mut probes, address) = of("127.0.0.1", begun);
        while probes.deadline().is_some() {
            probes.advance(Instant::now());
            assert!(begun.elapsed() < Duration::from_secs(4), "loopback answers at once");
        }
        assert!(!probes.is_gone(address));
        let now = Instant::now();
        probes.link_lost(now);
        assert_eq!(probes.deadline(), Some(now + LINK_PAUSE));
        probes.watch(&Set::new(), now);
        assert_eq!(probes.deadline(), None);
    }

    #[test]
    fn gone_silent_and_there_again() {
        let now = Instant::now();
        let (mut probes, address) = of("127.0.0.1", now);
        probes.states.get_mut(&address).unwrap().next = None;
        assert!(probes.note(address, Verdict::Gone, now));
        assert!(!probes.note(address, Verdict::Gone, now), "nothing new");
        assert!(probes.is_gone(address));
        assert_eq!(probes.deadline(), Some(now + GONE_INTERVAL));
        probes.states.get_mut(&address).unwrap().next = None;
        assert!(probes.note(address, Verdict::There, now));
        for _ in 0..SILENCES_MAX {
            assert!(!probes.note(address, Verdict::Silent, now));
            assert_eq!(probes.deadline(), Some(now + SILENCE_PAUSE));
            probes.states.get_mut(&address).unwrap().next = None;
        }
        assert!(!probes.note(address, Verdict::Silent, now));
        assert_eq!(probes.deadline(), None, "silence for ever is asked no more");
    }
}
