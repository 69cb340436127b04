//! The stand-in for host-switch as a program that really forwards, for the demo and for guests that a test boots.
//!
//! Its API is that of `tests/support/host_switch.rs`. It listens where it is asked to, and carries TCP and UDP with the
//! crate's own relay, where the real one goes through a network stack in user space. Lets everyone in, as that does.
//!
//! ```text
//! host-switch-stand-in [--listen ADDRESS:PORT]        192.168.127.1:80 unless told otherwise
//! ```

#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/host_switch.rs"]
mod host_switch;

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use host_switch::HostSwitch;
use host_switch::forwarder::{Forwarding, split_host_port};
use nix::errno::Errno;
use rancher_desktop_agent::port::Protocol;
use rancher_desktop_agent::relay::{Limits, Relay};

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
    let limits = Limits {
        connections_max: 1024,
        flows_max: 1024,
        flow_idle: Duration::from_secs(90),
        connect_timeout: Duration::from_secs(5),
    };
    let relay = Relay::start("forwards", limits, Arc::new(|_| true))?;
    Ok(HostSwitch::serve(TcpListener::bind(listen)?, Box::new(Relayed(relay))))
}

/// Forwards that the relay carries.
struct Relayed(Relay);

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
