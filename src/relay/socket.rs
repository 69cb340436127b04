//! Sockets with the options that a relay wants, and what other listeners make theirs of. Everything made here is nonblocking and close-on-exec.
//!
//! Never waits and keeps no state.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen, setsockopt, socket, sockopt,
};

/// Silence before the first keep-alive probe, and between probes, in seconds; and the probes until the peer is dead.
const KEEPALIVE: (u32, u32, u32) = (60, 10, 6);

/// A TCP socket listening on `addr`. Accepted sockets inherit its options, so that accepting costs no further calls.
pub(super) fn tcp_listener(addr: SocketAddr) -> nix::Result<TcpListener> {
    let fd = new(SockType::Stream, addr)?;
    // A port whose last connections are in TIME_WAIT can be opened again; two listeners on it are still refused.
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    tcp_options(&fd)?;
    bind_to(&fd, addr)?;
    // As many waiting as net.core.somaxconn allows. A number would be held against the C library's SOMAXCONN, which is
    // 128 with musl.
    listen(&fd, Backlog::MAXALLOWABLE)?;
    Ok(TcpListener::from(fd))
}

/// A TCP socket to connect to `addr` with.
pub(super) fn tcp_to(addr: SocketAddr) -> nix::Result<OwnedFd> {
    let fd = new(SockType::Stream, addr)?;
    tcp_options(&fd)?;
    Ok(fd)
}

/// A UDP socket on `addr`. On a wildcard address, received datagrams come with the address they were sent to.
pub(super) fn udp_listener(addr: SocketAddr) -> nix::Result<UdpSocket> {
    let fd = new(SockType::Datagram, addr)?;
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?,
        IpAddr::V6(ip) if ip.is_unspecified() => setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?,
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    bind_to(&fd, addr)?;
    Ok(UdpSocket::from(fd))
}

/// A UDP socket connected to `addr`. It is never bound before it is connected, so no stranger's datagram gets in.
pub(super) fn udp_to(addr: SocketAddr) -> nix::Result<UdpSocket> {
    let fd = new(SockType::Datagram, addr)?;
    connect_to(&fd, addr)?;
    Ok(UdpSocket::from(fd))
}

/// Begins to connect; `EINPROGRESS` is to be waited for.
pub(super) fn connect_to(fd: &OwnedFd, addr: SocketAddr) -> nix::Result<()> {
    connect(fd.as_raw_fd(), &SockaddrStorage::from(addr))
}

/// Has the peer see a reset instead of an end of data when the socket is closed.
pub(crate) fn reset_on_close(fd: &impl AsFd) -> nix::Result<()> {
    setsockopt(fd, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })
}

/// A socket that is not bound yet.
pub(crate) fn new(kind: SockType, addr: SocketAddr) -> nix::Result<OwnedFd> {
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
}

/// Binds to `addr`, and to nothing of the other family.
pub(crate) fn bind_to(fd: &OwnedFd, addr: SocketAddr) -> nix::Result<()> {
    if addr.is_ipv6() {
        // Or else [::] would take 0.0.0.0 as well.
        setsockopt(fd, sockopt::Ipv6V6Only, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))
}

fn tcp_options(fd: &OwnedFd) -> nix::Result<()> {
    let (idle, interval, count) = KEEPALIVE;
    setsockopt(fd, sockopt::TcpNoDelay, &true)?;
    // Or else reading leaves out the urgent byte.
    setsockopt(fd, sockopt::OobInline, &true)?;
    setsockopt(fd, sockopt::KeepAlive, &true)?;
    setsockopt(fd, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(fd, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(fd, sockopt::TcpKeepCount, &count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::getsockopt;
    use std::net::TcpStream;
    use std::time::{Duration, Instant};

    #[test]
    fn accepted_sockets_inherit_the_options() {
        let listener = tcp_listener("127.0.0.1:0".parse().unwrap()).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        let accepted = loop {
            match listener.accept() {
                Ok((accepted, _)) => break accepted,
                Err(e) => assert!(Instant::now() < deadline, "{e}"),
            }
        };
        assert!(getsockopt(&accepted, sockopt::TcpNoDelay).unwrap());
        assert!(getsockopt(&accepted, sockopt::OobInline).unwrap());
        assert!(getsockopt(&accepted, sockopt::KeepAlive).unwrap());
        assert_eq!(getsockopt(&accepted, sockopt::TcpKeepIdle).unwrap(), KEEPALIVE.0);
        assert_eq!(getsockopt(&accepted, sockopt::TcpKeepInterval).unwrap(), KEEPALIVE.1);
        assert_eq!(getsockopt(&accepted, sockopt::TcpKeepCount).unwrap(), KEEPALIVE.2);
    }
}
