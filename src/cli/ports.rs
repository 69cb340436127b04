//! `ports`: every forward at every sink. Also the filters of commands that have some, and how a forward is shown.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::SystemTime;

use serde_json::Value;

use super::connection::{Connection, Document, Request, request, socket};
use super::document::{age, endpoint, owner, raw, text};
use super::table::{Column, Row, colours, render};
use super::{Exit, Failure, print, say};
use crate::event::Source;
use crate::flags::{FlagError, Parsed};
use crate::port::Protocol;
use crate::view::{State, sink_kind};

/// Flags that are filters of the protocol, with the field of each.
const FILTERS: [(&str, &str); 6] = [
    ("port", "port"),
    ("protocol", "protocol"),
    ("source", "source"),
    ("sink", "sink"),
    ("state", "state"),
    ("host-ip", "host_ip"),
];

const COLUMNS: [Column; 6] = [
    Column { title: "PUBLISHED", width_max: 21, cut: false },
    Column { title: "HOST", width_max: 15, cut: false },
    Column { title: "SINK", width_max: 14, cut: true },
    Column { title: "STATE", width_max: 10, cut: true },
    Column { title: "AGE", width_max: 7, cut: true },
    Column { title: "OWNER", width_max: 99, cut: true },
];

/// Shows all forwards that match.
///
/// # Errors
/// On wrong filters, and where the agent does not answer.
pub fn run(parsed: &Parsed) -> Result<Exit, Failure> {
    let mut request = request("ports");
    filter(&mut request, parsed, "")?;
    let documents = Connection::open(&socket(parsed)?)?.answer(request)?;
    if parsed.on("json") {
        return print(&documents.iter().map(Document::json).collect::<String>());
    }
    if documents.is_empty() {
        say("no forwards");
        return Ok(Exit::Ok);
    }
    let forwards: Vec<&Value> = documents.iter().map(|document| &document.value).collect();
    print(&rows(&forwards, true, SystemTime::now(), colours()))
}

/// The forwards as a table.
pub fn rows(forwards: &[&Value], titles: bool, now: SystemTime, colours: bool) -> String {
    let mut sinks: Vec<&str> = Vec::new();
    for forward in forwards {
        let sink = raw(forward, "sink");
        if !sinks.contains(&sink) {
            sinks.push(sink);
        }
    }
    let rows: Vec<Row> = forwards.iter().map(|forward| row(forward, &sinks, now)).collect();
    render(&COLUMNS, &rows, titles, colours)
}

fn row(forward: &Value, sinks: &[&str], now: SystemTime) -> Row {
    let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let published = match endpoint(forward, "published_ip") {
        none if none == "-" => super::document::port(forward),
        endpoint => endpoint,
    };
    let sink = sink_shown(raw(forward, "sink"), sinks);
    let cells = vec![
        published,
        or_none(text(forward, "host_ip")),
        or_none(super::document::plain(sink)),
        text(forward, "state"),
        age(raw(forward, "since"), now),
        owner(forward),
    ];
    let reason = text(forward, "reason");
    let notes = if reason.is_empty() || raw(forward, "state") == "forwarding" { vec![] } else { vec![reason] };
    Row { cells, notes }
}

/// A sink's kind, or its whole name where another one is of the same kind.
fn sink_shown<'a>(sink: &'a str, sinks: &[&str]) -> &'a str {
    let alike = |other: &&str| *other != sink && sink_kind(other) == sink_kind(sink);
    if sinks.iter().any(alike) { sink } else { sink_kind(sink) }
}

/// Adds the filters that were given on the command line, but for that flag.
///
/// # Errors
/// Where a value is not one of its kind.
pub fn filter(request: &mut Request, parsed: &Parsed, but: &str) -> Result<(), Failure> {
    for (flag, field) in FILTERS {
        let Some(value) = Some(flag).filter(|flag| *flag != but).and_then(|flag| parsed.value(flag)) else { continue };
        let (expected, taken): (&str, Option<Value>) = match flag {
            "port" => {
                port(request, flag, value)?;
                continue;
            }
            "protocol" => ("tcp or udp", Protocol::parse(value).map(|protocol| protocol.as_str().into())),
            "source" => {
                let known = Source::WITH_AGENT.iter().find(|source| source.as_str() == value);
                ("docker, containerd, nat, kubernetes, sockets or agent", known.map(|source| source.as_str().into()))
            }
            "state" => (
                "pending, forwarding, conflict, denied, failed, left-out or withdrawn",
                State::parse(value).map(|state| state.as_str().into()),
            ),
            "host-ip" => ("an IP address", value.parse().ok().map(|ip: IpAddr| ip.to_string().into())),
            // A request has a limit, and no sink's name is so long.
            _ => ("a sink's name or kind", Some(value.into()).filter(|_| (1..=1024).contains(&value.len()))),
        };
        let taken = taken.ok_or_else(|| FlagError::bad_value(flag, value, format_args!("expected {expected}")))?;
        if request.get(field).is_some_and(|before| *before != taken) {
            return Err(FlagError::bad_value(flag, value, "--port names another protocol").into());
        }
        request.insert(field.to_owned(), taken);
    }
    Ok(())
}

