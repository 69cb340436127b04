//! What a guest may ask for: which addresses and ports of the host may be bound, and which addresses of the guest may be
//! connected to. Pure: rules and questions in, answers out.
//!
//! A rule for what may be bound is `ADDR[/PREFIX]:PORT[-PORT]`, an IPv6 one `[ADDR[/PREFIX]]:PORT[-PORT]`; one for what
//! may be connected to is `ADDR[/PREFIX]`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::cidr::Cidr;
use crate::port::Binding;
use crate::wire::port_mapping::ConnectAddr;

/// What may be bound when no rule is given.
pub const ALLOW_DEFAULT: [&str; 2] = ["127.0.0.0/8:1024-65535", "[::1]:1024-65535"];

/// Below it, the kernel asks for a privilege.
const UNPRIVILEGED_PORTS_FIRST: u16 = 1024;

/// Reads `ADDR[/PREFIX]`. An IPv4 address is to be written as one, or a rule for it would never match.
pub fn parse_cidr(text: &str) -> Result<Cidr, String> {
    let cidr = Cidr::parse(text).ok_or("use ADDR[/PREFIX], as in 192.168.0.0/16 or fd00::/8")?;
    match cidr.ip() {
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => Err("write an IPv4 address as such".to_owned()),
        IpAddr::V4(_) | IpAddr::V6(_) => Ok(cidr),
    }
}

/// Addresses and ports of the host that may be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowRule {
    net: Cidr,
    ports: RangeInclusive<u16>,
}

impl AllowRule {
    /// Whether the binding is covered. Every address at once (`0.0.0.0`, `::`) is covered only by a rule for just that
    /// address, or for the whole family: a rule for some addresses must not open the others.
    pub fn covers(&self, binding: &Binding) -> bool {
        let ip = binding.host_ip;
        let wide_enough = !ip.is_unspecified() || self.net.is_single() || self.net.prefix() == 0;
        wide_enough && self.net.contains(ip) && self.ports.contains(&binding.host_port.get())
    }
}

impl FromStr for AllowRule {
    type Err = String;

    fn from_str(text: &str) -> Result<AllowRule, String> {
        const WANTED: &str = "use ADDR[/PREFIX]:PORT[-PORT], with an IPv6 ADDR[/PREFIX] in brackets";
        let (net, ports) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once("]:").ok_or(WANTED)?,
            None => text.split_once(':').ok_or(WANTED)?,
        };
        let net = parse_cidr(net).map_err(|e| format!("{e}; {WANTED}"))?;
        if net.ip().is_ipv6() != text.starts_with('[') {
            return Err(WANTED.to_owned());
        }
        let (low, high) = ports.split_once('-').unwrap_or((ports, ports));
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or("ports are from 1 to 65535");
        let (low, high) = (port(low)?, port(high)?);
        if low > high {
            return Err("the first port is above the last".to_owned());
        }
        Ok(AllowRule { net, ports: low..=high })
    }
}

/// The rules of one host end.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// What may be bound: any of these.
    pub allow: Vec<AllowRule>,
    /// What may be connected to: any of these, but the host itself only by a rule for just that address, or for loopback.
    /// Empty: any unicast address that cannot be the host itself.
    pub connect: Vec<Cidr>,
    /// Connected to in place of what documents name. The operator's word: not checked against `connect`.
    pub connect_v4: Option<Ipv4Addr>,
    /// As `connect_v4`, for IPv6.
    pub connect_v6: Option<Ipv6Addr>,
}

/// Why a binding is not to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No rule allows this to be bound.
    NotAllowed(SocketAddr),
    /// The address to connect to is not allowed.
    ConnectDenied(IpAddr),
    /// It would connect to its own listener.
    Itself,
    /// There is no address of its family to connect to.
    NoAddress,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotAllowed(addr) => write!(f, "no rule allows it to be bound; --allow {addr} would"),
            Refusal::ConnectDenied(ip) => write!(f, "no rule allows connecting to {ip}; --connect {ip} would"),
            Refusal::Itself => f.write_str("it would connect to itself"),
            Refusal::NoAddress => f.write_str(
                "the guest named no address of this family to connect to; --connect-address IP would set one",
            ),
        }
    }
}

impl Policy {
    /// Whether a port may be bound that only the privileged can bind.
    pub fn allows_privileged(&self) -> bool {
        self.allow.iter().any(|rule| *rule.ports.start() < UNPRIVILEGED_PORTS_FIRST)
    }

