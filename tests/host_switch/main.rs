//! The agent against a stand-in for host-switch, with a paper engine: the real program, real HTTP, on loopback only. Needs
//! no root. Each world has a tap address of its own, so that its relay is in nobody's way.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod exposes;
mod hostile;
mod many;
mod private_files;
mod restarts;
#[path = "../support/mod.rs"]
mod support;
mod world;
