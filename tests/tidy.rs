//! Keeps the structure that ARCHITECTURE.md promises: module docs, sizes, and the direction of imports.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 420;
const FUNCTION_LINES_MAX: usize = 70;

/// What pure code never names.
const PURE: &[&str] = &[
    "std::fs",
    "std::io",
    "std::thread",
    "UnixStream",
    "Mutex",
    "log::",
    "Instant::now",
    "SystemTime::now",
    "crate::holder",
];

/// What commands never name, as they know the agent by its documents alone. `doctor` looks at this VM, too.
const CLIENT: &[&str] = &[
    "crate::agent",
    "crate::control",
    "crate::reconciler",
    "crate::source",
    "crate::sink",
    "crate::policy",
    "std::process",
];

/// What a part of the tree never names. Tests inside the files may.
const ABSENCES: &[(&str, &[&str])] = &[
    ("ordered", &["crate::", "std::fs", "std::io", "std::thread", "log::"]),
    ("ordered.rs", &["crate::", "std::fs", "std::io", "std::thread", "log::"]),
    // Of this crate, `ordered` alone.
    (
        "port.rs",
        &[
            "crate::event",
            "crate::source",
            "crate::sink",
            "crate::reconciler",
            "crate::parse",
            "std::fs",
            "std::io",
            "std::thread",
            "log::",
        ],
    ),
    ("event.rs", &["crate::source", "crate::sink", "crate::reconciler", "std::fs", "std::io", "std::thread", "log::"]),
    (
        "parse",
        // It may read what it is handed, but opens nothing.
        &[
            "crate::source",
            "crate::sink",
            "crate::event",
            "std::fs",
            "stdin",
            "stdout",
            "TcpStream",
            "UnixStream",
            "std::thread",
            "log::",
            "Instant",
        ],
    ),
    ("wire", &["crate::source", "crate::sink", "std::fs", "std::io", "std::thread", "log::", "Instant"]),
    (
        "policy.rs",
        &["crate::source", "crate::sink", "crate::reconciler", "std::fs", "std::io", "std::thread", "log::", "Instant"],
    ),
    (
        "reconciler",
        &[
            "crate::source",
            "crate::sink",
            "std::fs",
            "std::io",
            "std::net::",
            "std::thread",
            "Mutex",
            "log::",
            "Instant::now",
        ],
    ),
    (
        "reconciler.rs",
        &["crate::source", "crate::sink", "std::fs", "std::io", "std::thread", "Mutex", "log::", "Instant::now"],
    ),
    ("source", &["crate::reconciler", "crate::sink", "crate::agent", "crate::relay"]),
    ("sink", &["crate::source", "crate::agent", "crate::host"]),
    ("relay", &["crate::event", "crate::reconciler", "crate::source", "crate::sink", "crate::host", "crate::agent"]),
    ("host", &["crate::reconciler", "crate::source", "crate::sink", "crate::agent", "crate::supervisor"]),
    ("control", &["crate::source", "crate::sink", "crate::agent", "crate::reconciler", "crate::config"]),
    ("cli/connection.rs", CLIENT),
    ("cli/document.rs", CLIENT),
    ("cli/explain.rs", CLIENT),
    ("cli/ports.rs", CLIENT),
    ("cli/reset.rs", CLIENT),
    ("cli/status.rs", CLIENT),
    ("cli/wait.rs", CLIENT),
    ("cli/watch.rs", CLIENT),
    ("control/request.rs", PURE),
    ("control/document.rs", PURE),
    ("control/state.rs", PURE),
    ("control/json.rs", PURE),
    ("control/ring.rs", PURE),
    ("http", &["crate::source", "crate::sink", "crate::event", "crate::reconciler", "crate::agent", "crate::host"]),
    ("http.rs", &["crate::source", "crate::sink", "crate::event", "crate::reconciler", "crate::agent", "crate::host"]),
    ("flags.rs", &["crate::config", "crate::event", "crate::port", "std::fs", "std::io", "std::process", "log::"]),
    ("", &["unsafe ", "todo!", "unimplemented!", "dbg!"]),
];

fn sources(dir: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no source files under {dir}");
    found
}

/// What a file is without its tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap()
}

#[test]
fn every_file_says_what_it_is_for() {
    for path in ["src", "tests", "benches"].into_iter().flat_map(sources) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{}: no module doc in its first line", path.display());
    }
}

#[test]
fn nothing_grows_too_large() {
    for path in sources("src") {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().count();
        assert!(lines <= FILE_LINES_MAX, "{}: {lines} lines, {FILE_LINES_MAX} at most", path.display());
        let mut begun: Option<(usize, usize, &str)> = None;
        for (number, line) in text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            match begun {
                None if line.contains("fn ") && line.ends_with('{') => begun = Some((number, indent, line)),
                Some((first, depth, name)) if indent == depth && line.trim_start().starts_with('}') => {
                    let length = number + 1 - first;
                    assert!(length <= FUNCTION_LINES_MAX, "{}: {length} lines: {}", path.display(), name.trim());
                    begun = None;
                }
                None | Some(_) => {}
            }
        }
    }
}

#[test]
fn imports_go_one_way() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (place, never) in ABSENCES {
        let files: Vec<PathBuf> =
            sources("src").into_iter().filter(|f| f.starts_with(src.join(place)) || place.is_empty()).collect();
        assert!(!files.is_empty(), "{place}: no such file or folder; mend the table");
        for path in files {
            let text = fs::read_to_string(&path).unwrap();
            for line in code(&text).lines().filter(|line| !line.trim_start().starts_with("//")) {
                for name in *never {
                    assert!(!line.contains(name), "{}: must not name {name}: {}", path.display(), line.trim());
                }
            }
        }
    }
    // Sources do not know each other.
    for path in sources("src/source") {
        let text = fs::read_to_string(&path).unwrap();
        for other in ["docker", "containerd", "kubernetes", "nat", "sockets", "interface"] {
            let names =
                |l: &&str| l.contains(&format!("super::{other}")) || l.contains(&format!("crate::source::{other}"));
            let own = path.starts_with(src.join("source").join(other));
            let others = code(&text).lines().filter(names).count();
            assert!(own || others == 0, "{}: imports {other}", path.display());
        }
    }
}

/// docs/scenarios.md promises a test that bears the number of each of them.
#[test]
fn every_scenario_has_a_test() {
    let mut files = sources("tests");
    files.extend(sources("src"));
    let tests: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/scenarios.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | ")?.0.parse::<u32>().ok());
    let rows: Vec<u32> = rows.collect();
    assert_eq!(rows, (1..=30).collect::<Vec<_>>());
    let without: Vec<_> = rows.iter().filter(|n| !tests.contains(&format!("fn s{n:02}_"))).collect();
    assert!(without.is_empty(), "no test for the scenarios {without:?}");
}

#[test]
fn no_trace_of_the_machine_it_was_written_on() {
    let mut files: Vec<PathBuf> =
        ["src", "tests", "benches", "fuzz/fuzz_targets"].into_iter().flat_map(sources).collect();
    for dir in [".", "docs", "scripts", "init", "man", ".ci"] {
        let dir = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)).unwrap();
        files.extend(dir.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()));
    }
    for path in files.into_iter().filter(|path| !path.ends_with("tidy.rs")) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for word in ["/root/", "/home/", "/work/"] {
            assert!(!text.contains(word), "{}: names {word}", path.display());
        }
    }
}
