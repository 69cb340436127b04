//! PortMapping documents as they arrive at the host end: bytes of an untrusted guest in, typed bindings out.
//!
//! The format is that of [`encode`](crate::wire::port_mapping::encode); Docker's own data is let through as well (null
//! or empty lists, an empty `HostIp`). Total: any bytes give a value or an error, never a panic. Strict: what is not
//! spelled the one canonical way is refused, so that an address or port reads the same to every program it passes. One
//! bad entry does not lose the others. Unknown fields are ignored. Never opens, connects or logs anything, and no text
//! of the guest's is passed on without being escaped and cut.

use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::event::Operation;
use crate::port::{Binding, Bindings, Protocol};
use crate::wire::port_mapping::{ConnectAddr, DOCUMENT_BYTES_MAX};

/// Entries, good or bad, that one document may hold under `ports`. More than any agent writes.
pub const DOCUMENT_ENTRIES_MAX: usize = 16_384;
/// Addresses that one document may hold under `connectAddrs`.
pub const CONNECT_ADDRS_MAX: usize = 64;
/// Braces that one document may open: itself, "ports", and an object for each entry and address.
const OBJECTS_MAX: usize = 2 + DOCUMENT_ENTRIES_MAX + CONNECT_ADDRS_MAX;
/// Commas in one document: each entry or address has its fields, and is one more, perhaps under a key of its own.
const COMMAS_MAX: usize = 4 * OBJECTS_MAX;
/// Refused entries whose reasons are kept; the rest is only counted.
pub const REFUSED_SHOWN_MAX: usize = 8;
/// Characters of a guest's text that are shown.
pub const SHOWN_CHARS_MAX: usize = 48;

/// A document, as far as it could be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Whether the forwards are to be opened or closed.
    pub operation: Operation,
    /// The bindings that are well-formed.
    pub ports: Bindings,
    /// The guest's addresses that are well-formed; `None` where the document has none (null).
    pub connect: Option<Vec<ConnectAddr>>,
    /// Why entries were left out: the first [`REFUSED_SHOWN_MAX`], safe to show.
    pub refused: Vec<String>,
    /// How many entries were left out.
    pub refused_count: usize,
}

/// Why nothing of a document could be used. Safe to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// It has more than [`DOCUMENT_BYTES_MAX`] bytes.
    TooLarge,
    /// It is not one JSON value, and nothing else.
    Json(String),
    /// This part is not of the type it must be.
    Shape(&'static str),
    /// It has more than [`DOCUMENT_ENTRIES_MAX`] entries or [`CONNECT_ADDRS_MAX`] addresses, or parts for them.
    TooMany(&'static str),
}

impl Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::TooLarge => write!(f, "larger than {DOCUMENT_BYTES_MAX} bytes"),
            DecodeError::Json(reason) => write!(f, "not a JSON document: {reason}"),
            DecodeError::Shape(what) => write!(f, "{what}"),
            DecodeError::TooMany(what) => write!(f, "too many entries in {what}"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Reads one document. White space around it is taken, anything else behind it is refused.
pub fn decode(bytes: &[u8]) -> Result<Request, DecodeError> {
    if bytes.len() > DOCUMENT_BYTES_MAX {
        return Err(DecodeError::TooLarge);
    }
    // Parsed, two bytes of a document can take some hundred bytes of memory: what is more than could be meant is not.
    let count = |mark| bytes.iter().filter(|byte| **byte == mark).count();
    if count(b'{') > OBJECTS_MAX || count(b',') > COMMAS_MAX {
        return Err(DecodeError::TooMany("the document"));
    }
    let value: Value = serde_json::from_slice(bytes).map_err(|e| DecodeError::Json(shown(&e.to_string())))?;
    let document = value.as_object().ok_or(DecodeError::Shape("the document is not an object"))?;
    let operation = match present(document, "remove") {
        None | Some(Value::Bool(false)) => Operation::Announce,
        Some(Value::Bool(true)) => Operation::Withdraw,
        Some(_) => return Err(DecodeError::Shape("\"remove\" is not a boolean")),
    };
    let mut request =
        Request { operation, ports: Bindings::new(), connect: None, refused: Vec::new(), refused_count: 0 };
    if let Some(ports) = present(document, "ports") {
        let ports = ports.as_object().ok_or(DecodeError::Shape("\"ports\" is not an object"))?;
        request.take_ports(ports)?;
    }
    if let Some(addrs) = present(document, "connectAddrs") {
        let addrs = addrs.as_array().ok_or(DecodeError::Shape("\"connectAddrs\" is not a list"))?;
        request.take_addrs(addrs)?;
    }
    Ok(request)
}

impl Request {
    fn take_ports(&mut self, ports: &Map<String, Value>) -> Result<(), DecodeError> {
        let mut entries_left = DOCUMENT_ENTRIES_MAX;
        for (key, value) in ports {
            let entries = match value {
                Value::Null => continue,
                Value::Array(entries) => entries.as_slice(),
                Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
                    self.refuse(format!("\"{}\" is not a list", shown(key)));
                    continue;
                }
            };
            entries_left = entries_left.checked_sub(entries.len()).ok_or(DecodeError::TooMany("\"ports\""))?;
            let Some((container_port, protocol)) = parse_key(key) else {
                let what = "is not a port from 1 to 65535, a slash and tcp or udp";
                self.refuse(format!("\"{}\" {what}", shown(key)));
                continue;
            };
            for entry in entries {
                match parse_binding(protocol, entry) {
                    Ok(binding) => {
                        self.ports.insert(binding, container_port);
                    }
                    Err(reason) => self.refuse(format!("\"{}\": {reason}", shown(key))),
                }
            }
        }
        Ok(())
    }

    fn take_addrs(&mut self, addrs: &[Value]) -> Result<(), DecodeError> {
        if addrs.len() > CONNECT_ADDRS_MAX {
            return Err(DecodeError::TooMany("\"connectAddrs\""));
        }
        let mut connect = Vec::with_capacity(addrs.len());
        for addr in addrs {
            match parse_addr(addr) {
                Ok(addr) => connect.push(addr),
                Err(reason) => self.refuse(format!("connectAddrs: {reason}")),
            }
        }
        self.connect = Some(connect);
        Ok(())
    }

    fn refuse(&mut self, reason: String) {
        self.refused_count += 1;
        if self.refused.len() < REFUSED_SHOWN_MAX {
            self.refused.push(reason);
        }
    }
}

/// A field that is there and not null, which to Go's decoder is the same as not being there.
fn present<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    object.get(name).filter(|value| !value.is_null())
}

