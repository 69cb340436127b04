//! Sockets that listen, as the kernel tells of them: over netlink (`SOCK_DIAG`), and in `/proc/net/{tcp,tcp6,udp,udp6}`.
//!
//! Listening are TCP sockets in the state LISTEN, and UDP sockets that are connected to nobody (CLOSE). Source of the formats:
//! sock_diag(7), the kernel's `linux/inet_diag.h`, proc_net(5). Over netlink, ports and addresses are in network byte order
//! and the rest in the machine's; in `/proc/net` addresses are words of 32 bits in hex, in the machine's byte order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use super::ParseError;
use super::netlink::{MESSAGE_HEADER_BYTES, OUTCOME, REQUEST, array, attribute, messages};
use crate::port::Protocol;

/// `AF_INET`.
pub const IPV4: u8 = 2;

/// `AF_INET6`.
pub const IPV6: u8 = 10;

/// `SOCK_DIAG_BY_FAMILY`, in both directions.
const BY_FAMILY: u16 = 20;

/// `NLM_F_DUMP`: everything, not one of them.
const DUMP: u16 = 0x300;

/// `NLM_F_DUMP_INTR`: something has changed meanwhile, so that some may be missing.
const INTERRUPTED: u16 = 0x10;

/// `NLMSG_DONE`.
const DONE: u16 = 3;

/// `INET_DIAG_SKV6ONLY`, which comes unasked with IPv6 sockets that listen.
const V6ONLY: u16 = 11;

/// A header and a `struct inet_diag_req_v2`, in words of four bytes.
const REQUEST_WORDS: usize = (MESSAGE_HEADER_BYTES + 56) / 4;

/// Offsets in a message, which is a header and a `struct inet_diag_msg`, followed by attributes.
const FAMILY_AT: usize = MESSAGE_HEADER_BYTES;
const PORT_AT: usize = MESSAGE_HEADER_BYTES + 4;
const ADDRESS_AT: usize = MESSAGE_HEADER_BYTES + 8;
const DEVICE_AT: usize = MESSAGE_HEADER_BYTES + 40;
const UID_AT: usize = MESSAGE_HEADER_BYTES + 64;
const INODE_AT: usize = MESSAGE_HEADER_BYTES + 68;
const ATTRIBUTES_AT: usize = MESSAGE_HEADER_BYTES + 72;

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listening {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port.
    pub port: NonZeroU16,
    /// Its address; an IPv4 one also where the socket is an IPv6 one.
    pub ip: IpAddr,
    /// The number that names it below `/proc/PID/fd`.
    pub inode: u64,
    /// Whether an IPv6 socket on every address leaves IPv4 alone; `None`: not known.
    pub v6only: Option<bool>,
    /// The interface that it is bound to. 0: none, or not known.
    pub device: u32,
    /// Whose it is.
    pub uid: u32,
}

impl Listening {
    /// Whether it is an IPv6 socket on every address that IPv4 connections reach as well, as far as is known.
    pub fn is_dual_stack(&self) -> bool {
        self.ip == Ipv6Addr::UNSPECIFIED && self.v6only != Some(true)
    }
}

/// How a dump ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// That was all.
    Complete,
    /// Some may be missing: it is to be done again.
    Interrupted,
    /// Refused, with this error number.
    Refused(i32),
}

/// The one state that counts.
fn listening_state(protocol: Protocol) -> u8 {
    match protocol {
        // TCP_LISTEN
        Protocol::Tcp => 10,
        // TCP_CLOSE
        Protocol::Udp => 7,
    }
}

/// Asks for every socket of that protocol and family that listens. To be sent as one piece.
pub fn request(protocol: Protocol, family: u8, sequence: u32) -> [[u8; 4]; REQUEST_WORDS] {
    let ip_protocol = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    let length = u32::try_from(REQUEST_WORDS * 4).unwrap_or_default();
    let ([kind, of_kind], [flag, flags]) = (BY_FAMILY.to_ne_bytes(), (REQUEST | DUMP).to_ne_bytes());
    let states = 1_u32 << listening_state(protocol);
    let fields = [
        length.to_ne_bytes(),
        [kind, of_kind, flag, flags],
        sequence.to_ne_bytes(),
        // The sender, to be filled in by the kernel.
        [0; 4],
        [family, ip_protocol, 0, 0],
        states.to_ne_bytes(),
    ];
    // The rest, zero, means whatever address and port.
    let mut request = [[0; 4]; REQUEST_WORDS];
    request.iter_mut().zip(fields).for_each(|(word, field)| *word = field);
    request
}

