//! Real forwarding for the stand-in: it listens where it is asked to, and carries TCP and UDP with the crate's own relay,
//! where the real one goes through a network stack in user space. Lets everyone in, as that does.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use rancher_desktop_agent::port::Protocol;
use rancher_desktop_agent::relay::{Limits, Relay};

use super::forwarder::{Forwarding, split_host_port};

/// Forwards that the relay carries.
pub struct Relayed(Relay);

impl Relayed {
    /// Its sockets belong to the network namespace of the calling thread.
    pub fn start() -> io::Result<Relayed> {
        let limits = Limits {
            connections_max: 1024,
            flows_max: 1024,
            flow_idle: Duration::from_secs(90),
            connect_timeout: Duration::from_secs(5),
        };
        Relay::start("forwards", limits, Arc::new(|_| true)).map(Relayed)
    }
}

impl Forwarding for Relayed {
    fn open(&mut self, protocol: &str, local: &str, remote: &str) -> Result<(), String> {
        let transport =
            Protocol::parse(protocol).ok_or_else(|| format!("{protocol} is not forwarded by this stand-in"))?;
        let listen = address(local).map_err(|error| match transport {
            Protocol::Tcp => format!("listen tcp: {error}"),
            Protocol::Udp => error,
        })?;
        // The table has seen to it that it is an address.
        let target = address(remote)?;
        let refused = |error| format!("listen {protocol} {local}: bind: {}", go_words(&error));
        self.0.open(transport, listen, target).map_err(refused)
    }

    fn close(&mut self, protocol: &str, local: &str) {
        if let (Some(protocol), Ok(listen)) = (Protocol::parse(protocol), address(local)) {
            self.0.close(protocol, listen);
        }
    }
}

/// An address in digits; no host means every address of the machine. The real one looks names up.
fn address(text: &str) -> Result<SocketAddr, String> {
    let (host, port) = split_host_port(text)?;
    let port = port.parse().map_err(|_| format!("address {port}: invalid port"))?;
    if host.is_empty() {
        return Ok(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    }
    let ip = host.parse().map_err(|_| format!("lookup {host}: no such host"))?;
    Ok(SocketAddr::new(ip, port))
}

/// The system's errors in Go's spelling.
fn go_words(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EADDRINUSE) => "address already in use".to_owned(),
        Some(Errno::EADDRNOTAVAIL) => "cannot assign requested address".to_owned(),
        Some(Errno::EACCES) => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}
