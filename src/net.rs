//! Small network facts of the guest: addresses of an interface, default gateways, connecting with a time-out.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, UnixAddr, connect, socket};

use crate::parse::route;
use crate::wire::port_mapping::ConnectAddr;

/// The addresses of an interface, in the kernel's order (IPv4 first), as Go's `Interface.Addrs` gives them.
///
/// # Errors
/// `NotFound` when the interface does not exist or has no address.
pub fn interface_addrs(name: &str) -> io::Result<Vec<ConnectAddr>> {
    let mut addrs = Vec::new();
    for entry in getifaddrs()?.filter(|entry| entry.interface_name == name) {
        if let (Some(ip), Some(mask)) = (entry.address.as_ref().and_then(ip_of), entry.netmask.as_ref().and_then(ip_of))
        {
            addrs.push(ConnectAddr { ip, prefix: prefix_of(mask) });
        }
    }
    if addrs.is_empty() {
        let what = format!("the interface {name} has no address (name another with --connect-interface)");
        return Err(io::Error::new(io::ErrorKind::NotFound, what));
    }
    Ok(addrs)
}

/// The addresses of all interfaces.
pub fn own_addrs() -> io::Result<Vec<IpAddr>> {
    Ok(getifaddrs()?.filter_map(|entry| entry.address.as_ref().and_then(ip_of)).collect())
}

/// Where connections of the host come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outward {
    /// On every address of that interface.
    Interface(String),
    /// On that address, whichever interface has it.
    Address(Ipv4Addr),
}

impl Outward {
    /// The addresses that a peer can use.
    ///
    /// # Errors
    /// `NotFound` when there are none.
    pub fn addrs(&self) -> io::Result<Vec<IpAddr>> {
        match self {
            Outward::Interface(name) => {
                Ok(interface_addrs(name)?.iter().map(|a| a.ip).filter(|ip| !needs_interface(*ip)).collect())
            }
            // All of 127.0.0.0/8 is there, though only one of it is listed.
            Outward::Address(ip) if ip.is_loopback() || own_addrs()?.contains(&IpAddr::V4(*ip)) => {
                Ok(vec![(*ip).into()])
            }
            Outward::Address(ip) => {
                let what = format!("no interface has the address {ip} (name another with -tap-interface-ip)");
                Err(io::Error::new(io::ErrorKind::NotFound, what))
            }
        }
    }

    /// The default gateways reached that way. None when nothing can be read.
    pub fn gateways(&self) -> Vec<IpAddr> {
        match self {
            Outward::Interface(name) => default_gateways(name),
            Outward::Address(ip) => interface_with((*ip).into()).map_or(Vec::new(), |name| default_gateways(&name)),
        }
    }
}

impl fmt::Display for Outward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outward::Interface(name) => f.write_str(name),
            Outward::Address(ip) => ip.fmt(f),
        }
    }
}

/// The addresses of all of them.
///
/// # Errors
/// That of the first, when none has any.
pub fn outward_addrs(outward: &[Outward]) -> io::Result<Vec<IpAddr>> {
    let mut addrs = Vec::new();
    let mut error = None;
    for result in outward.iter().map(Outward::addrs) {
        match result {
            Ok(found) => addrs.extend(found),
            Err(e) => error = error.or(Some(e)),
        }
    }
    addrs.sort();
    addrs.dedup();
    error.filter(|_| addrs.is_empty()).map_or(Ok(addrs), Err)
}

fn interface_with(ip: IpAddr) -> Option<String> {
    let has = |addr: &SockaddrStorage| ip_of(addr) == Some(ip);
    getifaddrs().ok()?.find(|entry| entry.address.as_ref().is_some_and(has)).map(|entry| entry.interface_name)
}

fn ip_of(addr: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = addr.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| addr.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

fn prefix_of(mask: IpAddr) -> u8 {
    let ones = match mask {
        IpAddr::V4(mask) => mask.to_bits().count_ones(),
        IpAddr::V6(mask) => mask.to_bits().count_ones(),
    };
    u8::try_from(ones).unwrap_or(128)
}

/// Whether an address only means something together with an interface (fe80::/10), so that no peer can use it.
pub fn needs_interface(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// The default gateways reached through an interface, of both families. None when nothing can be read.
fn default_gateways(interface: &str) -> Vec<IpAddr> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let mut gateways = route::default_gateways_v4(&read("/proc/net/route"), interface);
    gateways.extend(route::default_gateways_v6(&read("/proc/net/ipv6_route"), interface));
    gateways
}

/// The first and last of the ports that the kernel gives to sockets that asked for none.
pub fn ephemeral_ports() -> Option<(u16, u16)> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let (first, last) = text.trim().split_once(char::is_whitespace)?;
    Some((first.parse().ok()?, last.trim().parse().ok()?))
}

/// Connects to a unix socket without ever blocking: a full accept queue is an error (`WouldBlock`).
pub fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let stream = UnixStream::from(socket);
    match connect(std::os::fd::AsRawFd::as_raw_fd(&stream), &UnixAddr::new(path)?) {
        Ok(()) => {}
        Err(Errno::EAGAIN) => {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "its accept queue is full: the program is stuck"));
        }
        Err(errno) => return Err(errno.into()),
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_has_its_address() {
        let addrs = interface_addrs("lo").unwrap();
        assert!(addrs.contains(&ConnectAddr { ip: "127.0.0.1".parse().unwrap(), prefix: 8 }), "{addrs:?}");
    }

    #[test]
    fn a_missing_interface_says_so() {
        let error = interface_addrs("nosuch0").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("--connect-interface"), "{error}");
    }

    #[test]
    fn connecting_to_a_full_queue_does_not_block() {
        let dir = std::env::temp_dir().join(format!("rda-net-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut open = Vec::new();
        let error = loop {
            match connect_unix(&path) {
                Ok(stream) => open.push(stream),
                Err(error) => break error,
            }
            assert!(open.len() < 100_000, "the queue never filled");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        fs::remove_dir_all(&dir).unwrap();
    }
}
