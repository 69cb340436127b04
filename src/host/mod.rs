//! The host end: takes PortMapping documents from guests and opens the ports of the host that they ask for.
//!
//! In reading order: `config` (what is wanted), `policy` (what a guest may ask for), `sockets` (where documents come
//! in), `documents` (the loop that reads them), `forwards` (what is open, and why the rest is not), `report` (what it
//! says on stdout), `handshake` (telling a guest that the host is here), `run` (all of it put together). One thread,
//! that of `documents`, owns all state; the relay moves the bytes of the forwards on a thread of its own.
//!
//! The guest is not trusted. It cannot bind what no rule allows, cannot make the host connect to itself, cannot use up
//! memory, descriptors or the log, and nothing it sends is printed raw.

pub mod config;
pub mod documents;
pub mod forwards;
pub mod handshake;
pub mod policy;
pub mod quota;
pub mod report;
pub mod run;
pub mod sockets;
