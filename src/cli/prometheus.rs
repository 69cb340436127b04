//! The status as metrics in the text format of Prometheus (version 0.0.4), as its documentation has it.

use std::fmt::Write as _;

use serde_json::Value;

use super::document::{list, number, raw};

/// Before each name.
const PREFIX: &str = "rancher_desktop_guestagent_";

/// What the metrics of one thing are read from.
#[derive(Clone, Copy)]
enum From {
    /// A number in the status itself, or below that field of it.
    Status(&'static str),
    /// Each source.
    Source,
    /// Each sink.
    Sink,
}

/// How a metric is made of a document.
#[derive(Clone, Copy)]
enum Read {
    /// A field's number.
    Number(&'static str),
    /// 1 where that field has that text, else 0.
    Has(&'static str, &'static str),
    /// A time, in seconds of the epoch.
    Time(&'static str),
    /// The count for each state.
    States,
}

/// Each metric: its name, what it means, where it is from, and how it is read. A name in `_total` is a counter's.
const METRICS: [(&str, &str, From, Read); 19] = [
    ("health", "Whether all is well: 1 ok, 0 degraded or down.", From::Status(""), Read::Has("health", "ok")),
    ("start_time_seconds", "When the agent was started.", From::Status(""), Read::Time("started")),
    ("forwards", "Forwards at each sink, by state.", From::Sink, Read::States),
    ("source_up", "Whether the source is ready.", From::Source, Read::Has("state", "ready")),
    ("source_losses_total", "How often the source was lost.", From::Source, Read::Number("losses")),
    ("source_owners", "Who claims ports through the source.", From::Source, Read::Number("owners")),
    ("source_bindings", "Ports claimed through the source.", From::Source, Read::Number("bindings")),
    ("events_total", "What the source has told.", From::Source, Read::Number("events")),
    ("skipped_total", "Input that the source could not use.", From::Source, Read::Number("skipped")),
    ("sink_up", "Whether the sink is not unreachable.", From::Sink, Read::Has("state", "")),
    ("sink_documents_total", "Changes that the sink was told of.", From::Sink, Read::Number("documents")),
    ("sink_failures_total", "Those that failed, whole or in part.", From::Sink, Read::Number("failures")),
    ("clients", "Clients of the control socket.", From::Status("clients"), Read::Number("now")),
    ("clients_served_total", "Clients served so far.", From::Status("clients"), Read::Number("served")),
    ("clients_refused_total", "Clients refused so far.", From::Status("clients"), Read::Number("refused")),
    ("rules", "Rules that decide what is published.", From::Status("policy"), Read::Number("rules")),
    ("reconciler_events_total", "Events taken.", From::Status("reconciler"), Read::Number("events")),
    ("reconcile_seconds_total", "Time spent on events.", From::Status("reconciler"), Read::Number("seconds")),
    (
        "reconcile_seconds_max",
        "The longest time spent on one.",
        From::Status("reconciler"),
        Read::Number("seconds_max"),
    ),
];

/// All of them.
pub fn metrics(status: &Value) -> String {
    let mut out = String::new();
    head(&mut out, "info", "The agent's version.");
    sample(&mut out, "info", &[("version", raw(status, "version"))], "1");
    for (name, help, from, read) in METRICS {
        head(&mut out, name, help);
        match from {
            From::Status("") => samples(&mut out, name, &[], status, read),
            From::Status(field) => {
                status.get(field).into_iter().for_each(|part| samples(&mut out, name, &[], part, read));
            }
            From::Source => each(&mut out, name, status, ("sources", "source"), read),
            From::Sink => each(&mut out, name, status, ("sinks", "sink"), read),
        }
    }
    out
}

fn each(out: &mut String, name: &str, status: &Value, (field, label): (&str, &str), read: Read) {
    for part in list(status, field) {
        samples(out, name, &[(label, raw(part, label))], part, read);
    }
}

fn head(out: &mut String, name: &str, help: &str) {
    let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
    let _ = write!(out, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n");
}

fn samples(out: &mut String, name: &str, labels: &[(&str, &str)], document: &Value, read: Read) {
    let value = match read {
        Read::Number(field) => match document.get(field) {
            Some(Value::Array(of)) => of.len().to_string(),
            Some(Value::Number(number)) => number.to_string(),
            _ => return,
        },
        Read::Has(field, "") => u8::from(raw(document, field) != "unreachable").to_string(),
        Read::Has(field, text) => u8::from(raw(document, field) == text).to_string(),
        Read::Time(field) => {
            let since = humantime::parse_rfc3339(raw(document, field)).ok();
            let Some(since) = since.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok()) else { return };
            format!("{}.{:03}", since.as_secs(), since.subsec_millis())
        }
        Read::States => {
            let Some(states) = document.get("forwards").and_then(Value::as_object) else { return };
            for state in states.keys() {
                let labels = [labels, &[("state", state)]].concat();
                let count = document.get("forwards").map_or(0, |forwards| number(forwards, state));
                sample(out, name, &labels, &count.to_string());
            }
            return;
        }
    };
    sample(out, name, labels, &value);
}

fn sample(out: &mut String, name: &str, labels: &[(&str, &str)], value: &str) {
    let _ = write!(out, "{PREFIX}{name}");
    for (i, (label, text)) in labels.iter().enumerate() {
        let text = super::document::plain(text).replace('\\', "\\\\").replace('"', "\\\"");
        let _ = write!(out, "{}{label}=\"{text}\"", if i == 0 { '{' } else { ',' });
    }
    let _ = writeln!(out, "{} {value}", if labels.is_empty() { "" } else { "}" });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::{BTreeMap, BTreeSet};

    /// Reads a label's value up to its closing quote, and gives the rest.
    fn value(text: &str) -> (String, &str) {
        let mut value = String::new();
        let mut chars = text.strip_prefix('"').unwrap().char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => return (value, &text[at + 2..]),
                '\\' => match chars.next().unwrap().1 {
                    'n' => value.push('\n'),
                    c @ ('\\' | '"') => value.push(c),
                    other => panic!("no such escape: {other}"),
                },
                c => value.push(c),
            }
        }
        panic!("no end: {text}")
    }

