//! Peers that refuse, hang, go away and come back; the relay that peers depend on; the end.

use std::time::Duration;

use rancher_desktop_agent::event::{Answer, Event, FailureKind, ForwardState, Report, SinkId, Source, Ticket};
use rancher_desktop_agent::reconciler::{Role, SinkSettings};

use super::sim::{Outcome, binding};
use super::world::World;

const NONE: [&str; 0] = [];
const MS: Duration = Duration::from_millis(1);

fn peer() -> World {
    World::new(true, &[Role::Peer])
}

fn with_relay() -> World {
    World::new(true, &[Role::Peer, Role::Relay])
}

#[test]
fn s06_a_withdrawal_that_fails_is_tried_again_until_it_is_gone() {
    let mut world = peer();
    world.claim("a", "0.0.0.0:80/tcp");
    world.settle();
    world.claim("a", "");
    world.sinks[0].mode = Outcome::Refuse(1);
    world.pass(MS * 1000);
    // At 0, 100, 300 and 700 ms.
    assert_eq!(
        world.sent(0),
        ["+a 0.0.0.0:80/tcp", "-a 0.0.0.0:80/tcp", "-a 0.0.0.0:80/tcp", "-a 0.0.0.0:80/tcp", "-a 0.0.0.0:80/tcp"]
    );
    assert!(!world.reconciler.is_empty());
    world.quiet();
    assert!(world.reconciler.is_empty());
}

#[test]
fn s06_a_withdrawal_that_may_be_lost_is_sent_again() {
    for outcome in [Outcome::Lost, Outcome::Applied] {
        let mut world = peer();
        world.claim("a", "0.0.0.0:80/tcp");
        world.settle();
        world.claim("a", "");
        world.carry_out(0, outcome);
        world.answer(0);
        world.quiet();
        assert!(world.reconciler.is_empty());
        assert_eq!(world.sent(0), ["+a 0.0.0.0:80/tcp", "-a 0.0.0.0:80/tcp", "-a 0.0.0.0:80/tcp"]);
    }
}

#[test]
fn s08_what_is_published_while_the_peer_is_down_arrives_when_it_is_up() {
    let mut world = peer();
    world.sinks[0].mode = Outcome::Unreachable;
    for key in 0..50 {
        world.claim(&key.to_string(), &format!("0.0.0.0:{}/tcp", 1000 + key));
    }
    world.pass(MS * 60_000);
    // The first, then one probe at a time, at 5 s distance in the end.
    assert!(world.documents < 32 + 20, "{} documents to a peer that is down", world.documents);
    assert_eq!(world.reports.len(), 1, "one line, not one a document: {:?}", world.reports);
    world.sinks[0].mode = Outcome::Done;
    world.pass(MS * 5000);
    assert_eq!(world.sinks[0].held.len(), 50);
    assert!(matches!(world.reports[1], Report::Peer { problem: None, .. }));
    world.quiet();
}

#[test]
fn s08_a_peer_that_was_down_is_told_everything_even_if_nothing_is_left_to_say() {
    let mut world = peer();
    world.claim("a", "0.0.0.0:80/tcp");
    world.claim("b", "0.0.0.0:81/tcp");
    world.settle();
    world.claim("b", "");
    world.carry_out(0, Outcome::Restarting);
    world.answer(0);
    // The withdrawal that found the peer gone is not needed any more.
    world.claim("b", "0.0.0.0:81/tcp");
    world.quiet();
    assert_eq!(world.held(0), "0.0.0.0:80/tcp 0.0.0.0:81/tcp");
}

#[test]
fn s13_a_conflict_stops_nobody_else_and_is_taken_when_free() {
    let mut world = peer();
    world.sinks[0].busy.insert(binding("0.0.0.0:80/tcp"));
    world.claim("a", "0.0.0.0:80/tcp 0.0.0.0:81/tcp");
    world.claim("b", "0.0.0.0:82/tcp");
    world.settle();
    assert_eq!(world.held(0), "0.0.0.0:81/tcp 0.0.0.0:82/tcp");
    let conflicts = |world: &World| {
        let conflict = |r: &&Report| matches!(r, Report::Forward { state: ForwardState::Failing(f), .. } if f.kind == FailureKind::Conflict);
        world.reports.iter().filter(conflict).count()
    };
    assert_eq!(conflicts(&world), 1);
    world.sent(0);
    world.pass(MS * 60_000);
    let tries = world.sent(0);
    assert!((10..30).contains(&tries.len()), "{} tries in a minute", tries.len());
    assert!(tries.iter().all(|text| text == "+a 0.0.0.0:80/tcp"), "the others are left alone: {tries:?}");
    assert_eq!(conflicts(&world), 1, "and it is said once");
    world.sinks[0].busy.clear();
    world.pass(MS * 5000);
    assert_eq!(world.held(0), "0.0.0.0:80/tcp 0.0.0.0:81/tcp 0.0.0.0:82/tcp");
    world.quiet();
}

