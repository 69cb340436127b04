//! The corpora of the fuzz targets, and mutations of them, with an ordinary compiler: whatever fuzzing has found stays found.
//!
//! What has to hold is in `fuzz/harness.rs`. `make fuzz` looks for more.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

#[path = "../fuzz/harness.rs"]
mod harness;

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::{TARGETS, Target};

/// Mutations that each target is tried with.
const MUTATIONS: usize = 2000;

/// The longest that a mutation gets, in bytes: as `make fuzz` has it.
const INPUT_BYTES_MAX: usize = 8192;

/// What the files of all corpora may have together, and one of them.
const CORPORA_BYTES_MAX: u64 = 400 << 10;
const FILE_BYTES_MAX: u64 = 8 << 10;

/// How long a long input may take. What is quadratic takes minutes.
const LONG_INPUT_MAX: Duration = Duration::from_secs(10);

fn fuzz(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(path)
}

/// The names in a directory, without `suffix`, in order.
fn names(dir: &Path, suffix: &str) -> Vec<String> {
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let names = fs::read_dir(dir).unwrap().map(|entry| name(entry.unwrap()));
    let mut names: Vec<String> = names.map(|name| name.strip_suffix(suffix).unwrap().to_owned()).collect();
    names.sort();
    names
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = fuzz("corpus").join(target);
    names(&dir, "").into_iter().map(|name| (name.clone(), fs::read(dir.join(name)).unwrap())).collect()
}

#[track_caller]
fn check(target: &str, run: Target, what: &str, input: &[u8]) {
    if catch_unwind(|| run(input)).is_err() {
        panic!("{target}: {what}: {}", input.escape_ascii());
    }
}

#[test]
fn every_corpus_holds() {
    let mut failed = Vec::new();
    for (target, run) in TARGETS {
        let names = corpus(target).into_iter().filter(|(_, input)| catch_unwind(|| run(input)).is_err());
        failed.extend(names.map(|(name, _)| format!("fuzz/corpus/{target}/{name}")));
    }
    assert_eq!(failed, [""; 0], "each has said why above");
}

#[test]
fn mutations_hold() {
    // Targets are independent: two at once.
    let (even, odd): (Vec<_>, Vec<_>) = TARGETS.iter().enumerate().partition(|(i, _)| i % 2 == 0);
    std::thread::scope(|threads| {
        for half in [even, odd] {
            threads.spawn(move || half.into_iter().for_each(|(_, (target, run))| mutations_of(target, *run)));
        }
    });
}

fn mutations_of(target: &str, run: Target) {
    let corpus: Vec<Vec<u8>> = corpus(target).into_iter().map(|(_, input)| input).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..MUTATIONS {
        let mut input = corpus[random.below(corpus.len())].clone();
        for _ in 0..=random.below(3) {
            mutate(&mut input, &corpus, &mut random);
        }
        input.truncate(INPUT_BYTES_MAX);
        check(target, run, "a mutation", &input);
    }
}

/// What takes no time with 8 KB could take minutes with the megabytes that parsers are given.
#[test]
fn no_input_takes_long_because_it_is_long() {
    for (target, run) in TARGETS {
        for (name, input) in corpus(target) {
            let pieces = [&input[..], input.split_inclusive(|byte| *byte == b'\n').next_back().unwrap_or_default()];
            for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
                let long = piece.repeat((32 << 10) / piece.len());
                let begun = Instant::now();
                if catch_unwind(|| run(&long)).is_err() {
                    panic!("{target}: {name}, repeated to {} bytes", long.len());
                }
                let took = begun.elapsed();
                assert!(took < LONG_INPUT_MAX, "{target}: {name}, repeated to {} bytes: {took:?}", long.len());
            }
        }
    }
}

#[cfg(feature = "kubernetes")]
#[test]
fn each_target_has_a_corpus_and_a_program() {
    let targets: Vec<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&fuzz("corpus"), ""), targets, "corpora");
    assert_eq!(names(&fuzz("fuzz_targets"), ".rs"), targets, "programs");
    let manifest = fs::read_to_string(fuzz("Cargo.toml")).unwrap();
    for target in &targets {
        let program = fs::read_to_string(fuzz("fuzz_targets").join(format!("{target}.rs"))).unwrap();
        assert!(program.contains(&format!("harness::{target}(bytes)")), "{target}");
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")), "{target}");
        assert!(corpus(target).len() >= 8, "{target}: {} files", corpus(target).len());
    }
}

#[test]
fn corpora_are_small() {
    let files = names(&fuzz("corpus"), "").into_iter().flat_map(|target| corpus(&target));
    let sizes: Vec<u64> = files.map(|(_, input)| input.len() as u64).collect();
    assert!(sizes.iter().all(|size| *size <= FILE_BYTES_MAX), "a file is larger than {FILE_BYTES_MAX} bytes");
    assert!(sizes.iter().sum::<u64>() <= CORPORA_BYTES_MAX, "{} bytes in all", sizes.iter().sum::<u64>());
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

/// What inputs are made of, and what is odd anywhere.
const TOKENS: [&[u8]; 16] = [
    b"0", b"65536", b"-1", b"1e9", b"null", b"{", b"[", b"]}", b",", b"\"", b"\\u0000", b"\0", b"\n", b" ", b"\xff",
    b":",
];

fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let end = (at + random.below(40)).min(input.len());
    match random.below(8) {
        0 => input.truncate(at),
        1 => input.insert(at, random.below(256) as u8),
        2 if at < input.len() => input[at] = random.below(256) as u8,
        3 => drop(input.drain(at..end)),
        4 => {
            let part = input[at..end].repeat(1 + random.below(4));
            input.splice(at..at, part);
        }
        5 => {
            let other = &corpus[random.below(corpus.len())];
            let from = random.below(other.len() + 1);
            input.splice(at..end, other[from..(from + random.below(100)).min(other.len())].iter().copied());
        }
        _ => {
            input.splice(at..at, TOKENS[random.below(TOKENS.len())].iter().copied());
        }
    }
}
