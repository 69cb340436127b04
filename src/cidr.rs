//! A range of addresses, `ADDRESS[/PREFIX]`.

use std::fmt;
use std::net::IpAddr;

/// All addresses that share the first bits of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    ip: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Reads `192.168.0.0/16`, `fd00::/8`, or a single address. `None`: it is neither.
    pub fn parse(text: &str) -> Option<Cidr> {
        let (ip, prefix) = match text.split_once('/') {
            Some((ip, prefix)) => (ip.parse::<IpAddr>().ok()?, Some(prefix.parse::<u8>().ok()?)),
            None => (text.parse::<IpAddr>().ok()?, None),
        };
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        (prefix <= bits).then_some(Cidr { ip, prefix })
    }

    /// The address it was written with.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// How many first bits its addresses share.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether it is one address only.
    pub fn is_single(&self) -> bool {
        self.prefix == if self.ip.is_ipv4() { 32 } else { 128 }
    }

    /// Whether an address is in the range. Never across families.
    pub fn contains(&self, ip: IpAddr) -> bool {
        // Shifting by all bits is not defined, hence the checked shift: a prefix of 0 holds everything.
        match (self.ip, ip) {
            (IpAddr::V4(range), IpAddr::V4(ip)) => {
                let differing = range.to_bits() ^ ip.to_bits();
                differing.checked_shr(32 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V6(range), IpAddr::V6(ip)) => {
                let differing = range.to_bits() ^ ip.to_bits();
                differing.checked_shr(128 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contains_what_shares_the_prefix() {
        for (range, ip, expect) in [
            ("192.168.0.0/16", "192.168.255.1", true),
            ("192.168.0.0/16", "192.169.0.1", false),
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "fd00::1", true),
            ("fd00::/8", "fe80::1", false),
            ("::1", "::1", true),
        ] {
            assert_eq!(Cidr::parse(range).unwrap().contains(ip.parse().unwrap()), expect, "{range} {ip}");
        }
        for bad in ["", "10.0.0.0/33", "fd00::/129", "10.0.0.0/-1", "10.0.0/8", "x/8", "10.0.0.0/"] {
            assert!(Cidr::parse(bad).is_none(), "{bad}");
        }
    }
}
