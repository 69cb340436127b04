//! How long the reconciler takes for 10,000 bindings at once, and for one change among them.
//!
//! The library is compiled as the agent is (`opt-level = "z"`). Half of the bindings are on 0.0.0.0 and half on
//! 127.0.0.1, so that the relay, without which the peer is not told of the latter, takes part.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rancher_desktop_agent::event::{Answer, Command, Event, Owner, Source};
use rancher_desktop_agent::policy::Policy;
use rancher_desktop_agent::port::{Binding, Bindings, Protocol};
use rancher_desktop_agent::reconciler::{Reconciler, Role, Settings, SinkSettings};

use crate::report::{Row, Samples, thousands};

const OWNERS: u16 = 100;
const EACH: u16 = 100;
const SNAPSHOTS: usize = 300;
const CHANGES: usize = 10_000;
const WARM_UP: usize = 20;

const SNAPSHOT_MS_MAX: f64 = 10.0;
const CHANGE_US_MAX: f64 = 20.0;

pub fn measure() -> Vec<Row> {
    let (applied, settled) = snapshots();
    // An owner's first binding moves to another port, or back.
    let moved = changes(|n| {
        let mut bindings = bindings(0);
        if n % 2 == 0 {
            bindings.pop_first();
            bindings.insert(binding(60_000), port(80));
        }
        claim(0, bindings)
    });
    // An owner of one binding comes, or goes.
    let came = changes(|n| match n % 2 {
        0 => claim(OWNERS, Bindings::from([(binding(60_000), port(80))])),
        _ => claim(OWNERS, Bindings::new()),
    });
    let all = thousands(u64::from(OWNERS) * u64::from(EACH));
    vec![
        Row::at_most(
            &format!("Reconciler: {all} bindings in one snapshot, median / p99 / max"),
            SNAPSHOT_MS_MAX,
            "ms",
            applied.median(),
            format!(
                "{} ms (n = {}); with every document sent and answered {}",
                shown(&applied),
                applied.n(),
                shown(&settled)
            ),
        ),
        Row::at_most(
            &format!("Reconciler: one change among {all} bindings, median / p99 / max"),
            CHANGE_US_MAX,
            "µs",
            moved.median().max(came.median()),
            format!(
                "one of an owner's {EACH} bindings: {} µs; an owner of one binding: {} µs (n = {} each)",
                shown(&moved),
                shown(&came),
                thousands(moved.n() as u64)
            ),
        ),
    ]
}

fn shown(samples: &Samples) -> String {
    format!("{:.1} / {:.1} / {:.1}", samples.median(), samples.p99(), samples.max())
}

/// Milliseconds for a new reconciler to take a snapshot, and until nothing is left to be done about it.
fn snapshots() -> (Samples, Samples) {
    let mut applied = Vec::new();
    let mut settled = Vec::new();
    for _ in 0..WARM_UP + SNAPSHOTS {
        let (mut reconciler, event, now) = (reconciler(), snapshot(), Instant::now());
        let commands = reconciler.apply(event, now);
        applied.push(now.elapsed());
        settle(&mut reconciler, commands, now);
        settled.push(now.elapsed());
    }
    let milliseconds = |times: &[Duration]| Samples::new(times.iter().map(|t| t.as_secs_f64() * 1e3).collect());
    (milliseconds(&applied[WARM_UP..]), milliseconds(&settled[WARM_UP..]))
}

/// Microseconds for each of many changes, told apart by their number, to a reconciler that holds everything. What
/// follows from a change is carried out before the next one, untimed.
fn changes(change: impl Fn(usize) -> Event) -> Samples {
    let (mut reconciler, now) = (reconciler(), Instant::now());
    let commands = reconciler.apply(snapshot(), now);
    settle(&mut reconciler, commands, now);
    let mut times = Vec::with_capacity(CHANGES);
    for n in 0..WARM_UP + CHANGES {
        let (event, begun) = (change(n), Instant::now());
        let commands = reconciler.apply(event, now);
        let took = begun.elapsed();
        assert!(commands.iter().any(|command| matches!(command, Command::Send(..))), "nothing came of a change");
        settle(&mut reconciler, commands, now);
        if n >= WARM_UP {
            times.push(took.as_secs_f64() * 1e6);
        }
    }
    Samples::new(times)
}

/// Plays both sinks, which carry out all that they are told, until nobody has anything to say.
fn settle(reconciler: &mut Reconciler, mut commands: Vec<Command>, now: Instant) {
    while let Some(command) = commands.pop() {
        if let Command::Send(sink, document) = command {
            let answer = Answer::Done { failed: Vec::new() };
            commands.extend(reconciler.apply(Event::Answered { sink, ticket: document.ticket, answer }, now));
        }
    }
}

/// With the sinks that the agent has in its usual mode.
fn reconciler() -> Reconciler {
    let sinks = [Role::Peer, Role::Relay].map(SinkSettings::of_all).to_vec();
    Reconciler::new(
        Settings {
            policy: Policy { admin: true, ..Policy::default() },
            grace: Duration::from_secs(10),
            sinks,
            sources: vec![],
        },
        Instant::now(),
    )
}

fn snapshot() -> Event {
    let claims = (0..OWNERS).map(|owner| (key(owner), bindings(owner))).collect();
    Event::Snapshot { source: Source::Docker, claims }
}

fn claim(owner: u16, bindings: Bindings) -> Event {
    Event::Claim { owner: Owner { source: Source::Docker, key: key(owner) }, bindings }
}

/// As long as Docker's ids, and as different from each other at their beginning.
fn key(owner: u16) -> Arc<str> {
    format!("{:016x}", (u64::from(owner) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).repeat(4).into()
}

fn bindings(owner: u16) -> Bindings {
    (0..EACH).map(|i| (binding(10_000 + owner * EACH + i), port(80 + i))).collect()
}

fn binding(host_port: u16) -> Binding {
    let host_ip = if host_port % 2 == 0 { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
    Binding { protocol: Protocol::Tcp, host_ip: IpAddr::V4(host_ip), host_port: port(host_port) }
}

fn port(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).unwrap()
}
