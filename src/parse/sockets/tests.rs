//! Answers of a real kernel, and what is left of them when they are cut or changed.

use super::*;

/// What the tests' sockets were dumped with.
const SEQUENCE: u32 = 7;

/// Of a socket on 127.0.0.1:18080.
const TCP4: &str = "7c00000014000200070000002c3b0000020a000046a000007f0000010000000000000000000000000000000000000000000000000000\
    0000000000003110000000000000000000000000000005000000000000005662ba02050008000000000008000f00000000000c001500\
    01000000000000000600160052000000";

/// Of a socket on [::]:18081, and of one on [::]:18082 with IPV6_V6ONLY.
const TCP6: &str = "8400000014000200070000002c3b00000a0a000046a10000000000000000000000000000000000000000000000000000000000000000\
    0000000000003210000000000000000000000000000005000000000000005762ba02050008000000000005000b000000000008000f00\
    000000000c001500010000000000000006001600120000008400000014000200070000002c3b00000a0a000046a20000000000000000\
    000000000000000000000000000000000000000000000000000000000000331000000000000000000000000000000500000000000000\
    5862ba02050008000000000005000b000100000008000f00000000000c00150001000000000000000600160012000000";

/// Of a socket on 0.0.0.0:18083.
const UDP4: &str = "7c00000014000200070000002c3b00000207000046a30000000000000000000000000000000000000000000000000000000000000000\
    0000000000003410000000000000000000000000000000000000000000005962ba02050008000000000008000f00000000000c001500\
    01000000000000000600160050000000";

/// Of a socket on [::ffff:127.0.0.1]:18084.
const UDP6: &str = "8400000014000200070000002c3b00000a07000046a4000000000000000000000000ffff7f0000010000000000000000000000000000\
    0000000000003510000000000000000000000000000000000000000000005a62ba02050008000000000005000b000000000008000f00\
    000000000c00150001000000000000000600160010000000";

/// The end of a dump.
const LAST: &str = "1400000003000200070000006325000000000000";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().map(|c| c.to_digit(16).unwrap()).collect();
    digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap()).collect()
}

fn read(datagram: &[u8], protocol: Protocol) -> Result<(Vec<Listening>, Option<End>), ParseError> {
    let mut found = Vec::new();
    let end = answer(datagram, protocol, SEQUENCE, |socket| found.push(socket))?;
    Ok((found, end))
}

fn listening(protocol: Protocol, addr: &str, inode: u64, v6only: Option<bool>) -> Listening {
    let addr: std::net::SocketAddr = addr.parse().unwrap();
    let port = NonZeroU16::new(addr.port()).unwrap();
    Listening { protocol, port, ip: addr.ip(), inode, v6only, device: 0, uid: 0 }
}

#[test]
fn reads_what_the_kernel_answers() {
    use Protocol::{Tcp, Udp};
    for (hex, protocol, expect) in [
        (TCP4, Tcp, vec![listening(Tcp, "127.0.0.1:18080", 45_769_302, None)]),
        (
            TCP6,
            Tcp,
            vec![
                listening(Tcp, "[::]:18081", 45_769_303, Some(false)),
                listening(Tcp, "[::]:18082", 45_769_304, Some(true)),
            ],
        ),
        (UDP4, Udp, vec![listening(Udp, "0.0.0.0:18083", 45_769_305, None)]),
        (UDP6, Udp, vec![listening(Udp, "127.0.0.1:18084", 45_769_306, None)]),
    ] {
        assert_eq!(read(&bytes(hex), protocol).unwrap(), (expect.clone(), None));
        let whole = bytes(&[hex, LAST].concat());
        assert_eq!(read(&whole, protocol).unwrap(), (expect, Some(End::Complete)));
    }
    let both = read(&bytes(TCP6), Tcp).unwrap().0;
    assert!(both[0].is_dual_stack() && !both[1].is_dual_stack());
}