    /// Where a binding's connections go: the first acceptable address of its family, and its own port. `is_own` tells
    /// the host's own addresses.
    pub fn target(
        &self,
        binding: &Binding,
        named: &[ConnectAddr],
        is_own: impl Fn(IpAddr) -> bool,
    ) -> Result<SocketAddr, Refusal> {
        if !self.allow.iter().any(|rule| rule.covers(binding)) {
            return Err(Refusal::NotAllowed(binding.socket_addr()));
        }
        let fixed = match binding.host_ip {
            IpAddr::V4(_) => self.connect_v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.connect_v6.map(IpAddr::V6),
        };
        let ip = match fixed {
            Some(ip) => ip,
            None => self.choose(binding, named, is_own)?,
        };
        if ip == binding.host_ip || (binding.host_ip.is_unspecified() && ip.is_loopback()) {
            return Err(Refusal::Itself);
        }
        Ok(SocketAddr::new(ip, binding.host_port.get()))
    }

    fn choose(
        &self,
        binding: &Binding,
        named: &[ConnectAddr],
        is_own: impl Fn(IpAddr) -> bool,
    ) -> Result<IpAddr, Refusal> {
        let mut refusal = Refusal::NoAddress;
        for ip in named.iter().map(|addr| addr.ip) {
            if ip.is_ipv4() != binding.host_ip.is_ipv4() {
                continue;
            }
            let covers = |net: &Cidr| net.contains(ip) && (names_the_host(net) || !(ip.is_loopback() || is_own(ip)));
            let usable = if self.connect.is_empty() {
                !(ip.is_loopback() || is_link_local(ip) || is_own(ip))
            } else {
                self.connect.iter().any(covers)
            };
            if usable && is_one_machine(ip) {
                return Ok(ip);
            }
            // A link-local address is on every interface: no reason to speak of it when it is passed over.
            if refusal == Refusal::NoAddress && !is_link_local(ip) {
                refusal = Refusal::ConnectDenied(ip);
            }
        }
        Err(refusal)
    }
}

/// Whether a rule speaks of the host's own addresses: it is for just one, or for loopback. A rule for the network that
/// a guest shares with the host must not open the host.
fn names_the_host(net: &Cidr) -> bool {
    net.is_single() || (net.ip().is_loopback() && net.prefix() >= 8)
}

