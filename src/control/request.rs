//! Requests of the control socket: one line in, a checked request or what is wrong with it out. Total, and without I/O.

use std::net::IpAddr;
use std::num::NonZeroU16;

use serde_json::Value;

use crate::event::Source;
use crate::port::Protocol;
use crate::view::State;

/// The version of requests and documents.
pub const SCHEMA: u64 = 1;

/// Characters of a request that an error quotes.
const QUOTED_MAX: usize = 80;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// How the agent is.
    Status,
    /// All forwards.
    Ports,
    /// Changes, without end.
    Watch {
        /// First what there is.
        replay: bool,
    },
    /// Who claims a port, and what became of it. The filter has the port.
    Explain,
    /// Withdraw everything and start over.
    Reset,
}

/// Names of operations.
const OPS: [(&str, Op); 5] = [
    ("status", Op::Status),
    ("ports", Op::Ports),
    ("watch", Op::Watch { replay: false }),
    ("explain", Op::Explain),
    ("reset", Op::Reset),
];

/// Fields of every request.
const COMMON: [&str; 2] = ["op", "schema"];

/// Fields of filters.
const FILTERS: [&str; 6] = ["port", "protocol", "source", "sink", "state", "host_ip"];

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub op: Op,
    /// About which of them.
    pub filter: Filter,
}

/// Why a line is no request.
#[derive(Debug, PartialEq, Eq)]
pub struct RequestError {
    /// As documents have it: `request` or `schema`.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

fn wrong(message: String) -> RequestError {
    RequestError { code: "request", message }
}

/// What documents have to match. Nothing given: all do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The port on the host.
    pub port: Option<NonZeroU16>,
    /// TCP or UDP.
    pub protocol: Option<Protocol>,
    /// The source, or that of the owner.
    pub source: Option<Source>,
    /// The name of the sink, its kind, or its address.
    pub sink: Option<String>,
    /// The state of a forward.
    pub state: Option<State>,
    /// The address on the host.
    pub host_ip: Option<IpAddr>,
}

/// What a document is about, as far as a filter can ask. What it is not about matches no value.
#[derive(Debug, Clone, Copy, Default)]
pub struct Subject<'a> {
    /// The port on the host.
    pub port: Option<NonZeroU16>,
    /// TCP or UDP.
    pub protocol: Option<Protocol>,
    /// The source, or that of the owner.
    pub source: Option<Source>,
    /// The name of the sink.
    pub sink: Option<&'a str>,
    /// The state of a forward.
    pub state: Option<State>,
    /// The address on the host.
    pub host_ip: Option<IpAddr>,
}

impl Filter {
    /// Whether a document about that is wanted.
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        let sink = |wanted: &str| subject.sink.is_some_and(|name| is_sink(name, wanted));
        self.port.is_none_or(|port| subject.port == Some(port))
            && self.protocol.is_none_or(|protocol| subject.protocol == Some(protocol))
            && self.source.is_none_or(|source| subject.source == Some(source))
            && self.sink.as_deref().is_none_or(sink)
            && self.state.is_none_or(|state| subject.state == Some(state))
            && self.host_ip.is_none_or(|ip| subject.host_ip == Some(ip))
    }
}

/// Whether that is the sink of that name. Logs and `--sink` have the address of most alone, without the kind.
fn is_sink(name: &str, wanted: &str) -> bool {
    let (kind, address) = name.split_once(':').unwrap_or((name, ""));
    name == wanted || kind == wanted || (!address.is_empty() && address == wanted)
}

