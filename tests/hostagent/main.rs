//! The real `rancher-desktop-hostagent`, with documents on its sockets and traffic on loopback only. Needs no root.
//!
//! A "guest" is a server of the test's own on 127.0.0.2, with the ports that the host end opens on 127.0.0.1 and ::1.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs
)]

mod forwarding;
mod hostile;
mod lifecycle;
mod support;
