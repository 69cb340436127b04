//! Who has a port: for the reason of a conflict, so that people know what to stop.
//!
//! Looks through `/proc` for the process that has the socket open, which needs [`CAPABILITIES`] where that is somebody
//! else's. Never takes long: a few thousand processes, a few hundredths of a second, and not again at once.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use caps::Capability;

use crate::parse::sockets::Listening;
use crate::port::Protocol;
use crate::privileges;
use crate::sock_diag::{SockDiag, inodes};

/// What it takes to see the descriptors of every process.
pub const CAPABILITIES: [Capability; 2] = [Capability::CAP_SYS_PTRACE, Capability::CAP_DAC_READ_SEARCH];

/// Processes that are looked at.
const PIDS_MAX: usize = 4096;

/// The longest look.
const LOOK_TIMEOUT: Duration = Duration::from_millis(50);

/// How long what was seen is believed: thousands of ports may be found taken at once.
const SEEN_AGE_MAX: Duration = Duration::from_millis(200);

/// Bytes of a process's name that are shown; the kernel keeps 15.
const NAME_BYTES_MAX: usize = 16;

/// What was seen at one time.
struct Seen {
    at: Instant,
    sockets: Vec<Listening>,
    /// The numbers of those that were found, each with the process that has it open.
    processes: Vec<(u64, String)>,
}

static SEEN: Mutex<Option<Seen>> = Mutex::new(None);

/// Who listens on that port, at that address or at every one: `nginx (pid 4711)`, or `a process of uid 1000` where the
/// process is not seen.
pub fn holder(protocol: Protocol, addr: SocketAddr) -> Option<String> {
    // A clock that has only just begun has seen nothing.
    let since = Instant::now().checked_sub(SEEN_AGE_MAX)?;
    holder_since(protocol, addr, since).map(|found| found.unwrap_or_else(|uid| format!("a process of uid {uid}")))
}

/// The process that listens there, where it is seen. What was seen at that time or later is believed: one look for all that is
/// asked of one time.
pub fn process_since(protocol: Protocol, addr: SocketAddr, since: Instant) -> Option<String> {
    holder_since(protocol, addr, since)?.ok()
}

/// The process, or else whose it is.
fn holder_since(protocol: Protocol, addr: SocketAddr, since: Instant) -> Option<Result<String, u32>> {
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.as_ref().is_none_or(|seen| seen.at < since) {
        *seen = look();
    }
    let Seen { sockets, processes, .. } = seen.as_ref()?;
    let mut here = sockets.iter().filter(|socket| is_in_the_way(socket, protocol, addr)).peekable();
    let first = *here.peek()?;
    let named = here.find_map(|socket| processes.iter().find(|(inode, _)| *inode == socket.inode));
    Some(named.map(|(_, name)| name.clone()).ok_or(first.uid))
}

fn is_in_the_way(socket: &Listening, protocol: Protocol, addr: SocketAddr) -> bool {
    let overlap = |ip: IpAddr| {
        let every = ip.is_unspecified() || addr.ip().is_unspecified();
        ip == addr.ip() || (every && ip.is_ipv4() == addr.is_ipv4())
    };
    let is_there = overlap(socket.ip) || (socket.is_dual_stack() && overlap(Ipv4Addr::UNSPECIFIED.into()));
    (socket.protocol, socket.port.get()) == (protocol, addr.port()) && is_there
}

fn look() -> Option<Seen> {
    let at = Instant::now();
    let mut sockets = Vec::new();
    if let Err(error) = SockDiag::new().listening(&mut sockets) {
        log::debug!("it is not known who has a port reason={error}");
        return None;
    }
    let mut processes: Vec<(u64, String)> = Vec::new();
    privileges::with(&CAPABILITIES, || {
        let end = at + LOOK_TIMEOUT;
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for pid in pids.take(PIDS_MAX).take_while(|_| Instant::now() < end) {
            let directory = Path::new("/proc").join(pid.to_string());
            let each = |inode: u64| {
                let listens = sockets.iter().any(|socket| socket.inode == inode);
                if listens && !processes.iter().any(|(known, _)| *known == inode) {
                    processes.push((inode, format!("{} (pid {pid})", name(&directory))));
                }
                Instant::now() < end
            };
            // What may not be seen, or has ended, is passed over.
            let _ = inodes(&directory.join("fd"), each);
        }
    });
    Some(Seen { at, sockets, processes })
}

/// The name that a process goes by, which it may have chosen itself.
fn name(directory: &Path) -> String {
    let name = fs::read(directory.join("comm")).unwrap_or_default();
    let name = name.strip_suffix(b"\n").unwrap_or(&name);
    let name = name.get(..NAME_BYTES_MAX).unwrap_or(name);
    if name.is_empty() { "a process".into() } else { String::from_utf8_lossy(name).escape_debug().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};
    use std::num::NonZeroU16;

    fn waits_for(protocol: Protocol, addr: SocketAddr, wanted: impl Fn(Option<&str>) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let found = holder(protocol, addr);
            if wanted(found.as_deref()) {
                return;
            }
            assert!(Instant::now() < end, "{protocol} {addr}: {found:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn this_very_process_is_found() {
        let own = format!(" (pid {})", std::process::id());
        let is_own = |found: Option<&str>| found.is_some_and(|name| name.len() > own.len() && name.ends_with(&own));
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = tcp.local_addr().unwrap();
        waits_for(Protocol::Tcp, addr, is_own);
        waits_for(Protocol::Tcp, (Ipv4Addr::UNSPECIFIED, addr.port()).into(), is_own);
        let udp = UdpSocket::bind("[::]:0").unwrap();
        waits_for(Protocol::Udp, (Ipv4Addr::LOCALHOST, udp.local_addr().unwrap().port()).into(), is_own);
        drop(tcp);
        waits_for(Protocol::Tcp, addr, |found| found.is_none());
    }

    #[test]
    fn only_what_overlaps_is_in_the_way() {
        let socket = |ip: &str, v6only| Listening {
            protocol: Protocol::Tcp,
            port: NonZeroU16::new(80).unwrap(),
            ip: ip.parse().unwrap(),
            inode: 1,
            v6only,
            device: 0,
            uid: 0,
        };
        for (ip, v6only, addr, expect) in [
            ("0.0.0.0", None, "192.168.127.2:80", true),
            ("0.0.0.0", None, "192.168.127.2:81", false),
            ("192.168.127.2", None, "192.168.127.2:80", true),
            ("127.0.0.1", None, "192.168.127.2:80", false),
            ("127.0.0.1", None, "0.0.0.0:80", true),
            ("127.0.0.1", None, "[::]:80", false),
            ("::", Some(false), "192.168.127.2:80", true),
            ("::", Some(true), "192.168.127.2:80", false),
            ("::", Some(true), "[fd00::2]:80", true),
            ("::1", None, "[::]:80", true),
        ] {
            let socket = socket(ip, v6only);
            let addr = addr.parse().unwrap();
            assert_eq!(is_in_the_way(&socket, Protocol::Tcp, addr), expect, "{socket:?} {addr}");
            assert!(!is_in_the_way(&socket, Protocol::Udp, addr));
        }
    }
}
