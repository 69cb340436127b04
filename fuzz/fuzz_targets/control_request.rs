//! Any line to the control socket is a request, or an error that is short and harmless to print.
//!
//! `cargo +nightly fuzz run control_request`; tests/control/requests.rs replays the corpus with an ordinary compiler.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rancher_desktop_agent::control::request::parse;

fuzz_target!(|line: &[u8]| {
    if let Err(error) = parse(line) {
        assert!(!error.message.is_empty() && error.message.len() < 1024);
        assert!(!error.message.chars().any(char::is_control));
    }
});
