//! From a good command line to a stopped process: opens the sockets, gives up privileges, starts the threads, and waits
//! on the main thread for the signal to stop.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use caps::Capability;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::Mode;

use crate::host::config::{Config, Listen};
use crate::host::documents::{CONNECTIONS_MAX, Documents};
use crate::host::forwards::Forwards;
use crate::host::handshake::{Guest, Handshake};
use crate::host::report::Reporter;
use crate::host::sockets::DocumentSocket;
use crate::privileges::{self, raise_file_limit};
use crate::relay::{Limits, Relay};

/// TCP connections and UDP flows at once, if there are descriptors for them.
const FLOWS_MAX: usize = 4096;
/// Descriptors that a TCP connection needs (two sockets, two pipes), and with them one for a UDP flow.
const DESCRIPTORS_PER_FLOW: usize = 7;
/// Descriptors for documents and everything else.
const DESCRIPTORS_RESERVED: usize = CONNECTIONS_MAX + 64;
const FLOW_IDLE: Duration = Duration::from_secs(90);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the process could not do its work. Each says what to do where there is something.
pub type RunError = Box<dyn std::error::Error>;

/// Runs until SIGTERM or SIGINT; everything that was opened is closed then. A second signal ends it at once.
pub fn run(config: Config) -> Result<(), RunError> {
    // Sockets are for this user only, from the moment they are there.
    privileges::isolate(Mode::from_bits_truncate(0o177))?;
    // Before any other thread is started, so that every thread has it: signals wait for this one.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block()?;
    let descriptors = raise_file_limit()?;
    let sockets = open_sockets(&config)?;
    let keep: &[Capability] = if config.policy.allows_privileged() { &[Capability::CAP_NET_BIND_SERVICE] } else { &[] };
    privileges::drop_to(keep, &[])?;

    let (ports_max, flows_max) = shares(descriptors, config.ports_max);
    if ports_max < config.ports_max {
        log::info!("{descriptors} descriptors (ulimit -n) are enough for {ports_max} ports, not {}", config.ports_max);
    }
    let limits =
        Limits { connections_max: flows_max, flows_max, flow_idle: FLOW_IDLE, connect_timeout: CONNECT_TIMEOUT };
    // Who reaches the host's address may use what is open there: the address is what limits it.
    let relay = Relay::start("relay", limits, Arc::new(|_| true))?;
    let reporter = Reporter::start(std::fs::File::from(io::stdout().as_fd().try_clone_to_owned()?))?;
    let ready: Vec<String> = sockets.iter().map(|socket| socket.address().to_string()).collect();
    let documents = Documents::new(sockets, Forwards::new(relay, config.policy, ports_max), reporter);
    let (stop, stopped) = UnixStream::pair()?;
    let stopped = OwnedFd::from(stopped);
    let worker = thread::Builder::new().name("documents".to_owned()).spawn(move || documents.run(&stopped))?;
    let guests = config.uds.map(Guest::Uds).into_iter().chain(config.guest_cid.map(Guest::Cid));
    let handshakes = guests.map(Handshake::start).collect::<io::Result<Vec<_>>>()?;
    log::info!("ready: listening on {}", ready.join(", "));

    let signal = signals.wait()?;
    // Not joined: it ends with the process, or ends it.
    thread::Builder::new().name("second-signal".to_owned()).spawn(move || {
        if signals.wait().is_ok() {
            std::process::exit(1);
        }
    })?;
    log::info!("{signal}: closing every forward");
    drop(stop);
    worker.join().map_err(|_| "the documents thread has panicked")?;
    drop(handshakes);
    Ok(())
}

fn open_sockets(config: &Config) -> Result<Vec<DocumentSocket>, RunError> {
    let mut sockets = Vec::with_capacity(config.listen.len());
    for listen in &config.listen {
        let open_to_others = match listen {
            Listen::Unix(_) => false,
            Listen::Tcp(addr) => !addr.ip().is_loopback(),
            Listen::Vsock { .. } => config.guest_cid.is_none(),
        };
        if open_to_others {
            log::warn!("whoever can connect to {listen} can open ports of this host, as far as --allow lets them");
        }
        sockets.push(DocumentSocket::open(listen.clone(), config.guest_cid)?);
    }
    Ok(sockets)
}

/// Shares the descriptors out: ports get what they may need, but no more than half; flows get the rest.
fn shares(descriptors: usize, ports_max: usize) -> (usize, usize) {
    let available = descriptors.saturating_sub(DESCRIPTORS_RESERVED);
    let ports = ports_max.min(available / 2).max(1);
    let flows = FLOWS_MAX.min(available.saturating_sub(ports) / DESCRIPTORS_PER_FLOW).max(1);
    (ports, flows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_shared_out() {
        assert_eq!(shares(524_288, 16_384), (16_384, 4096));
        assert_eq!(shares(20_000, 16_384), (9936, 1419));
        assert_eq!(shares(1024, 16_384), (448, 64));
        assert_eq!(shares(1024, 10), (10, 126));
        assert_eq!(shares(64, 10), (1, 1));
    }
}
