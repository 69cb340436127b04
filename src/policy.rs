//! Where a published binding may appear on the host, and whether it may at all. Never wider than what the user published.
//!
//! | published on | with `-adminInstall` | without |
//! |---|---|---|
//! | a loopback address | that loopback address | that loopback address |
//! | every address (`0.0.0.0`, `::`) | every address | the loopback address of the family |
//! | one address of the guest | the loopback address of the family | the loopback address of the family |
//!
//! Rancher Desktop's own agent turns the last row into `0.0.0.0`, which exposes more than was asked for.
//!
//! Whether it may at all is for [`Rule`]s to say: the first that matches decides, and what none matches may. Those of the
//! command line come first, those of the rules file next, the agent's own last.

mod lines;

use std::fmt;

use crate::event::Source;
use crate::port::{Binding, Protocol, loopback_like};
pub use lines::{RULES_FILE_BYTES_MAX, RULES_MAX, RulesError, parse_rules};

/// What sockets that were only seen to listen are not published for: what the guest itself needs of its network (DHCP,
/// also of IPv6, chrony's commands, mDNS). Rules of the user come before these; containers are not concerned.
const GUEST_ONLY: [u16; 6] = [67, 68, 546, 547, 323, 5353];

/// How a rule is written, for those who got it wrong.
pub const RULE_FORM: &str = "PROTO/PORT[-PORT][@SOURCE] or *[@SOURCE]: tcp/8000-8999, udp/*, */22@sockets";

/// Allows or denies bindings. Its text is that of the command line: `tcp/8000-8999`, `udp/*`, `*/22@sockets`, `*`. One of
/// the rules file is shown with its line, but in the alternate form (`{:#}`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Allowed, or else denied.
    pub allow: bool,
    /// For this protocol; `None`: for both.
    pub protocol: Option<Protocol>,
    /// For the published ports from the first to the last of these.
    pub ports: (u16, u16),
    /// For what this source claims; `None`: for all of them. What is denied to a container, its socket does not get either.
    pub source: Option<Source>,
    /// It is the agent's own: what it denies is nothing that anybody asked for.
    pub built_in: bool,
    /// Its line in the rules file, from 1; `None`: it is of the command line, or the agent's own.
    pub line: Option<u32>,
}

/// Every port.
const ALL_PORTS: (u16, u16) = (1, u16::MAX);

impl Rule {
    /// Reads `PROTO/PORT[-PORT][@SOURCE]`, where `PROTO` and `PORT` may be `*`, or `*[@SOURCE]`.
    pub fn parse(text: &str, allow: bool) -> Option<Rule> {
        let (what, source) = match text.split_once('@') {
            Some((what, name)) => (what, Some(*Source::ALL.iter().find(|source| source.as_str() == name)?)),
            None => (text, None),
        };
        let (protocol, ports) = match what {
            "*" => (None, ALL_PORTS),
            _ => {
                let (protocol, ports) = what.split_once('/')?;
                (if protocol == "*" { None } else { Some(Protocol::parse(protocol)?) }, parse_ports(ports)?)
            }
        };
        Some(Rule { allow, protocol, ports, source, built_in: false, line: None })
    }

    /// A rule of the agent's own, about sockets that were only seen to listen.
    pub fn not_sockets(protocol: Protocol, ports: (u16, u16)) -> Rule {
        let source = Some(Source::Sockets);
        Rule { allow: false, protocol: Some(protocol), ports, source, built_in: true, line: None }
    }

    fn matches(&self, source: Source, binding: Binding) -> bool {
        let (first, last) = self.ports;
        self.source.is_none_or(|s| s == source)
            && self.protocol.is_none_or(|p| p == binding.protocol)
            && (first..=last).contains(&binding.host_port.get())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.allow { "allow " } else { "deny " };
        write!(f, "{}{verb}", if self.line.is_none() { "--" } else { "" })?;
        let protocol = self.protocol.map_or("*", Protocol::as_str);
        match self.ports {
            ALL_PORTS if self.protocol.is_none() => f.write_str("*"),
            ALL_PORTS => write!(f, "{protocol}/*"),
            (first, last) if first == last => write!(f, "{protocol}/{first}"),
            (first, last) => write!(f, "{protocol}/{first}-{last}"),
        }?;
        self.source.map_or(Ok(()), |source| write!(f, "@{source}"))?;
        let line = self.line.filter(|_| !f.alternate());
        line.map_or(Ok(()), |line| write!(f, " (rules file, line {line})"))
    }
}

