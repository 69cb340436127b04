//! The clock jumps by an hour and by a year, in both directions. Not this machine's: the agent runs under libfaketime, which
//! changes what CLOCK_REALTIME says to that process, while it runs, and leaves CLOCK_MONOTONIC alone, as a real jump does.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;

use crate::figures::{Row, cpu_seconds};
use crate::support::agent::Agent;
use crate::support::engine_stub::{EngineStub, id, ports};
use crate::support::receiver::Receiver;
use crate::support::{TempDir, eventually, within};

const HOUR: i64 = 3600;
const YEAR: i64 = 365 * 24 * HOUR;
/// Where the clock stands, in seconds from the truth. Each is a jump from the one before.
const JUMPS: [i64; 5] = [HOUR, -HOUR, YEAR, -YEAR, 0];

const GRACE: Duration = Duration::from_secs(3);
/// Of the grace time, and of an age: what a loaded machine takes to do and to see something.
const SLACK: Duration = Duration::from_secs(3);
/// The longest back-off, and a document.
const TRIED_AGAIN: Duration = Duration::from_secs(10);
const CPU_SECONDS_MAX: f64 = 2.0;
/// A loss, a return and what comes with it, for each jump.
const LINES_EACH_MAX: usize = 20;

const KEPT: [&str; 1] = ["127.0.0.1:8080/tcp"];
const BOTH: [&str; 2] = ["127.0.0.1:8080/tcp", "127.0.0.1:8081/tcp"];

fn library() -> PathBuf {
    let places = fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path());
    places
        .map(|path| path.join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists())
        .expect("libfaketime: run scripts/deps.sh soak")
}

/// A clock that can be set.
struct Clock(TempDir);

impl Clock {
    fn set(&self, offset: i64) {
        // As a whole or not at all: it is read at any moment.
        fs::write(self.0.join("new"), format!("{offset:+}\n")).unwrap();
        fs::rename(self.0.join("new"), self.0.join("clock")).unwrap();
    }
}

