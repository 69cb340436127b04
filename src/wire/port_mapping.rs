//! PortMapping: the document that the Privileged Service, wsl-proxy and `rancher-desktop-hostagent` take.
//!
//! One JSON document per connection, then close; no reply. The bytes are those that Go's `encoding/json` writes for
//! Rancher Desktop's `types.PortMapping`: fields in declaration order, map keys sorted as strings, one newline behind.
//! Source of the format: rancher-desktop-agent `pkg/types`, Docker's `nat.PortMap`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use crate::event::Operation;
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
    let mut ports: BTreeMap<String, Vec<&Binding>> = BTreeMap::new();
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