#[test]
fn s13_a_conflict_that_nobody_wants_any_more_is_reported_as_gone() {
    let mut world = peer();
    world.sinks[0].busy.insert(binding("0.0.0.0:80/tcp"));
    world.claim("a", "0.0.0.0:80/tcp");
    world.settle();
    world.claim("a", "");
    assert!(matches!(world.reports.last(), Some(Report::Forward { state: ForwardState::Withdrawn, .. })));
    world.settle();
    assert_eq!(world.sent(0), ["+a 0.0.0.0:80/tcp"], "there is nothing to withdraw");
    assert!(world.reconciler.is_empty());
    world.quiet();
}

#[test]
fn a_restart_of_the_container_waits_for_no_backoff() {
    let mut world = peer();
    world.sinks[0].busy.insert(binding("0.0.0.0:80/tcp"));
    world.claim("a", "0.0.0.0:80/tcp");
    world.pass(MS * 60_000);
    world.claim("a", "");
    world.sinks[0].busy.clear();
    world.claim("a", "0.0.0.0:80/tcp");
    world.settle();
    assert_eq!(world.held(0), "0.0.0.0:80/tcp");
}

#[test]
fn a_document_of_unknown_fate_holds_up_its_owner_only() {
    let mut world = peer();
    world.claim("a", "0.0.0.0:80/tcp");
    world.carry_out(0, Outcome::Lost);
    world.answer(0);
    world.claim("a", "0.0.0.0:80/tcp 0.0.0.0:81/tcp");
    world.claim("b", "0.0.0.0:82/tcp");
    world.settle();
    assert_eq!(world.sent(0), ["+a 0.0.0.0:80/tcp", "+b 0.0.0.0:82/tcp"]);
    world.pass(MS * 100);
    assert_eq!(world.sent(0), ["+a 0.0.0.0:80/tcp 0.0.0.0:81/tcp"]);
    world.quiet();
}

#[test]
fn a_reset_announces_everything_again_but_nothing_that_is_gone() {
    let mut world = peer();
    world.claim("a", "0.0.0.0:80/tcp 0.0.0.0:81/tcp");
    world.claim("b", "0.0.0.0:82/udp");
    world.claim("c", "0.0.0.0:83/udp");
    world.settle();
    world.claim("c", "");
    world.settle();
    world.sent(0);
    world.sinks[0].restart();
    world.reset(0);
    world.settle();
    assert_eq!(world.sent(0), ["+a 0.0.0.0:80/tcp 0.0.0.0:81/tcp", "+b 0.0.0.0:82/udp"]);
    world.quiet();
}

#[test]
fn a_document_on_its_way_during_a_reset_is_sent_again() {
    let mut world = peer();
    world.claim("a", "0.0.0.0:80/tcp");
    world.carry_out(0, Outcome::Done);
    world.sinks[0].restart();
    world.reset(0);
    assert_eq!(world.sent(0), ["+a 0.0.0.0:80/tcp"], "one at a time");
    world.answer(0);
    assert_eq!(world.sent(0), ["+a 0.0.0.0:80/tcp"]);
    world.settle();
    assert_eq!(world.sent(0), NONE);
    world.quiet();
}

#[test]
fn a_reset_ends_every_wait_and_starts_the_backoff_anew() {
    let mut world = peer();
    world.sinks[0].mode = Outcome::Unreachable;
    world.claim("a", "0.0.0.0:80/tcp");
    world.pass(MS * 60_000);
    world.sent(0);
    // The host end says that it is coming up, and is not quite there.
    world.reset(0);
    world.settle();
    world.sinks[0].mode = Outcome::Done;
    world.pass(MS * 100);
    assert_eq!(world.sent(0), ["+a 0.0.0.0:80/tcp", "+a 0.0.0.0:80/tcp"]);
    assert_eq!(world.held(0), "0.0.0.0:80/tcp");
}

#[test]
fn a_reset_ends_the_wait_for_a_document_of_unknown_fate() {
    let mut world = peer();
    world.claim("a", "0.0.0.0:80/tcp");
    world.carry_out(0, Outcome::Lost);
    world.answer(0);
    world.reset(0);
    world.settle();
    assert_eq!(world.held(0), "0.0.0.0:80/tcp");
    world.quiet();
}