fn parse_key(key: &str) -> Option<(NonZeroU16, Protocol)> {
    let (port, protocol) = key.split_once('/')?;
    Some((canonical(port)?, Protocol::parse(protocol)?))
}

fn parse_binding(protocol: Protocol, entry: &Value) -> Result<Binding, String> {
    let entry = entry.as_object().ok_or("an entry is not an object")?;
    let host_ip = match text_of(entry, "HostIp")? {
        "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        text => parse_ip(text)?,
    };
    let host_port = text_of(entry, "HostPort")?;
    let host_port =
        canonical(host_port).ok_or_else(|| format!("HostPort \"{}\" is not from 1 to 65535", shown(host_port)))?;
    Ok(Binding { protocol, host_ip, host_port })
}

fn parse_addr(addr: &Value) -> Result<ConnectAddr, String> {
    let addr = addr.as_object().ok_or("an entry is not an object")?;
    let network = text_of(addr, "network")?;
    if network != "ip+net" {
        return Err(format!("network \"{}\" is not \"ip+net\"", shown(network)));
    }
    let text = text_of(addr, "addr")?;
    let (ip, prefix) = text.split_once('/').ok_or_else(|| format!("\"{}\" has no prefix length", shown(text)))?;
    let ip = parse_ip(ip)?;
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    let prefix = canonical(prefix).filter(|prefix| *prefix <= bits);
    let prefix = prefix.ok_or_else(|| format!("\"{}\" has a bad prefix length", shown(text)))?;
    Ok(ConnectAddr { ip, prefix })
}

/// A field's text; empty where Go would leave it out of the struct it fills.
fn text_of<'a>(object: &'a Map<String, Value>, name: &str) -> Result<&'a str, String> {
    present(object, name).map_or(Ok(""), |value| value.as_str().ok_or_else(|| format!("{name} is not a string")))
}

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let ip = canonical(text).ok_or_else(|| format!("\"{}\" is not an IP address in canonical form", shown(text)))?;
    match ip {
        // A second spelling of an IPv4 address, which rules for IPv4 would not see.
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err(format!("\"{ip}\" is IPv4 written as IPv6")),
        IpAddr::V4(_) | IpAddr::V6(_) => Ok(ip),
    }
}

/// Parses text that is spelled exactly as the value is written.
fn canonical<T: FromStr + Display>(text: &str) -> Option<T> {
    text.parse().ok().filter(|value: &T| value.to_string() == text)
}

