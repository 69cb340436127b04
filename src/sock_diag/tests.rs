//! Against the sockets of the machine itself.

use super::*;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use nix::sys::socket::sockopt::Ipv6V6Only;
use nix::sys::socket::{Backlog, NetlinkAddr, SockaddrStorage, bind, getsockname, listen, sendto};

fn scan(diag: &mut SockDiag) -> Vec<Listening> {
    let mut found = Vec::new();
    diag.listening(&mut found).unwrap();
    found
}

fn on(found: &[Listening], protocol: Protocol, addr: SocketAddr) -> Vec<Listening> {
    let here = |s: &&Listening| (s.protocol, s.ip, s.port.get()) == (protocol, addr.ip(), addr.port());
    found.iter().filter(here).copied().collect()
}

/// On every address, of IPv6 alone or of both families.
fn on_all(v6only: bool) -> (OwnedFd, SocketAddr) {
    let socket = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&socket, Ipv6V6Only, &v6only).unwrap();
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))).unwrap();
    listen(&socket, Backlog::new(1).unwrap()).unwrap();
    let port = getsockname::<SockaddrStorage>(socket.as_raw_fd()).unwrap().as_sockaddr_in6().unwrap().port();
    (socket, (Ipv6Addr::UNSPECIFIED, port).into())
}

fn own() -> Vec<u64> {
    let mut inodes = Vec::new();
    own_inodes(|inode| inodes.push(inode)).unwrap();
    inodes
}

#[test]
fn both_ways_tell_the_same() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
    connected.connect(udp.local_addr().unwrap()).unwrap();
    let established = std::net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
    let ((_dual, dual), (_only, only)) = (on_all(false), on_all(true));
    // So that it can be told from a file that the other one leaves IPv4 alone.
    let _beside = TcpListener::bind(("0.0.0.0", only.port())).unwrap();
    let own = own();
    for mut diag in [SockDiag::new(), SockDiag::without_netlink()] {
        for _ in 0..2 {
            let found = scan(&mut diag);
            for (protocol, addr, v6only) in [
                (Protocol::Tcp, tcp.local_addr().unwrap(), None),
                (Protocol::Udp, udp.local_addr().unwrap(), None),
                (Protocol::Tcp, dual, Some(false)),
                (Protocol::Tcp, only, Some(true)),
            ] {
                let here = on(&found, protocol, addr);
                assert_eq!(here.len(), 1, "{protocol} {addr} in {found:?}");
                assert!(own.contains(&here[0].inode), "{:?} in {own:?}", here[0]);
                assert_eq!((here[0].v6only, here[0].device), (v6only, 0), "{addr}");
                assert_eq!(here[0].uid, nix::unistd::geteuid().as_raw());
            }
            assert_eq!(on(&found, Protocol::Udp, connected.local_addr().unwrap()), []);
            assert_eq!(on(&found, Protocol::Tcp, established.local_addr().unwrap()), []);
        }
        assert_eq!(diag.lacking == 0, diag.socket.is_some());
    }
}

#[test]
fn the_file_alone_does_when_netlink_is_refused() {
    for errno in [Errno::ENOENT, Errno::EOPNOTSUPP, Errno::EPROTONOSUPPORT, Errno::EPERM, Errno::EACCES] {
        assert!(lacks(errno), "{errno}");
    }
    for errno in [Errno::ETIMEDOUT, Errno::ENOBUFS, Errno::ENOMEM, Errno::EMFILE, Errno::EBUSY] {
        assert!(!lacks(errno), "{errno}: may be otherwise the next time");
    }
}

#[test]
fn answers_that_do_not_fit_are_errors_and_the_next_one_is_read_afresh() {
    let _listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut diag = SockDiag::new();
    diag.buffer.truncate(100);
    let mut found = Vec::new();
    let error = diag.listening(&mut found).unwrap_err();
    assert!(matches!(error, ScanError::Input(..)), "{error}");
    diag.buffer.resize(DATAGRAM_BYTES_MAX, 0);
    // Nothing of the answer that was left half read is in the way.
    assert!(!scan(&mut diag).is_empty());
}

