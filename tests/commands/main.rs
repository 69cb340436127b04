//! The commands as processes: against a stand-in that answers oddly, and against a running agent with a real engine and a
//! stand-in for host-switch.
//!
//! What they print is compared with the files in `golden/`; `UPDATE_GOLDEN=1` writes those anew.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod golden;
mod prompt;
mod scenarios;
mod stand_in;
#[path = "../support/mod.rs"]
mod support;
mod world;
