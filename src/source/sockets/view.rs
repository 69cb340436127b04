//! What is claimed of the sockets that were seen: those of others, seen twice in a row, where the host can get at them.
//! Pure: the looks themselves, and what is known of the agent and of its addresses, come from outside.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::ordered::{Map, Set};
use crate::parse::sockets::Listening;
use crate::port::{Binding, Bindings};

/// What one look has to know of the ones before.
#[derive(Default)]
pub struct View {
    /// What the last look saw.
    seen: Set<Listening>,
    /// The numbers of those of them that are the agent's.
    own: Set<u64>,
}

impl View {
    /// Whether the last look did not see some of them, so that it is not known whose they are.
    pub fn has_new(&self, now: &Set<Listening>) -> bool {
        now.iter().any(|socket| !self.seen.contains(socket))
    }

    /// Takes note of the number of a socket that is the agent's own.
    pub fn learn(&mut self, own: u64) {
        self.own.insert(own);
    }

    /// Takes a look's sockets, and returns what is claimed now. `is_outward` is asked of addresses other than loopback ones.
    pub fn take(&mut self, now: Set<Listening>, mut is_outward: impl FnMut(IpAddr) -> bool) -> Map<Arc<str>, Bindings> {
        // A number may be another's later.
        let numbers: Set<u64> = now.iter().map(|socket| socket.inode).collect();
        self.own.retain(|inode| numbers.contains(inode));
        let mut claims: Map<Arc<str>, Bindings> = Map::new();
        for socket in now.iter().filter(|socket| self.seen.contains(*socket) && !self.own.contains(&socket.inode)) {
            let is_reached = socket.ip.is_loopback()
                || (socket.device == 0 && (socket.ip.is_unspecified() || is_outward(socket.ip)));
            if is_reached {
                let bindings = claims.entry(format!("{}/{}", socket.protocol, socket.port).into()).or_default();
                let binding = Binding { protocol: socket.protocol, host_ip: socket.ip, host_port: socket.port };
                bindings.insert(binding, socket.port);
                if socket.is_dual_stack() {
                    bindings.insert(binding.on(Ipv4Addr::UNSPECIFIED.into()), socket.port);
                }
            }
        }
        self.seen = now;
        claims
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Protocol;
    use std::net::SocketAddr;

    fn socket(text: &str, inode: u64) -> Listening {
        let (protocol, addr) = text.split_once(' ').unwrap();
        let addr: SocketAddr = addr.parse().unwrap();
        let port = addr.port().try_into().unwrap();
        let protocol = Protocol::parse(protocol).unwrap();
        Listening { protocol, port, ip: addr.ip(), inode, v6only: None, device: 0, uid: 0 }
    }

    const OUTWARD: &str = "192.168.127.2";

    struct World(View);

    impl World {
        fn new() -> World {
            World(View::default())
        }

        /// One look: what is claimed after it.
        fn look(&mut self, sockets: &[Listening], own: &[u64]) -> Vec<String> {
            let now: Set<Listening> = sockets.iter().copied().collect();
            if self.0.has_new(&now) {
                own.iter().for_each(|inode| self.0.learn(*inode));
            }
            let claims = self.0.take(now, |ip| ip == OUTWARD.parse::<IpAddr>().unwrap());
            let shown = |(key, bindings): (&Arc<str>, &Bindings)| {
                let all: Vec<String> = bindings.keys().map(|binding| binding.host_ip.to_string()).collect();
                format!("{key} {}", all.join(" "))
            };
            claims.iter().map(shown).collect()
        }
    }

    #[test]
    fn seen_twice_it_is_claimed_and_not_seen_it_is_gone() {
        let mut world = World::new();
        let (web, dns) = (socket("tcp 0.0.0.0:8080", 1), socket("udp 127.0.0.1:53", 2));
        let none: [&str; 0] = [];
        assert_eq!(world.look(&[web], &[]), none);
        assert_eq!(world.look(&[web, dns], &[]), ["tcp/8080 0.0.0.0"]);
        assert_eq!(world.look(&[web, dns], &[]), ["tcp/8080 0.0.0.0", "udp/53 127.0.0.1"]);
        assert_eq!(world.look(&[dns], &[]), ["udp/53 127.0.0.1"]);
        assert_eq!(world.look(&[web], &[]), none);
        assert_eq!(world.look(&[dns], &[]), none, "one sighting and another do not make two");
        assert_eq!(world.look(&[dns], &[]), ["udp/53 127.0.0.1"]);
        assert_eq!(world.look(&[Listening { inode: 9, ..dns }], &[]), none, "another socket in its place");
        assert_eq!(world.look(&[Listening { inode: 9, ..dns }], &[]), ["udp/53 127.0.0.1"]);
    }

    #[test]
    fn of_sockets_that_share_a_port_one_that_stays_is_enough() {
        let mut world = World::new();
        let [a, b, c] = [1, 2, 3].map(|inode| socket("tcp 0.0.0.0:80", inode));
        world.look(&[a, b], &[]);
        for sockets in [&[a, b][..], &[b, c], &[c]] {
            assert_eq!(world.look(sockets, &[]), ["tcp/80 0.0.0.0"]);
        }
        assert!(world.look(&[a], &[]).is_empty());
    }

    #[test]
    fn s15_own_sockets_are_left_out_as_long_as_they_are_there() {
        let mut world = World::new();
        let (own, other) = (socket("tcp 127.0.0.1:80", 1), socket("tcp 127.0.0.1:81", 2));
        world.look(&[own], &[1]);
        assert!(world.look(&[own], &[]).is_empty(), "not asked again, and not forgotten");
        world.look(&[own, other], &[]);
        assert_eq!(world.look(&[own, other], &[]), ["tcp/81 127.0.0.1"]);
        // Somebody else's on the same address.
        let beside = Listening { inode: 3, ..own };
        world.look(&[own, beside], &[1]);
        assert_eq!(world.look(&[own, beside], &[1]), ["tcp/80 127.0.0.1"]);
        // The number may come again, for a socket of somebody else.
        world.look(&[], &[]);
        world.look(&[own], &[]);
        assert_eq!(world.look(&[own], &[]), ["tcp/80 127.0.0.1"]);
    }

    #[test]
    fn s18_what_the_host_cannot_get_at_is_nothing_to_it() {
        for (text, expect) in [
            ("tcp 0.0.0.0:80", "tcp/80 0.0.0.0"),
            ("tcp [::]:80", "tcp/80 0.0.0.0 ::"),
            ("tcp 127.0.0.53:80", "tcp/80 127.0.0.53"),
            ("tcp [::1]:80", "tcp/80 ::1"),
            ("tcp 192.168.127.2:80", "tcp/80 192.168.127.2"),
            ("tcp 172.17.0.1:80", ""),
            ("udp [fe80::1]:546", ""),
            ("udp 169.254.169.254:53", ""),
            ("udp 224.0.0.251:5353", ""),
        ] {
            let mut world = World::new();
            let socket = socket(text, 1);
            world.look(&[socket], &[]);
            assert_eq!(world.look(&[socket], &[]).join(""), expect, "{text}");
            let mut world = World::new();
            let bound = Listening { device: 1, ..socket };
            world.look(&[bound], &[]);
            let expect = if socket.ip.is_loopback() { expect } else { "" };
            assert_eq!(world.look(&[bound], &[]).join(""), expect, "{text}, bound to an interface");
        }
    }

    #[test]
    fn both_families_unless_the_socket_says_otherwise() {
        for (v6only, expect) in [(None, "0.0.0.0 ::"), (Some(false), "0.0.0.0 ::"), (Some(true), "::")] {
            let mut world = World::new();
            let socket = Listening { v6only, ..socket("tcp [::]:80", 1) };
            world.look(&[socket], &[]);
            assert_eq!(world.look(&[socket], &[]), [format!("tcp/80 {expect}")]);
        }
    }
}
