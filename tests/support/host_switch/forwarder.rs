//! What the stand-in holds and what it answers: the rules of gvisor-tap-vsock's port forwarder, without a socket.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::go_json;

/// What is done when a forward comes and goes. Called with the table locked, as the real one opens its sockets.
pub trait Forwarding: Send {
    /// An `Err` is answered to the client, as it is, with status 500; nothing is kept then.
    fn open(&mut self, protocol: &str, local: &str, remote: &str) -> Result<(), String>;
    fn close(&mut self, protocol: &str, local: &str);
}

/// Keeps the table and forwards nothing.
pub struct Nothing;

impl Forwarding for Nothing {
    /// The address has to be one that could be listened on, in Go's words where not.
    fn open(&mut self, protocol: &str, local: &str, _: &str) -> Result<(), String> {
        match (protocol, split_host_port(local)) {
            ("tcp", Err(error)) => Err(format!("listen tcp: {error}")),
            ("udp", Err(error)) => Err(error),
            _ => Ok(()),
        }
    }

    fn close(&mut self, _: &str, _: &str) {}
}

/// An answer's status and body.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    /// As Go's `http.Error` ends a text.
    pub fn error(status: u16, text: &str) -> Answer {
        Answer { status, body: format!("{text}\n").into_bytes() }
    }

    fn done() -> Answer {
        Answer { status: 200, body: Vec::new() }
    }
}

/// The forwards, by local address and then protocol, as `/all` lists them.
pub struct Table {
    pub forwards: BTreeMap<(String, String), String>,
    /// What an expose of that local address is answered with.
    pub busy: BTreeMap<String, String>,
    pub forwarding: Box<dyn Forwarding>,
}

impl Table {
    /// `None`: the real one's handler panics, and its server closes the connection without an answer.
    pub fn answer(&mut self, method: &str, path: &str, body: &[u8], caller: &str) -> Option<Answer> {
        let path = path.split('?').next().unwrap_or_default();
        match path {
            "/services/forwarder/all" => Some(Answer { status: 200, body: self.all() }),
            "/services/forwarder/expose" | "/services/forwarder/unexpose" if method != "POST" => {
                Some(Answer::error(400, "post only"))
            }
            "/services/forwarder/expose" => self.expose(body, caller),
            "/services/forwarder/unexpose" => Some(self.unexpose(body)),
            _ => Some(Answer::error(404, "404 page not found")),
        }
    }

    fn all(&self) -> Vec<u8> {
        let entries: Vec<String> = self
            .forwards
            .iter()
            .map(|((local, protocol), remote)| {
                let [local, remote, protocol] = [local, remote, protocol].map(|s| serde_json::Value::from(s.as_str()));
                format!(r#"{{"local":{local},"remote":{remote},"protocol":{protocol}}}"#)
            })
            .collect();
        format!("[{}]\n", entries.join(",")).into_bytes()
    }

    fn expose(&mut self, body: &[u8], caller: &str) -> Option<Answer> {
        const FIELDS: &[(&str, &str)] =
            &[("local", "string"), ("remote", "string"), ("protocol", "types.TransportProtocol")];
        let (local, mut remote, protocol) = match go_json::fields(body, "ExposeRequest", FIELDS).map(three) {
            Ok((local, remote, protocol)) => (local, remote, or_tcp(protocol)),
            Err(error) => return Some(Answer::error(400, &error)),
        };
        if protocol != "unix" && protocol != "npipe" {
            let empty = match split_host_port(&remote) {
                Ok((host, _)) => host.is_empty(),
                Err(error) => return Some(Answer::error(400, &error)),
            };
            if empty {
                match split_host_port(caller) {
                    Ok((host, _)) => remote = format!("{host}{remote}"),
                    Err(error) => return Some(Answer::error(400, &error)),
                }
            }
        }
        let key = (local, protocol);
        let (local, protocol) = &key;
        if self.forwards.contains_key(&key) {
            return Some(Answer::error(500, &format!("proxy already running for {protocol} on {local}")));
        }
        match protocol.as_str() {
            "unix" | "npipe" => {}
            "tcp" | "udp" => match target(&remote) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Answer::error(500, &error)),
            },
            other => return Some(Answer::error(500, &format!("unknown protocol {other}"))),
        }
        let opened = match self.busy.get(local) {
            Some(reason) => Err(reason.clone()),
            None => self.forwarding.open(protocol, local, &remote),
        };
        if let Err(error) = opened {
            return Some(Answer::error(500, &error));
        }
        self.forwards.insert(key, remote);
        Some(Answer::done())
    }

    fn unexpose(&mut self, body: &[u8]) -> Answer {
        const FIELDS: &[(&str, &str)] = &[("local", "string"), ("", ""), ("protocol", "types.TransportProtocol")];
        let key = match go_json::fields(body, "UnexposeRequest", FIELDS).map(three) {
            Ok((local, _, protocol)) => (local, or_tcp(protocol)),
            Err(error) => return Answer::error(400, &error),
        };
        if self.forwards.remove(&key).is_none() {
            return Answer::error(500, "proxy not found");
        }
        self.forwarding.close(&key.1, &key.0);
        Answer::done()
    }
}

fn three(fields: Vec<String>) -> (String, String, String) {
    <[String; 3]>::try_from(fields).map(|[a, b, c]| (a, b, c)).unwrap()
}

fn or_tcp(protocol: String) -> String {
    if protocol.is_empty() { "tcp".to_owned() } else { protocol }
}

/// Whether the host of a remote address is IPv4; the real one panics over any other that has no colon.
fn target(remote: &str) -> Result<bool, String> {
    let mut parts = remote.split(':');
    let (Some(host), Some(port), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err("invalid remote addr".into());
    };
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(_) if digits => Ok(host.parse::<Ipv4Addr>().is_ok()),
        _ if digits => Err(format!("strconv.ParseUint: parsing {port:?}: value out of range")),
        _ => Err(format!("strconv.ParseUint: parsing {port:?}: invalid syntax")),
    }
}

/// As Go's `net.SplitHostPort`, with its errors.
pub fn split_host_port(address: &str) -> Result<(&str, &str), String> {
    let wrong = |why: &str| Err(format!("address {address}: {why}"));
    let Some(colon) = address.rfind(':') else { return wrong("missing port in address") };
    let (host, rest) = if let Some(inner) = address.strip_prefix('[') {
        let Some(end) = inner.find(']').map(|at| at + 1) else { return wrong("missing ']' in address") };
        if end + 1 == address.len() {
            return wrong("missing port in address");
        }
        if end + 1 != colon {
            let colons = address[end + 1..].starts_with(':');
            return wrong(if colons { "too many colons in address" } else { "missing port in address" });
        }
        (&address[1..end], &address[end + 1..])
    } else {
        if address[..colon].contains(':') {
            return wrong("too many colons in address");
        }
        (&address[..colon], address)
    };
    for (part, stray) in [(host, '['), (rest, '['), (rest, ']')] {
        if part.contains(stray) {
            return wrong(&format!("unexpected '{stray}' in address"));
        }
    }
    Ok((host, &address[colon + 1..]))
}
