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
