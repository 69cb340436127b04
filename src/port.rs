//! What a user published: a protocol, an address and a port, in types that cannot hold nonsense.
//!
//! Strings become these types at the edge (`parse`, `wire`) and never travel further in.
//! Nothing here does I/O.

use crate::ordered::Map;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

/// A transport protocol that can be forwarded. SCTP and others are refused where they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// The lower-case name used by Docker, by PortMapping documents and by the expose API.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }

    /// The protocol of that lower-case name, `None` for any other.
    pub fn parse(name: &str) -> Option<Protocol> {
        match name {
            "tcp" => Some(Protocol::Tcp),
            "udp" => Some(Protocol::Udp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a user published: where a port is to answer. Ordered by protocol, then address (IPv4 first), then port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Binding {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The address that was published; `0.0.0.0` and `::` mean every address of that family.
    pub host_ip: IpAddr,
    /// The published port.
    pub host_port: NonZeroU16,
}

impl Binding {
    /// Whether the binding is meant for the machine itself only (127.0.0.0/8, ::1).
    pub fn is_loopback(&self) -> bool {
        self.host_ip.is_loopback()
    }

    /// The address and port as a socket address.
    pub fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.host_ip, self.host_port.get())
    }

    /// The same binding on another address.
    pub fn on(self, host_ip: IpAddr) -> Binding {
        Binding { host_ip, ..self }
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.socket_addr(), self.protocol)
    }
}

/// The loopback address of the family of `ip`.
pub fn loopback_like(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// The address of the family of `ip` that means every address.
pub fn unspecified_like(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// The binding that means the same in IPv4 as an IPv6 binding on every address, or on the loopback address.
pub fn equal_in_ipv4(binding: Binding) -> Option<Binding> {
    match binding.host_ip {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Some(binding.on(Ipv4Addr::UNSPECIFIED.into())),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Some(binding.on(Ipv4Addr::LOCALHOST.into())),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// How the keys of Podman's containers begin, where NAT rules tell of them.
pub const PODMAN: &str = "podman:";

/// A set of bindings, each with the port of the container or service behind it.
///
/// The container port only labels the binding (it is the key in PortMapping documents): two entries
/// never differ by it alone.
pub type Bindings = Map<Binding, NonZeroU16>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_families_unambiguously() {
        let port = NonZeroU16::new(8080).unwrap();
        let v4 = Binding { protocol: Protocol::Tcp, host_ip: "0.0.0.0".parse().unwrap(), host_port: port };
        assert_eq!(v4.to_string(), "0.0.0.0:8080/tcp");
        assert_eq!(v4.on("::".parse().unwrap()).to_string(), "[::]:8080/tcp");
        assert!(v4.on("127.9.9.9".parse().unwrap()).is_loopback());
        assert!(!v4.is_loopback());
        assert_eq!(loopback_like(v4.host_ip).to_string(), "127.0.0.1");
    }
}