fn parse_ports(text: &str) -> Option<(u16, u16)> {
    if text == "*" {
        return Some(ALL_PORTS);
    }
    let port = |text: &str| text.parse().ok().filter(|port| *port != 0 && text.bytes().all(|b| b.is_ascii_digit()));
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((port(first)?, port(last)?)).filter(|(first, last)| first <= last)
}

/// The exposure policy of one run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// The host end runs with admin rights (`-adminInstall`), and so may bind every address.
    pub admin: bool,
    /// What may be published at all: the first that matches.
    pub rules: Vec<Rule>,
}

impl Policy {
    /// A policy with the user's rules, and behind them what no guest publishes of itself.
    pub fn new(admin: bool, mut rules: Vec<Rule>) -> Policy {
        rules.extend(GUEST_ONLY.map(|port| Rule::not_sockets(Protocol::Udp, (port, port))));
        Policy { admin, rules }
    }

    /// The same with these rules of the rules file in place of those it had.
    pub fn with_file_rules(&self, rules: Vec<Rule>) -> Policy {
        let (mut all, built_in): (Vec<Rule>, Vec<Rule>) =
            self.rules.iter().filter(|rule| rule.line.is_none()).partition(|rule| !rule.built_in);
        all.extend(rules);
        all.extend(built_in);
        Policy { admin: self.admin, rules: all }
    }

