//! Watches the addresses that the host connects to, and resets the sinks that depend on them when they change.
//!
//! Blocks on a NETLINK_ROUTE socket, so it costs nothing while nothing changes. Source of the protocol: rtnetlink(7);
//! the messages themselves are not read, they only say that it is time to look.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};

use crate::event::{Event, SinkId};
use crate::net::{self, Outward};
use crate::supervisor::{Context, Supervised, spawn};

/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

/// Starts the watch, in a thread of its own.
pub fn watch(outward: Vec<Outward>, sinks: Vec<SinkId>, context: Context) -> io::Result<Supervised> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    let stop = context.stop.clone();
    let run = move || {
        let mut last = addresses(&outward);
        warn_without(&last);
        while context.stop.readable(std::os::fd::AsFd::as_fd(&socket)) {
            if let Err(errno) = drain(&socket) {
                log::error!("cannot watch addresses: their changes go unseen error={errno:?}");
                return;
            }
            let now = addresses(&outward);
            if now != last {
                warn_without(&now);
                last = now;
                let reason = "the addresses that the host connects to have changed".to_owned();
                for sink in &sinks {
                    context.send(Event::SinkReset { sink: *sink, reason: reason.clone() });
                }
            }
        }
    };
    let thread = spawn("interface", Box::new(run))?;
    Ok(Supervised::new(stop, thread))
}

/// What the host can connect to, or why there is nothing. Either changes what peers are to be told.
fn addresses(outward: &[Outward]) -> Result<Vec<IpAddr>, String> {
    net::outward_addrs(outward).map_err(|error| error.to_string())
}

/// Peers may take what is published on every address all the same, and lead to nowhere.
fn warn_without(addresses: &Result<Vec<IpAddr>, String>) {
    if let Err(reason) = addresses {
        log::warn!("the host cannot reach this VM reason={reason:?}");
    }
}

fn drain(socket: &OwnedFd) -> Result<(), Errno> {
    let mut buffer = [0; 4096];
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            // Lost messages only mean that there is something to look at.
            Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}
