//! The expose API of gvisor-tap-vsock: the bodies of requests, the list of what is exposed, and the file in which the agent
//! keeps what of it is its own. Source of the format: gvisor-tap-vsock `pkg/services/forwarder/ports.go`.
//!
//! Lists are read entry by entry. An entry that we could not have made is counted and passed over.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU16;

use serde_core::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::ordered::{Map, Set};
use crate::parse::ParseError;
use crate::parse::prune::{Pruned, Want};
use crate::port::{Binding, Protocol};

/// The longest list that is read, in bytes. 100,000 entries make about 8 MB.
pub const ALL_BYTES_MAX: usize = 32 << 20;

/// Entries of a list that are kept, at most.
pub const ENTRIES_MAX: usize = 262_144;

/// The longest state file that is read, in bytes. 131,072 forwards, as many as there can be, make about 6 MB.
pub const STATE_BYTES_MAX: usize = 16 << 20;

/// The version of the state file.
const VERSION: u64 = 1;

/// What is exposed: where each binding leads to; `None`: to what is no IPv4 address with a port.
pub type Exposed = Map<Binding, Option<SocketAddrV4>>;

/// What a state file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The base of the API.
    pub api: String,
    /// Where forwards lead to.
    pub remote: String,
    /// Those that are ours.
    pub forwards: Set<Binding>,
}

/// The body of a request to expose a binding.
pub fn expose(binding: Binding, remote: Ipv4Addr) -> String {
    let Binding { protocol, host_port, .. } = binding;
    let local = binding.socket_addr();
    format!(r#"{{"local":"{local}","remote":"{remote}:{host_port}","protocol":"{protocol}"}}"#)
}

/// The body of a request to unexpose it.
pub fn unexpose(binding: Binding) -> String {
    format!(r#"{{"local":"{}","protocol":"{}"}}"#, binding.socket_addr(), binding.protocol)
}

/// Reads the whole list. Returns, too, how many entries were passed over.
///
/// # Errors
/// What is no JSON list, is cut short, goes on behind its end, or has more than [`ENTRIES_MAX`] entries for us.
pub fn list(json: &[u8]) -> Result<(Exposed, usize), ParseError> {
    let mut list = List::default();
    let mut json = serde_json::Deserializer::from_slice(json);
    Entries(&mut list).deserialize(&mut json)?;
    json.end()?;
    list.checked()
}

/// The state file for these forwards.
pub fn encode_state(api: &str, remote: Ipv4Addr, forwards: &Set<Binding>) -> String {
    let mut text = format!(r#"{{"version":{VERSION},"api":{},"remote":"{remote}","forwards":["#, Value::from(api));
    for (i, binding) in forwards.iter().enumerate() {
        let (comma, local, protocol) = (if i == 0 { "" } else { "," }, binding.socket_addr(), binding.protocol);
        // Writing to memory cannot fail.
        let _ = write!(text, r#"{comma}{{"protocol":"{protocol}","local":"{local}"}}"#);
    }
    text.push_str("]}\n");
    text
}

/// Reads a state file.
///
/// # Errors
/// What this version did not write, or not to its end. Fields that are not known, and forwards that cannot be, are passed over.
pub fn decode_state(json: &[u8]) -> Result<State, ParseError> {
    let mut file = File::default();
    let mut json = serde_json::Deserializer::from_slice(json);
    json.deserialize_map(Whole(&mut file))?;
    json.end()?;
    if file.version.as_u64() != Some(VERSION) {
        return Err(ParseError::Field { path: "version", expected: "1" });
    }
    let (Value::String(api), Value::String(remote)) = (file.api, file.remote) else {
        return Err(ParseError::Field { path: "api, remote", expected: "text" });
    };
    let (exposed, _) = file.forwards.ok_or(ParseError::Missing("forwards"))?.checked()?;
    Ok(State { api, remote, forwards: exposed.keys().copied().collect() })
}

#[derive(Default)]
struct List {
    exposed: Exposed,
    skipped: usize,
    too_many: bool,
}

impl List {
    fn take(&mut self, entry: &Value) {
        let text = |key: &str| entry.get(key).and_then(Value::as_str);
        let binding = || {
            let protocol = Protocol::parse(text("protocol")?)?;
            let local: SocketAddrV4 = text("local")?.parse().ok()?;
            let host_port = NonZeroU16::new(local.port())?;
            Some(Binding { protocol, host_ip: IpAddr::V4(*local.ip()), host_port })
        };
        match binding() {
            Some(_) if self.exposed.len() >= ENTRIES_MAX => self.too_many = true,
            Some(binding) => {
                let remote = text("remote").and_then(|remote| remote.parse().ok());
                self.exposed.insert(binding, remote);
            }
            None => self.skipped += 1,
        }
    }

    fn checked(self) -> Result<(Exposed, usize), ParseError> {
        let too_many = ParseError::TooMany { what: "forwards", max: ENTRIES_MAX };
        if self.too_many { Err(too_many) } else { Ok((self.exposed, self.skipped)) }
    }
}

const ENTRY: Want = Want::Keys(&[("local", Want::Plain), ("remote", Want::Plain), ("protocol", Want::Plain)]);

/// An array of entries.
struct Entries<'a>(&'a mut List);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of forwards")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element_seed(Pruned(&ENTRY))? {
            self.0.take(&entry);
        }
        Ok(())
    }
}

#[derive(Default)]
struct File {
    version: Value,
    api: Value,
    remote: Value,
    forwards: Option<List>,
}