    /// The rule that decides, if any does: without one it may be published.
    pub fn deciding(&self, source: Source, published: Binding) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.matches(source, published))
    }

    /// The rule that denies it, if one does.
    pub fn denial(&self, source: Source, published: Binding) -> Option<&Rule> {
        self.deciding(source, published).filter(|rule| !rule.allow)
    }

    /// The binding as the host is to bind it.
    pub fn expose(&self, published: Binding) -> Binding {
        let keep = published.is_loopback() || (self.admin && published.host_ip.is_unspecified());
        if keep { published } else { published.on(loopback_like(published.host_ip)) }
    }

    /// Whether the user named one address of the guest, which means nothing on the host.
    pub fn narrows(&self, published: Binding) -> bool {
        !published.is_loopback() && !published.host_ip.is_unspecified()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(protocol: Protocol, port: u16) -> Binding {
        let host_port = std::num::NonZeroU16::new(port).unwrap();
        Binding { protocol, host_ip: "0.0.0.0".parse().unwrap(), host_port }
    }

    #[test]
    fn rules_are_read_and_shown() {
        for text in ["tcp/8000-8999", "udp/*", "tcp/80", "*/22", "*", "*@docker", "*/22@sockets", "udp/1-2@nat"] {
            let rule = Rule::parse(text, false).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(rule.to_string(), format!("--deny {text}"));
            assert_eq!(Rule::parse(text, true).unwrap().to_string(), format!("--allow {text}"));
        }
        assert_eq!(Rule::parse("*/*", false), Rule::parse("*", false));
        for bad in [
            "",
            "tcp",
            "tcp/",
            "sctp/1",
            "tcp/0",
            "tcp/65536",
            "tcp/2-1",
            "tcp/+1",
            "tcp/1-",
            "/1",
            "TCP/1",
            "tcp/1@",
            "tcp/1@nobody",
            "tcp/1@agent",
            "tcp/1,2",
            " *",
            "**",
        ] {
            assert_eq!(Rule::parse(bad, false), None, "{bad}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rule = |allow: bool, text: &str| Rule::parse(text, allow).unwrap();
        let rules =
            vec![rule(true, "tcp/8080"), rule(false, "tcp/8000-8999"), rule(true, "udp/323"), rule(false, "*@nat")];
        let policy = Policy::new(true, rules);
        let denied = |source, binding| policy.denial(source, binding).map(ToString::to_string);
        assert_eq!(denied(Source::Nat, binding(Protocol::Tcp, 8080)), None, "allowed before it is denied");
        assert_eq!(denied(Source::Docker, binding(Protocol::Tcp, 8081)), Some("--deny tcp/8000-8999".into()));
        assert_eq!(denied(Source::Docker, binding(Protocol::Udp, 8081)), None);
        assert_eq!(denied(Source::Nat, binding(Protocol::Udp, 8081)), Some("--deny *@nat".into()));
        assert_eq!(denied(Source::Sockets, binding(Protocol::Udp, 323)), None, "the user's rules come first");
    }

    #[test]
    fn rules_of_the_file_are_between_those_of_the_command_line_and_the_agents_own() {
        let mut policy = Policy::new(true, vec![Rule::parse("tcp/22", true).unwrap()]);
        policy.rules.push(Rule::not_sockets(Protocol::Tcp, (6443, 6443)));
        let without = policy.clone();
        for text in ["deny tcp/22\ndeny tcp/23\nallow udp/67", "deny tcp/22\nallow udp/67\ndeny tcp/23"] {
            policy = policy.with_file_rules(parse_rules(text).unwrap());
            assert_eq!(policy.rules.len(), without.rules.len() + 3, "the file's rules were added to the ones before");
            let decided =
                |source, protocol, port| policy.deciding(source, binding(protocol, port)).map(|r| (r.allow, r.line));
            assert_eq!(decided(Source::Docker, Protocol::Tcp, 22), Some((true, None)));
            assert!(matches!(decided(Source::Docker, Protocol::Tcp, 23), Some((false, Some(2 | 3)))));
            assert!(matches!(decided(Source::Sockets, Protocol::Udp, 67), Some((true, Some(2 | 3)))));
            assert_eq!(decided(Source::Sockets, Protocol::Udp, 68), Some((false, None)));
            assert_eq!(decided(Source::Docker, Protocol::Udp, 68), None);
        }
        assert_eq!(policy.with_file_rules(Vec::new()), without);
    }

    #[test]
    fn s18_what_the_guest_needs_itself_is_never_announced() {
        let policy = Policy::new(true, Vec::new());
        for port in [67, 68, 546, 547, 323, 5353] {
            let denial = policy.denial(Source::Sockets, binding(Protocol::Udp, port));
            assert!(denial.is_some_and(|rule| rule.built_in), "{port}");
            assert_eq!(policy.denial(Source::Docker, binding(Protocol::Udp, port)), None, "a container's is its own");
            assert_eq!(policy.denial(Source::Sockets, binding(Protocol::Tcp, port)), None);
        }
        assert_eq!(policy.denial(Source::Sockets, binding(Protocol::Udp, 53)), None);
    }

    #[test]
    fn s19_everything_can_be_denied() {
        let policy = Policy::new(true, vec![Rule::parse("*", false).unwrap()]);
        for source in Source::ALL.iter().chain([&Source::Agent]) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for port in [1, 80, 65_535] {
                    assert!(policy.denial(*source, binding(protocol, port)).is_some(), "{source} {port}");
                }
            }
        }
    }

    #[test]
    fn s12_never_widens() {
        let port = std::num::NonZeroU16::new(80).unwrap();
        for (published, admin, exposed) in [
            ("127.0.0.1", true, "127.0.0.1"),
            ("127.0.0.1", false, "127.0.0.1"),
            ("127.1.2.3", true, "127.1.2.3"),
            ("::1", true, "::1"),
            ("0.0.0.0", true, "0.0.0.0"),
            ("0.0.0.0", false, "127.0.0.1"),
            ("::", true, "::"),
            ("::", false, "::1"),
            ("192.168.1.5", true, "127.0.0.1"),
            ("fd00::5", true, "::1"),
        ] {
            let binding = Binding { protocol: Protocol::Tcp, host_ip: published.parse().unwrap(), host_port: port };
            let got = Policy { admin, rules: Vec::new() }.expose(binding);
            assert_eq!(got, binding.on(exposed.parse().unwrap()), "{published} admin={admin}");
        }
    }
}
