//! `doctor`: what keeps ports from the host that a person would otherwise have to find out.
//!
//! Asks the running agent how it is and how it was started, and looks at what an agent started like that needs of this VM;
//! without one, at what an agent with the flags behind `--` would need. The agent's peers are asked by the agent alone, and
//! vsock is not opened: its device is looked for. Files and sockets are looked at with the agent's rights, not with root's.

mod needs;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use serde_json::Value;

use super::connection::{Connection, Ended, request, socket};
use super::document::{list, number, plain, plain_json, raw};
use super::table::{coloured, colours};
use super::{Exit, Failure, print};
use crate::config::{self, Config, Wish};
use crate::flags::Parsed;
use crate::privileges;
use crate::view::sink_kind;

/// How long the agent has for its answer. Nothing else waits.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How far in the future an event may lie before the clock counts as set back.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// What to do where the agent is not well.
const REMEDY_OF_HEALTH: &str = "the lines below name sources and sinks, and 'ports' each port with its reason";

/// What to do about a source that is not ready.
const SOURCES: [(&str, &str); 4] = [
    ("docker", "start the engine, or name its socket: DOCKER_HOST=unix://PATH"),
    ("containerd", "start containerd, or name its socket: -containerdSock PATH; ctr comes with it"),
    ("nat", "install what the reason names (packages iptables and nftables), and run the agent as root"),
    ("kubernetes", "start the cluster, or name another kubeconfig: -kubeconfig PATH"),
];

/// What to do about a sink that cannot be reached.
const SINKS: [(&str, &str); 3] = [
    ("host-switch", "is this VM behind host-switch (ip route)? --sink http://HOST:PORT names another API"),
    ("vtunnel", "start the host end or the Privileged Service; --sink names another"),
    ("wsl-proxy", WSL_PROXY),
];

const WSL_PROXY: &str = "nothing, where this host has no wsl-proxy: it is told as soon as it is there";

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// What was found so far.
#[derive(Default)]
struct Checks(Vec<Check>);

struct Check {
    name: String,
    verdict: Verdict,
    detail: String,
    remedy: String,
}

impl Checks {
    #[inline(never)]
    fn add(&mut self, name: &str, verdict: Verdict, detail: &str, remedy: &str) {
        let [name, detail, remedy] = [name, detail, remedy].map(str::to_owned);
        self.0.push(Check { name, verdict, detail, remedy });
    }

    fn ok(&mut self, name: &str, detail: &str) {
        self.add(name, Verdict::Ok, detail, "");
    }

    fn warn(&mut self, name: &str, detail: &str, remedy: &str) {
        self.add(name, Verdict::Warn, detail, remedy);
    }

    fn fail(&mut self, name: &str, detail: &str, remedy: &str) {
        self.add(name, Verdict::Fail, detail, remedy);
    }

    fn text(&self, json: bool) -> String {
        let (colours, mut text) = (colours(), String::new());
        for Check { name, verdict, detail, remedy } in &self.0 {
            let (state, result) = match verdict {
                Verdict::Ok => ("ok", "ok"),
                Verdict::Warn => ("degraded", "warn"),
                Verdict::Fail => ("failed", "fail"),
            };
            if json {
                let remedy = if remedy.is_empty() { Value::Null } else { remedy.as_str().into() };
                let [name, detail] = [name, detail].map(|text| Value::from(text.as_str()));
                let line = format!(
                    r#"{{"schema":1,"type":"check","check":{name},"result":"{result}","detail":{detail},"remedy":{remedy}}}"#
                );
                text.push_str(&plain_json(&line));
            } else {
                let shown = coloured(state, colours).replace(state, result);
                let gap = if result == "ok" { "  " } else { "" };
                let _ = write!(text, "{shown}{gap}  {}: {}", plain(name.trim_end_matches(':')), plain(detail));
                if !remedy.is_empty() {
                    let _ = write!(text, "\n      {}", plain(remedy));
                }
            }
            text.push('\n');
        }
        text
    }
}