#[test]
fn a_peer_that_is_back_is_told_at_once_what_it_refused_before() {
    let mut world = peer();
    world.sinks[0].busy.insert(binding("0.0.0.0:80/tcp"));
    world.claim("a", "0.0.0.0:80/tcp");
    world.pass(MS * 60_000);
    world.sinks[0].busy.clear();
    world.claim("b", "0.0.0.0:81/tcp");
    world.carry_out(0, Outcome::Restarting);
    world.answer(0);
    world.pass(MS * 100);
    assert_eq!(world.held(0), "0.0.0.0:80/tcp 0.0.0.0:81/tcp");
    world.quiet();
}

#[test]
fn a_peer_is_told_of_a_loopback_binding_once_the_relay_carries_it() {
    let mut world = with_relay();
    world.claim("a", "127.0.0.1:8000/tcp 0.0.0.0:80/tcp");
    world.claim("b", "0.0.0.0:81/tcp");
    assert_eq!(world.sent(1), ["+a 127.0.0.1:8000/tcp"]);
    assert_eq!(world.sent(0), ["+b 0.0.0.0:81/tcp"], "nobody else waits for the relay");
    world.settle();
    assert_eq!(world.sent(0), ["+a 0.0.0.0:80/tcp 127.0.0.1:8000/tcp"], "one document for one change");
    world.claim("a", "");
    world.claim("b", "");
    world.quiet();
    assert!(world.reconciler.is_empty());
}

#[test]
fn a_binding_that_the_relay_cannot_carry_is_kept_from_peers() {
    let mut world = with_relay();
    world.sinks[1].busy.insert(binding("192.168.1.5:80/tcp"));
    world.claim("a", "192.168.1.5:80/tcp");
    world.pass(MS * 60_000);
    assert_eq!(world.sent(0), NONE);
    world.sinks[1].busy.clear();
    world.pass(MS * 5000);
    assert_eq!(world.sent(0), ["+a 127.0.0.1:80/tcp"]);
    world.quiet();
}

#[test]
fn a_binding_that_the_relay_loses_is_withdrawn_from_peers() {
    let mut world = with_relay();
    world.claim("a", "127.0.0.1:80/tcp");
    world.settle();
    world.sent(0);
    world.sinks[1].restart();
    world.sinks[1].busy.insert(binding("127.0.0.1:80/tcp"));
    world.reset(1);
    world.settle();
    assert_eq!(world.sent(0), ["-a 127.0.0.1:80/tcp"]);
    world.quiet();
}

#[test]
fn a_peer_is_not_told_of_a_binding_that_the_relay_is_just_closing() {
    let mut world = with_relay();
    world.claim("a", "127.0.0.1:80/tcp");
    world.settle();
    world.sent(0);
    world.claim("a", "");
    world.carry_out(0, Outcome::Done);
    world.answer(0);
    world.claim("a", "127.0.0.1:80/tcp");
    world.settle();
    assert_eq!(world.sent(0), ["-a 127.0.0.1:80/tcp", "+a 127.0.0.1:80/tcp"]);
    world.quiet();
}

#[test]
fn shutdown_withdraws_everything_and_is_then_empty() {
    let mut world = with_relay();
    world.claim("a", "127.0.0.1:80/tcp 0.0.0.0:81/tcp");
    world.settle();
    // One announcement on its way, one that waits behind it, one in conflict.
    world.sinks[0].busy.insert(binding("0.0.0.0:84/tcp"));
    world.claim("c", "0.0.0.0:84/tcp");
    world.settle();
    world.claim("b", "0.0.0.0:82/tcp");
    world.claim("b", "0.0.0.0:82/tcp 0.0.0.0:83/tcp");
    world.apply(Event::Shutdown);
    assert!(!world.reconciler.is_empty());
    world.claim("late", "0.0.0.0:85/tcp");
    world.snapshot(&[("late", "0.0.0.0:85/tcp")]);
    world.settle();
    assert_eq!((world.held(0), world.held(1)), (String::new(), String::new()));
    assert!(world.reconciler.is_empty());
    assert_eq!(world.reconciler.deadline(), None);
}

#[test]
fn shutdown_tries_a_peer_that_is_away_at_once_and_often() {
    let mut world = peer();
    world.claim("a", "0.0.0.0:80/tcp");
    world.settle();
    world.sinks[0].mode = Outcome::Unreachable;
    world.reset(0);
    world.pass(MS * 60_000);
    world.sent(0);
    world.apply(Event::Shutdown);
    world.pass(MS * 3500);
    assert_eq!(world.sent(0).len(), 6, "at 0, 0.1, 0.3, 0.7, 1.5 and 3.1 s");
    world.sinks[0].mode = Outcome::Done;
    world.pass(MS * 5000);
    assert!(world.reconciler.is_empty());
}