/// Adds a port, and its protocol where it has one: `8080`, `53/udp`.
///
/// # Errors
/// Where it is none.
pub fn port(request: &mut Request, flag: &'static str, text: &str) -> Result<(), FlagError> {
    let (port, protocol) = text.split_once('/').map_or((text, None), |(port, protocol)| (port, Some(protocol)));
    let bad = || FlagError::bad_value(flag, text, "expected a port, 1 to 65535, such as 8080 or 53/udp");
    let port: NonZeroU16 = port.parse().ok().filter(|_| !port.starts_with('+')).ok_or_else(bad)?;
    request.insert("port".to_owned(), port.get().into());
    if let Some(protocol) = protocol {
        let protocol = Protocol::parse(protocol).ok_or_else(bad)?;
        request.insert("protocol".to_owned(), protocol.as_str().into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::connection::Request;
    use crate::config::commands::COMMANDS;
    use std::ffi::OsString;

    fn filters(words: &[&str]) -> Result<Request, String> {
        let usage = COMMANDS.iter().find(|command| command.name == "ports").unwrap().usage;
        let mut request = Request::new();
        let parsed = usage.parse(words.iter().map(OsString::from)).map_err(|error| error.to_string())?;
        filter(&mut request, &parsed, "").map_err(|failure| failure.message).map(|()| request)
    }

    #[test]
    fn filters_are_checked_before_the_agent_is_asked() {
        let words =
            ["--port", "53/udp", "--source", "nat", "--sink", "relay", "--state", "left-out", "--host-ip", "::1"];
        let expect = serde_json::json!({
            "port": 53, "protocol": "udp", "source": "nat", "sink": "relay", "state": "left-out", "host_ip": "::1"
        });
        assert_eq!(Value::Object(filters(&words).unwrap()), expect);
        assert_eq!(filters(&["--port", "1/tcp", "--protocol", "tcp"]).unwrap().len(), 2);
        for (words, expect) in [
            (["--port", "0"], "--port \"0\": expected a port"),
            (["--port", "80/sctp"], "expected a port"),
            (["--port", "+80"], "expected a port"),
            (["--port", "65536"], "expected a port"),
            (["--protocol", "icmp"], "expected tcp or udp"),
            (["--source", "podman"], "expected docker, "),
            (["--state", "up"], "expected pending, "),
            (["--host-ip", "localhost"], "expected an IP address"),
            (["--sink", ""], "expected a sink's name"),
            (["--sink", &"x".repeat(2000)], "expected a sink's name"),
        ] {
            let error = filters(&words).unwrap_err();
            assert!(error.contains(expect), "{words:?}: {error}");
        }
        let error = filters(&["--port", "80/tcp", "--protocol", "udp"]).unwrap_err();
        assert!(error.contains("another protocol"), "{error}");
    }

    #[test]
    fn forwards_are_a_table_that_fits() {
        let now = humantime::parse_rfc3339("2026-01-02T03:04:05.678Z").unwrap();
        let documents = [
            serde_json::json!({
                "protocol": "tcp", "port": 8080, "host_ip": "127.0.0.1", "published_ip": "0.0.0.0", "container_port": 80,
                "sink": "host-switch:http://192.168.127.1:80", "state": "conflict", "reason": "listen tcp 127.0.0.1:8080: \
                bind: address already in use, by the process nginx (123) that was started long before", "source": "docker",
                "owner": "0123456789abcdef".repeat(4), "name": "web", "since": "2026-01-02T03:01:00.000Z", "failures": 3
            }),
            serde_json::json!({
                "protocol": "udp", "port": 65535, "host_ip": "2001:db8:1234:5678:9abc:def0:1234:5678",
                "published_ip": "2001:db8:1234:5678:9abc:def0:1234:5678", "container_port": 80, "sink": "relay:eth0",
                "state": "forwarding", "reason": null, "source": "docker", "owner": "0123456789abcdef".repeat(4),
                "name": "a-long-name-of-a-container-that-somebody-chose", "since": "2026-01-02T03:04:00.000Z", "failures": 0
            }),
            serde_json::json!({
                "protocol": "tcp", "port": 22, "host_ip": null, "published_ip": "0.0.0.0", "container_port": 22, "sink": null,
                "state": "denied", "reason": "--deny tcp/22", "source": "sockets", "owner": "tcp/22", "name": "sshd\u{1b}[2J",
                "since": "2026-01-02T03:04:05.000Z", "failures": 0
            }),
        ];
        let expect = "\
PUBLISHED         HOST       SINK         STATE       AGE   OWNER
0.0.0.0:8080/tcp  127.0.0.1  host-switch  conflict    3m5s  docker:web
    listen tcp 127.0.0.1:8080: bind: address already in use, by the process
    nginx (123) that was started long before
[2001:db8:1234:5678:9abc:def0:1234:5678]:65535/udp
                  2001:db8:1234:5678:9abc:def0:1234:5678
                             relay        forwarding  5s    docker:a-l…ody-chose
0.0.0.0:22/tcp    -          -            denied      0s    sockets:ss…\\u{1b}[2J
    --deny tcp/22
";
        let shown = rows(&documents.iter().collect::<Vec<_>>(), true, now, false);
        assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
        assert_eq!(shown, expect, "{shown}");
    }
}
