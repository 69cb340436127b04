//! `watch`: a line for each change.

use serde_json::Value;

use super::connection::{Connection, request, socket};
use super::document::{clock, endpoint, is, number, owner, plain_json, port, raw, sink, text};
use super::ports::filter;
use super::table::{coloured, colours};
use super::{Exit, Failure, print, say};
use crate::flags::Parsed;

/// How wide a state is, and an address with a port most often is.
const STATE_COLUMNS: usize = 10;
const ENDPOINT_COLUMNS: usize = 19;

/// Prints changes as long as the agent is there and somebody reads.
///
/// # Errors
/// When either ends, or on wrong filters.
pub fn run(parsed: &Parsed) -> Result<Exit, Failure> {
    let mut request = request("watch");
    filter(&mut request, parsed, "")?;
    if parsed.on("replay") {
        request.insert("replay".to_owned(), true.into());
    }
    let (json, colours) = (parsed.on("json"), colours());
    let mut connection = Connection::open(&socket(parsed)?)?;
    connection.ask(request)?;
    while let Some(document) = connection.next(None)? {
        if raw(&document.value, "type") == "lost" {
            let count = number(&document.value, "count");
            say(&format!("rancher-desktop-guestagent: {count} changes came faster than they were read, and are lost"));
        }
        let line = if json { plain_json(&document.line) } else { line(&document.value, colours) };
        if !line.is_empty() {
            print(&(line + "\n"))?;
        }
    }
    Err(Failure::new(Exit::Failed, "the agent ended the answer"))
}

/// The line for a document; empty for one that says nothing to people, or is of a newer agent.
fn line(document: &Value, colours: bool) -> String {
    let of = |field: &str| text(document, field);
    let because = |field: &str| match of(field) {
        reason if reason.is_empty() => reason,
        reason => format!(": {reason}"),
    };
    let said = match raw(document, "type") {
        "forward" => {
            let state = of("state");
            // Padded by hand: the width does not count what colours it.
            let gap = " ".repeat(STATE_COLUMNS.saturating_sub(state.chars().count()));
            let state = coloured(&state, colours) + &gap;
            let host = match endpoint(document, "host_ip") {
                none if none == "-" => port(document),
                host => host,
            };
            let sink = sink(document);
            let at = if sink.is_empty() { sink } else { format!(" at {sink}") };
            let reason = if raw(document, "state") == "forwarding" { String::new() } else { because("reason") };
            format!("{state} {host:ENDPOINT_COLUMNS$} {}{at}{reason}", owner(document))
        }
        "source" => format!("source {} {}{}", of("source"), of("state"), because("reason")),
        "sink" => format!("sink {} {}{}", sink(document), of("state"), because("reason")),
        "stale" if is(document, "stale") => format!("stale {}: what its ports lead to is gone", owner(document)),
        "stale" => format!("stale {}: what its ports lead to is there again", owner(document)),
        "skipped" => format!("skipped by {}{} ({} so far)", of("source"), because("reason"), number(document, "count")),
        "narrowed" => {
            let published = endpoint(document, "published_ip");
            format!("narrowed {published} to {} of the host, of {}", of("host_ip"), owner(document))
        }
        "rules" if raw(document, "problem").is_empty() => format!("rules: {} of the file", number(document, "count")),
        "rules" => format!("rules: the file is not taken{}", because("problem")),
        "reset" if raw(document, "state") == "begun" => "reset: withdraws everything".to_owned(),
        "reset" if number(document, "left") == 0 => "reset: starts over".to_owned(),
        "reset" => format!("reset: starts over; {} forwards could not be withdrawn", number(document, "left")),
        _ => return String::new(),
    };
    let time = if raw(document, "time").is_empty() { raw(document, "since") } else { raw(document, "time") };
    format!("{} {said}", clock(time))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_change_is_a_line() {
        let since = "2026-01-02T03:04:05.678Z";
        for (document, expect) in [
            (
                json!({"type": "forward", "protocol": "tcp", "port": 80, "host_ip": "127.0.0.1", "sink": "stdout:",
                    "state": "conflict", "reason": "taken\n", "source": "docker", "owner": "x", "name": "web", "since": since}),
                "conflict   127.0.0.1:80/tcp    docker:web at stdout: taken\\n",
            ),
            (
                json!({"type": "forward", "protocol": "tcp", "port": 80, "host_ip": null, "sink": null, "state": "denied",
                    "reason": "--deny *", "source": "nat", "owner": "x", "name": null, "since": since}),
                "denied     80/tcp              nat:x: --deny *",
            ),
            (
                json!({"type": "source", "source": "docker", "state": "lost", "reason": "gone", "since": since}),
                "source docker lost: gone",
            ),
            (
                json!({"type": "sink", "sink": "relay:eth0", "state": "reachable", "reason": null, "since": since}),
                "sink relay:eth0 reachable",
            ),
            (
                json!({"type": "stale", "source": "nat", "owner": "p", "name": null, "stale": true, "time": since}),
                "stale nat:p: what its ports lead to is gone",
            ),
            (
                json!({"type": "skipped", "source": "nat", "count": 3, "reason": "odd", "time": since}),
                "skipped by nat: odd (3 so far)",
            ),
            (
                json!({"type": "narrowed", "protocol": "udp", "port": 53, "published_ip": "10.0.0.1", "host_ip": "127.0.0.1",
                    "source": "nat", "owner": "p", "name": "dns", "time": since}),
                "narrowed 10.0.0.1:53/udp to 127.0.0.1 of the host, of nat:dns",
            ),
            (json!({"type": "rules", "count": 2, "problem": null, "time": since}), "rules: 2 of the file"),
            (
                json!({"type": "rules", "count": 0, "problem": "line 1", "time": since}),
                "rules: the file is not taken: line 1",
            ),
            (json!({"type": "reset", "state": "begun", "left": 0, "time": since}), "reset: withdraws everything"),
            (
                json!({"type": "reset", "state": "done", "left": 1, "time": since}),
                "reset: starts over; 1 forwards could not be withdrawn",
            ),
        ] {
            assert_eq!(line(&document, false), format!("03:04:05.678Z {expect}"), "{document}");
        }
        for quiet in ["replayed", "lost", "a-newer-one"] {
            assert_eq!(line(&json!({"type": quiet, "count": 1}), false), "");
        }
    }
}
