//! The reconciler: scenarios that users met, and random histories against an independent oracle.
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
mod model;
mod scenarios;
mod sim;
mod sinks;
mod world;
