//! Published ports as engines record them, the good ones kept and the bad ones named.
//!
//! A port that is not a port is left out with a complaint; it never costs the others of its container.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::sync::Arc;

use serde_json::Value;

use crate::port::{Binding, Bindings, Protocol};

/// Complaints about single ports that are kept of one record; more are only counted by their absence.
pub(super) const COMPLAINTS_MAX: usize = 8;

/// Characters of a name that are kept. Names are for display.
const NAME_CHARS_MAX: usize = 128;

/// Ports read from a record, with what could not be used.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// The good ones.
    pub bindings: Bindings,
    /// Complaints about the others.
    pub skipped: Vec<String>,
    /// What people call the container.
    pub name: Option<Arc<str>>,
}

impl Published {
    /// Adds one published port; `host_ip` as the engine wrote it, where nothing means every
    /// address: every IPv4 address, and with `ipv6_too` every IPv6 address as well.
    pub(super) fn add(&mut self, container: (u64, &str), host_ip: &str, host_port: u64, ipv6_too: bool) {
        let mut add = |host_ip: IpAddr| -> Option<()> {
            let protocol = Protocol::parse(container.1)?;
            let binding = Binding { protocol, host_ip, host_port: port(host_port)? };
            self.bindings.insert(binding, port(container.0)?);
            Some(())
        };
        let added = match host_ip {
            "" if ipv6_too => add(Ipv4Addr::UNSPECIFIED.into()).and_then(|()| add(Ipv6Addr::UNSPECIFIED.into())),
            "" => add(Ipv4Addr::UNSPECIFIED.into()),
            // Written as IPv6 or not, an IPv4 address is one: `::ffff:127.0.0.1` is loopback.
            ip => ip.parse::<IpAddr>().ok().and_then(|ip| add(ip.to_canonical())),
        };
        if added.is_none() {
            let (container_port, protocol) = container;
            self.complain(format!("published port {host_ip}:{host_port} -> {container_port}/{protocol}"));
        }
    }

    /// Adds a complaint, shortened and escaped.
    pub(super) fn complain(&mut self, what: String) {
        if self.skipped.len() < COMPLAINTS_MAX {
            self.skipped.push(what.chars().take(200).collect::<String>().escape_debug().to_string());
        }
    }
}

/// A container's name, cut: engines write some with a slash before it. What is no text is no name.
pub(super) fn name(value: &Value) -> Option<Arc<str>> {
    let name = value.as_str()?;
    let name = name.strip_prefix('/').unwrap_or(name);
    let end = name.char_indices().nth(NAME_CHARS_MAX).map_or(name.len(), |(end, _)| end);
    name.get(..end).filter(|name| !name.is_empty()).map(Arc::from)
}

/// A port, where the number is one.
pub(super) fn port(number: u64) -> Option<NonZeroU16> {
    u16::try_from(number).ok().and_then(NonZeroU16::new)
}