pub fn jumps() -> Vec<Row> {
    let (clock, engine, receiver) = (Clock(TempDir::new()), EngineStub::new(), Receiver::new());
    clock.set(0);
    engine.add(&id(1), ports(&[("80/tcp", "127.0.0.1", "8080")]));
    let (file, library) = (clock.0.join("clock").display().to_string(), library().display().to_string());
    let docker = format!("unix://{}", engine.socket().display());
    let env = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", &file),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DOCKER_HOST", &docker),
    ];
    let url = receiver.url();
    let grace = format!("{}s", GRACE.as_secs());
    let args = ["-docker", "--sink", &url, "--engine-grace", &grace, "--connect-interface", "lo", "-adminInstall"];
    // The dynamic build: the static one has no library that could stand before it.
    let program = env!("CARGO_BIN_EXE_rancher-desktop-guestagent").as_ref();
    let agent = Agent::run_program(program, None, &args, &env);
    receiver.wait_held(&KEPT);
    let begun = Instant::now();
    let lines = agent.log().lines().count();
    let (mut shortest, mut longest, mut again, mut age) =
        (Duration::MAX, Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for jump in JUMPS {
        // Grace: the jump comes while it runs.
        engine.down(true);
        engine.hang_up();
        eventually("a lost engine", || match source(&agent) {
            Ok(state) if state == "lost" => Ok(()),
            other => Err((other, agent.log())),
        });
        let lost = Instant::now();
        clock.set(jump);
        within(GRACE + SLACK, "the end of the grace time", || match receiver.held() {
            held if held.is_empty() => Ok(()),
            held => Err(held),
        });
        (shortest, longest) = (shortest.min(lost.elapsed()), longest.max(lost.elapsed()));
        engine.down(false);
        let back = Instant::now();
        receiver.wait_held(&KEPT);
        again = again.max(back.elapsed());
        let since = Instant::now();

        // Back-off: the jump comes between two attempts.
        receiver.close();
        engine.start(&id(2), ports(&[("80/tcp", "127.0.0.1", "8081")]));
        eventually("an unreachable sink", || match sink(&agent) {
            Ok(state) if state == "unreachable" => Ok(()),
            other => Err((other, agent.log())),
        });
        clock.set(jump / 2);
        receiver.forget();
        clock.set(jump);
        receiver.listen();
        let back = Instant::now();
        receiver.wait_held(&BOTH);
        again = again.max(back.elapsed());
        engine.end(&id(2));
        receiver.wait_held(&KEPT);

        // Ages, by the clock as it stands.
        age = age.max(age_error(&agent, jump, since));
    }
    let stamped = agent.log().lines().any(|line| line.contains(&(Timestamp::now().strftime("%Y").to_string())));
    assert!(stamped, "{}", agent.log());
    let other_year = Timestamp::from_second(Timestamp::now().as_second() - YEAR).unwrap().strftime("%Y").to_string();
    assert!(agent.log().contains(&other_year), "libfaketime had no effect: {}", agent.log());
    let (cpu, lines) = (cpu_seconds(agent.pid()), agent.log().lines().count() - lines);
    let what = "the clock jumps by an hour and by a year, forwards and backwards (libfaketime)";
    let seconds = |time: Duration| time.as_secs_f64();
    vec![
        Row::must(
            &format!("{what}: the grace time, {} s of it", GRACE.as_secs()),
            &format!("{} to {} s", GRACE.as_secs() - 1, (GRACE + SLACK).as_secs()),
            format!("{:.1} to {:.1} s", seconds(shortest), seconds(longest)),
            shortest + Duration::from_secs(1) >= GRACE,
        ),
        Row::must(
            &format!("{what}: an engine or a sink that is there again"),
            &format!("seen within {} s", TRIED_AGAIN.as_secs()),
            format!("after {:.1} s at most", seconds(again)),
            again <= TRIED_AGAIN,
        ),
        Row::must(
            &format!("{what}: `since`, as an age"),
            &format!("right to {} s", SLACK.as_secs()),
            format!("wrong by {:.1} s at most", seconds(age)),
            age <= SLACK,
        ),
        Row::must(
            &format!("{what}: CPU time and lines of the log, in {:.0} s", begun.elapsed().as_secs_f64()),
            &format!("≤ {CPU_SECONDS_MAX} s, ≤ {} lines", LINES_EACH_MAX * JUMPS.len()),
            format!("{cpu:.2} s, {lines} lines"),
            cpu <= CPU_SECONDS_MAX && lines <= LINES_EACH_MAX * JUMPS.len(),
        ),
    ]
}

fn documents(agent: &Agent, words: &[&str]) -> Result<Vec<Value>, String> {
    let out = agent.ask(words).output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.lines().map(|line| serde_json::from_str(line).map_err(|error| format!("{error}: {text}"))).collect()
}

fn source(agent: &Agent) -> Result<String, String> {
    state(agent, "sources")
}

fn sink(agent: &Agent) -> Result<String, String> {
    state(agent, "sinks")
}

/// Of the first in that list.
fn state(agent: &Agent, list: &str) -> Result<String, String> {
    let status = documents(agent, &["status", "--json"])?;
    let first = status.first().map(|status| status[list][0]["state"].clone());
    Ok(first.and_then(|state| state.as_str().map(str::to_owned)).unwrap_or_default())
}

/// How wrong the age is of the forward that is there since then, for somebody whose clock says the same as the agent's.
fn age_error(agent: &Agent, offset: i64, since: Instant) -> Duration {
    let all = documents(agent, &["ports", "--json"]).unwrap();
    let forward = all.iter().find(|document| document["port"] == 8080 && document["state"] == "forwarding");
    let text = forward.unwrap_or_else(|| panic!("no forward in {all:?}"))["since"].as_str().unwrap().to_owned();
    let then: Timestamp = text.parse().unwrap();
    let age = Timestamp::now().as_millisecond() + offset * 1000 - then.as_millisecond();
    let age = age as f64 / 1000.0;
    Duration::from_secs_f64((age - since.elapsed().as_secs_f64()).abs())
}