/// Whether the address can be that of one machine. Connecting to 0.0.0.0 or :: would reach this host.
fn is_one_machine(ip: IpAddr) -> bool {
    let other = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast() || v4.octets().starts_with(&[0]));
    !(other || ip.is_unspecified() || ip.is_multicast())
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Protocol;

    fn binding(addr: &str) -> Binding {
        let addr: SocketAddr = addr.parse().unwrap();
        Binding { protocol: Protocol::Tcp, host_ip: addr.ip(), host_port: addr.port().try_into().unwrap() }
    }

    fn allows(rule: &str, addr: &str) -> bool {
        rule.parse::<AllowRule>().unwrap().covers(&binding(addr))
    }

    #[test]
    fn allow_rules_cover_what_they_say() {
        assert!(allows("127.0.0.0/8:1024-65535", "127.255.0.1:1024"));
        assert!(!allows("127.0.0.0/8:1024-65535", "127.0.0.1:1023"));
        assert!(!allows("127.0.0.0/8:1024-65535", "128.0.0.1:8080"));
        assert!(allows("192.168.1.5:80", "192.168.1.5:80") && !allows("192.168.1.5:80", "192.168.1.5:81"));
        assert!(allows("[fd00::/64]:80", "[fd00::1]:80") && !allows("[fd00::/64]:80", "[fd00:0:0:1::1]:80"));
        assert!(allows("[::1]:1-65535", "[::1]:1") && !allows("[::1]:1-65535", "127.0.0.1:1"));
    }

    #[test]
    fn every_address_at_once_needs_a_rule_that_says_so() {
        assert!(allows("0.0.0.0:80", "0.0.0.0:80") && allows("0.0.0.0/0:80", "0.0.0.0:80"));
        assert!(allows("[::]:80", "[::]:80") && allows("[::/0]:80", "[::]:80"));
        assert!(!allows("0.0.0.0/8:80", "0.0.0.0:80") && !allows("[::/1]:80", "[::]:80"));
        assert!(allows("0.0.0.0/0:80", "10.1.2.3:80") && !allows("0.0.0.0:80", "10.1.2.3:80"));
        assert!(!allows("0.0.0.0/0:80", "[::]:80"));
    }

    #[test]
    fn bad_rules_are_refused() {
        for bad in [
            "",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:0",
            "127.0.0.1:65536",
            "127.0.0.1:9-8",
            "127.0.0.0/33:80",
            "::1:80",
            "[::1]",
            "[::1]80",
            "[127.0.0.1]:80",
            "[::1/129]:80",
            "localhost:80",
            "127.0.0.1:1-2-3",
            "[::ffff:1.2.3.4]:80",
        ] {
            assert!(bad.parse::<AllowRule>().is_err(), "{bad}");
        }
    }

    fn target(policy: &Policy, addr: &str, named: &[&str]) -> Result<SocketAddr, Refusal> {
        let named: Vec<_> = named.iter().map(|ip| ConnectAddr { ip: ip.parse().unwrap(), prefix: 24 }).collect();
        policy.target(&binding(addr), &named, |ip| ip.to_string() == "192.168.1.9")
    }

    fn not_allowed(addr: &str) -> Result<SocketAddr, Refusal> {
        Err(Refusal::NotAllowed(addr.parse().unwrap()))
    }

    fn default_policy() -> Policy {
        Policy { allow: ALLOW_DEFAULT.map(|rule| rule.parse().unwrap()).into(), ..Policy::default() }
    }

    #[test]
    fn connects_to_the_first_usable_address_of_the_family() {
        let policy = default_policy();
        let named = ["fe80::1", "169.254.1.1", "10.0.0.2", "10.0.0.3", "fd00::2"];
        assert_eq!(target(&policy, "127.0.0.1:8080", &named).unwrap().to_string(), "10.0.0.2:8080");
        assert_eq!(target(&policy, "[::1]:8080", &named).unwrap().to_string(), "[fd00::2]:8080");
        assert_eq!(target(&policy, "127.0.0.1:8080", &["fd00::2"]), Err(Refusal::NoAddress));
        assert_eq!(target(&policy, "[::1]:8080", &["fe80::1"]), Err(Refusal::NoAddress));
        assert_eq!(target(&policy, "0.0.0.0:8080", &named), not_allowed("0.0.0.0:8080"));
        assert_eq!(target(&policy, "127.0.0.1:80", &named), not_allowed("127.0.0.1:80"));
    }

    #[test]
    fn by_default_the_host_cannot_be_pointed_at_itself() {
        let policy = default_policy();
        for ip in ["127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "224.0.0.1", "255.255.255.255", "192.168.1.9"] {
            assert_eq!(target(&policy, "127.0.0.1:8080", &[ip]), Err(Refusal::ConnectDenied(ip.parse().unwrap())));
        }
        for ip in ["::", "::1", "ff02::1"] {
            assert_eq!(target(&policy, "[::1]:8080", &[ip]), Err(Refusal::ConnectDenied(ip.parse().unwrap())));
        }
        let fixed = Policy { connect_v4: Some(Ipv4Addr::LOCALHOST), ..default_policy() };
        assert_eq!(target(&fixed, "127.0.0.1:8080", &["10.0.0.2"]), Err(Refusal::Itself));
    }

    #[test]
    fn a_wide_connect_rule_does_not_point_the_host_at_itself_either() {
        let ruled = |rule: &str| Policy { connect: vec![parse_cidr(rule).unwrap()], ..default_policy() };
        for (rule, ip) in [
            ("192.168.1.0/24", "192.168.1.9"),
            ("0.0.0.0/0", "127.0.0.2"),
            ("0.0.0.0/0", "0.0.0.0"),
            ("0.0.0.0/7", "0.1.2.3"),
            ("127.0.0.1", "0.0.0.0"),
        ] {
            let denied = Err(Refusal::ConnectDenied(ip.parse().unwrap()));
            assert_eq!(target(&ruled(rule), "127.0.0.1:8080", &[ip]), denied, "{rule}");
        }
        assert!(target(&ruled("::/0"), "[::1]:8080", &["::1"]).is_err());
        assert!(target(&ruled("192.168.1.9"), "127.0.0.1:8080", &["192.168.1.9"]).is_ok(), "asked for by name");
        assert!(target(&ruled("127.0.0.2/31"), "127.0.0.1:8080", &["127.0.0.3"]).is_ok(), "asked for by name");
        let named = ["192.168.1.9", "192.168.1.10"];
        assert_eq!(
            target(&ruled("192.168.1.0/24"), "127.0.0.1:8080", &named).unwrap().to_string(),
            "192.168.1.10:8080"
        );
    }

    #[test]
    fn connect_rules_and_fixed_addresses() {
        let ruled = Policy { connect: vec![parse_cidr("127.0.0.0/8").unwrap()], ..default_policy() };
        assert_eq!(target(&ruled, "127.0.0.1:81", &["127.0.0.2"]), not_allowed("127.0.0.1:81"));
        assert_eq!(target(&ruled, "127.0.0.1:8081", &["10.0.0.2", "127.0.0.2"]).unwrap().to_string(), "127.0.0.2:8081");
        let denied = Refusal::ConnectDenied("10.0.0.2".parse().unwrap());
        assert_eq!(target(&ruled, "127.0.0.1:8081", &["10.0.0.2"]), Err(denied));
        let fixed = Policy { connect_v4: Some(Ipv4Addr::new(172, 16, 0, 2)), ..default_policy() };
        assert_eq!(target(&fixed, "127.0.0.1:8081", &["10.0.0.2"]).unwrap().to_string(), "172.16.0.2:8081");
        assert_eq!(target(&fixed, "[::1]:8081", &["fd00::2"]).unwrap().to_string(), "[fd00::2]:8081");
    }
}
