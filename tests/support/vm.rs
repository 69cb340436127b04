//! A guest and its host as two network namespaces joined by a link. Needs root and iproute2.
//!
//! Each has its own loopback, so that a port published in the guest and forwarded on the host do not meet, and tests
//! do not meet either. The guest is 192.168.143.2 on `eth0`, its default gateway (the host) 192.168.143.1.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use super::agent::Agent;
use super::host_switch::{self, HostSwitch};
use super::{eventually, run, unique};

pub const GUEST: &str = "192.168.143.2";
pub const HOST: &str = "192.168.143.1";

/// The same behind host-switch.
pub const TAP: &str = "192.168.127.2";
pub const SWITCH: &str = "192.168.127.1";

pub struct Vm {
    pub guest: Namespace,
    pub host: Namespace,
}

pub struct Namespace(String);

impl Vm {
    pub fn new() -> Vm {
        let vm = Vm::of(GUEST, HOST);
        for (ns, device, ip) in [(&vm.host, "vm0", "fd00:143::1/64"), (&vm.guest, "eth0", "fd00:143::2/64")] {
            ip_command(&["-n", &ns.0, "addr", "add", ip, "dev", device, "nodad"]);
        }
        ip_command(&["-n", &vm.guest.0, "route", "add", "default", "via", "fd00:143::1"]);
        vm
    }

    /// As Rancher Desktop's namespace behind host-switch: the guest is 192.168.127.2, and there is no IPv6.
    pub fn on_tap() -> Vm {
        Vm::of(TAP, SWITCH)
    }

    fn of(guest: &str, host: &str) -> Vm {
        assert!(nix::unistd::geteuid().is_root(), "needs root: run make test as root");
        let name = |side| format!("rda-{side}-{}-{}", std::process::id(), unique());
        let vm = Vm { guest: Namespace::new(name("g")), host: Namespace::new(name("h")) };
        let (h, g) = (&vm.host.0, &vm.guest.0);
        ip_command(&["-n", h, "link", "add", "vm0", "type", "veth", "peer", "name", "eth0", "netns", g]);
        for (ns, device, ip) in [(h, "vm0", host), (g, "eth0", guest)] {
            ip_command(&["-n", ns, "addr", "add", &format!("{ip}/24"), "dev", device]);
            ip_command(&["-n", ns, "link", "set", device, "up"]);
            ip_command(&["-n", ns, "link", "set", "lo", "up"]);
        }
        ip_command(&["-n", g, "route", "add", "default", "via", host]);
        vm
    }

    /// A TCP connection made on the host.
    pub fn connect(&self, address: &str) -> io::Result<TcpStream> {
        let address: SocketAddr = address.parse().unwrap();
        self.host.enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(5)))
    }

    /// The status that a web server's answer begins with, as seen on the host.
    pub fn status(&self, address: &str) -> io::Result<String> {
        let mut stream = self.connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /busybox HTTP/1.0\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(String::from_utf8_lossy(&head[9..]).into_owned())
    }

    /// Waits until a web server answers the host. The agent's log is shown when it does not.
    pub fn wait_200(&self, address: &str, agent: &Agent) {
        eventually(&format!("200 from {address}"), || match self.status(address) {
            Ok(status) if status == "200" => Ok(()),
            other => Err((other, agent.log())),
        });
    }

    /// Waits until the host is refused.
    pub fn wait_refused(&self, address: &str) {
        eventually(&format!("{address} refuses"), || match self.connect(address) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}

impl Namespace {
    fn new(name: String) -> Namespace {
        ip_command(&["netns", "add", &name]);
        Namespace(name)
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    fn path(&self) -> String {
        format!("/var/run/netns/{}", self.0)
    }

    /// A command that runs in the namespace, as the very process that is started.
    ///
    /// nsenter, not `ip netns exec`: that mounts a fresh /sys, which hides the cgroups from dockerd.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program);
        command
    }

    /// Runs `f` in the namespace: sockets it makes belong there, wherever they are used later.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        enter_named(&self.0, f)
    }

    /// Every TCP address and port that something in the namespace listens on: what WSL sees.
    pub fn listening(&self) -> Vec<String> {
        self.sockets("tcp", "0A").iter().map(SocketAddr::to_string).collect()
    }

    /// Every UDP address and port that something in the namespace takes packets at from anybody.
    pub fn bound_udp(&self) -> Vec<SocketAddr> {
        self.sockets("udp", "07")
    }

    /// The local addresses of the sockets in a state, of both families, in order.
    fn sockets(&self, protocol: &str, state: &str) -> Vec<SocketAddr> {
        let read = |name: String| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
        let tables = self.enter(|| read(protocol.to_owned()) + &read(format!("{protocol}6")));
        let sockets = tables.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut found: Vec<_> = sockets.filter(|words| words[3] == state).map(|words| address(words[1])).collect();
        found.sort();
        found
    }
}

/// `0100007F:1F90` is 127.0.0.1:8080: words of 32 bits in the order of the machine.
fn address(hex: &str) -> SocketAddr {
    let (ip, port) = hex.split_once(':').unwrap();
    let words = (0..ip.len()).step_by(8).map(|at| u32::from_str_radix(&ip[at..at + 8], 16).unwrap());
    let bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
    let ip = match <[u8; 4]>::try_from(&*bytes) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(&*bytes).unwrap()),
    };
    SocketAddr::new(ip, u16::from_str_radix(port, 16).unwrap())
}

/// As [`Namespace::enter`], for whoever may outlive the namespace.
pub fn enter_named<T: Send>(name: &str, f: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/var/run/netns/{name}")).unwrap();
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            f()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl HostSwitch {
    /// In that network namespace.
    pub fn start_in(namespace: &Namespace, addr: SocketAddr) -> HostSwitch {
        let listener = namespace.enter(|| host_switch::bind(addr));
        HostSwitch::serve(listener, Box::new(host_switch::forwarder::Nothing))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn ip_command(args: &[&str]) {
    run(Command::new("ip").args(args));
}