#[test]
fn a_missing_directory_is_no_empty_one() {
    assert!(inodes(Path::new("/proc/self/nosuch"), |_| true).is_err());
    let mut seen = 0;
    let _pair = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let count = |_| {
        seen += 1;
        false
    };
    inodes(Path::new(OWN_DESCRIPTORS), count).unwrap();
    assert_eq!(seen, 1, "stops when it is told to");
}

/// A file in the place of one of the kernel's.
fn read_text(name: &str, text: &[u8]) -> Result<Vec<Listening>, ScanError> {
    let path = std::env::temp_dir().join(format!("rda-sockets-{}-{name}", std::process::id()));
    fs::write(&path, text).unwrap();
    let file: &'static str = path.to_str().unwrap().to_owned().leak();
    let mut found = Vec::new();
    let read = read_file(&Table { protocol: Protocol::Tcp, family: IPV4, file }, &mut found);
    fs::remove_file(&path).unwrap();
    read.map(|()| found)
}

#[test]
fn a_file_is_read_whole_or_not_at_all() {
    const TITLE: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
    const LINE: &str =
        "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1 0\n";
    let text = [TITLE, LINE, LINE].concat();
    assert_eq!(read_text("whole", text.as_bytes()).unwrap().len(), 2);
    assert_eq!(read_text("title", TITLE.as_bytes()).unwrap(), []);
    for end in (0..text.len()).filter(|end| ![0, LINE.len(), 2 * LINE.len()].contains(&(text.len() - end))) {
        assert!(read_text("cut", &text.as_bytes()[..end]).is_err(), "cut at {end}");
    }
    let long = [TITLE.as_bytes(), &vec![b' '; 1 << 20], LINE.as_bytes()].concat();
    for bad in [LINE.as_bytes(), &long, &[TITLE.as_bytes(), b"\xff\n"].concat(), &[0; 1 << 16]] {
        assert!(matches!(read_text("bad", bad), Err(ScanError::Input(..))));
    }
    let most = [TITLE, &LINE.repeat(SOCKETS_MAX)].concat();
    assert_eq!(read_text("most", most.as_bytes()).unwrap().len(), SOCKETS_MAX);
    assert!(matches!(read_text("more", (most + LINE).as_bytes()), Err(ScanError::TooMany)));
}

#[test]
fn no_file_means_no_ipv6_only_where_there_is_one_for_ipv4() {
    let read = |family, file| read_file(&Table { protocol: Protocol::Tcp, family, file }, &mut Vec::new());
    assert!(matches!(read(IPV4, "/proc/nosuch"), Err(ScanError::Read(..))));
    assert!(matches!(read(IPV6, "/proc/nosuch6"), Err(ScanError::Read(..))));
    // There is a file `/proc/uptime`, and none `/proc/uptime6`.
    assert!(read(IPV6, "/proc/uptime6").is_ok());
}

/// Only who has CAP_NET_ADMIN may send to others at all, so without it this shows nothing.
#[test]
fn nobody_but_the_kernel_is_heard() {
    let ours = super::open().unwrap();
    let address: NetlinkAddr = getsockname(ours.as_raw_fd()).unwrap();
    let others =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag).unwrap();
    let sent = sendto(others.as_raw_fd(), request(Protocol::Tcp, IPV4, 1).as_flattened(), &address, MsgFlags::empty());
    assert!(matches!(sent, Err(Errno::ECONNREFUSED | Errno::EPERM)), "{sent:?} to {address:?}");
    assert_eq!(recv(ours.as_raw_fd(), &mut [0; 64], MsgFlags::MSG_DONTWAIT), Err(Errno::EAGAIN));
}
