//! The Kubernetes API's answers about Services: the list, the lines of a watch, and `Status`.
//!
//! Only what publishes ports is kept while reading; everything else of an object is skipped over without being stored, so
//! that a list of thousands costs little more than its claims. A Service that cannot be read, or a port that is not a
//! port, is left out and named; the others still count. What counts as published:
//!
//! | type | |
//! |---|---|
//! | `NodePort` | each `nodePort` |
//! | `LoadBalancer` | each `nodePort`; each `port` once `status.loadBalancer.ingress` names somebody who answers |
//! | others | nothing |
//!
//! Source of the formats: the Kubernetes API reference (`ServiceList`, `Service`, `WatchEvent`, `Status`; API concepts:
//! "Efficient detection of changes", "Resource versions").

use std::collections::BTreeMap;
use std::io::Read;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::ParseError;
use super::published::Published;
use crate::port::Bindings;

/// A complete list of Services.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ServiceList {
    /// Where a watch goes on from.
    pub resource_version: String,
    /// What each Service publishes, by `namespace/name`. Services that publish nothing are not in it.
    pub claims: BTreeMap<Arc<str>, Bindings>,
    /// Complaints about what could not be read.
    pub skipped: Vec<String>,
}

/// One line of a watch.
#[derive(Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// A Service is there, or has changed (`ADDED`, `MODIFIED`): this is all that it publishes now.
    Published {
        /// `namespace/name`.
        key: Arc<str>,
        /// Its ports, with complaints about those that are none.
        published: Published,
        /// Where a watch would go on from.
        resource_version: String,
    },
    /// A Service is gone (`DELETED`).
    Gone {
        /// `namespace/name`.
        key: Arc<str>,
        /// Where a watch would go on from.
        resource_version: String,
    },
    /// Nothing has happened up to here (`BOOKMARK`).
    Bookmark {
        /// Where a watch would go on from.
        resource_version: String,
    },
    /// The watch cannot go on (`ERROR`).
    Error(Status),
}

/// The API's word for "it did not work".
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Status {
    /// The HTTP status that goes with it: 410 asks for a new list. 0: not given.
    pub code: u16,
    /// For people, shortened.
    pub message: String,
}

/// Reads a `ServiceList` as it comes.
///
/// # Errors
/// Where it is no `ServiceList`, or ends too early: nothing of it may then be used.
pub fn services(_input: impl Read, _listener_ip: Ipv4Addr) -> Result<ServiceList, ParseError> {
    Err(ParseError::Missing("list"))
}

/// Reads one line of a watch.
///
/// # Errors
/// Where it cannot be told what happened to which Service.
pub fn watch_event(_line: &[u8], _listener_ip: Ipv4Addr) -> Result<WatchEvent, ParseError> {
    Err(ParseError::Missing("event"))
}

/// Reads the body of an answer that is not 200. Total: what is no `Status` gives its beginning as the message.
pub fn status(_body: &[u8]) -> Status {
    Status::default()
}
