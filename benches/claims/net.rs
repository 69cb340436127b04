//! Servers and clients of the relay's benchmark: what they do takes the least that the task allows, so that the
//! difference between two ways to a server is the ways' own.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

const MESSAGE_BYTES: usize = 64;
const BLOCK_BYTES: usize = 128 << 10;
/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// The ports of the servers on one address. They serve one connection after another, until the process ends.
pub struct Servers {
    /// Reads to the end, then says how many bytes that were.
    pub drain: u16,
    /// Sends every message back.
    pub echo: u16,
    /// Sends one message back, then closes: the client's ports are not held by connections in TIME_WAIT.
    pub once: u16,
    /// Sends every datagram back.
    pub udp: u16,
}

impl Servers {
    /// In the network namespace of the thread that calls.
    pub fn start(ip: Ipv4Addr) -> Servers {
        let udp = UdpSocket::bind((ip, 0)).unwrap();
        let udp_port = udp.local_addr().unwrap().port();
        thread::spawn(move || {
            let mut datagram = [0; 2048];
            while let Ok((n, from)) = udp.recv_from(&mut datagram) {
                let _ = udp.send_to(&datagram[..n], from);
            }
        });
        Servers { drain: serve(ip, drain), echo: serve(ip, echo), once: serve(ip, once), udp: udp_port }
    }
}

fn serve(ip: Ipv4Addr, one: fn(TcpStream) -> std::io::Result<()>) -> u16 {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes early is the client's business.
            let _ = prepare(&stream).and_then(|()| one(stream));
        }
    });
    port
}

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

fn drain(mut stream: TcpStream) -> std::io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut bytes: u64 = 0;
    loop {
        match stream.read(&mut block)? {
            0 => break,
            n => bytes += n as u64,
        }
    }
    stream.write_all(&bytes.to_be_bytes())
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut message = [0; MESSAGE_BYTES];
    loop {
        match stream.read_exact(&mut message) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        stream.write_all(&message)?;
    }
}

fn once(mut stream: TcpStream) -> std::io::Result<()> {
    let mut message = [0; MESSAGE_BYTES];
    stream.read_exact(&mut message)?;
    stream.write_all(&message)
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap_or_else(|error| panic!("{to}: {error}"));
    prepare(&stream).unwrap();
    stream
}

/// Bytes per second of one stream, from its opening until the server has said that it read all of it.
pub fn throughput(to: SocketAddr, time: Duration) -> f64 {
    let block = vec![0x5a; BLOCK_BYTES];
    let begun = Instant::now();
    let mut stream = connect(to);
    let mut bytes: u64 = 0;
    while begun.elapsed() < time {
        stream.write_all(&block).unwrap();
        bytes += block.len() as u64;
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut count = [0; 8];
    stream.read_exact(&mut count).unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(u64::from_be_bytes(count), bytes, "bytes were lost on the way through {to}");
    bytes as f64 / seconds
}

/// Requests of 64 bytes per second, each sent when the last one's answer is there, over one connection.
pub fn requests(to: SocketAddr, time: Duration) -> f64 {
    let mut stream = connect(to);
    let mut answer = [0; MESSAGE_BYTES];
    rate(time, |n| {
        let request = message(n);
        stream.write_all(&request).unwrap();
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, request);
    })
}

/// The same with a connection for each: opened, one request, one answer, closed.
pub fn connections(to: SocketAddr, count: u64) -> f64 {
    let begun = Instant::now();
    for n in 0..count {
        let mut stream = connect(to);
        stream.write_all(&message(n)).unwrap();
        let mut answer = Vec::with_capacity(MESSAGE_BYTES + 1);
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, message(n));
    }
    count as f64 / begun.elapsed().as_secs_f64()
}

/// Datagrams of 64 bytes per second, there and back.
pub fn datagrams(to: SocketAddr, time: Duration) -> f64 {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = [0; MESSAGE_BYTES];
    rate(time, |n| {
        let request = message(n);
        socket.send(&request).unwrap();
        assert_eq!(socket.recv(&mut answer).unwrap(), MESSAGE_BYTES);
        assert_eq!(answer, request);
    })
}

fn rate(time: Duration, mut one: impl FnMut(u64)) -> f64 {
    let begun = Instant::now();
    let mut n = 0;
    while begun.elapsed() < time {
        one(n);
        n += 1;
    }
    n as f64 / begun.elapsed().as_secs_f64()
}

fn message(n: u64) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    message[..8].copy_from_slice(&n.to_be_bytes());
    message
}

pub fn on(ip: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(ip), port)
}
