//! The default gateways in `/proc/net/route` and `/proc/net/ipv6_route`.
//!
//! Source of the formats: the kernel's `net/ipv4/fib_trie.c` and `net/ipv6/route.c` (hex; IPv4 in host byte order).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The route goes through a gateway (`RTF_GATEWAY`).
const FLAG_GATEWAY: u32 = 2;

/// Gateways of the IPv4 default routes over `interface`. Lines that are not understood are passed over.
pub fn default_gateways_v4(text: &str, interface: &str) -> Vec<IpAddr> {
    let gateway = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [name, destination, gateway, flags, _, _, _, mask, ..] = fields.as_slice() else { return None };
        let hex = |field: &str| u32::from_str_radix(field, 16).ok();
        let default = hex(destination)? == 0 && hex(mask)? == 0 && hex(flags)? & FLAG_GATEWAY != 0;
        (default && *name == interface).then_some(())?;
        Some(IpAddr::V4(Ipv4Addr::from(hex(gateway)?.to_ne_bytes())))
    };
    text.lines().filter_map(gateway).collect()
}

/// Gateways of the IPv6 default routes over `interface`. Lines that are not understood are passed over.
pub fn default_gateways_v6(text: &str, interface: &str) -> Vec<IpAddr> {
    let gateway = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [destination, prefix, _, _, gateway, _, _, _, flags, name] = fields.as_slice() else { return None };
        let hex = |field: &str| u128::from_str_radix(field, 16).ok();
        let default = hex(destination)? == 0 && hex(prefix)? == 0 && hex(flags)? & u128::from(FLAG_GATEWAY) != 0;
        (default && *name == interface).then_some(())?;
        Some(IpAddr::V6(Ipv6Addr::from_bits(hex(gateway)?)))
    };
    text.lines().filter_map(gateway).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_default_gateways_of_the_interface_only() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t018FA8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
                  eth0\t008FA8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\ncut short\n";
        assert_eq!(default_gateways_v4(v4, "eth0"), ["192.168.143.1".parse::<IpAddr>().unwrap()]);
        let zero = "0".repeat(32);
        let v6 = format!(
            "{zero} 00 {zero} 00 fd000000000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\nnonsense\n"
        );
        assert_eq!(default_gateways_v6(&v6, "eth0"), ["fd00::1".parse::<IpAddr>().unwrap()]);
        assert_eq!(default_gateways_v6(&v6, "lo"), Vec::<IpAddr>::new());
    }
}