/// A guest's text, cut and without anything that could act on a terminal.
fn shown(text: &str) -> String {
    let cut: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    let dots = if cut.len() < text.len() { "..." } else { "" };
    format!("{}{dots}", cut.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::port_mapping::{DOCUMENT_BINDINGS_MAX, encode};

    fn ports(json: &str) -> Request {
        decode(format!(r#"{{"remove":false,"ports":{json},"connectAddrs":null}}"#).as_bytes()).unwrap()
    }

    fn entry(ip: &str, port: &str) -> Request {
        ports(&format!(r#"{{"80/tcp":[{{"HostIp":"{ip}","HostPort":"{port}"}}]}}"#))
    }

    fn binding(protocol: Protocol, addr: &str) -> Binding {
        let addr: std::net::SocketAddr = addr.parse().unwrap();
        Binding { protocol, host_ip: addr.ip(), host_port: NonZeroU16::new(addr.port()).unwrap() }
    }

    #[test]
    fn reads_what_the_encoder_writes() {
        let bindings: Bindings = [
            (binding(Protocol::Tcp, "0.0.0.0:8080"), NonZeroU16::new(80).unwrap()),
            (binding(Protocol::Tcp, "[::]:8081"), NonZeroU16::new(80).unwrap()),
            (binding(Protocol::Udp, "127.0.0.1:53"), NonZeroU16::new(5353).unwrap()),
        ]
        .into();
        let connect = [
            ConnectAddr { ip: "172.26.0.2".parse().unwrap(), prefix: 20 },
            ConnectAddr { ip: "fd00::2".parse().unwrap(), prefix: 64 },
        ];
        let read = decode(&encode(Operation::Withdraw, &bindings, Some(&connect))).unwrap();
        assert_eq!(read.operation, Operation::Withdraw);
        assert_eq!(read.ports, bindings);
        assert_eq!(read.connect.as_deref(), Some(&connect[..]));
        assert_eq!((read.refused.len(), read.refused_count), (0, 0));
        assert_eq!(decode(&encode(Operation::Announce, &bindings, None)).unwrap().connect, None);
    }

    #[test]
    fn the_largest_document_of_the_encoder_is_read() {
        let ports = (0..DOCUMENT_BINDINGS_MAX).map(|i| {
            let ip = format!("fd00:1111:2222:3333:4444:5555:{:x}:{:x}", 0x1000 + i / 8, 0x1000 + i);
            let b = Binding {
                protocol: Protocol::Tcp,
                host_ip: ip.parse().unwrap(),
                host_port: NonZeroU16::new(60_000).unwrap(),
            };
            (b, NonZeroU16::new(u16::try_from(50_000 + i).unwrap()).unwrap())
        });
        let ports: Bindings = ports.collect();
        let bytes = encode(Operation::Announce, &ports, None);
        assert!(bytes.len() <= DOCUMENT_BYTES_MAX, "{}", bytes.len());
        assert_eq!(decode(&bytes).unwrap().ports, ports);
    }

    #[test]
    fn lets_docker_s_own_data_through() {
        let read = ports(r#"{"80/tcp":null,"81/tcp":[],"82/tcp":[{"HostIp":"","HostPort":"8082","x":1}]}"#);
        assert_eq!(read.ports.keys().map(Binding::to_string).collect::<Vec<_>>(), ["0.0.0.0:8082/tcp"]);
        assert_eq!(read.refused_count, 0);
        assert!(decode(b" {} \r\n").unwrap().ports.is_empty());
        assert!(decode(br#"{"remove":null,"ports":null}"#).unwrap().ports.is_empty());
    }

    #[test]
    fn refuses_what_is_not_canonical() {
        for port in ["0", "70000", "65536", "-1", "+80", "080", " 80", "80 ", "", "8e3", "0x50", "\u{661}"] {
            let read = entry("127.0.0.1", port);
            assert!(read.ports.is_empty() && read.refused_count == 1, "{port}: {read:?}");
        }
        for ip in [
            "127.1",
            "127.0.0.01",
            "0127.0.0.1",
            "localhost",
            "::0",
            "0::1",
            "FD00::1",
            "fe80::1%lo",
            "::ffff:10.0.0.1",
            " ",
        ] {
            let read = entry(ip, "8080");
            assert!(read.ports.is_empty() && read.refused_count == 1, "{ip}: {read:?}");
        }
        for key in ["80", "80/TCP", "80/sctp", "0/tcp", "/tcp", "80/tcp/", "080/tcp", "80/tcp ", "x/tcp"] {
            let read = ports(&format!(r#"{{"{key}":[{{"HostIp":"","HostPort":"80"}}]}}"#));
            assert!(read.ports.is_empty() && read.refused_count == 1, "{key}: {read:?}");
        }
    }

    #[test]
    fn one_bad_entry_does_not_lose_the_others() {
        let read = ports(
            r#"{"80/tcp":[{"HostIp":"x","HostPort":"1"},7,{"HostIp":"","HostPort":80},{"HostIp":"","HostPort":"80"}],
                "81/tcp":{},"82/udp":[{"HostIp":"::1","HostPort":"82"}]}"#,
        );
        assert_eq!(read.ports.len(), 2);
        assert_eq!(read.refused_count, 4);
        let many = (1..=100).map(|p| format!(r#""{p}/x":[]"#)).collect::<Vec<_>>().join(",");
        let read = ports(&format!("{{{many}}}"));
        assert_eq!((read.refused.len(), read.refused_count), (REFUSED_SHOWN_MAX, 100));
    }

    #[test]
    fn reads_and_refuses_connect_addresses() {
        for bad in
            ["10.0.0.2", "10.0.0.2/33", "10.0.0.2/+8", "10.0.0.2/08", "::1/129", "::ffff:127.0.0.1/128", "/8", ""]
        {
            let json = format!(
                r#"{{"connectAddrs":[{{"network":"ip+net","addr":"{bad}"}},{{"network":"ip+net","addr":"10.0.0.2/8"}}]}}"#
            );
            let read = decode(json.as_bytes()).unwrap();
            assert_eq!((read.connect.unwrap().len(), read.refused_count), (1, 1), "{bad}");
        }
        let read = decode(br#"{"connectAddrs":[{"network":"ip","addr":"10.0.0.2/8"}]}"#).unwrap();
        assert_eq!((read.connect.unwrap().len(), read.refused_count), (0, 1));
    }

    #[test]
    fn refuses_whole_documents() {
        let deep = "[".repeat(100_000);
        let many = format!(r#"{{"ports":{{"1/tcp":[{}1]}}}}"#, "1,".repeat(DOCUMENT_ENTRIES_MAX));
        let addrs = format!(r#"{{"connectAddrs":[{}1]}}"#, "1,".repeat(CONNECT_ADDRS_MAX));
        let objects = format!(r#"{{"x":[{}1]}}"#, r#"{"":0},"#.repeat(OBJECTS_MAX));
        for bad in [
            "",
            "null",
            "[]",
            "{",
            "{}{}",
            "{} x",
            "{}\n{}",
            "{\"remove\":1}",
            "{\"ports\":[]}",
            "{\"connectAddrs\":{}}",
            "\u{feff}{}",
            &deep,
            &many,
            &addrs,
            &objects,
        ] {
            assert!(decode(bad.as_bytes()).is_err(), "{}", bad.chars().take(40).collect::<String>());
        }
        assert!(decode(&[0xff, 0xfe]).is_err());
        assert_eq!(decode(&vec![b' '; DOCUMENT_BYTES_MAX + 1]), Err(DecodeError::TooLarge));
    }

    #[test]
    fn shows_nothing_of_the_guest_s_raw() {
        let nasty = format!("\\u001b]0;owned\\u0007\\u202e{}", "A".repeat(500));
        let read = ports(&format!(r#"{{"{nasty}/tcp":[],"1/tcp":[{{"HostIp":"{nasty}"}},{{"HostPort":"{nasty}"}}]}}"#));
        assert_eq!(read.refused_count, 3);
        for reason in read.refused {
            assert!(reason.chars().all(|c| c.is_ascii() && !c.is_ascii_control()), "{reason:?}");
            assert!(reason.len() < 200, "{reason}");
        }
    }

    /// Every prefix and every one-byte change of a good document gives a value or an error.
    #[test]
    fn never_panics_on_damaged_documents() {
        let good = br#"{"remove":false,"ports":{"80/tcp":[{"HostIp":"::1","HostPort":"8080"}]},"connectAddrs":[{"network":"ip+net","addr":"172.26.0.2/20"}]}"#;
        for cut in 0..good.len() {
            assert!(decode(&good[..cut]).is_err());
            for byte in 0..=255 {
                let mut bad = good.to_vec();
                bad[cut] = byte;
                let _ = decode(&bad);
            }
        }
    }
}