/// The object of a state file.
struct Whole<'a>(&'a mut File);

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(key) = fields.next_key_seed(Pruned(&Want::Plain))? {
            let place = match key.as_str() {
                Some("version") => &mut self.0.version,
                Some("api") => &mut self.0.api,
                Some("remote") => &mut self.0.remote,
                Some("forwards") => {
                    fields.next_value_seed(Entries(self.0.forwards.insert(List::default())))?;
                    continue;
                }
                Some(_) => {
                    fields.next_value::<IgnoredAny>()?;
                    continue;
                }
                None => return Err(A::Error::custom("a key that is no text")),
            };
            *place = fields.next_value_seed(Pruned(&Want::Plain))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(addr: &str, protocol: Protocol) -> Binding {
        let addr: SocketAddrV4 = addr.parse().unwrap();
        Binding { protocol, host_ip: (*addr.ip()).into(), host_port: NonZeroU16::new(addr.port()).unwrap() }
    }

    #[test]
    fn writes_bodies_as_others_do() {
        let web = binding("127.0.0.1:8080", Protocol::Tcp);
        let remote = Ipv4Addr::new(192, 168, 127, 2);
        let body = r#"{"local":"127.0.0.1:8080","remote":"192.168.127.2:8080","protocol":"tcp"}"#;
        assert_eq!(expose(web, remote), body);
        assert_eq!(unexpose(web), r#"{"local":"127.0.0.1:8080","protocol":"tcp"}"#);
    }

    #[test]
    fn reads_lists_and_passes_over_what_is_not_ours() {
        let json = br#"[
            {"local":"127.0.0.1:80","remote":"192.168.127.2:80","protocol":"tcp","more":[{"x":[1]}]},
            {"local":"127.0.0.1:80","remote":"192.168.127.9:80","protocol":"tcp"},
            {"local":"0.0.0.0:53","remote":"gateway:53","protocol":"udp"},
            {"local":"/run/x.sock","remote":"ssh-tunnel://x","protocol":"unix"},
            {"local":":80","remote":"1.2.3.4:80","protocol":"tcp"}, {"local":"1.2.3.4:0","protocol":"tcp"},
            {"local":["1.2.3.4:1"],"protocol":"tcp"}, {}, 7, null, "x", [[[]]]
        ]
"#;
        let (exposed, skipped) = list(json).unwrap();
        assert_eq!(skipped, 9);
        let web = binding("127.0.0.1:80", Protocol::Tcp);
        assert_eq!(exposed.get(&web), Some(&Some("192.168.127.9:80".parse().unwrap())), "the last one counts");
        assert_eq!(exposed.get(&binding("0.0.0.0:53", Protocol::Udp)), Some(&None));
        assert_eq!(exposed.len(), 2);
        assert_eq!(list(b"[]").unwrap().1, 0);
        for bad in ["", "[", "[{}", "[{},", "{}", "null", "\"x\"", "[] []", "<html>", "[{\"local\":\"127"] {
            assert!(list(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(list("[".repeat(100_000).as_bytes()).is_err());
        let error = list(format!("\"{}\"", "\\u001b[2J ".repeat(100_000)).as_bytes()).unwrap_err().to_string();
        assert!(error.len() < 300 && !error.chars().any(char::is_control), "{error}");
    }

    #[test]
    fn reads_long_lists_and_refuses_endless_ones() {
        let entries = |n: usize| {
            let entry = |i: usize| {
                let (ip, port) = (Ipv4Addr::from(0x0a00_0000 + u32::try_from(i / 60_000).unwrap()), i % 60_000 + 1);
                format!(r#"{{"local":"{ip}:{port}","remote":"1.2.3.4:5","protocol":"tcp"}}"#)
            };
            format!("[{}]", (0..n).map(entry).collect::<Vec<_>>().join(","))
        };
        assert_eq!(list(entries(100_000).as_bytes()).unwrap().0.len(), 100_000);
        assert!(matches!(list(entries(ENTRIES_MAX + 1).as_bytes()), Err(ParseError::TooMany { .. })));
    }

    #[test]
    fn reads_the_state_that_it_writes_and_no_other() {
        let forwards: Set<Binding> =
            [binding("127.0.0.1:8080", Protocol::Tcp), binding("0.0.0.0:53", Protocol::Udp)].into_iter().collect();
        let remote = Ipv4Addr::new(192, 168, 127, 2);
        let text = encode_state("http://192.168.127.1:80", remote, &forwards);
        let expect = concat!(
            r#"{"version":1,"api":"http://192.168.127.1:80","remote":"192.168.127.2","forwards":["#,
            r#"{"protocol":"tcp","local":"127.0.0.1:8080"},{"protocol":"udp","local":"0.0.0.0:53"}]}"#,
            "\n"
        );
        assert_eq!(text, expect);
        let state = decode_state(text.as_bytes()).unwrap();
        assert_eq!(state, State { api: "http://192.168.127.1:80".into(), remote: "192.168.127.2".into(), forwards });
        for cut in 0..text.len() - 1 {
            assert!(decode_state(&text.as_bytes()[..cut]).is_err(), "{cut}");
        }
        for bad in [text.replace(":1,", ":2,"), text.replace("forwards", "x"), text.replace("\"192.168.127.2\"", "7")] {
            assert!(decode_state(bad.as_bytes()).is_err(), "{bad}");
        }
        let odd = text.replace("0.0.0.0:53", "nowhere").replace("\"api\"", "\"new\":{\"x\":[1]},\"api\"");
        assert_eq!(decode_state(odd.as_bytes()).unwrap().forwards.len(), 1);
    }
}
