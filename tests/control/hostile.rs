//! Clients that are slow, silent, many or wrong: nobody else notices, nothing grows, and nobody waits for them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rancher_desktop_agent::event::Report;
use rancher_desktop_agent::view::{Change, State};

use crate::support::{descriptors, eventually, status_kb};
use crate::world::{Client, World, forward_change, row, types};

const STATUS: &str = r#"{"op":"status"}"#;
const WATCH: &str = r#"{"op":"watch"}"#;

#[test]
fn requests_have_a_limit() {
    let world = World::new(Vec::new());
    let mut client = world.client();
    let padded = |bytes: usize| format!("{STATUS}{}", " ".repeat(bytes - STATUS.len()));
    assert_eq!(types(&client.ask(&padded(4096))), ["status", "end"]);
    client.send(&padded(4097));
    assert!(client.error("too-long").contains("4096"));
    assert_eq!(client.next(), None);
    let mut endless = world.client();
    let mut writer = endless.0.get_ref().try_clone().unwrap();
    // It may be closed before all is written.
    let _ = writer.write_all(&[b'x'; 1 << 20]);
    endless.error("too-long");
    assert_eq!(endless.next(), None);
}

#[test]
fn what_is_wrong_is_said_and_the_next_is_answered() {
    let world = World::new(Vec::new());
    let mut client = world.client();
    for (request, code, expect) in [
        (r#"{"op":"stop"}"#, "request", "status, ports, watch, explain, reset"),
        (r#"{"op":"status","verbose":true}"#, "request", "verbose"),
        (r#"{"op":"status","schema":2}"#, "schema", "not 2"),
        (r#"{"op":"ports","port":"http"}"#, "request", "1 to 65535"),
        ("\u{1b}[2J", "request", "not JSON"),
        ("", "request", "not JSON"),
    ] {
        client.send(request);
        let message = client.error(code);
        assert!(message.contains(expect), "{request}: {message}");
    }
    client.0.get_mut().write_all(&[0xff, 0xfe, 0, b'\n']).unwrap();
    client.error("request");
    let nested = "[".repeat(4000);
    client.send(&nested);
    client.error("request");
    assert_eq!(types(&client.ask(STATUS)), ["status", "end"]);
}

#[test]
fn silent_clients_keep_nobody_out() {
    let rows = (1..=5_000).map(|n| row(n, 1, State::Forwarding)).collect();
    let world = World::new(rows);
    let before = descriptors(std::process::id());
    // Half of them ask for much and read nothing.
    let silent: Vec<UnixStream> = (0..100)
        .map(|n| {
            let mut stream = UnixStream::connect(&world.path).unwrap();
            if n % 2 == 0 {
                let _ = stream.write_all(b"{\"op\":\"ports\"}\n");
            }
            stream
        })
        .collect();
    let mut watcher = world.watcher(WATCH);
    let mut longest = Duration::ZERO;
    for n in 1..=50 {
        let begun = Instant::now();
        let mut client = world.client();
        let response = client.ask(STATUS);
        longest = longest.max(begun.elapsed());
        assert!(response[0]["clients"]["now"].as_u64().unwrap() <= 64, "{response:?}");
        world.tell(vec![forward_change(n)]);
        assert_eq!(watcher.expect("forward")["port"], n);
    }
    // Half of the time that one of them may take: nobody waited for it. How short it is, the benchmark says.
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    // Ours, and at most as many of the socket's.
    let most = before + silent.len() + 64 + 10;
    assert!(descriptors(std::process::id()) <= most + 100, "other tests have some, too");
    drop(silent);
}

#[test]
fn a_client_that_takes_nothing_costs_little() {
    let rows = (1..=50_000).map(|n| row(n, 1, State::Conflict)).collect();
    let world = World::new(rows);
    let mut slow: Vec<Client> = (0..20).map(|_| world.client()).collect();
    slow[0].send(r#"{"op":"ports"}"#);
    slow[0].expect("forward");
    let before = status_kb(std::process::id(), "VmRSS");
    slow[1..].iter_mut().for_each(|client| client.send(r#"{"op":"ports"}"#));
    slow[1..].iter_mut().for_each(|client| drop(client.expect("forward")));
    // A response has some 16 MB; nineteen of them are neither written ahead nor waited for.
    let grown = status_kb(std::process::id(), "VmRSS").saturating_sub(before);
    println!("19 slow clients of 50,000 forwards: {grown} KiB");
    assert_eq!(types(&world.client().ask(STATUS)), ["status", "end"]);
    assert!(grown < 100_000, "{grown} KiB");
    // And each gets all of it once it reads.
    let rest = slow[7].response();
    assert_eq!(rest.len(), 50_000);
    assert_eq!(rest.last().unwrap()["count"], 50_000);
}

#[test]
fn what_slow_clients_are_shown_is_not_kept_without_a_limit() {
    let rows = (1..=5_000).map(|n| row(n, 1, State::Conflict)).collect();
    let world = World::new(rows);
    // One after the other, so that each has a present state of its own.
    let ask = |_: usize| {
        let mut client = world.client();
        client.send(r#"{"op":"ports"}"#);
        client.expect("forward");
        client
    };
    let mut slow: Vec<Client> = (0..8).map(ask).collect();
    assert_eq!(types(&world.client().ask(STATUS)), ["status", "end"], "that has none");
    let begun = Instant::now();
    let mut ninth = ask(8);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let mut rest = Vec::new();
    let _ = slow[0].0.read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).contains(r#""type":"end""#), "it had its time");
    assert_eq!((slow[7].response().len(), ninth.response().len()), (5_000, 5_000));
}

#[test]
fn nobody_is_passed_over_by_those_who_ask_again_and_again() {
    let world = World::new(Vec::new());
    let explain = |port: u16| format!(r#"{{"op":"explain","port":{port}}}"#);
    let greedy: Vec<_> = (1..=3)
        .map(|port| {
            let mut client = world.client();
            client.send(&vec![explain(port); 200].join("\n"));
            let mut writer = client.0.get_ref().try_clone().unwrap();
            let lines = (explain(port) + "\n").repeat(50);
            std::thread::spawn(move || while writer.write_all(lines.as_bytes()).is_ok() {});
            std::thread::spawn(move || {
                let mut line = String::new();
                while client.0.read_line(&mut line).is_ok_and(|count| count > 0) {
                    line.clear();
                }
            })
        })
        .collect();
    let mut client = world.client();
    for port in 100..120 {
        let response = client.ask(&explain(port));
        assert_eq!((types(&response), &response[0]["port"]), (vec!["claim", "end"], &port.into()));
    }
    drop(world);
    greedy.into_iter().for_each(|thread| thread.join().unwrap());
}

/// As where tens of thousands of forwards go at once, without a document to anybody.
#[test]
fn a_reset_is_told_however_much_it_changes() {
    const FORWARDS: usize = 20_000;
    let world = World::new(Vec::new());
    let mut watcher = world.watcher(WATCH);
    let change = |report| Change { report, ..forward_change(1) };
    let mut changes = vec![forward_change(1); FORWARDS];
    changes.push(change(Report::StartingOver));
    changes.push(change(Report::StartedOver { left: 0 }));
    world.tell(changes);
    assert_eq!(watcher.expect("lost")["count"], FORWARDS);
    assert_eq!(
        (&watcher.expect("reset")["state"], &watcher.expect("reset")["state"]),
        (&"begun".into(), &"done".into())
    );
}

/// A watcher that reads when it is told to, and counts.
struct Slow {
    client: Client,
    /// The number of the change that is next.
    next: u64,
    lost: u64,
}

impl Slow {
    fn read(&mut self) {
        let document = self.client.next().unwrap_or_else(|| panic!("closed before change {}", self.next));
        if document["type"] == "lost" {
            self.lost += document["count"].as_u64().unwrap();
            self.next += document["count"].as_u64().unwrap();
        } else {
            assert_eq!(document["port"], self.next);
            self.next += 1;
        }
    }
}

#[test]
fn slow_watchers_are_told_what_they_missed() {
    const CHANGES: u16 = 50_000;
    let world = World::new(Vec::new());
    let mut slow: Vec<Slow> = (0..3).map(|_| Slow { client: world.client(), next: 1, lost: 0 }).collect();
    slow.iter_mut().for_each(|slow| slow.client.send(WATCH));
    let mut reader = world.watcher(WATCH);
    eventually("all watch", || {
        let now = world.client().ask(STATUS)[0]["clients"]["now"].as_u64().unwrap();
        (now >= 5).then_some(()).ok_or(now)
    });
    // One that reads is given what it needs to keep up; who does not read is not waited for.
    let progress = AtomicU16::new(0);
    let mut longest = Duration::ZERO;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut line = String::new();
            for n in 1..=CHANGES {
                line.clear();
                reader.0.read_line(&mut line).unwrap();
                assert!(line.contains(&format!(r#""port":{n},"#)), "every one, in order: {n}: {line}");
                progress.store(n, Ordering::SeqCst);
            }
        });
        let mut sip = Instant::now();
        for n in (1..=CHANGES).step_by(10) {
            let changes = (n..n + 10).map(forward_change).collect();
            let begun = Instant::now();
            world.tell(changes);
            longest = longest.max(begun.elapsed());
            if n % 1000 == 1 {
                eventually("the reader keeps up", || {
                    let read = u32::from(progress.load(Ordering::SeqCst));
                    (read + 4000 >= n.into()).then_some(()).ok_or(read)
                });
            }
            // Where this takes long they have to take a little, or they are closed.
            if sip.elapsed() > Duration::from_secs(3) {
                slow.iter_mut().for_each(|slow| (0..60).for_each(|_| slow.read()));
                sip = Instant::now();
            }
        }
    });
    // They may take ten seconds each.
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    // In turn, for the same reason.
    while slow.iter().any(|slow| slow.next <= u64::from(CHANGES)) {
        for slow in &mut slow {
            for _ in 0..100 {
                if slow.next <= u64::from(CHANGES) {
                    slow.read();
                }
            }
        }
    }
    assert!(slow.iter().all(|slow| slow.lost >= 25_000), "{:?}", slow.iter().map(|slow| slow.lost).collect::<Vec<_>>());
}

#[test]
fn there_are_places_for_watchers_and_for_others() {
    let world = World::new(Vec::new());
    let mut watchers: Vec<Client> = (0..48).map(|_| world.client()).collect();
    watchers.iter_mut().for_each(|client| client.send(r#"{"op":"watch","replay":true}"#));
    watchers.iter_mut().for_each(|client| drop(client.expect("replayed")));
    let mut one_more = world.client();
    one_more.send(WATCH);
    one_more.error("busy");
    assert_eq!(one_more.next(), None);
    // The other places: who has been silent for longest makes room.
    let mut idle: Vec<Client> = (0..16).map(|_| world.client()).collect();
    idle.iter_mut().for_each(|client| assert_eq!(types(&client.ask(STATUS)), ["status", "end"]));
    assert_eq!(types(&idle[0].ask(STATUS)), ["status", "end"], "the second is the longest now");
    assert_eq!(types(&world.client().ask(STATUS)), ["status", "end"]);
    idle[1].error("timeout");
    assert_eq!(idle[1].next(), None);
    assert_eq!(types(&idle[0].ask(STATUS)), ["status", "end"]);
    // None of those who watch.
    world.tell(vec![forward_change(1)]);
    watchers.iter_mut().for_each(|client| drop(client.expect("forward")));
    // One that goes makes room for another.
    drop(watchers.pop());
    eventually("a place to watch", || {
        let mut client = world.client();
        client.send(r#"{"op":"watch","replay":true}"#);
        let document = client.next();
        document.clone().filter(|document| document["type"] == "replayed").map(|_| ()).ok_or(document)
    });
}

#[test]
fn nobody_is_waited_for_longer_than_ten_seconds() {
    let rows = (1..=20_000).map(|n| row(n, 1, State::Forwarding)).collect();
    let world = World::new(rows);
    let mut watcher = world.watcher(WATCH);
    let begun = Instant::now();
    let mut silent = world.client();
    let mut dripping = world.client();
    let mut drip = dripping.0.get_ref().try_clone().unwrap();
    let mut taking_nothing = world.client();
    taking_nothing.send(r#"{"op":"ports"}"#);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // A byte now and then is no request.
            while drip.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        silent.error("timeout");
        assert_eq!(silent.next(), None);
        dripping.error("timeout");
        assert_eq!(dripping.next(), None);
        let took = begun.elapsed();
        assert!((9..13).contains(&took.as_secs()), "{took:?}");
    });
    eventually("who takes nothing is closed", || {
        let now = world.client().ask(STATUS)[0]["clients"]["now"].as_u64().unwrap();
        (now == 2).then_some(()).ok_or(now)
    });
    // Some of it was on its way; the end never came.
    while let Some(document) =
        taking_nothing.0.get_ref().set_read_timeout(Some(Duration::from_secs(5))).ok().and_then(|()| {
            let mut line = String::new();
            taking_nothing.0.read_line(&mut line).ok().filter(|count| *count > 0)?;
            serde_json::from_str::<serde_json::Value>(&line).ok()
        })
    {
        assert_eq!(document["type"], "forward");
    }
    world.tell(vec![forward_change(1)]);
    assert_eq!(watcher.expect("forward")["port"], 1, "who watches has time");
}

#[test]
fn an_agent_that_does_not_answer_is_said_to() {
    let world = World::new(Vec::new());
    world.answers(false);
    let (mut asks, mut resets) = (world.client(), world.client());
    asks.send(STATUS);
    eventually("it is asked", || (!world.asked().is_empty()).then_some(()).ok_or("not yet"));
    // The stand-in is busy with the first.
    resets.send(r#"{"op":"reset"}"#);
    asks.error("timeout");
    resets.error("timeout");
    world.answers(true);
    eventually("it answers again", || {
        let response = world.client().ask(STATUS);
        (types(&response) == ["status", "end"]).then_some(()).ok_or(response)
    });
}

/// The threads of all control sockets of this process.
fn threads() -> BTreeSet<PathBuf> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten().map(|task| task.path());
    let name = |task: &PathBuf| fs::read_to_string(task.join("comm")).unwrap_or_default();
    tasks.filter(|task| name(task).trim() == "control").collect()
}

#[test]
fn nothing_is_done_while_nobody_asks() {
    // Other tests have sockets, too: this one's thread is known where no other came at the same time.
    let (world, thread) = eventually("one more thread", || {
        let before = threads();
        let world = World::new(Vec::new());
        assert_eq!(types(&world.client().ask(STATUS)), ["status", "end"]);
        let new: Vec<PathBuf> = threads().difference(&before).cloned().collect();
        if new.len() == 1 { Ok((world, new[0].clone())) } else { Err(new) }
    });
    let _watcher = world.watcher(WATCH);
    let _idle = world.client();
    let switches = || {
        let status = fs::read_to_string(thread.join("status")).unwrap();
        let counts = status.lines().filter(|line| line.contains("ctxt_switches")).map(str::to_owned);
        counts.collect::<Vec<_>>()
    };
    eventually("a second without a thing", || {
        let before = switches();
        std::thread::sleep(Duration::from_secs(1));
        let after = switches();
        if before == after { Ok(()) } else { Err((before, after)) }
    });
}
