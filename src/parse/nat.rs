//! What NAT rules publish, whichever tool printed them: the words that its parsers share.
//!
//! A rule counts only when all of it is understood. Any other one that changes a destination is left out, and named:
//! half understood, it could be wider than what was meant.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::sync::Arc;

use super::ParseError;
use crate::ordered::{Map, Set};
use crate::port::{Binding, Bindings, PODMAN, Protocol};

/// Bindings in one view; more are an error.
pub const BINDINGS_MAX: usize = 65_536;

/// Rules left out that are named, of one view.
const SKIPPED_MAX: usize = 64;

/// Characters of a container's id, or of a chain, that become part of an owner's key.
const NAME_CHARS_MAX: usize = 100;

/// Characters of a rule that are shown.
const SHOWN_CHARS_MAX: usize = 200;

/// What the rules of one owner publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where they lead.
    pub address: IpAddr,
    /// What is published, at least one.
    pub bindings: Bindings,
}

/// All that one set of rules publishes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// By the owner's key: the container's id, or else the chain, and the address that the rules lead to.
    pub targets: Map<Arc<str>, Target>,
    /// Rules that were left out, each with why. Bounded and escaped.
    pub skipped: Set<String>,
}

impl View {
    /// Joins another one to it.
    pub fn merge(&mut self, other: &View) {
        for (key, target) in &other.targets {
            let bindings = target.bindings.iter().map(|(binding, port)| (*binding, *port));
            match self.targets.get_mut(key) {
                Some(known) => known.bindings.extend(bindings),
                None => drop(self.targets.insert(key.clone(), target.clone())),
            }
        }
        self.skipped.extend(other.skipped.iter().cloned());
    }

    pub(super) fn leave_out(&mut self, reason: &'static str, rule: &str) {
        if self.skipped.len() < SKIPPED_MAX {
            let shown: String = rule.chars().take(SHOWN_CHARS_MAX).collect();
            self.skipped.insert(format!("rule left out, {reason}: {}", shown.escape_debug()));
        }
    }
}

/// Ports from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    pub first: NonZeroU16,
    pub last: NonZeroU16,
}

impl Ports {
    /// Both ends, in order.
    pub fn new(first: u64, last: u64) -> Option<Ports> {
        let port = |number| u16::try_from(number).ok().and_then(NonZeroU16::new);
        let ports = Ports { first: port(first)?, last: port(last)? };
        (ports.first <= ports.last).then_some(ports)
    }

    /// Reads `8000` or, with that separator, `8000:8010`.
    pub fn parse(text: &str, separator: char) -> Option<Ports> {
        let (first, last) = text.split_once(separator).unwrap_or((text, text));
        Ports::new(first.parse().ok()?, last.parse().ok()?)
    }

    fn size(self) -> u16 {
        // Both are at least 1, so this is 65535 at most.
        self.last.get() - self.first.get() + 1
    }

    fn at(self, offset: u16) -> Option<NonZeroU16> {
        self.first.checked_add(offset % self.size())
    }
}

/// Where a rule sends what it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Destination {
    pub address: IpAddr,
    /// None: the port stays.
    pub ports: Option<Ports>,
    /// The matched port that the first of `ports` is for. Without it: the first that is matched.
    pub base: Option<u16>,
}

/// A rule that changes a destination, understood as a whole.
#[derive(Debug)]
pub(super) struct Rule<'a> {
    /// The container's id, or the chain.
    pub name: &'a str,
    /// Podman wrote it.
    pub podman: bool,
    pub protocol: Protocol,
    /// None: every address of the machine.
    pub host_ip: Option<IpAddr>,
    /// At least one range.
    pub ports: Vec<Ports>,
    pub to: Destination,
}

/// Adds rules to a view, up to [`BINDINGS_MAX`].
#[derive(Default)]
pub(super) struct Builder {
    pub view: View,
    added: usize,
}

impl Builder {
    /// Adds what a rule publishes.
    pub fn add(&mut self, rule: &Rule<'_>, shown: impl FnOnce() -> String) -> Result<(), ParseError> {
        self.added += rule.ports.iter().map(|ports| usize::from(ports.size())).sum::<usize>();
        if self.added > BINDINGS_MAX {
            return Err(ParseError::TooMany { what: "published ports", max: BINDINGS_MAX });
        }
        match bindings(rule) {
            Ok(bindings) => {
                let prefix = if rule.podman { PODMAN } else { "" };
                let key: Arc<str> = format!("{prefix}{} {}", printable(rule.name), rule.to.address).into();
                let target = Target { address: rule.to.address, bindings: Bindings::new() };
                self.view.targets.entry(key).or_insert(target).bindings.extend(bindings);
            }
            Err(reason) => self.view.leave_out(reason, &shown()),
        }
        Ok(())
    }
}

fn bindings(rule: &Rule<'_>) -> Result<Bindings, &'static str> {
    let host_ip = match (rule.host_ip.map(|ip| ip.to_canonical()), rule.to.address) {
        (None, IpAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
        (None, IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        // As a destination it is that address alone, in a binding it would be all of them.
        (Some(ip), _) if ip.is_unspecified() => return Err("its destination is no address of a machine"),
        (Some(ip), to) if ip.is_ipv4() != to.is_ipv4() => return Err("its addresses are of two families"),
        (Some(ip), _) => ip,
    };
    let mut bindings = Bindings::new();
    let all = || rule.ports.iter().flat_map(|ports| ports.first.get()..=ports.last.get());
    let base = rule.to.base.or(all().next()).unwrap_or_default();
    for host_port in all().filter_map(NonZeroU16::new) {
        let inside = match rule.to.ports {
            None => Some(host_port),
            Some(ports) => host_port.get().checked_sub(base).and_then(|offset| ports.at(offset)),
        };
        let inside = inside.ok_or("its ports begin before their base")?;
        bindings.insert(Binding { protocol: rule.protocol, host_ip, host_port }, inside);
    }
    Ok(bindings)
}

/// What may be shown anywhere, of bounded length.
fn printable(name: &str) -> String {
    name.chars().take(NAME_CHARS_MAX).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
}
