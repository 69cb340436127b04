//! Sockets on which the kernel tells of changes.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
};

use crate::parse::netlink::{generation_request, is_refusal};

/// Group 7 of NETLINK_NETFILTER (`NFNLGRP_NFTABLES`): every change of nftables.
const NFTABLES_GROUP: u32 = 1 << 6;

/// `RTMGRP_LINK` of NETLINK_ROUTE: every change of a link.
const LINK_GROUP: u32 = 1;

/// The longest message that is read. The kernel's are of a page or two.
const MESSAGE_BYTES_MAX: usize = 32 * 1024;

/// Bytes that may wait to be read: a few thousand rules' worth.
const QUEUE_BYTES_MAX: usize = 4 << 20;

/// Messages that are read in a row; more wait for the next round.
const MESSAGES_MAX: usize = 1024;

/// A socket that hears of one kind of change.
pub struct Changes {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl Changes {
    /// Changes of nftables.
    pub fn of_tables() -> nix::Result<Changes> {
        Changes::open(SockProtocol::NetlinkNetFilter, NFTABLES_GROUP)
    }

    /// Changes of links.
    pub fn of_links() -> nix::Result<Changes> {
        Changes::open(SockProtocol::NetlinkRoute, LINK_GROUP)
    }

    fn open(protocol: SockProtocol, groups: u32) -> nix::Result<Changes> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        // A shorter queue works as well; it is only lost messages more often.
        let _ = setsockopt(&socket, RcvBufForce, &QUEUE_BYTES_MAX);
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Changes { socket, buffer: vec![0; MESSAGE_BYTES_MAX] })
    }

    /// Whether the kernel has nftables. One of a microVM may not, and every tool that reads its rules would fail.
    pub fn has_nftables() -> nix::Result<bool> {
        let mut changes = Changes::open(SockProtocol::NetlinkNetFilter, 0)?;
        send(changes.socket.as_raw_fd(), &generation_request(), MsgFlags::empty())?;
        let mut refused = false;
        // The answer is there by the time that the request is sent.
        changes.drain(|message| refused |= message.is_some_and(|message| is_refusal(message).unwrap_or(false)))?;
        Ok(!refused)
    }

    /// Gives what there is to `take`; `None` where messages were lost.
    pub fn drain(&mut self, mut take: impl FnMut(Option<&[u8]>)) -> nix::Result<()> {
        for _ in 0..MESSAGES_MAX {
            // With the whole length, so that a message that does not fit counts as lost.
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) => take(self.buffer.get(..length)),
                Err(Errno::ENOBUFS) => take(None),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
