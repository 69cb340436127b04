//! Which sockets of this network namespace listen: by `SOCK_DIAG`, where the kernel walks nothing but those, or else from
//! `/proc/net`, where it writes out every connection. And which sockets a process has open.
//!
//! Only tells what there is. A failure is an error, never an empty list.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt, socket,
};
use nix::sys::time::TimeVal;

use crate::parse::ParseError;
use crate::parse::sockets::{End, IPV4, IPV6, Listening, answer, inode, is_title, line, request};
use crate::port::Protocol;

/// Sockets that one scan takes.
pub const SOCKETS_MAX: usize = 65_536;

/// The longest datagram that is read: the kernel makes none longer.
const DATAGRAM_BYTES_MAX: usize = 32 * 1024;

/// The longest line that is read; those of the kernel have less than 200 bytes.
const LINE_BYTES_MAX: u64 = 1024;

/// The longest wait for an answer, and for all of it. The kernel has it ready, so it never comes to that.
const DUMP_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a dump is begun that the kernel says was interrupted.
const DUMPS_MAX: u32 = 5;

/// Descriptors of this process.
const OWN_DESCRIPTORS: &str = "/proc/self/fd";

/// Why it is not known what listens.
#[derive(Debug)]
pub enum ScanError {
    /// The kernel does not answer, or refuses.
    Netlink(Errno),
    /// Something changed each time.
    Interrupted,
    /// An answer of the kernel's, or a line of that file, cannot be understood.
    Input(&'static str, ParseError),
    /// That cannot be read.
    Read(&'static str, io::Error),
    /// There are more than [`SOCKETS_MAX`].
    TooMany,
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScanError::Netlink(errno) => write!(f, "cannot list sockets (SOCK_DIAG): {errno}"),
            ScanError::Interrupted => {
                write!(f, "cannot list sockets: they changed during each of {DUMPS_MAX} attempts")
            }
            ScanError::Input(what, error) => write!(f, "cannot list sockets: {what}: {error}"),
            ScanError::Read(what, error) => write!(f, "cannot list sockets: {what}: {error}"),
            ScanError::TooMany => write!(f, "cannot list sockets: more than {SOCKETS_MAX} listen"),
        }
    }
}

impl std::error::Error for ScanError {}

/// The sockets of one protocol and family, and the file that tells of them too.
struct Table {
    protocol: Protocol,
    family: u8,
    file: &'static str,
}

const TABLES: [Table; 4] = [
    Table { protocol: Protocol::Tcp, family: IPV4, file: "/proc/thread-self/net/tcp" },
    Table { protocol: Protocol::Tcp, family: IPV6, file: "/proc/thread-self/net/tcp6" },
    Table { protocol: Protocol::Udp, family: IPV4, file: "/proc/thread-self/net/udp" },
    Table { protocol: Protocol::Udp, family: IPV6, file: "/proc/thread-self/net/udp6" },
];

/// Asks the kernel, again and again.
pub struct SockDiag {
    socket: Option<OwnedFd>,
    buffer: Vec<u8>,
    sequence: u32,
    /// A bit for each of [`TABLES`] that SOCK_DIAG was found not to tell of.
    lacking: u8,
}

impl SockDiag {
    /// One that has not asked yet.
    pub fn new() -> SockDiag {
        SockDiag { socket: None, buffer: vec![0; DATAGRAM_BYTES_MAX], sequence: 0, lacking: 0 }
    }

    /// One that never asks over netlink.
    #[cfg(test)]
    fn without_netlink() -> SockDiag {
        SockDiag { lacking: u8::MAX, ..SockDiag::new() }
    }

    /// Puts every socket that listens into the list, in the kernel's order.
    ///
    /// # Errors
    /// See [`ScanError`]; the list is then not to be used.
    pub fn listening(&mut self, into: &mut Vec<Listening>) -> Result<(), ScanError> {
        into.clear();
        for (bit, table) in TABLES.iter().enumerate().map(|(at, table)| (1 << at, table)) {
            if self.lacking & bit == 0 {
                match self.dump(table, into) {
                    Ok(()) => continue,
                    Err(ScanError::Netlink(errno)) if lacks(errno) => {
                        log::debug!("sockets are read from a file file={} reason={errno}", table.file);
                        self.lacking |= bit;
                    }
                    Err(error) => return Err(error),
                }
            }
            read_file(table, into)?;
        }
        if self.lacking != 0 {
            settle_families(into);
        }
        Ok(())
    }

    fn dump(&mut self, table: &Table, into: &mut Vec<Listening>) -> Result<(), ScanError> {
        let before = into.len();
        for _ in 0..DUMPS_MAX {
            let end = self.dump_once(table, into);
            if matches!(end, Ok(End::Complete)) {
                return Ok(());
            }
            into.truncate(before);
            // The rest of that answer may still come.
            self.socket = None;
            if let End::Refused(errno) = end? {
                return Err(ScanError::Netlink(Errno::from_raw(errno)));
            }
        }
        Err(ScanError::Interrupted)
    }

