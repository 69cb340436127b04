//! docs/control.md against what the socket sends: every type of document with every field, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use rancher_desktop_agent::event::{Failure, FailureKind, ForwardState, Report, SinkId, Source};
use rancher_desktop_agent::view::{Change, Decision, SinkState, SourceState, State};
use serde_json::Value;

use crate::world::{World, binding, forward_change, owner, port, row};

/// Fields with their type and meaning; no type where the page gives none.
type Fields = BTreeMap<String, (String, String)>;

/// What stands between backticks.
fn code(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The documents of the page.
fn documented() -> BTreeMap<String, Fields> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/control.md")).unwrap();
    let page = page.split("## Documents").nth(1).unwrap().split("## By hand").next().unwrap();
    let mut documents: BTreeMap<String, Fields> = BTreeMap::new();
    for section in page.split("\n### ").skip(1) {
        let title = section.lines().next().unwrap();
        let tables = section.split("\n\n").filter(|block| block.trim_start().starts_with("| "));
        for table in tables {
            let rows: Vec<Vec<&str>> = table
                .trim()
                .lines()
                .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect::<Vec<_>>())
                .collect();
            let extra: &[&str] = match rows[0][..] {
                ["field", "type", "meaning"] => {
                    let fields = documents.entry(code(title).pop().unwrap()).or_default();
                    for row in &rows[2..] {
                        assert_eq!(row.len(), 3, "{row:?}");
                        fields.insert(code(row[0]).pop().unwrap(), (row[1].to_owned(), row[2].to_owned()));
                    }
                    continue;
                }
                ["type", "fields besides `schema`, `type` and `time`"] => &["schema", "type", "time"],
                ["type", "fields besides `schema` and `type`"] => &["schema", "type"],
                // Codes of errors.
                _ => continue,
            };
            for row in &rows[2..] {
                // What comes behind a field's colon are its values.
                let names = row[1].split("; ").flat_map(code).filter(|name| name != "begun" && name != "done");
                let names = names.chain(extra.iter().map(|name| (*name).to_owned()));
                let fields = names.map(|name| (name, Default::default())).collect();
                assert!(documents.insert(code(row[0]).pop().unwrap(), fields).is_none());
            }
        }
    }
    documents
}