/// Calls `found` with every socket that a datagram tells of in answer to the request with that sequence number. `None`:
/// there is more to come.
pub fn answer(
    datagram: &[u8],
    protocol: Protocol,
    sequence: u32,
    mut found: impl FnMut(Listening),
) -> Result<Option<End>, ParseError> {
    if datagram.is_empty() {
        return Err(ParseError::Missing("message"));
    }
    let mut end = None;
    messages(datagram, |kind, message| {
        if array(message, 8).map(u32::from_ne_bytes)? != sequence || end.is_some() {
            return Ok(());
        }
        if array(message, 6).map(u16::from_ne_bytes)? & INTERRUPTED != 0 {
            end = Some(End::Interrupted);
            return Ok(());
        }
        match kind {
            DONE | OUTCOME => {
                let errno = array(message, MESSAGE_HEADER_BYTES).map(i32::from_ne_bytes)?;
                end = Some(if errno == 0 { End::Complete } else { End::Refused(errno.saturating_neg()) });
            }
            BY_FAMILY => socket(message, protocol)?.into_iter().for_each(&mut found),
            _ => {}
        }
        Ok(())
    })?;
    Ok(end)
}

/// The socket that a message tells of, if it listens.
fn socket(message: &[u8], protocol: Protocol) -> Result<Option<Listening>, ParseError> {
    let [family, state] = array(message, FAMILY_AT)?;
    let ip = match family {
        IPV4 => IpAddr::from(array::<4>(message, ADDRESS_AT)?),
        IPV6 => IpAddr::from(array::<16>(message, ADDRESS_AT)?).to_canonical(),
        other => return Err(ParseError::Unknown("address family", other.to_string())),
    };
    let port = array(message, PORT_AT).map(u16::from_be_bytes)?;
    let inode = array(message, INODE_AT).map(u32::from_ne_bytes)?;
    let v6only = match ip {
        IpAddr::V4(_) => None,
        IpAddr::V6(_) => attribute(message, ATTRIBUTES_AT, V6ONLY)?.and_then(<[u8]>::first).map(|flag| *flag != 0),
    };
    let (device, uid) = (array(message, DEVICE_AT)?, array(message, UID_AT)?);
    let [device, uid] = [device, uid].map(u32::from_ne_bytes);
    let listening = NonZeroU16::new(port).filter(|_| state == listening_state(protocol));
    Ok(listening.map(|port| Listening { protocol, port, ip, inode: inode.into(), v6only, device, uid }))
}

/// Whether that is the first line of such a file of `/proc/net`.
pub fn is_title(line: &str) -> bool {
    line.split_ascii_whitespace().take(2).eq(["sl", "local_address"])
}

/// The socket that a line of `/proc/net` tells of, if it listens.
pub fn line(line: &str, protocol: Protocol) -> Result<Option<Listening>, ParseError> {
    const MISSING: ParseError = ParseError::Missing("rest of a socket's line");
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, local, _, state, _, _, _, uid, _, inode, ..] = words.as_slice() else { return Err(MISSING) };
    if u8::from_str_radix(state, 16).map_err(|_| MISSING)? != listening_state(protocol) {
        return Ok(None);
    }
    let (uid, inode) = (uid.parse().map_err(|_| MISSING)?, inode.parse().map_err(|_| MISSING)?);
    let (ip, port) = local.split_once(':').ok_or(MISSING)?;
    let port = u16::from_str_radix(port, 16).map_err(|_| MISSING)?;
    let ip = address(ip).ok_or(MISSING)?;
    Ok(NonZeroU16::new(port).map(|port| Listening { protocol, port, ip, inode, v6only: None, device: 0, uid }))
}

fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (bytes, at) in bytes.chunks_mut(4).zip([0, 8, 16, 24]) {
                bytes.copy_from_slice(&word(at)?);
            }
            Some(IpAddr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

/// The number of the socket that a link below `/proc/PID/fd` leads to.
pub fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests;