/// Makes the checks.
///
/// # Errors
/// Where the command line is wrong, or the result cannot be written.
pub fn run(parsed: &Parsed) -> Result<Exit, Failure> {
    let mut checks = Checks::default();
    let words: Vec<OsString> = parsed.operands().iter().map(OsString::from).collect();
    let status = match socket(parsed) {
        Err(failure) if failure.exit == Exit::Usage => return Err(failure),
        Err(failure) => Err(Ended::NoAgent(failure.message.replacen("; ", "\n", 1))),
        Ok(path) => ask(&path).inspect(|status| control_socket(&mut checks, &path, status)),
    };
    let status = match status {
        Ok(status) => Some(status),
        Err(ended) => {
            no_agent(&mut checks, ended, !words.is_empty());
            None
        }
    };
    if let Some(status) = &status {
        agent(&mut checks, status);
    }
    // Flags that are given are what is asked about.
    let of_agent = status.as_ref().filter(|_| words.is_empty());
    let config = match of_agent {
        Some(status) => {
            let arguments = list(status, "arguments").iter().filter_map(Value::as_str).map(OsString::from);
            let host = Some(raw(status, "docker_host")).filter(|host| !host.is_empty());
            configuration(&mut checks, arguments.collect(), host.map(OsString::from))
        }
        None if words.is_empty() => {
            let remedy = "start the agent, or give its flags: doctor -- -docker --sink stdout:";
            checks.warn("configuration", "not known, so only what every agent needs is checked", remedy);
            None
        }
        None => configuration(&mut checks, words, std::env::var_os("DOCKER_HOST")),
    };
    let process = of_agent.map_or_else(|| "self".to_owned(), |status| number(status, "pid").to_string());
    let proc = |file: &str| fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default();
    let (state, limits) = (proc("status"), proc("limits"));
    needs::process(&mut checks, config.as_ref(), of_agent.is_some(), &state, &limits);
    if of_agent.is_some() {
        take_its_place(&state);
    }
    // Without capabilities in any case, as the agent gives up the right to pass over permissions. Where that fails, what
    // follows is seen with more rights.
    let _ = privileges::drop_to(&[], &[]);
    if let Some(config) = &config {
        needs::sources(&mut checks, config);
        needs::sinks(&mut checks, config);
    }
    print(&checks.text(parsed.on("json")))?;
    let failed = checks.0.iter().any(|check| check.verdict == Verdict::Fail);
    Ok(if failed { Exit::NotWell } else { Exit::Ok })
}

/// The agent's `status`.
fn ask(socket: &Path) -> Result<Value, Ended> {
    let end = Instant::now() + ANSWER_TIMEOUT;
    let mut connection = Connection::open(socket)?;
    connection.ask(request("status"))?;
    let document = connection.next(Some(end))?;
    document.map(|document| document.value).ok_or_else(|| Ended::Broken("the agent says nothing of itself".to_owned()))
}

fn no_agent(checks: &mut Checks, ended: Ended, has_flags: bool) {
    let is_away = matches!(ended, Ended::NoAgent(_));
    let message = Failure::from(ended).message;
    let (what, remedy) = message.split_once('\n').unwrap_or((&message, "its log says more; restart it"));
    // Who gives flags asks before the agent is started.
    let verdict = if is_away && has_flags { Verdict::Warn } else { Verdict::Fail };
    checks.add("agent", verdict, what, remedy);
}

fn control_socket(checks: &mut Checks, path: &Path, status: &Value) {
    let name = "control-socket";
    let owner = fs::metadata(format!("/proc/{}", number(status, "pid"))).map(|process| process.uid());
    let file = match fs::metadata(path) {
        Ok(file) => file,
        Err(error) => return checks.fail(name, &format!("{}: {error}", path.display()), "restart the agent"),
    };
    let (mode, uid) = (file.mode() & 0o777, file.uid());
    let detail = format!("{} of user {uid}, mode {mode:o}", path.display());
    if mode & 0o077 != 0 {
        checks.fail(name, &format!("{detail}: others may connect"), &format!("chmod 600 {}", path.display()));
    } else if owner.is_ok_and(|owner| owner != uid) {
        checks.fail(
            name,
            &format!("{detail}: it is not the agent's user's"),
            "restart the agent: it makes another one",
        );
    } else {
        checks.ok(name, &detail);
    }
}

