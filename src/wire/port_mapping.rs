//! PortMapping: the document that the Privileged Service, wsl-proxy and `rancher-desktop-hostagent` take.
//!
//! One JSON document per connection, then close; no reply. The bytes are those that Go's `encoding/json` writes for
//! Rancher Desktop's `types.PortMapping`: fields in declaration order, map keys sorted as strings, one newline behind.
//! Source of the format: rancher-desktop-agent `pkg/types`, Docker's `nat.PortMap`.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::event::Operation;
use crate::ordered::Map;
use crate::port::{Binding, Bindings};

/// The largest document that is written or accepted, in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;

/// Bindings in one document at most: the longest possible entry takes 96 bytes, so this many always fit
/// [`DOCUMENT_BYTES_MAX`].
pub const DOCUMENT_BINDINGS_MAX: usize = 8192;

/// An address of the guest's interface with the length of its network prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectAddr {
    /// The address that the host connects to.
    pub ip: IpAddr,
    /// Bits of the network prefix, at most 32 or 128.
    pub prefix: u8,
}

/// Writes a document, its newline included. `connect` is `None` where the peer wants `null` (wsl-proxy).
pub fn encode(operation: Operation, bindings: &Bindings, connect: Option<&[ConnectAddr]>) -> Vec<u8> {
    let mut ports: Map<String, Vec<&Binding>> = Map::new();
    for (binding, container_port) in bindings {
        ports.entry(format!("{container_port}/{}", binding.protocol)).or_default().push(binding);
    }
    let remove = match operation {
        Operation::Announce => false,
        Operation::Withdraw => true,
    };
    let mut text = format!("{{\"remove\":{remove},\"ports\":{{");
    for (i, (key, values)) in ports.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(text, "{comma}\"{key}\":[");
        for (i, b) in values.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let _ = write!(text, "{comma}{{\"HostIp\":\"{}\",\"HostPort\":\"{}\"}}", b.host_ip, b.host_port);
        }
        text.push(']');
    }
    text.push_str("},\"connectAddrs\":");
    match connect {
        None => text.push_str("null"),
        Some(addrs) => {
            text.push('[');
            for (i, a) in addrs.iter().enumerate() {
                let comma = if i == 0 { "" } else { "," };
                let _ = write!(text, "{comma}{{\"network\":\"ip+net\",\"addr\":\"{}/{}\"}}", a.ip, a.prefix);
            }
            text.push(']');
        }
    }
    text.push_str("}\n");
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Protocol;

    fn bindings(entries: &[(Protocol, &str, u16, u16)]) -> Bindings {
        let port = |number| std::num::NonZeroU16::new(number).unwrap();
        let binding = |e: &(Protocol, &str, u16, u16)| {
            (Binding { protocol: e.0, host_ip: e.1.parse().unwrap(), host_port: port(e.2) }, port(e.3))
        };
        entries.iter().map(binding).collect()
    }

    /// Golden documents: the bytes that Go's encoder writes, keys sorted as strings ("80/tcp" before "8080/tcp").
    #[test]
    fn writes_what_go_writes() {
        use Protocol::{Tcp, Udp};
        let eth0 = [
            ConnectAddr { ip: "172.26.0.2".parse().unwrap(), prefix: 20 },
            ConnectAddr { ip: "fe80::215:5dff:fe00:1".parse().unwrap(), prefix: 64 },
        ];
        let one = bindings(&[(Tcp, "0.0.0.0", 8080, 80)]);
        let many = bindings(&[
            (Tcp, "0.0.0.0", 80, 8080),
            (Tcp, "::", 80, 8080),
            (Tcp, "127.0.0.1", 8443, 80),
            (Tcp, "::1", 8443, 80),
            (Udp, "0.0.0.0", 5353, 53),
        ]);
        let written = |operation, bindings, connect| String::from_utf8(encode(operation, bindings, connect)).unwrap();
        assert_eq!(
            written(Operation::Announce, &one, Some(&eth0[..1])),
            concat!(
                r#"{"remove":false,"ports":{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"}]},"#,
                r#""connectAddrs":[{"network":"ip+net","addr":"172.26.0.2/20"}]}"#,
                "\n"
            )
        );
        assert_eq!(
            written(Operation::Withdraw, &many, Some(&eth0)),
            concat!(
                r#"{"remove":true,"ports":{"53/udp":[{"HostIp":"0.0.0.0","HostPort":"5353"}],"#,
                r#""80/tcp":[{"HostIp":"127.0.0.1","HostPort":"8443"},{"HostIp":"::1","HostPort":"8443"}],"#,
                r#""8080/tcp":[{"HostIp":"0.0.0.0","HostPort":"80"},{"HostIp":"::","HostPort":"80"}]},"#,
                r#""connectAddrs":[{"network":"ip+net","addr":"172.26.0.2/20"},"#,
                r#"{"network":"ip+net","addr":"fe80::215:5dff:fe00:1/64"}]}"#,
                "\n"
            )
        );
        assert_eq!(
            written(Operation::Announce, &one, None),
            "{\"remove\":false,\"ports\":{\"80/tcp\":[{\"HostIp\":\"0.0.0.0\",\"HostPort\":\"8080\"}]},\"connectAddrs\":null}\n"
        );
        // What wsl-proxy is told of the Kubernetes API server.
        assert_eq!(
            written(Operation::Announce, &bindings(&[(Tcp, "127.0.0.1", 6443, 6443)]), None),
            concat!(
                r#"{"remove":false,"ports":{"6443/tcp":[{"HostIp":"127.0.0.1","HostPort":"6443"}]},"connectAddrs":null}"#,
                "\n"
            )
        );
    }

    #[test]
    fn the_largest_document_is_within_the_limit() {
        let ip: IpAddr = "1111:2222:3333:4444:5555:6666:7777:8888".parse().unwrap();
        let first = 65_536 - DOCUMENT_BINDINGS_MAX;
        let all: Vec<_> = (first..65_536).map(|p| u16::try_from(p).unwrap()).collect();
        let text = ip.to_string();
        let entries: Vec<_> = all.iter().map(|p| (Protocol::Tcp, text.as_str(), *p, *p)).collect();
        let size = encode(Operation::Announce, &bindings(&entries), Some(&[])).len();
        assert!(size <= DOCUMENT_BYTES_MAX - 16 * 1024, "{size}");
    }
}
