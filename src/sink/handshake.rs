//! vtunnel's handshake: lets the host find this VM among others, and tells us that a host end has (re)started.
//!
//! On each connection from the host (CID 2) to vsock port 17382 exactly these 50 bytes are written, then it is closed.
//! Source: Rancher Desktop 1.9 `src/go/vtunnel`. A host end that asks may have restarted and know of nothing, so
//! everything is announced again. A vsock driver that is not loaded yet, or another program on the port, is waited out.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener};

use crate::backoff::wait_after;
use crate::event::{Event, SinkId};
use crate::supervisor::{Context, Supervised, spawn};
use crate::wire::vtunnel::{HANDSHAKE_PORT, MAGIC};

const WRITE_TIMEOUT: Duration = Duration::from_secs(3);

/// Answers handshakes in a thread of its own; `sinks` are reset after each.
pub fn listen(sinks: Vec<SinkId>, context: Context) -> io::Result<Supervised> {
    let stop = context.stop.clone();
    let run = move || {
        let Some(listener) = bind(&context) else { return };
        while context.stop.readable(listener.as_fd()) {
            match answer(&listener) {
                Ok(true) => {
                    for sink in &sinks {
                        let reason = "the host end asked for the handshake".to_owned();
                        context.send(Event::SinkReset { sink: *sink, reason });
                    }
                }
                Ok(false) => {}
                Err(error) => {
                    log::warn!("handshake failed error={:?}", error.to_string());
                    // A broken listener must not be a busy loop.
                    context.stop.wait(Duration::from_secs(1));
                }
            }
        }
    };
    let thread = spawn("handshake", Box::new(run))?;
    Ok(Supervised::new(stop, thread))
}

/// Tries until it may listen; `None` when the agent ends before that.
fn bind(context: &Context) -> Option<VsockListener> {
    let mut failures = 0;
    loop {
        let bound = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, HANDSHAKE_PORT)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        match bound {
            Ok(listener) => return Some(listener),
            Err(error) if failures == 0 => {
                log::warn!(
                    "cannot answer handshakes on vsock port {HANDSHAKE_PORT}, trying on reason={:?}",
                    error.to_string()
                );
            }
            Err(_) => {}
        }
        failures += 1;
        if context.stop.wait(wait_after(failures)) {
            return None;
        }
    }
}

/// `false`: nobody who may ask.
fn answer(listener: &VsockListener) -> io::Result<bool> {
    let (mut stream, peer) = match listener.accept() {
        Ok(accepted) => accepted,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
        Err(error) => return Err(error),
    };
    if peer.cid() != VMADDR_CID_HOST {
        log::warn!("handshake refused: only the host, 2, may ask cid={}", peer.cid());
        return Ok(false);
    }
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    stream.write_all(MAGIC)?;
    Ok(true)
}