fn is_of_type(value: &Value, wanted: &str) -> bool {
    wanted.split(" or ").any(|wanted| match wanted {
        "number" => value.is_number(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        "" => true,
        other => panic!("a type of its own: {other}"),
    })
}

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

fn check(document: &Value, documented: &BTreeMap<String, Fields>) {
    let kind = document["type"].as_str().unwrap();
    let fields = documented.get(kind).unwrap_or_else(|| panic!("not documented: {document}"));
    assert_eq!(keys(document), fields.keys().cloned().collect(), "{document}");
    for (field, (wanted, meaning)) in fields {
        let value = &document[field];
        assert!(is_of_type(value, wanted), "{kind}.{field} is no {wanted}: {value}");
        if value.is_object() {
            let states = State::COUNTED.map(|state| state.as_str().to_owned());
            let named: BTreeSet<String> = code(meaning).into_iter().collect();
            let named = if named.is_empty() { states.into() } else { named };
            assert_eq!(keys(value), named, "{kind}.{field}");
        }
        if ["since", "time", "started", "last_event"].contains(&field.as_str()) && !value.is_null() {
            let text = value.as_str().unwrap();
            let time: jiff::Timestamp = text.parse().unwrap_or_else(|error| panic!("{kind}.{field}: {text}: {error}"));
            assert_eq!(text.len(), "2026-11-21T01:02:03.456Z".len(), "{text}");
            let age = SystemTime::from(time).elapsed().map_or(0, |age| age.as_secs());
            assert!(age < 120, "{kind}.{field}: {text}");
        }
    }
    for part in ["sources", "sinks"].into_iter().filter_map(|part| document[part].as_array()).flatten() {
        check(part, documented);
    }
}

/// A world in which everything is the case that can be.
fn world() -> World {
    let mut rows: Vec<_> =
        State::COUNTED.into_iter().enumerate().map(|(i, state)| row(80 + i as u16, 1, state)).collect();
    let mut bare = row(99, 1, State::Denied);
    (bare.host_ip, bare.published_ip, bare.container_port, bare.sink, bare.name) = (None, None, None, None, None);
    rows.push(bare);
    let world = World::new(rows);
    world.show(|view| {
        let lost = &mut view.sources[0];
        (lost.state, lost.reason, lost.last_error) = (SourceState::Lost, Some("gone".into()), Some("gone".into()));
        let starting = &mut view.sources[1];
        (starting.state, starting.last_event) = (SourceState::Starting, None);
        view.sinks[1].state = SinkState::Unreachable;
        view.sinks[1].reason = Some("refused".into());
        view.policy.problem = Some("line 1".into());
    });
    world
}

fn reports() -> Vec<Report> {
    let forward = |state| Report::Forward {
        sink: SinkId(1),
        owner: owner(Source::Docker, "x"),
        binding: binding(80),
        published: None,
        state,
        failures: 1,
        again: false,
    };
    let owner = || owner(Source::Docker, "x");
    let failure = Failure { kind: FailureKind::Conflict, reason: "taken".into() };
    vec![
        forward(ForwardState::Forwarding),
        forward(ForwardState::Failing(failure)),
        forward(ForwardState::Withdrawn),
        Report::Peer { sink: SinkId(1), problem: None },
        Report::Peer { sink: SinkId(1), problem: Some("refused".into()) },
        Report::Reset { sink: SinkId(1), reason: "began anew".into() },
        Report::Source { source: Source::Docker, problem: None, lost: false, losses: 1 },
        Report::Source { source: Source::Docker, problem: Some("gone".into()), lost: true, losses: 2 },
        Report::Stale { owner: owner(), stale: true },
        Report::LeftOut { sink: SinkId(1), owner: owner(), binding: binding(80), reason: "udp" },
        Report::Denied { owner: owner(), binding: binding(80), rule: "--deny *".into(), built_in: false },
        Report::Skipped { source: Source::Nat, count: 1, reason: "odd".into() },
        Report::Rules { count: 1, problem: None },
        Report::Rules { count: 1, problem: Some("line 1".into()) },
        Report::StartingOver,
        Report::StartedOver { left: 0 },
        Report::Narrowed { owner: owner(), published: binding(80), exposed: binding(80) },
    ]
}

#[test]
fn the_page_and_the_socket_agree() {
    let documented = documented();
    let world = world();
    let mut seen = BTreeSet::new();
    let mut client = world.client();
    let mut documents = Vec::new();
    for request in ["status", "ports", "nonsense"].map(|op| format!(r#"{{"op":"{op}"}}"#)) {
        documents.extend(client.ask(&request));
    }
    documents.extend(client.ask(r#"{"op":"explain","port":80}"#));
    assert_eq!(documents[0]["health"], "degraded");
    let mut watcher = world.watcher(r#"{"op":"watch","replay":true}"#);
    loop {
        documents.push(watcher.next().unwrap());
        if documents.last().unwrap()["type"] == "replayed" {
            break;
        }
    }
    let reports = reports();
    let expected = reports.len();
    reports.into_iter().for_each(|report| world.report(report));
    documents.extend((0..expected).map(|_| watcher.next().unwrap()));
    // More at once than are kept.
    world.tell((0..20_000).map(|_| forward_change(1)).collect());
    documents.push(watcher.expect("lost"));
    assert_eq!(documents.last().unwrap()["count"], 20_000);
    for document in &documents {
        check(document, &documented);
        seen.insert(document["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(seen, documented.keys().cloned().collect(), "all that is documented was sent");
    let described: BTreeSet<_> = documented.keys().cloned().collect();
    assert!(described.len() >= 14, "{described:?}");
}

#[test]
fn words_of_the_page_are_those_of_the_socket() {
    let documented = documented();
    let names = |kind: &str, field: &str| code(&documented[kind][field].1);
    for state in State::COUNTED.iter().chain(&[State::Withdrawn]) {
        assert!(names("forward", "state").contains(&state.as_str().to_owned()), "{state:?}");
    }
    for decision in [Decision::Counts, Decision::Behind, Decision::Denied, Decision::Doubted] {
        assert!(names("claim", "decision").contains(&decision.as_str().to_owned()), "{decision:?}");
    }
    for state in [SourceState::Starting, SourceState::Ready, SourceState::Troubled, SourceState::Lost] {
        assert!(names("source", "state").contains(&state.as_str().to_owned()), "{state:?}");
    }
    for state in [SinkState::Idle, SinkState::Reachable, SinkState::Unreachable] {
        assert!(names("sink", "state").contains(&state.as_str().to_owned()), "{state:?}");
    }
    for source in Source::ALL {
        assert!(names("source", "source").contains(&source.as_str().to_owned()), "{source}");
    }
}

#[test]
fn text_is_told_as_it_came_on_one_line() {
    let odd = "a\nb\u{1b}[2J\u{9b}\"\\é";
    let mut odd_row = row(80, 1, State::Conflict);
    (odd_row.reason, odd_row.name) = (Some(odd.into()), Some(odd.into()));
    let world = World::new(vec![odd_row]);
    let mut client = world.client();
    client.send(r#"{"op":"ports"}"#);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut client.0, &mut line).unwrap();
    assert!(!line.trim_end().chars().any(char::is_control), "{line}");
    let forward: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&forward["reason"], &forward["name"]), (&odd.into(), &odd.into()));
}

#[test]
fn what_is_refused_is_bound_nowhere() {
    let world = World::new(Vec::new());
    let mut watcher = world.watcher(r#"{"op":"watch"}"#);
    let (at, owner) = (SystemTime::now(), owner(Source::Nat, "x"));
    let denied = |port, built_in| Report::Denied {
        owner: owner.clone(),
        binding: binding(port),
        rule: "--deny tcp/22".into(),
        built_in,
    };
    // What the agent's own rules deny is in no view, and no change.
    let changes = [denied(23, true), denied(22, false)].map(|report| Change { at, report, name: None });
    world.tell(changes.into());
    let denied = watcher.expect("forward");
    assert_eq!((&denied["state"], &denied["reason"]), (&"denied".into(), &"--deny tcp/22".into()));
    assert_eq!((&denied["sink"], &denied["host_ip"]), (&Value::Null, &Value::Null));
    assert_eq!((&denied["published_ip"], &denied["port"]), (&"0.0.0.0".into(), &port(22).get().into()));
}