    fn dump_once(&mut self, table: &Table, into: &mut Vec<Listening>) -> Result<End, ScanError> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => open().map_err(ScanError::Netlink)?,
        };
        let fd = self.socket.insert(socket).as_raw_fd();
        self.sequence = self.sequence.wrapping_add(1);
        send(fd, request(table.protocol, table.family, self.sequence).as_flattened(), MsgFlags::empty())
            .map_err(ScanError::Netlink)?;
        let deadline = Instant::now() + DUMP_TIMEOUT;
        loop {
            // With the whole length, so that one that does not fit is noticed.
            match recv(fd, &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) => {
                    let input = |error| ScanError::Input("SOCK_DIAG", error);
                    let datagram = self.buffer.get(..length).ok_or(ParseError::Missing("rest of a datagram"));
                    let mut room = true;
                    let found = |socket| {
                        room = into.len() < SOCKETS_MAX;
                        if room {
                            into.push(socket);
                        }
                    };
                    let end = datagram.and_then(|datagram| answer(datagram, table.protocol, self.sequence, found));
                    let end = end.map_err(input)?;
                    if !room {
                        return Err(ScanError::TooMany);
                    }
                    if let Some(end) = end {
                        return Ok(end);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(ScanError::Netlink(Errno::ETIMEDOUT)),
                Err(errno) => return Err(ScanError::Netlink(errno)),
            }
            if Instant::now() >= deadline {
                return Err(ScanError::Netlink(Errno::ETIMEDOUT));
            }
        }
    }
}

impl Default for SockDiag {
    fn default() -> SockDiag {
        SockDiag::new()
    }
}

fn open() -> nix::Result<OwnedFd> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    let seconds = i64::try_from(DUMP_TIMEOUT.as_secs()).unwrap_or(1);
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(seconds, 0))?;
    // To the kernel: nobody else is heard then, whatever rights he has.
    connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

/// Whether SOCK_DIAG does not exist here, or is not for us: it will not be otherwise later.
fn lacks(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EPERM | Errno::EACCES
    )
}

fn read_file(table: &Table, into: &mut Vec<Listening>) -> Result<(), ScanError> {
    let unreadable = |error| ScanError::Read(table.file, error);
    let missing = |what| ScanError::Input(table.file, ParseError::Missing(what));
    let file = match File::open(table.file) {
        // A kernel without IPv6 has no such sockets; where not even the other file is there, nothing is known.
        Err(error) if error.kind() == ErrorKind::NotFound && table.family == IPV6 => {
            let ipv4 = table.file.strip_suffix('6').is_some_and(|file| Path::new(file).exists());
            return if ipv4 { Ok(()) } else { Err(unreadable(error)) };
        }
        file => file.map_err(unreadable)?,
    };
    let mut file = BufReader::with_capacity(DATAGRAM_BYTES_MAX, file);
    let (mut bytes, mut is_first) = (Vec::new(), true);
    loop {
        bytes.clear();
        let length = file.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes).map_err(unreadable)?;
        if length == 0 && !is_first {
            return Ok(());
        }
        let text = bytes.strip_suffix(b"\n").and_then(|text| std::str::from_utf8(text).ok());
        let text = text.ok_or(missing("whole line"))?;
        if is_first {
            is_title(text).then_some(()).ok_or(missing("title"))?;
            is_first = false;
        } else if let Some(socket) = line(text, table.protocol).map_err(|error| ScanError::Input(table.file, error))? {
            if into.len() >= SOCKETS_MAX {
                return Err(ScanError::TooMany);
            }
            into.push(socket);
        }
    }
}

/// Files do not tell whether a socket on `::` leaves IPv4 alone: it does where another one has the port there, as far as
/// can be known.
fn settle_families(sockets: &mut [Listening]) {
    let bit = |socket: &Listening| match socket.protocol {
        Protocol::Tcp => 1_u8,
        Protocol::Udp => 2,
    };
    let mut taken = vec![0; 1 << 16];
    for socket in sockets.iter().filter(|socket| socket.ip == Ipv4Addr::UNSPECIFIED) {
        taken.get_mut(usize::from(socket.port.get())).into_iter().for_each(|bits| *bits |= bit(socket));
    }
    for socket in sockets.iter_mut().filter(|socket| socket.v6only.is_none()) {
        if matches!(socket.ip, IpAddr::V6(ip) if ip.is_unspecified()) {
            let bits = taken.get(usize::from(socket.port.get())).copied().unwrap_or_default();
            socket.v6only = Some(bits & bit(socket) != 0);
        }
    }
}

/// Calls `found` with the number of every socket that this process has open.
///
/// # Errors
/// `/proc/self/fd` cannot be read to its end.
pub fn own_inodes(mut found: impl FnMut(u64)) -> Result<(), ScanError> {
    let each = |inode| {
        found(inode);
        true
    };
    inodes(Path::new(OWN_DESCRIPTORS), each).map_err(|error| ScanError::Read(OWN_DESCRIPTORS, error))
}

/// Calls `each` with the number of every socket among those descriptors (`/proc/PID/fd`), for as long as it says `true`.
pub fn inodes(descriptors: &Path, mut each: impl FnMut(u64) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(descriptors)? {
        match fs::read_link(entry?.path()) {
            Ok(link) => {
                if link.to_str().and_then(inode).is_some_and(|inode| !each(inode)) {
                    return Ok(());
                }
            }
            // Closed meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