#[test]
fn unknown_sinks_and_tickets_are_ignored() {
    let mut world = peer();
    world.claim("a", "0.0.0.0:80/tcp");
    let before = world.reports.len();
    for (sink, ticket) in [(0, 0), (0, 999), (1, 1), (usize::MAX, 1)] {
        let answer = Answer::Unreachable("nonsense".into());
        world.apply(Event::Answered { sink: SinkId(sink), ticket: Ticket(ticket), answer });
    }
    world.reset(7);
    assert_eq!(world.reports.len(), before);
    world.settle();
    assert_eq!(world.sent(0), ["+a 0.0.0.0:80/tcp"]);
    // An answer given twice counts once.
    let answer = Answer::Unreachable("again".into());
    world.apply(Event::Answered { sink: SinkId(0), ticket: Ticket(1), answer });
    world.quiet();
    assert_eq!(world.sent(0), NONE);
}

#[test]
fn a_refusal_of_what_was_not_asked_changes_nothing() {
    let mut world = peer();
    world.claim("a", "0.0.0.0:80/tcp");
    world.claim("b", "0.0.0.0:81/tcp");
    world.carry_out(0, Outcome::Done);
    let failure = rancher_desktop_agent::event::Failure { kind: FailureKind::Denied, reason: "no".into() };
    let answer = Answer::Done { failed: vec![(binding("0.0.0.0:81/tcp"), failure)] };
    world.apply(Event::Answered { sink: SinkId(0), ticket: Ticket(1), answer });
    let refused = |r: &Report| matches!(r, Report::Forward { state: ForwardState::Failing(_), .. });
    assert!(!world.reports.iter().any(refused));
}

/// Found by the simulation, as is the one below.
#[test]
fn a_listener_does_not_wait_for_the_relay() {
    for roles in [[Role::Listener, Role::Relay], [Role::Relay, Role::Listener]] {
        let mut world = World::new(true, &roles);
        let (listener, relay) = if roles[0] == Role::Listener { (0, 1) } else { (1, 0) };
        world.claim("a", "127.0.0.1:80/tcp");
        assert_eq!(world.sent(relay), ["+a 127.0.0.1:80/tcp"], "and no answer");
        assert_eq!(world.sent(listener), ["+a 127.0.0.1:80/tcp"]);
    }
}

#[test]
fn a_withdrawal_does_not_wait_with_what_its_owner_publishes() {
    let mut world = with_relay();
    world.claim("a", "0.0.0.0:80/tcp");
    world.settle();
    world.sent(0);
    world.claim("a", "0.0.0.0:80/tcp 127.0.0.1:81/tcp 0.0.0.0:82/tcp");
    assert_eq!(world.sent(1), ["+a 127.0.0.1:81/tcp"], "and no answer");
    assert_eq!(world.sent(0), NONE, "waits for the relay");
    world.claim("a", "127.0.0.1:81/tcp 0.0.0.0:82/tcp");
    assert_eq!(world.sent(0), ["-a 0.0.0.0:80/tcp"]);
    world.settle();
    assert_eq!(world.sent(0), ["+a 0.0.0.0:82/tcp 127.0.0.1:81/tcp"], "and what waits is still one change");
    world.quiet();
}

/// Nothing else happened after that, and so nothing was announced.
#[test]
fn nobody_waits_for_what_the_relay_turns_out_not_to_do() {
    let mut world = with_relay();
    world.snapshot(&[("b", "192.168.1.5:80/tcp")]);
    world.settle();
    assert_eq!(world.sent(0), ["+b 127.0.0.1:80/tcp"]);
    world.snapshot(&[("b", "0.0.0.0:81/tcp"), ("c", "192.168.1.5:80/tcp")]);
    assert_eq!(world.sent(0), ["+b 0.0.0.0:81/tcp"]);
    world.quiet();
}

/// The same, of a sink that follows another, in whatever order they are.
#[test]
fn nobody_waits_for_what_the_sink_ahead_turns_out_not_to_do() {
    let peer = SinkSettings::of_all(Role::Peer);
    for (ahead, behind) in [(0, 1), (1, 0)] {
        let mut sinks = [peer, peer];
        sinks[behind].after = Some(SinkId(ahead));
        let mut world = World::of(true, &sinks, &[Source::Docker]);
        world.snapshot(&[("b", "0.0.0.0:80/tcp")]);
        world.settle();
        world.snapshot(&[("b", "0.0.0.0:81/tcp"), ("c", "0.0.0.0:80/tcp")]);
        world.settle();
        assert_eq!(world.held(behind), "0.0.0.0:80/tcp 0.0.0.0:81/tcp");
        world.snapshot(&[("c", "0.0.0.0:81/tcp 0.0.0.0:80/tcp")]);
        world.quiet();
    }
}
