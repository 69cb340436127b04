//! The agent with a `ctr` made of paper, a shell script: everything that the real one cannot be made to do at will.
//! Runs for anyone.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use support::agent::Agent;
use support::containerd::ports_label;
use support::receiver::Receiver;
use support::{TempDir, eventually, status_kb, within};

const RUNS: &str = "TASK PID STATUS\nc1 100 RUNNING\n";

/// What the script does unless a test says otherwise: events are what comes through a FIFO, answers are files.
const ANSWERS: [(&str, &str); 5] = [
    ("events", "exec cat <>$D/events"),
    ("namespaces", "cat $D/namespaces"),
    ("tasks", "cat $D/tasks"),
    ("containers", "cat $D/containers"),
    ("info", "cat $D/info-$3"),
];

struct World {
    agent: Agent,
    receiver: Receiver,
    events: File,
    dir: TempDir,
    _socket: UnixListener,
}

impl World {
    /// One namespace `n`, one container `c1` that publishes 8080. `script` says how some commands are answered.
    fn new(script: &[(&str, &str)]) -> World {
        let (dir, receiver) = (TempDir::new(), Receiver::new());
        let socket = UnixListener::bind(dir.join("sock")).unwrap();
        nix::unistd::mkfifo(&dir.join("events"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let events = File::options().read(true).write(true).open(dir.join("events")).unwrap();
        for (name, text) in [("namespaces", "n\n"), ("tasks", RUNS), ("containers", "c1\n")] {
            fs::write(dir.join(name), text).unwrap();
        }
        info(&dir, "c1", &[8080]);
        write_script(&dir, script);
        let agent = agent(&dir, &receiver, &dir.join("ctr"));
        World { agent, receiver, events, dir, _socket: socket }
    }

    fn write(&self, name: &str, text: &str) {
        // As a whole: `ctr` may be run meanwhile.
        fs::write(self.dir.join("new"), text).unwrap();
        fs::rename(self.dir.join("new"), self.dir.join(name)).unwrap();
    }

    fn event(&mut self, topic: &str, json: &str) {
        self.raw(&format!("2026-11-21 00:29:10.456220417 +0000 UTC n {topic} {json}\n"));
    }

    fn raw(&mut self, text: &str) {
        self.events.write_all(text.as_bytes()).unwrap();
    }

    /// Runs of the script so far whose arguments contain that.
    fn runs(&self, what: &str) -> usize {
        let runs = fs::read_to_string(self.dir.join("runs")).unwrap_or_default();
        runs.lines().filter(|line| line.contains(what)).count()
    }

    fn wait_runs(&self, what: &str, count: usize) {
        eventually(&format!("{count} runs of {what}"), || match self.runs(what) {
            n if n >= count => Ok(()),
            n => Err((n, self.agent.log())),
        });
    }

    fn wait_held(&self, ports: &[u16]) {
        let expect: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}/tcp")).collect();
        eventually(&format!("{expect:?}"), || match self.receiver.held() {
            held if held == expect => Ok(()),
            held => Err((held, self.agent.log())),
        });
    }

    fn kill_events(&self) {
        let pid = fs::read_to_string(self.dir.join("pid")).unwrap().trim().parse().unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }

    /// How often `ctr events` was started in three seconds: 0, 0.1, 0.3, 0.7 and 1.5 s after the first, and then 3.1 s.
    fn assert_backs_off(&self) {
        self.wait_runs("events", 1);
        let end = Instant::now() + Duration::from_secs(3);
        within(Duration::from_secs(10), "three seconds", || if Instant::now() >= end { Ok(()) } else { Err(()) });
        let starts = self.runs("events");
        assert!((2..=8).contains(&starts), "{starts} starts: {}", self.agent.log());
    }

    /// Ends the agent, and sees that it leaves no process behind.
    fn end(self) {
        let begun = Instant::now();
        let script = self.dir.join("ctr");
        assert_eq!(self.agent.stop(), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(4), "took {:?}", begun.elapsed());
        eventually("nothing of ctr is left", || match processes_of(&script) {
            left if left.is_empty() => Ok(()),
            left => Err(left),
        });
    }
}

fn agent(dir: &TempDir, receiver: &Receiver, ctr: &Path) -> Agent {
    let socket = dir.join("sock");
    let (socket, ctr) = (socket.to_str().unwrap(), ctr.to_str().unwrap());
    let sink = ["--sink", &receiver.url(), "--connect-interface", "lo"];
    let source = ["-containerd", "-containerdSock", socket, "--ctr", ctr, "--engine-grace", "60s"];
    Agent::run(None, &[&sink[..], &source].concat())
}

fn info(dir: &TempDir, id: &str, ports: &[u16]) {
    let ports: Vec<_> = ports.iter().map(|port| ("0.0.0.0", *port, 80, "tcp")).collect();
    let info = serde_json::json!({"ID": id, "Labels": {"nerdctl/ports": ports_label(&ports)}});
    fs::write(dir.join(&format!("info-{id}")), info.to_string()).unwrap();
}

fn write_script(dir: &TempDir, script: &[(&str, &str)]) {
    let answer = |name| {
        let of =
            |answers: &[(&str, &'static str)]| answers.iter().find(|(n, _)| *n == name).map(|(_, a)| (*a).to_owned());
        let own = script.iter().find(|(n, _)| *n == name).map(|(_, a)| (*a).to_owned());
        own.or_else(|| of(&ANSWERS)).unwrap()
    };
    let text = format!(
        "#!/bin/sh\nD={}\nshift 2\nprintf '%s\\n' \"$*\" >>$D/runs\n[ \"$1\" != -n ] || shift 2\ncase \"$1 $2\" in\n\
         'events ') echo $$ >$D/pid; {} ;;\n'namespaces ls') {} ;;\n'tasks ls') {} ;;\n'containers ls') {} ;;\n\
         'containers info') {} ;;\n*) exit 9 ;;\nesac\n",
        dir.path().display(),
        answer("events"),
        answer("namespaces"),
        answer("tasks"),
        answer("containers"),
        answer("info"),
    );
    let path = dir.join("ctr.new");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    // One that runs goes on as it was.
    fs::rename(path, dir.join("ctr")).unwrap();
}

/// Processes that name this path in their command line.
fn processes_of(path: &Path) -> Vec<i32> {
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let names = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == path.as_os_str().as_encoded_bytes())
    };
    all.filter(names).collect()
}

#[test]
fn events_are_followed() {
    let mut world = World::new(&[]);
    world.wait_held(&[8080]);
    world.event("/tasks/exit", r#"{"container_id":"c1","id":"exec1","pid":101}"#);
    info(&world.dir, "c2", &[8081, 8082]);
    world.event("/tasks/start", r#"{"container_id":"c2","pid":200}"#);
    world.wait_held(&[8080, 8081, 8082]);
    info(&world.dir, "c2", &[8082, 8083]);
    world.event("/containers/update", r#"{"id":"c2"}"#);
    world.wait_held(&[8080, 8082, 8083]);
    // Neither is asked about any more.
    let asked = world.runs("containers info");
    world.write("tasks", "TASK PID STATUS\n");
    world.event("/tasks/exit", r#"{"container_id":"c2","id":"c2","pid":200,"exited_at":{"seconds":1}}"#);
    world.event("/tasks/delete", r#"{"container_id":"c2","pid":200}"#);
    world.event("/containers/delete", r#"{"id":"c1"}"#);
    world.wait_held(&[]);
    assert_eq!(world.runs("containers info"), asked);
    assert!(!world.agent.log().contains("skipped"), "{}", world.agent.log());
    world.end();
}

#[test]
fn three_listings_and_then_silence() {
    let world = World::new(&[]);
    world.wait_runs("namespaces ls", 3);
    assert_eq!(world.runs("containers info"), 1, "a task that is known is not looked up again");
    assert_eq!(world.agent.log().matches("source ready").count(), 1);
    world.end();
}

#[test]
fn the_listing_finds_what_events_have_missed() {
    let world = World::new(&[]);
    world.wait_held(&[8080]);
    info(&world.dir, "c2", &[8081]);
    world.write("containers", "c1\nc2\n");
    world.write("tasks", "TASK PID STATUS\nc2 200 PAUSED\nc1 100 STOPPED\n");
    world.wait_held(&[8081]);
    world.end();
}

#[test]
fn events_that_cannot_be_read_lead_to_a_listing() {
    let mut world = World::new(&[]);
    world.wait_runs("namespaces ls", 3);
    world.write("tasks", "TASK PID STATUS\n");
    world.raw("nonsense\n2026-11-21 00:29:10.4 +0000 UTC n /tasks/exit {\"container_id\":\"--help\"}\n");
    world.wait_held(&[]);
    assert_eq!(world.agent.log().matches("skipped input").count(), 1, "{}", world.agent.log());
    let log = world.agent.log();
    assert!(!log.contains("source lost"), "{log}");
    world.end();
}

#[test]
fn containers_that_nothing_can_be_asked_about_are_skipped() {
    let world = World::new(&[("namespaces", r"printf 'n\nmoby\nbuildkit\n-x\na/b\n'")]);
    world.write("tasks", "TASK PID STATUS\n--help 5 RUNNING\nc1 100 RUNNING\n../x 6 RUNNING\n");
    world.wait_held(&[8080]);
    world.agent.wait_log("namespaces ls: 2 names that containerd would not accept");
    world.agent.wait_log("-n n tasks ls: 2 names");
    for name in ["moby", "buildkit", "-x", "a/b", "../x"] {
        assert_eq!(world.runs(name), 0, "{name}");
    }
    world.end();
}

#[test]
fn a_missing_program_or_socket_is_named() {
    let (dir, receiver) = (TempDir::new(), Receiver::new());
    let nowhere = agent(&dir, &receiver, Path::new("/nowhere/ctr"));
    nowhere.wait_log("there is no program at /nowhere/ctr (--ctr PATH");
    write_script(&dir, &[]);
    let waiting = agent(&dir, &receiver, &dir.join("ctr"));
    waiting.wait_log("-containerdSock PATH names another socket");
    waiting.wait_log("No such file");
    let socket = dir.join("sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o000)).unwrap();
    waiting.wait_log("run as the socket's owner");
    assert_eq!(fs::read_to_string(dir.join("runs")).unwrap_or_default(), "", "ctr would take ten seconds to fail");
    assert_eq!((nowhere.stop(), waiting.stop()), (Some(0), Some(0)));
}

#[test]
fn one_that_dies_at_once_is_started_ever_more_rarely() {
    let world = World::new(&[("events", "echo no way >&2; exit 3")]);
    world.assert_backs_off();
    world.agent.wait_log("ended with exit code 3: no way");
    // Once, unless the listing was done before the end was noticed: then it was there in between.
    let log = world.agent.log();
    let (lost, ready) = (log.matches("source lost").count(), log.matches("source ready").count());
    assert!(lost > 0 && lost <= ready + 1, "{log}");
    write_script(&world.dir, &[]);
    world.wait_held(&[8080]);
    world.end();
}

#[test]
fn one_that_prints_garbage_is_killed() {
    let world = World::new(&[("events", "yes nonsense; exit 0")]);
    world.agent.wait_log("100 lines in a row that are no events");
    world.assert_backs_off();
    assert!(status_kb(world.agent.pid(), "VmRSS:") < 20_000);
    assert!(world.agent.log().lines().count() < 50, "{}", world.agent.log());
    write_script(&world.dir, &[]);
    world.wait_held(&[8080]);
    world.end();
}

#[test]
fn a_line_without_end_is_not_read_to_its_end() {
    let world = World::new(&[("events", r"yes | tr -d '\n'")]);
    world.agent.wait_log("a line of more than 1048576 bytes");
    world.assert_backs_off();
    assert!(status_kb(world.agent.pid(), "VmHWM:") < 30_000);
    world.end();
}

#[test]
fn a_flood_of_events_keeps_it_busy_and_no_more() {
    let flood = r#"exec yes '2026-11-21 00:29:10.4 +0000 UTC n /tasks/exit {"container_id":"c1","id":"exec1"}'"#;
    let world = World::new(&[("events", flood)]);
    world.wait_held(&[8080]);
    world.agent.wait_log("source ready");
    assert!(status_kb(world.agent.pid(), "VmHWM:") < 30_000);
    world.end();
}

#[test]
fn complaints_without_end_end_it() {
    let world = World::new(&[("events", "yes 'something is wrong' >&2; exit")]);
    world.agent.wait_log("ctr events complains without end: something is wrong\"");
    world.assert_backs_off();
    world.end();
}

#[test]
fn events_without_end_do_not_put_the_listing_off() {
    let start = r#"'2026-11-21 00:29:10.4 +0000 UTC n /tasks/start {"container_id":"x%d","pid":1}\n'"#;
    let flood = format!("i=0; while [ $i -lt 5000 ]; do i=$((i + 1)); printf {start} $i; done; exec sleep 1000");
    // By the time that there is something to list, thousands wait to be looked up.
    let world = World::new(&[("events", &flood), ("namespaces", "sleep 0.5; cat $D/namespaces")]);
    world.wait_held(&[8080]);
    world.agent.wait_log("source ready");
    let looked_up = world.runs("info x");
    assert!(looked_up < 1000, "{looked_up} look-ups of events came first");
    world.end();
}

#[test]
fn one_that_stops_within_a_line_is_given_up() {
    let world = World::new(&[("events", "printf '2026-11-21 00:29'; exec sleep 1000")]);
    world.wait_held(&[8080]);
    world.agent.wait_log("stalled in the middle of a line");
    world.wait_held(&[8080]);
    world.end();
}

#[test]
fn one_that_hangs_is_killed_and_claims_stay() {
    let world = World::new(&[]);
    world.wait_held(&[8080]);
    write_script(&world.dir, &[("namespaces", "exec sleep 1000")]);
    world.kill_events();
    world.agent.wait_log("was ended by a signal");
    eventually("the end of patience", || match world.agent.log() {
        log if log.contains("took too long, and was killed") => Ok(()),
        log => Err(log),
    });
    world.wait_held(&[8080]);
    // One hangs at the end too.
    world.end();
}

#[test]
fn a_list_that_fails_or_is_cut_is_not_an_empty_one() {
    let world = World::new(&[]);
    world.wait_held(&[8080]);
    for (script, reason) in [
        (("tasks", "cat $D/tasks; echo sorry >&2; exit 1"), "ended with exit code 1: sorry"),
        (("tasks", "printf 'TASK PID STATUS\\nc1 1'"), "expected whole lines"),
        (("tasks", ":"), "expected TASK PID STATUS"),
        (("namespaces", "yes namespace"), "printed more than 4194304 bytes"),
    ] {
        write_script(&world.dir, &[script]);
        world.kill_events();
        world.agent.wait_log(reason);
        world.wait_held(&[8080]);
        write_script(&world.dir, &[]);
        let ready = world.agent.log().matches("source ready").count();
        eventually("ready again", || match world.agent.log() {
            log if log.matches("source ready").count() > ready => Ok(()),
            log => Err(log),
        });
    }
    assert!(!world.agent.log().contains("withdrawn"), "{}", world.agent.log());
    world.end();
}

#[test]
fn one_look_up_that_hangs_costs_no_other_container_its_ports() {
    let world = World::new(&[]);
    info(&world.dir, "c2", &[8081]);
    world.write("containers", "c1\nc2\n");
    world.write("tasks", &format!("{RUNS}c2 200 RUNNING\n"));
    world.wait_held(&[8080, 8081]);
    // The ports of both are known, so the source is ready again before this look-up ends, and the time of grace with it.
    write_script(&world.dir, &[("info", "[ $3 != c2 ] || exec sleep 1000; cat $D/info-$3")]);
    world.kill_events();
    world.agent.wait_log("was ended by a signal");
    within(Duration::from_secs(5), "ready again", || match world.agent.log().matches("source ready").count() {
        2 => Ok(()),
        _ => Err(world.agent.log()),
    });
    world.end();
}

#[test]
fn a_failed_look_up_is_tried_again_and_not_for_ever() {
    let mut world = World::new(&[]);
    world.wait_held(&[8080]);
    // c2 fails twice, c3 always.
    let info = "[ $3 != c3 ] || exit 1; [ $3 != c2 ] || { echo >>$D/tries; [ $(wc -l <$D/tries) -gt 2 ] || exit 1; }; \
        cat $D/info-$3";
    write_script(&world.dir, &[("info", info)]);
    self::info(&world.dir, "c2", &[8081]);
    world.write("tasks", &format!("{RUNS}c2 200 RUNNING\nc3 300 RUNNING\n"));
    world.write("containers", "c1\nc2\nc3\n");
    world.event("/tasks/start", r#"{"container_id":"c2","pid":200}"#);
    world.event("/tasks/start", r#"{"container_id":"c3","pid":300}"#);
    world.wait_held(&[8080, 8081]);
    world.agent.wait_log("n/c3: given up after 3 failures");
    // An update that cannot be read keeps what was known.
    world.write("info-c1", "{");
    world.event("/containers/update", r#"{"id":"c1"}"#);
    world.agent.wait_log("n/c1: not JSON");
    world.wait_held(&[8080, 8081]);
    assert_eq!(world.runs("containers info c3"), 3, "{}", world.agent.log());
    world.end();
}