    /// A name with its labels.
    type Sample = (String, Vec<(String, String)>);

    /// Reads the text format strictly: each sample with its value.
    fn parse(text: &str) -> BTreeMap<Sample, f64> {
        let (mut types, mut helps, mut samples) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (kind, name, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
                match kind {
                    "HELP" => assert!(helps.insert(name.to_owned()), "{line}"),
                    "TYPE" => {
                        assert_eq!(rest == "counter", name.ends_with("_total"), "{line}");
                        assert!(types.insert(name.to_owned(), rest.to_owned()).is_none(), "{line}");
                    }
                    _ => panic!("{line}"),
                }
                continue;
            }
            let end = line.find(['{', ' ']).unwrap();
            let (name, mut rest) = line.split_at(end);
            assert!(types.contains_key(name) && helps.contains(name), "TYPE and HELP come first: {line}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
            let mut labels = Vec::new();
            while let Some(more) = rest.strip_prefix(['{', ',']) {
                let (label, quoted) = more.split_once('=').unwrap();
                let (text, left) = value(quoted);
                labels.push((label.to_owned(), text));
                rest = left;
            }
            rest = rest.strip_prefix('}').unwrap_or(rest);
            let number: f64 = rest.strip_prefix(' ').unwrap().parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(samples.insert((name.to_owned(), labels), number).is_none(), "twice: {line}");
        }
        samples
    }

    #[test]
    fn metrics_are_as_the_format_wants_them() {
        let forwards = json!({"pending": 0, "forwarding": 3, "left-out": 1});
        let source = |name: &str, state: &str| json!({"source": name, "state": state, "losses": 1, "skipped": 2, "events": 17, "owners": 1, "bindings": 4});
        let sink = |name: &str, state: &str| json!({"sink": name, "state": state, "documents": 5, "failures": 1, "forwards": forwards});
        let odd = "vtunnel:unix:///a\\b\"c\nd\u{1b}";
        let samples = parse(&metrics(&json!({
            "health": "degraded", "version": "0.1.0", "started": "1970-01-01T00:01:00.250Z",
            "sources": [source("docker", "ready"), source("nat", "lost")],
            "sinks": [sink("stdout:", "idle"), sink(odd, "unreachable")],
            "policy": {"rules": ["--deny *", "--allow *"]},
            "clients": {"now": 1, "served": 2, "refused": 3},
            "reconciler": {"events": 9, "seconds": 0.5, "seconds_max": 0.25}
        })));
        let of = |name: &str, labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(label, text)| ((*label).to_owned(), (*text).to_owned())).collect();
            *samples.get(&(format!("{PREFIX}{name}"), labels)).unwrap_or_else(|| panic!("no {name}: {samples:?}"))
        };
        let odd = "vtunnel:unix:///a\\b\"c\\nd\\u{1b}";
        for (name, labels, expect) in [
            ("info", &[("version", "0.1.0")][..], 1.0),
            ("health", &[], 0.0),
            ("start_time_seconds", &[], 60.25),
            ("forwards", &[("sink", "stdout:"), ("state", "forwarding")], 3.0),
            ("forwards", &[("sink", odd), ("state", "left-out")], 1.0),
            ("source_up", &[("source", "docker")], 1.0),
            ("source_up", &[("source", "nat")], 0.0),
            ("source_losses_total", &[("source", "nat")], 1.0),
            ("events_total", &[("source", "docker")], 17.0),
            ("skipped_total", &[("source", "docker")], 2.0),
            ("sink_up", &[("sink", "stdout:")], 1.0),
            ("sink_up", &[("sink", odd)], 0.0),
            ("sink_documents_total", &[("sink", odd)], 5.0),
            ("sink_failures_total", &[("sink", odd)], 1.0),
            ("clients_served_total", &[], 2.0),
            ("rules", &[], 2.0),
            ("reconcile_seconds_total", &[], 0.5),
            ("reconcile_seconds_max", &[], 0.25),
        ] {
            assert!((of(name, labels) - expect).abs() < 1e-9, "{name} {labels:?}");
        }
        assert_eq!(samples.len(), 1 + 2 + 6 + 2 * 6 + 2 * 3 + 3 + 1 + 3, "{samples:?}");
        parse(&metrics(&json!({})));
    }
}
