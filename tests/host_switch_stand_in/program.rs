//! The stand-in for host-switch as a program that really forwards, for the demo and for guests that a test boots.
//!
//! Its API is that of `tests/support/host_switch.rs`.
//!
//! ```text
//! host-switch-stand-in [--listen ADDRESS:PORT]        192.168.127.1:80 unless told otherwise
//! ```

#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/host_switch.rs"]
mod host_switch;

use std::io;
use std::net::TcpListener;
use std::process::ExitCode;

use host_switch::HostSwitch;
use host_switch::relayed::Relayed;

const LISTEN: &str = "192.168.127.1:80";
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let listen = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => LISTEN,
        ["--listen", address] => address,
        _ => {
            eprintln!("usage: host-switch-stand-in [--listen ADDRESS:PORT]");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match serve(listen) {
        Ok(server) => {
            println!("host-switch-stand-in: {}", server.url());
            // Until a signal ends the process.
            loop {
                std::thread::park();
            }
        }
        Err(error) => {
            eprintln!("host-switch-stand-in: {listen}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(listen: &str) -> io::Result<HostSwitch> {
    Ok(HostSwitch::serve(TcpListener::bind(listen)?, Box::new(Relayed::start()?)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpStream, UdpSocket};

    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;

    fn post(server: &HostSwitch, operation: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(server.addr()).unwrap();
        let length = body.len();
        write!(
            stream,
            "POST /services/forwarder/{operation} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        format!("{} {}", &answer[9..12], answer.split_once("\r\n\r\n").unwrap().1)
    }

    /// An address that nobody uses, for as long as nobody else asks for one.
    fn free() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    fn body(local: SocketAddr, remote: SocketAddr, protocol: &str) -> String {
        format!(r#"{{"local":"{local}","remote":"{remote}","protocol":"{protocol}"}}"#)
    }

    #[test]
    fn forwards_carry_bytes_until_they_are_taken_away() {
        let server = serve("127.0.0.1:0").unwrap();
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let forward = body(free(), target.local_addr().unwrap(), "tcp");
        let local: SocketAddr = forward.split('"').nth(3).unwrap().parse().unwrap();
        assert_eq!(post(&server, "expose", &forward), "200 ");
        let mut client = TcpStream::connect(local).unwrap();
        let (mut far, _) = target.accept().unwrap();
        client.write_all(b"ping").unwrap();
        let mut got = [0; 4];
        far.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"ping");
        assert_eq!(post(&server, "unexpose", &forward), "200 ");
        TcpStream::connect(local).unwrap_err();

        let target = UdpSocket::bind("127.0.0.1:0").unwrap();
        let forward = body(local, target.local_addr().unwrap(), "udp");
        assert_eq!(post(&server, "expose", &forward), "200 ");
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"ping", local).unwrap();
        target.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (n, flow) = target.recv_from(&mut got).unwrap();
        target.send_to(&got[..n], flow).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(client.recv_from(&mut got).unwrap(), (4, local));
    }

    #[test]
    fn a_busy_port_is_told_in_gos_words() {
        let server = serve("127.0.0.1:0").unwrap();
        let (tcp, udp) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        for (protocol, taken) in [("tcp", tcp.local_addr().unwrap()), ("udp", udp.local_addr().unwrap())] {
            let expect = format!("500 listen {protocol} {taken}: bind: address already in use\n");
            assert_eq!(post(&server, "expose", &body(taken, free(), protocol)), expect);
        }
        assert_eq!(server.forwards(), Vec::<String>::new());
        let text = r#"{"local":"127.0.0.1","remote":"127.0.0.1:1"}"#;
        assert_eq!(post(&server, "expose", text), "500 listen tcp: address 127.0.0.1: missing port in address\n");
    }
}