/// Reads a line, without its end.
///
/// # Errors
/// What is no JSON object, has another schema, or a field or value that the operation does not take.
pub fn parse(line: &[u8]) -> Result<Request, RequestError> {
    let value = serde_json::from_slice(line).map_err(|error| wrong(format!("not JSON: {error}")))?;
    let Value::Object(fields) = value else {
        return Err(wrong(format!("a JSON object is wanted, such as {{\"op\":\"status\"}}, not {}", quoted(&value))));
    };
    match fields.get("schema") {
        None => {}
        Some(Value::Number(number)) if number.as_u64() == Some(SCHEMA) => {}
        Some(Value::Number(number)) => {
            let message = format!("schema {SCHEMA} is spoken here, not {number}");
            return Err(RequestError { code: "schema", message });
        }
        Some(other) => return Err(unwanted("schema", "1", other)),
    }
    let ops = || OPS.map(|(name, _)| name).join(", ");
    let op = fields.get("op").ok_or_else(|| wrong(format!("op is missing: one of {}", ops())))?;
    let named = OPS.into_iter().find(|(name, _)| op.as_str() == Some(name));
    let (name, op) = named.ok_or_else(|| unwanted("op", &format!("one of {}", ops()), op))?;
    let mut request = Request { op, filter: Filter::default() };
    for (field, value) in &fields {
        if !takes(op, field) {
            let all = COMMON.iter().chain(&FILTERS).chain(&["replay"]).copied();
            let allowed: Vec<&str> = all.filter(|field| takes(op, field)).collect();
            let field = quoted(&Value::from(field.as_str()));
            return Err(wrong(format!("{name} does not take the field {field}, only {}", allowed.join(", "))));
        }
        take(&mut request, field, value)?;
    }
    if op == Op::Explain && request.filter.port.is_none() {
        return Err(wrong("port is missing: explain wants one, from 1 to 65535".into()));
    }
    Ok(request)
}

fn takes(op: Op, field: &str) -> bool {
    let filters = match op {
        Op::Status | Op::Reset => false,
        Op::Ports | Op::Watch { .. } | Op::Explain => true,
    };
    COMMON.contains(&field)
        || (filters && FILTERS.contains(&field))
        || (matches!(op, Op::Watch { .. }) && field == "replay")
}

/// Takes one field, which the operation has.
fn take(request: &mut Request, field: &str, value: &Value) -> Result<(), RequestError> {
    let text = value.as_str();
    let filter = &mut request.filter;
    let (taken, wanted) = match field {
        "port" => {
            let port = value.as_u64().and_then(|port| u16::try_from(port).ok());
            filter.port = port.and_then(NonZeroU16::new);
            (filter.port.is_some(), "a number from 1 to 65535".to_owned())
        }
        "protocol" => {
            filter.protocol = text.and_then(Protocol::parse);
            (filter.protocol.is_some(), "tcp or udp".to_owned())
        }
        "source" => {
            filter.source = Source::WITH_AGENT.iter().copied().find(|source| text == Some(source.as_str()));
            let all: Vec<&str> = Source::WITH_AGENT.iter().map(|source| source.as_str()).collect();
            (filter.source.is_some(), format!("one of {}", all.join(", ")))
        }
        "sink" => {
            filter.sink = text.map(str::to_owned);
            (filter.sink.is_some(), "a sink's name or kind".to_owned())
        }
        "state" => {
            filter.state = text.and_then(State::parse);
            let all: Vec<&str> = State::COUNTED.iter().chain(&[State::Withdrawn]).map(|state| state.as_str()).collect();
            (filter.state.is_some(), format!("one of {}", all.join(", ")))
        }
        "host_ip" => {
            filter.host_ip = text.and_then(|ip| ip.parse().ok());
            (filter.host_ip.is_some(), "an IP address".to_owned())
        }
        "replay" => {
            request.op = Op::Watch { replay: value == &Value::Bool(true) };
            (value.is_boolean(), "true or false".to_owned())
        }
        // Those of every request have been looked at.
        _ => (true, String::new()),
    };
    if taken { Ok(()) } else { Err(unwanted(field, &wanted, value)) }
}

fn unwanted(field: &str, wanted: &str, value: &Value) -> RequestError {
    wrong(format!("{field}: {wanted} is wanted, not {}", quoted(value)))
}

