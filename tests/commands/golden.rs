//! What commands print, to the letter: with a container whose ports forward, conflict and are denied.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Output, Stdio};

use nix::sys::signal::Signal;

use crate::support::{Process, eventually};
use crate::world::World;

/// Digits behind these differ from run to run.
const NUMBERS: [&str; 11] = [
    "\"pid\":",
    "\"seconds\":",
    "\"seconds_max\":",
    "\"events\":",
    "\"now\":",
    "\"served\":",
    "\"documents\":",
    "\"failures\":",
    "process ",
    "up ",
    "failures: ",
];

/// Columns whose numbers do.
const COUNTS: [&str; 4] = ["AGE", "EVENTS", "TOLD", "FAILED"];

#[test]
#[ignore = "needs root and docker (scripts/deps.sh docker)"]
fn commands_print_what_they_should() {
    let world = World::new(&["--deny", "tcp/8082"]);
    let reason = "listen tcp 127.0.0.1:8081: bind: address already in use";
    world.switch.busy("127.0.0.1:8081", Some(reason));
    world.engine.web("web", &["-p", "0.0.0.0:8080:80", "-p", "0.0.0.0:8081:80", "-p", "127.0.0.1:8083:80"]);
    world.engine.web("secret", &["-p", "0.0.0.0:8082:80"]);
    world.told(&["wait", "--port", "8080"], 0);
    world.told(&["wait", "--port", "8081", "--state", "conflict"], 0);
    world.told(&["wait", "--port", "8082", "--state", "denied"], 0);
    world.told(&["wait", "--port", "8083"], 0);
    let mut wrong = String::new();
    for (name, words) in [
        ("status", &["status"][..]),
        ("status-json", &["status", "--json"]),
        ("ports", &["ports"]),
        ("ports-json", &["ports", "--json"]),
        ("ports-conflict", &["ports", "--state", "conflict", "--sink", "host-switch"]),
        ("ports-none", &["ports", "--port", "9"]),
        ("explain-forwarded", &["explain", "8080"]),
        ("explain-relayed", &["explain", "8083/tcp"]),
        ("explain-conflict", &["explain", "8081"]),
        ("explain-conflict-json", &["explain", "8081", "--json"]),
        ("explain-denied", &["explain", "8082"]),
        ("explain-nobody", &["explain", "9000"]),
        ("wait", &["wait", "--port", "8080"]),
        ("wait-json", &["wait", "--port", "8080", "--json"]),
        ("wait-conflict", &["wait", "--port", "8081", "--timeout", "100ms"]),
        ("wait-nothing", &["wait", "--port", "9000/udp", "--timeout", "100ms"]),
        ("wait-withdrawn", &["wait", "--port", "8082", "--state", "withdrawn"]),
        ("reset", &["reset"]),
        ("reset-json", &["reset", "--json"]),
    ] {
        check(&mut wrong, name, &transcript(&world, words, &world.ask(words)));
    }
    world.engine.remove("secret");
    world.told(&["wait", "--port", "8083"], 0);
    watch(&world, &mut wrong);
    assert!(wrong.is_empty(), "{wrong}UPDATE_GOLDEN=1 writes these as they are now");
}

/// With nothing published, so that one change comes after the other.
fn watch(world: &World, wrong: &mut String) {
    world.engine.remove("web");
    for port in ["8080", "8081", "8083"] {
        world.told(&["wait", "--port", port, "--state", "withdrawn"], 0);
    }
    let names = ["watch", "watch-json"];
    let mut watching: Vec<Process> = Vec::new();
    for (name, words) in names.iter().zip([&["watch", "--replay"][..], &["watch", "--json", "--sink", "host-switch"]]) {
        let out = File::create(world.dir.join(name)).unwrap();
        let mut command = world.agent.ask(words);
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        watching.push(Process::spawn(&mut command));
    }
    world.wait_clients(3);
    world.engine.web("web", &["-p", "127.0.0.1:8083:80"]);
    world.told(&["wait", "--port", "8083"], 0);
    world.engine.remove("web");
    world.told(&["wait", "--port", "8083", "--state", "withdrawn"], 0);
    let has = |name: &str| fs::read_to_string(world.dir.join(name)).unwrap();
    eventually("all changes", || {
        let lines = names.map(|name| has(name).matches("withdrawn").count());
        if lines == [2, 1] { Ok(()) } else { Err((lines, names.map(has), world.agent.log())) }
    });
    world.agent.process.signal(Signal::SIGTERM);
    for (name, mut process) in names.into_iter().zip(watching) {
        let code = process.wait();
        check(wrong, name, &ends_in_order(&normal(world, &format!("{}--- exit code {code:?}\n", has(name)))));
    }
}

