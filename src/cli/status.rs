//! `status`: how the agent is, for people. `--prometheus` is in [`prometheus`](super::prometheus).

use std::time::SystemTime;

use serde_json::Value;

use super::connection::{Connection, request, socket};
use super::document::{age, is, list, number, plain, raw, text};
use super::prometheus::metrics;
use super::table::{Column, Row, coloured, colours, render, wrap};
use super::{Exit, Failure, print};
use crate::flags::{FlagError, Parsed};

/// Where what belongs to a word at the beginning of a line is.
const INDENT: usize = 10;

const SOURCES: [Column; 8] = [
    Column { title: "SOURCE", width_max: 12, cut: true },
    Column { title: "STATE", width_max: 12, cut: true },
    Column { title: "AGE", width_max: 7, cut: true },
    Column { title: "PORTS", width_max: 7, cut: true },
    Column { title: "OWNERS", width_max: 7, cut: true },
    Column { title: "EVENTS", width_max: 10, cut: true },
    Column { title: "SKIPPED", width_max: 8, cut: true },
    Column { title: "LOST", width_max: 8, cut: true },
];

const SINKS: [Column; 6] = [
    Column { title: "SINK", width_max: 36, cut: true },
    Column { title: "STATE", width_max: 12, cut: true },
    Column { title: "AGE", width_max: 7, cut: true },
    Column { title: "PORTS", width_max: 7, cut: true },
    Column { title: "TOLD", width_max: 8, cut: true },
    Column { title: "FAILED", width_max: 8, cut: true },
];

/// Shows it.
///
/// # Errors
/// Where the agent does not answer, or on wrong usage.
pub fn run(parsed: &Parsed) -> Result<Exit, Failure> {
    if parsed.on("json") && parsed.on("prometheus") {
        return Err(FlagError::bad_value("prometheus", "true", "not together with --json").into());
    }
    let document = Connection::open(&socket(parsed)?)?.one(request("status"))?;
    let status = &document.value;
    print(&if parsed.on("json") {
        document.json()
    } else if parsed.on("prometheus") {
        metrics(status)
    } else {
        shown(status, SystemTime::now(), colours())
    })?;
    Ok(if raw(status, "health") == "ok" { Exit::Ok } else { Exit::NotWell })
}

fn shown(status: &Value, now: SystemTime, colours: bool) -> String {
    let health = text(status, "health");
    let problems: Vec<String> = list(status, "problems").iter().filter_map(Value::as_str).map(plain).collect();
    let mut out = coloured(&health, colours);
    match problems.split_first() {
        None => out.push('\n'),
        Some((first, others)) => {
            // The colour is not counted, so the state comes off the line and on again.
            let mut line = String::new();
            wrap(&mut line, &format!("{health}: {first}"), 0, INDENT);
            out.push_str(line.get(health.len()..).unwrap_or_default());
            others.iter().for_each(|problem| wrap(&mut out, problem, INDENT, INDENT));
        }
    }
    let sources: Vec<Row> = list(status, "sources").iter().map(|source| source_row(source, now)).collect();
    let sinks: Vec<Row> = list(status, "sinks").iter().map(|sink| sink_row(sink, now)).collect();
    for (columns, rows) in [(&SOURCES[..], &sources), (&SINKS[..], &sinks)] {
        out.push('\n');
        out.push_str(&render(columns, rows, true, colours));
    }
    out.push('\n');
    about(&mut out, status, now);
    out
}

fn about(out: &mut String, status: &Value, now: SystemTime) {
    let mut line = |title: &str, words: &str| {
        let mut text = String::new();
        wrap(&mut text, words, INDENT, INDENT);
        out.push_str(title);
        out.push_str(text.get(title.len()..).unwrap_or_default());
    };
    line("forwards", &states(status));
    let nothing = Value::Null;
    let policy = status.get("policy").unwrap_or(&nothing);
    line("exposure", if is(policy, "admin") { "as published" } else { "the host's loopback" });
    let rules: Vec<String> = list(policy, "rules").iter().filter_map(Value::as_str).map(plain).collect();
    line("rules", &if rules.is_empty() { "none".to_owned() } else { rules.join(", ") });
    if !raw(policy, "rules_file").is_empty() {
        line("", &format!("rules file: {}", text(policy, "rules_file")));
    }
    if !raw(policy, "problem").is_empty() {
        line("", &format!("the file is not taken: {}", text(policy, "problem")));
    }
    let (version, pid) = (text(status, "version"), number(status, "pid"));
    line("agent", &format!("version {version}, process {pid}, up {}", age(raw(status, "started"), now)));
}

