//! Where published ports are seen. Sources do I/O only: each is one thread in a blocking loop that sends events.
//!
//! A source never imports the reconciler, a sink, or another source, and never reads a failure as "no ports".

pub mod child;
pub mod containerd;
pub mod docker;
pub mod interface;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod lines;
pub mod nat;
pub mod sockets;