/// Sinks withdraw at the same time: whose answer comes first is no matter.
fn ends_in_order(text: &str) -> String {
    let is_end = |line: &&str| line.starts_with("CLOCK withdrawn");
    let mut ends: Vec<&str> = text.lines().filter(is_end).collect();
    ends.sort_unstable();
    let mut ends = ends.into_iter();
    text.lines().map(|line| if is_end(&line) { ends.next().unwrap() } else { line }.to_owned() + "\n").collect()
}

fn transcript(world: &World, words: &[&str], output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let code = output.status.code();
    let err = if err.is_empty() { String::new() } else { format!("--- standard error\n{err}") };
    normal(world, &format!("$ rancher-desktop-guestagent {}\n{out}{err}--- exit code {code:?}\n", words.join(" ")))
}

fn check(wrong: &mut String, name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/commands/golden").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    if golden != text {
        let _ = writeln!(wrong, "--- {name} is:\n{text}--- and should be:\n{golden}");
    }
}

/// The text without what differs from run to run.
fn normal(world: &World, text: &str) -> String {
    let dirs =
        [(world.agent.control(), "CONTROL"), (world.dir.path().to_owned(), "DIR"), (world.engine.socket(), "ENGINE")];
    let mut text = text.to_owned();
    for (path, name) in dirs {
        text = text.replace(&path.display().to_string(), name);
    }
    for number in NUMBERS {
        text = replace_after(&text, number);
    }
    let text = text.split_inclusive(['"', ' ', '\n']).map(word).collect::<String>();
    let mut counted = String::new();
    let mut columns: Vec<usize> = Vec::new();
    for line in text.lines() {
        let starts = COUNTS.iter().filter_map(|title| line.find(&format!(" {title}")).map(|at| at + 1));
        let begun: Vec<usize> = starts.collect();
        if line.is_empty() || line.starts_with("---") {
            columns.clear();
        } else if !begun.is_empty() {
            columns = begun;
        } else if !columns.is_empty() && !line.starts_with(' ') {
            counted += &columns.iter().fold(line.to_owned(), |line, at| without_number(&line, *at));
            counted.push('\n');
            continue;
        }
        let outside = |word: &str| if is_age(word) { "N".to_owned() } else { word.to_owned() };
        counted += &if columns.is_empty() {
            line.split(' ').map(outside).collect::<Vec<_>>().join(" ")
        } else {
            line.to_owned()
        };
        counted.push('\n');
    }
    counted
}

/// A time or a container's id is replaced by what it is.
fn word(word: &str) -> String {
    let bare = word.trim_end_matches(['"', ' ', '\n']);
    let shape: String = bare.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let is_hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    let name = match bare.len() {
        _ if shape == "0000-00-00T00:00:00.000Z" => "TIME",
        _ if shape == "00:00:00.000Z" => "CLOCK",
        19 if bare.starts_with("docker:") && is_hex(&bare[7..]) => "docker:ID",
        14 if bare.starts_with('(') && is_hex(bare.trim_matches(['(', ')'])) => "(ID)",
        _ if bare.ends_with("s:") && shape.trim_end_matches("s:").chars().all(|c| c == '0' || c == 'm') => "AGE:",
        64 if is_hex(bare) => "ID",
        _ if bare.ends_with("s,") && shape.trim_end_matches("s,").chars().all(|c| c == '0') => "AGE,",
        _ => match shape.strip_suffix('s') {
            Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b == b'0') && word.ends_with('\n') => "AGE",
            _ => return word.to_owned(),
        },
    };
    format!("{name}{}", &word[bare.len()..])
}

/// Of less than an hour.
fn is_age(word: &str) -> bool {
    word.ends_with('s') && word.len() > 1 && word.trim_end_matches('s').split('m').all(|n| n.parse::<u32>().is_ok())
}

/// The number in that column, with what makes it an age, becomes `N`, and what follows stays where it is.
fn without_number(line: &str, at: usize) -> String {
    let Some((head, tail)) = line.split_at_checked(at) else { return line.to_owned() };
    let digits = tail.find([' ', '\n']).unwrap_or(tail.len());
    if !tail.starts_with(|c: char| c.is_ascii_digit()) {
        return line.to_owned();
    }
    let pad = if digits == tail.len() { 0 } else { digits - 1 };
    format!("{head}N{}{}", " ".repeat(pad), &tail[digits..])
}

/// Each number that follows this text becomes `N`.
fn replace_after(text: &str, before: &str) -> String {
    let mut parts = text.split(before);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let name = if rest.len() < part.len() { "N" } else { "" };
        out.extend([before, name, rest]);
    }
    out
}
