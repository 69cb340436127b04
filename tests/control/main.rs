//! The control socket's server over its real socket. The agent behind it is a stand-in, a thread that answers
//! [`Event::Show`](rancher_desktop_agent::event::Event::Show) with a made-up view: what a real agent shows is looked at with the
//! real program, elsewhere. Needs no root, but for what is ignored.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod documents;
mod hostile;
mod server;
#[path = "../support/mod.rs"]
mod support;
mod world;