#[test]
fn asks_as_the_kernel_wants_it() {
    let request = request(Protocol::Udp, IPV6, 9);
    let request = request.as_flattened();
    assert_eq!(request.len(), 72);
    assert_eq!(request[..8], *[72_u32.to_ne_bytes(), [20, 0, 1, 3]].concat());
    assert_eq!(request[8..24], *[9_u32.to_ne_bytes(), [0; 4], [10, 17, 0, 0], (1_u32 << 7).to_ne_bytes()].concat());
    assert!(request[24..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_dump_may_be_refused_or_interrupted() {
    let changed = |at: usize, to: &[u8]| {
        let mut datagram = bytes(&[TCP4, LAST].concat());
        datagram[at..at + to.len()].copy_from_slice(to);
        read(&datagram, Protocol::Tcp).unwrap()
    };
    let done = TCP4.len() / 2;
    assert_eq!(changed(done + 16, &(-12_i32).to_ne_bytes()).1, Some(End::Refused(12)));
    assert_eq!(changed(done + 4, &2_u16.to_ne_bytes()).1, Some(End::Complete), "an error of 0 is none");
    assert_eq!(changed(done + 6, &0x12_u16.to_ne_bytes()).1, Some(End::Interrupted));
    assert_eq!(changed(6, &0x12_u16.to_ne_bytes()), (Vec::new(), Some(End::Interrupted)));
    assert_eq!(changed(8, &6_u32.to_ne_bytes()), (Vec::new(), Some(End::Complete)), "an earlier request's");
    assert_eq!(changed(17, &[1]).0, Vec::new(), "established");
    assert_eq!(changed(20, &[0, 0]).0, Vec::new(), "port 0");
    let refused = [&36_u32.to_ne_bytes()[..], &[2, 0, 0, 0], &SEQUENCE.to_ne_bytes(), &[0; 4]].concat();
    let refused = [&refused[..], &(-2_i32).to_ne_bytes(), &[0; 16]].concat();
    assert_eq!(read(&refused, Protocol::Tcp).unwrap(), (Vec::new(), Some(End::Refused(2))));
}

#[test]
fn no_bytes_panic_and_no_cut_goes_unnoticed() {
    let whole = bytes(TCP6);
    for end in 0..whole.len() {
        let cut = read(&whole[..end], Protocol::Tcp);
        // Between the two messages it is whole, but there is more to come.
        assert!(cut.is_err() || (end == 132 && cut.unwrap().1.is_none()), "cut at {end}");
    }
    for at in 0..whole.len() {
        for byte in [0, 1, 2, 3, 10, 0x7f, 0x80, 0xff] {
            let mut changed = whole.clone();
            changed[at] = byte;
            // Any answer will do.
            let _ = read(&changed, Protocol::Tcp);
        }
    }
    let mut strange = whole;
    strange[16] = 3;
    assert!(read(&strange, Protocol::Tcp).is_err(), "another family");
}

#[test]
fn reads_lines_of_proc() {
    use Protocol::{Tcp, Udp};
    let tcp = "   0: 0100007F:46A0 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 45769302 1 0000000017f54b89 100";
    let tcp6 = "   0: 00000000000000000000000000000000:46A1 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 45769303 1 00000000a6085008";
    let udp6 = " 5948: 0000000000000000FFFF00000100007F:46A4 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 45769306 2 000000007a6df4ac 0";
    let of_1000 = Listening { uid: 1000, ..listening(Tcp, "127.0.0.1:18080", 45_769_302, None) };
    if cfg!(target_endian = "little") {
        assert_eq!(line(tcp, Tcp).unwrap(), Some(of_1000));
        assert_eq!(line(udp6, Udp).unwrap(), Some(listening(Udp, "127.0.0.1:18084", 45_769_306, None)));
    }
    assert_eq!(line(tcp6, Tcp).unwrap(), Some(listening(Tcp, "[::]:18081", 45_769_303, None)));
    assert!(line(tcp6, Tcp).unwrap().unwrap().is_dual_stack(), "as far as is known");
    assert_eq!(line(tcp, Udp).unwrap(), None, "not a state in which UDP listens");
    assert_eq!(line(&tcp.replace(" 0A ", " 01 "), Tcp).unwrap(), None);
    let (words, inode) = tcp.split_once("45769302").map(|(before, _)| (before, before.len())).unwrap();
    for end in 0..inode {
        assert!(line(&tcp[..end], Tcp).is_err(), "cut at {end} of {words}");
    }
    for bad in ["0100007G:46A0", "0100007F46A0", "0100007F:46A0G", "00007F:46A0", "010000é:46A0", "", ":"] {
        assert!(line(&tcp.replace("0100007F:46A0", bad), Tcp).is_err(), "{bad:?}");
    }
    assert!(is_title(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
    ));
    assert!(!is_title(tcp) && !is_title(""));
}

#[test]
fn reads_links_of_descriptors() {
    assert_eq!(inode("socket:[45769302]"), Some(45_769_302));
    for other in ["pipe:[45769302]", "socket:[]", "socket:[x]", "socket:[1", "/dev/null", ""] {
        assert_eq!(inode(other), None, "{other}");
    }
}
