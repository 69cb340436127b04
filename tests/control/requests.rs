//! The corpus of the fuzz target `control_request`, and mutations of it, with an ordinary compiler.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rancher_desktop_agent::control::request::{Filter, Op, Request, parse};
use serde_json::{Map, Value, json};

/// Inputs that are tried.
const MUTATIONS: usize = 100_000;

fn corpus() -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/control_request");
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

/// A request as a client would write it.
fn encode(request: &Request) -> Vec<u8> {
    let (op, replay) = match request.op {
        Op::Status => ("status", None),
        Op::Ports => ("ports", None),
        Op::Watch { replay } => ("watch", Some(replay)),
        Op::Explain => ("explain", None),
        Op::Reset => ("reset", None),
    };
    let Filter { port, protocol, source, sink, state, host_ip } = &request.filter;
    let mut fields = Map::new();
    fields.insert("op".into(), op.into());
    let optional: [(&str, Option<Value>); 7] = [
        ("replay", replay.map(Value::from)),
        ("port", port.map(|port| port.get().into())),
        ("protocol", protocol.map(|protocol| protocol.as_str().into())),
        ("source", source.map(|source| source.as_str().into())),
        ("sink", sink.as_deref().map(Value::from)),
        ("state", state.map(|state| state.as_str().into())),
        ("host_ip", host_ip.map(|ip| json!(ip.to_string()))),
    ];
    fields.extend(optional.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?))));
    Value::Object(fields).to_string().into_bytes()
}

/// What has to hold of any line. Whether it is a request.
fn check(line: &[u8]) -> bool {
    match parse(line) {
        Ok(request) => {
            assert_eq!(parse(&encode(&request)).as_ref(), Ok(&request), "{}", line.escape_ascii());
            assert!(request.op != Op::Explain || request.filter.port.is_some());
            let takes_filters = !matches!(request.op, Op::Status | Op::Reset);
            assert!(takes_filters || request.filter == Filter::default());
            true
        }
        Err(error) => {
            assert!(["request", "schema"].contains(&error.code));
            assert!(!error.message.is_empty() && error.message.len() < 1024, "{}", error.message);
            assert!(!error.message.chars().any(char::is_control), "{:?}", error.message);
            false
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

fn mutate(line: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    let at = random.below(line.len() + 1);
    match random.below(6) {
        0 => line.truncate(at),
        1 => line.insert(at, random.below(256) as u8),
        2 if at < line.len() => line[at] = random.below(256) as u8,
        3 if at < line.len() => drop(line.remove(at)),
        4 => {
            let other = &corpus[random.below(corpus.len())];
            let from = random.below(other.len() + 1);
            line.splice(at.., other[from..].iter().copied());
        }
        _ => {
            let tokens: [&[u8]; 9] = [b"0", b"65536", b"null", b"\"port\":", b",", b"{", b"1e9", b"\\u0000", b"-"];
            line.splice(at..at, tokens[random.below(tokens.len())].iter().copied());
        }
    }
}

#[test]
fn no_line_is_too_odd() {
    let corpus = corpus();
    assert!(corpus.len() >= 10);
    let taken = corpus.iter().filter(|line| check(line)).count();
    assert!(taken >= 6, "the corpus has requests, too");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut taken = 0;
    for _ in 0..MUTATIONS {
        let mut line = corpus[random.below(corpus.len())].clone();
        for _ in 0..=random.below(3) {
            mutate(&mut line, &corpus, &mut random);
        }
        match catch_unwind(AssertUnwindSafe(|| check(&line))) {
            Ok(is_request) => taken += usize::from(is_request),
            Err(_) => panic!("{}", line.escape_ascii()),
        }
    }
    assert!(taken > MUTATIONS / 100, "{taken}: most find nothing but errors");
}