/// The states that there are, each with how many: `3 forwarding, 1 conflict`.
fn states(of: &Value) -> String {
    let counts = of.get("forwards").and_then(Value::as_object).into_iter().flatten();
    let counted = counts.filter_map(|(state, count)| Some((plain(state), count.as_u64()?)));
    let there = counted.filter(|(_, count)| *count > 0).map(|(state, count)| format!("{count} {state}"));
    match there.collect::<Vec<_>>() {
        none if none.is_empty() => "none".to_owned(),
        some => some.join(", "),
    }
}

/// Why it is not well, or what went wrong last.
fn notes(of: &Value) -> Vec<String> {
    let (reason, last) = (text(of, "reason"), text(of, "last_error"));
    match (reason.is_empty(), last.is_empty()) {
        (false, _) => vec![reason],
        (true, false) => vec![format!("last error: {last}")],
        (true, true) => Vec::new(),
    }
}

fn source_row(source: &Value, now: SystemTime) -> Row {
    let count = |field: &str| number(source, field).to_string();
    let (name, state, age) = (text(source, "source"), text(source, "state"), age(raw(source, "since"), now));
    let cells =
        vec![name, state, age, count("bindings"), count("owners"), count("events"), count("skipped"), count("losses")];
    Row { cells, notes: notes(source) }
}

fn sink_row(sink: &Value, now: SystemTime) -> Row {
    let count = |field: &str| number(sink, field).to_string();
    let forwarding = sink.get("forwards").map_or(0, |forwards| number(forwards, "forwarding")).to_string();
    let (name, state, age) = (super::document::sink(sink), text(sink, "state"), age(raw(sink, "since"), now));
    Row { cells: vec![name, state, age, forwarding, count("documents"), count("failures")], notes: notes(sink) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_health_comes_first_and_every_line_fits() {
        let since = "2026-01-02T03:00:53.678Z";
        let forwards = json!({"pending": 0, "forwarding": 3, "conflict": 1, "denied": 0, "failed": 0, "left-out": 0});
        let status = json!({
            "type": "status", "health": "degraded",
            "problems": ["docker: lost: cannot connect to /var/run/docker.sock: connection refused\u{1b}[2J", "1 forward in conflict"],
            "version": "0.1.0", "pid": 7, "started": since, "arguments": [], "docker_host": null,
            "sources": [{"source": "docker", "state": "lost", "reason": "connection refused", "since": since,
                "last_error": "connection refused", "losses": 1, "skipped": 2, "events": 17, "last_event": since, "owners": 1,
                "bindings": 4}],
            "sinks": [{"sink": "host-switch:http://192.168.127.1:80", "kind": "host-switch", "state": "reachable",
                "reason": null, "since": since, "last_error": "timed out", "documents": 5, "failures": 1, "forwards": forwards}],
            "forwards": forwards,
            "policy": {"admin": false, "rules": ["--deny tcp/22", "--deny udp/67@sockets", "--deny udp/68@sockets"],
                "rules_file": "/etc/rules", "problem": "line 3: odd"},
            "clients": {"now": 1, "served": 1, "refused": 0},
            "reconciler": {"events": 9, "seconds": 0.5, "seconds_max": 0.25}
        });
        let expect = "\
degraded: docker: lost: cannot connect to /var/run/docker.sock: connection
          refused\\u{1b}[2J
          1 forward in conflict

SOURCE  STATE  AGE    PORTS  OWNERS  EVENTS  SKIPPED  LOST
docker  lost   3m12s  4      1       17      2        1
    connection refused

SINK                                 STATE      AGE    PORTS  TOLD  FAILED
host-switch:http://192.168.127.1:80  reachable  3m12s  3      5     1
    last error: timed out

forwards  1 conflict, 3 forwarding
exposure  the host's loopback
rules     --deny tcp/22, --deny udp/67@sockets, --deny udp/68@sockets
          rules file: /etc/rules
          the file is not taken: line 3: odd
agent     version 0.1.0, process 7, up 3m12s
";
        let now = humantime::parse_rfc3339("2026-01-02T03:04:05.678Z").unwrap();
        assert_eq!(shown(&status, now, false), expect);
        let well = shown(&json!({"health": "ok"}), now, true);
        assert!(well.starts_with("\u{1b}[32mok\u{1b}[0m\n\nSOURCE"), "{well}");
    }
}
