//! The reconciler: scenarios that users met. Random histories are in `tests/simulation`, and so is the world of both.
//!
//! Sinks are simulated and time is a number: nothing here does I/O or sleeps. After every event of either kind the
//! [`world`] checks what must hold always: nothing is exposed wider than published, nothing wanted is withdrawn, no
//! owner has two documents on their way to one sink, the window is kept, and no deadline has passed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs
)]

mod anew;
mod faults;
mod follow;
#[allow(dead_code)]
#[path = "../simulation/oracle.rs"]
mod oracle;
mod scenarios;
#[allow(dead_code)]
#[path = "../simulation/sim.rs"]
mod sim;
mod sinks;
#[allow(dead_code)]
#[path = "../simulation/world.rs"]
mod world;