/// How the agent is, in its own words.
fn agent(checks: &mut Checks, status: &Value) {
    let (version, own) = (raw(status, "version"), env!("CARGO_PKG_VERSION"));
    let detail = format!("version {version}, process {}, since {}", number(status, "pid"), raw(status, "started"));
    if version == own {
        checks.ok("agent", &detail);
    } else {
        checks.warn(
            "agent",
            &format!("{detail}; this program is {own}"),
            "restart the agent, so that it is this program",
        );
    }
    let problems: Vec<&str> = list(status, "problems").iter().filter_map(Value::as_str).collect();
    let problems = problems.join("; ");
    match raw(status, "health") {
        "ok" => checks.ok("health", "ok"),
        "degraded" => checks.warn("health", &format!("degraded: {problems}"), REMEDY_OF_HEALTH),
        health => checks.fail("health", &format!("{health}: {problems}"), REMEDY_OF_HEALTH),
    }
    for source in list(status, "sources") {
        peer(checks, "source", raw(source, "source"), source, &SOURCES);
    }
    for sink in list(status, "sinks") {
        peer(checks, "sink", raw(sink, "sink"), sink, &SINKS);
    }
    clock(checks, status);
}

fn peer(checks: &mut Checks, what: &str, name: &str, document: &Value, remedies: &[(&str, &str)]) {
    let (check, state, reason) = (format!("{what} {name}"), raw(document, "state"), raw(document, "reason"));
    let remedy =
        remedies.iter().find(|(of, _)| *of == sink_kind(name)).map_or("its log says more", |(_, remedy)| remedy);
    let colon = if reason.is_empty() { "" } else { ": " };
    let detail = format!("{state}{colon}{reason}");
    match state {
        "ready" | "reachable" | "idle" => checks.ok(&check, state),
        "starting" => checks.warn(&check, &detail, remedy),
        _ if sink_kind(name) == "wsl-proxy" => checks.warn(&check, &detail, remedy),
        _ => checks.fail(&check, &detail, remedy),
    }
}

/// Whether something lies in the future: then the clock was set back.
fn clock(checks: &mut Checks, status: &Value) {
    let events = list(status, "sources").iter().map(|source| raw(source, "last_event"));
    let latest = events.chain([raw(status, "started")]).filter_map(|time| humantime::parse_rfc3339(time).ok()).max();
    let ahead = latest.and_then(|latest| latest.duration_since(SystemTime::now()).ok()).unwrap_or_default();
    if ahead > CLOCK_SLACK {
        let detail = format!("the agent's last event lies {} s in the future: the clock was set back", ahead.as_secs());
        checks.warn("clock", &detail, "set the clock (chronyc makestep); forwards do not depend on it, times shown do");
    } else {
        checks.ok("clock", "no event lies in the future");
    }
}

/// The configuration that these words and the rules file are, if they are one.
fn configuration(checks: &mut Checks, words: Vec<OsString>, docker_host: Option<OsString>) -> Option<Config> {
    let environment = |name: &str| match name {
        "DOCKER_HOST" => docker_host.clone(),
        name => std::env::var_os(name),
    };
    match config::read(words, environment) {
        Ok(Wish::Run(config) | Wish::Check(config)) => {
            checks.ok("configuration", "flags and environment are accepted");
            Some(config)
        }
        Ok(Wish::Help | Wish::Version) => {
            checks.fail("configuration", "these flags run no agent", "leave out --help and --version");
            None
        }
        Err(error) => {
            checks.fail("configuration", &error.to_string(), "correct the agent's flags; --help shows them");
            None
        }
    }
}

/// Becomes the user that the agent is, as far as root can, so that files are seen as it sees them.
fn take_its_place(state: &str) {
    let ids = |field: &str| -> Vec<u32> {
        let line = state.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
        line.split_whitespace().filter_map(|id| id.parse().ok()).collect()
    };
    let effective = |field: &str| ids(field).get(1).copied();
    let (Some(uid), Some(gid)) = (effective("Uid:"), effective("Gid:")) else { return };
    if !Uid::effective().is_root() || uid == 0 {
        return;
    }
    let groups: Vec<Gid> = ids("Groups:").into_iter().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    // The user last: it is what lets us do the rest. What fails leaves us with more rights, and fewer findings.
    let _ = setgroups(&groups).and_then(|()| setresgid(gid, gid, gid)).and_then(|()| setresuid(uid, uid, uid));
}
