//! Starts the process and watches it; guests to connect to; documents to send.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU16;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rancher_desktop_agent::event::Operation;
use rancher_desktop_agent::port::{Binding, Bindings, Protocol};
use rancher_desktop_agent::wire::port_mapping::{ConnectAddr, encode};
use rancher_desktop_agent::wire::session;
use serde_json::Value;

pub const BINARY: &str = env!("CARGO_BIN_EXE_rancher-desktop-hostagent");
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Asks until there is an answer; shows what was seen when there is none in time.
pub fn wait_for<T>(what: &str, seen: impl Fn() -> String, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "{what} did not happen; seen:\n{}", seen());
        thread::sleep(Duration::from_millis(5));
    }
}

pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("hostagent-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        TempDir(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A port that is free on every address the tests use, below those that the kernel hands out.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 12_000 + (std::process::id() % 1500) as u16 * 12;
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::Relaxed);
        let free = |ip: &str| TcpListener::bind((ip, port)).is_ok() && UdpSocket::bind((ip, port)).is_ok();
        if ["127.0.0.1", "127.0.0.2", "::1"].into_iter().all(free) {
            return port;
        }
    }
}

/// A process that does not outlive its test.
pub struct Guarded(pub Child);

impl Guarded {
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct HostAgent {
    process: Guarded,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
    pub socket: PathBuf,
    pub dir: TempDir,
}

fn collect(from: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let shared = Arc::clone(&text);
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            *shared.lock().unwrap() += &(line + "\n");
        }
    });
    text
}

impl HostAgent {
    /// With a unix socket, and guests anywhere on loopback.
    pub fn start() -> HostAgent {
        HostAgent::with(&["--connect", "127.0.0.0/8", "--connect-address", "::ffff:127.0.0.2"])
    }

    /// With a unix socket and these flags.
    pub fn with(args: &[&str]) -> HostAgent {
        let dir = TempDir::new();
        let socket = dir.path("docs.sock");
        let agent = HostAgent::spawn(dir, socket, args);
        agent.wait_stderr("ready: listening on");
        agent
    }

    pub fn spawn(dir: TempDir, socket: PathBuf, args: &[&str]) -> HostAgent {
        let mut child = Command::new(BINARY)
            .arg(format!("--listen=unix://{}", socket.display()))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = collect(child.stdout.take().unwrap());
        let stderr = collect(child.stderr.take().unwrap());
        HostAgent { process: Guarded(child), stdout, stderr, socket, dir }
    }

    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    pub fn stdout(&self) -> String {
        self.stdout.lock().unwrap().clone()
    }

    fn seen(&self) -> String {
        format!("{}{}", self.stdout(), self.stderr())
    }

    pub fn wait_stderr(&self, text: &str) {
        wait_for(text, || self.seen(), || self.stderr().contains(text).then_some(()));
    }

    pub fn events(&self) -> Vec<Value> {
        // The last line may not be whole yet.
        self.stdout().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for an event about a port.
    pub fn wait_event(&self, event: &str, port: u16) -> Value {
        let found = || self.events().into_iter().find(|e| e["event"] == event && e["hostPort"] == port);
        wait_for(&format!("{event} of {port}"), || self.seen(), found)
    }

    pub fn count(&self, event: &str) -> usize {
        self.events().iter().filter(|e| e["event"] == event).count()
    }

    /// Sends bytes as one document, and waits until the connection is closed.
    pub fn send(&self, bytes: &[u8]) {
        send_to(&self.socket, bytes).unwrap_or_else(|e| panic!("{e}; seen:\n{}", self.seen()));
    }

    pub fn add(&self, ports: &[(Protocol, &str, u16)]) {
        self.send(&document(Operation::Announce, ports, &["127.0.0.2"]));
    }

    pub fn remove(&self, ports: &[(Protocol, &str, u16)]) {
        self.send(&document(Operation::Withdraw, ports, &["127.0.0.2"]));
    }

    /// Shows that documents are still taken: one opens a port, another closes it.
    pub fn assert_takes_documents(&self) {
        let port = free_port();
        self.add(&[(Protocol::Tcp, "127.0.0.1", port)]);
        self.wait_event("opened", port);
        self.remove(&[(Protocol::Tcp, "127.0.0.1", port)]);
        self.wait_event("closed", port);
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    pub fn wait_exit(&mut self) -> Option<i32> {
        let HostAgent { process, stdout, stderr, .. } = self;
        let seen = || format!("{}{}", stdout.lock().unwrap(), stderr.lock().unwrap());
        wait_for("the end", seen, || process.0.try_wait().unwrap()).code()
    }
}

pub fn send_to(socket: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    // The other end may close before it has read everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // Nothing but its session, and only to a document that was complete.
        Ok(_) if answer.is_empty() || session::decode(&answer).is_some() => Ok(()),
        Ok(_) => Err(io::Error::other(format!("it answered {:?}", String::from_utf8_lossy(&answer)))),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error),
    }
}

pub fn document(operation: Operation, ports: &[(Protocol, &str, u16)], connect: &[&str]) -> Vec<u8> {
    let binding = |&(protocol, ip, port): &(Protocol, &str, u16)| {
        let host_port = NonZeroU16::new(port).unwrap();
        (Binding { protocol, host_ip: ip.parse().unwrap(), host_port }, host_port)
    };
    let ports: Bindings = ports.iter().map(binding).collect();
    let connect: Vec<_> = connect.iter().map(|ip| ConnectAddr { ip: ip.parse().unwrap(), prefix: 8 }).collect();
    encode(operation, &ports, Some(&connect))
}

/// A server on 127.0.0.2 that answers each line, over TCP and UDP, with its name and the line.
pub fn guest(name: &'static str, port: u16) {
    let tcp = TcpListener::bind(("127.0.0.2", port)).unwrap();
    let udp = UdpSocket::bind(("127.0.0.2", port)).unwrap();
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            let _ = BufReader::new(&stream).read_line(&mut line);
            let _ = stream.write_all(format!("{name} {line}").as_bytes());
        }
    });
    thread::spawn(move || {
        let mut datagram = [0; 1500];
        while let Ok((count, from)) = udp.recv_from(&mut datagram) {
            let _ = udp.send_to(&[name.as_bytes(), b" ", &datagram[..count]].concat(), from);
        }
    });
}

pub fn ask_tcp(ip: &str, port: u16) -> io::Result<String> {
    let addr = SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port);
    let mut stream = TcpStream::connect_timeout(&addr, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(b"hello\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

pub fn ask_udp(ip: &str, port: u16) -> io::Result<String> {
    let socket = UdpSocket::bind((if ip.contains(':') { "::1" } else { "127.0.0.1" }, 0))?;
    socket.connect((ip, port))?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.send(b"hello\n")?;
    let mut answer = [0; 1500];
    let count = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..count]).into_owned())
}

pub fn is_refused(result: io::Result<String>) -> bool {
    result.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}