/// A value as JSON has it, without what a terminal would act on, and not all of it where it is long.
fn quoted(value: &Value) -> String {
    let text = value.to_string();
    let mut chars = text.chars().flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] });
    let mut quoted: String = chars.by_ref().take(QUOTED_MAX).collect();
    if chars.next().is_some() {
        quoted.push('…');
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(line: &str) -> String {
        parse(line.as_bytes()).unwrap_err().message
    }

    #[test]
    fn reads_what_is_documented() {
        let port = NonZeroU16::new(8080);
        let line = r#" {"schema":1,"op":"watch","replay":true,"port":8080,"protocol":"udp","source":"nat","sink":"relay",
            "state":"left-out","host_ip":"::1"} "#;
        let filter = Filter {
            port,
            protocol: Some(Protocol::Udp),
            source: Some(Source::Nat),
            sink: Some("relay".into()),
            state: Some(State::LeftOut),
            host_ip: Some("::1".parse().unwrap()),
        };
        assert_eq!(parse(line.as_bytes()), Ok(Request { op: Op::Watch { replay: true }, filter }));
        for (name, op) in OPS.into_iter().filter(|(name, _)| *name != "explain") {
            let line = format!(r#"{{"op":"{name}"}}"#);
            assert_eq!(parse(line.as_bytes()), Ok(Request { op, filter: Filter::default() }));
        }
        let explain = parse(br#"{"op":"explain","port":8080}"#).unwrap();
        assert_eq!((explain.op, explain.filter.port), (Op::Explain, port));
    }

    #[test]
    fn says_what_is_wrong_and_what_would_be_right() {
        for (line, expect) in [
            ("", "not JSON"),
            ("status", "not JSON"),
            ("[]", "a JSON object is wanted"),
            ("{}", "op is missing: one of status, ports"),
            (r#"{"op":7}"#, "op: one of status, ports, watch, explain, reset is wanted, not 7"),
            (r#"{"op":"stop"}"#, r#"reset is wanted, not "stop""#),
            (r#"{"op":"status","port":1}"#, r#"status does not take the field "port", only op, schema"#),
            (r#"{"op":"ports","replay":true}"#, r#"ports does not take the field "replay""#),
            (r#"{"op":"watch","replay":1}"#, "replay: true or false is wanted, not 1"),
            (r#"{"op":"explain"}"#, "port is missing"),
            (r#"{"op":"ports","port":0}"#, "port: a number from 1 to 65535 is wanted, not 0"),
            (r#"{"op":"ports","port":65536}"#, "not 65536"),
            (r#"{"op":"ports","port":"80"}"#, r#"not "80""#),
            (r#"{"op":"ports","protocol":"TCP"}"#, "tcp or udp"),
            (r#"{"op":"ports","source":"podman"}"#, "docker, containerd, nat, kubernetes, sockets, agent"),
            (r#"{"op":"ports","state":"up"}"#, "pending, forwarding, conflict, denied, failed, left-out, withdrawn"),
            (r#"{"op":"ports","host_ip":"localhost"}"#, "an IP address"),
            (r#"{"op":"ports","sink":null}"#, "a sink's name or kind"),
            (r#"{"op":"status","schema":"1"}"#, "schema: 1 is wanted"),
        ] {
            let error = parse(line.as_bytes()).unwrap_err();
            assert_eq!(error.code, "request", "{line}");
            assert!(error.message.contains(expect), "{line}: {}", error.message);
        }
        for other in ["2", "0", "1.5", "-1"] {
            let line = format!(r#"{{"op":"status","schema":{other},"new":1}}"#);
            assert_eq!(parse(line.as_bytes()).unwrap_err().code, "schema", "{other}");
        }
    }

    #[test]
    fn what_it_quotes_is_short_and_harmless() {
        let long = message(&format!(r#"{{"op":"{}"}}"#, "x".repeat(4_000)));
        assert!(long.len() < 200 && long.contains("xxx…"), "{long}");
        let odd = message("{\"op\":\"\\u001b[2J\u{9b}\"}");
        assert!(!odd.chars().any(char::is_control), "{odd}");
    }

    #[test]
    fn filters_ask_for_all_that_is_given() {
        let subject = Subject { port: NonZeroU16::new(80), sink: Some("vtunnel:unix:///x"), ..Subject::default() };
        let filter = |json: &str| parse(format!(r#"{{"op":"ports",{json}}}"#).as_bytes()).unwrap().filter;
        for (json, expect) in [
            (r#""port":80"#, true),
            (r#""port":81"#, false),
            (r#""port":80,"sink":"vtunnel""#, true),
            (r#""sink":"vtunnel:unix:///x""#, true),
            (r#""sink":"unix:///x""#, true),
            (r#""sink":"vtunnel:""#, false),
            (r#""sink":"""#, false),
            (r#""sink":"listener""#, false),
            (r#""port":80,"state":"pending""#, false),
        ] {
            assert_eq!(filter(json).matches(&subject), expect, "{json}");
        }
        assert!(Filter::default().matches(&Subject::default()));
    }
}
