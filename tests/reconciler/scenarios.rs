//! What is published arrives, and nothing else: owners, sources, exposure, limits.

use std::num::NonZeroU16;
use std::time::Duration;

use rancher_desktop_agent::event::{Event, Report, Source};
use rancher_desktop_agent::port::Bindings;
use rancher_desktop_agent::reconciler::{BINDINGS_MAX, Role};

use super::oracle::GRACE;
use super::sim::{Outcome, binding, bindings, owner};
use super::world::World;

const NONE: [&str; 0] = [];

/// One peer that may bind every address.
fn peer() -> World {
    World::new(true, &[Role::Peer])
}

fn tcp(ports: std::ops::Range<u16>) -> Bindings {
    let on = |port| (binding(&format!("0.0.0.0:{port}/tcp")), NonZeroU16::new(port).unwrap());
    ports.map(on).collect()
}

#[test]
fn s02_nothing_flaps_when_the_engine_is_back_within_the_grace() {
    let mut world = peer();
    world.snapshot(&[("a", "0.0.0.0:80/tcp"), ("b", "0.0.0.0:81/tcp")]);
    world.settle();
    world.sent(0);
    world.lose_source();
    world.pass(GRACE - Duration::from_millis(1));
    world.snapshot(&[("a", "0.0.0.0:80/tcp"), ("c", "0.0.0.0:82/tcp")]);
    world.pass(GRACE * 2);
    assert_eq!(world.sent(0), ["-b 0.0.0.0:81/tcp", "+c 0.0.0.0:82/tcp"]);
    world.quiet();
}

#[test]
fn s02_claims_end_with_the_grace_and_come_back_with_the_snapshot() {
    let mut world = peer();
    world.snapshot(&[("a", "0.0.0.0:80/tcp")]);
    world.lose_source();
    world.pass(GRACE / 2);
    // Lost again while it is lost: the grace is not renewed.
    world.lose_source();
    world.pass(GRACE / 2 - Duration::from_millis(1));
    assert_eq!(world.held(0), "0.0.0.0:80/tcp");
    world.pass(Duration::from_millis(1));
    assert_eq!(world.held(0), "");
    world.snapshot(&[("a", "0.0.0.0:80/tcp")]);
    world.quiet();
}

#[test]
fn s02_a_source_that_was_lost_and_found_is_reported_once_each() {
    let mut world = peer();
    world.snapshot(&[]);
    world.lose_source();
    world.lose_source();
    world.snapshot(&[]);
    let problems: Vec<bool> =
        world.reports.iter().map(|r| matches!(r, Report::Source { problem: Some(_), .. })).collect();
    assert_eq!(problems, [false, true, false]);
}

#[test]
fn s10_one_udp_forward_and_no_tcp() {
    let mut world = peer();
    world.claim("a", "0.0.0.0:1234/udp");
    world.settle();
    assert_eq!(world.sent(0), ["+a 0.0.0.0:1234/udp"]);
    world.claim("a", "");
    world.settle();
    assert_eq!(world.sent(0), ["-a 0.0.0.0:1234/udp"]);
    world.quiet();
}

#[test]
fn s12_loopback_stays_loopback() {
    let all = "0.0.0.0:80/tcp 127.0.0.1:8000/tcp 127.1.2.3:81/tcp 192.168.1.5:82/udp [::]:80/tcp [::1]:81/tcp [fd00::5]:82/tcp";
    for (admin, held) in [
        (
            true,
            "0.0.0.0:80/tcp 127.0.0.1:8000/tcp 127.1.2.3:81/tcp [::]:80/tcp [::1]:81/tcp [::1]:82/tcp 127.0.0.1:82/udp",
        ),
        (
            false,
            "127.0.0.1:80/tcp 127.0.0.1:8000/tcp 127.1.2.3:81/tcp [::1]:80/tcp [::1]:81/tcp [::1]:82/tcp 127.0.0.1:82/udp",
        ),
    ] {
        let mut world = World::new(admin, &[Role::Peer]);
        world.claim("a", all);
        world.quiet();
        assert_eq!(world.held(0), held, "admin={admin}");
        let narrowed = world.reports.iter().filter(|r| matches!(r, Report::Narrowed { .. })).count();
        assert_eq!(narrowed, 2, "the two that named an address of the guest are warned of");
    }
}

#[test]
fn s26_five_thousand_ports_start_and_stop_in_few_documents() {
    let mut world = peer();
    world.claim_all("a", tcp(1000..6000));
    world.settle();
    assert_eq!((world.sinks[0].held.len(), world.documents), (5000, 1));
    world.claim("a", "");
    world.settle();
    assert_eq!((world.sinks[0].held.len(), world.documents), (0, 2));
    world.quiet();
}

#[test]
fn s26_more_than_one_document_holds_goes_out_in_several() {
    let mut world = peer();
    world.claim_all("a", tcp(1000..21_000));
    world.settle();
    assert_eq!((world.sinks[0].held.len(), world.documents), (20_000, 3));
}

#[test]
fn s27_families_are_kept_apart() {
    let mut world = peer();
    world.claim("a", "0.0.0.0:32768/tcp [::]:32769/tcp");
    world.settle();
    assert_eq!(world.held(0), "0.0.0.0:32768/tcp [::]:32769/tcp");
    world.claim("a", "0.0.0.0:32768/tcp");
    world.settle();
    world.sent(0);
    world.quiet();
    assert_eq!(world.held(0), "0.0.0.0:32768/tcp");
}

#[test]
fn s23_untouched_ports_never_flap() {
    let mut world = peer();
    world.claim("a", "0.0.0.0:80/tcp 0.0.0.0:81/tcp");
    world.settle();
    world.sent(0);
    world.claim("a", "0.0.0.0:80/tcp 0.0.0.0:82/tcp");
    world.settle();
    assert_eq!(world.sent(0), ["-a 0.0.0.0:81/tcp", "+a 0.0.0.0:82/tcp"]);
    world.quiet();
}

#[test]
fn a_shared_binding_stays_until_its_last_owner_goes() {
    let mut world = peer();
    world.claim("a", "0.0.0.0:80/tcp");
    world.claim("b", "0.0.0.0:80/tcp");
    world.settle();
    assert_eq!(world.sent(0), ["+a 0.0.0.0:80/tcp"]);
    world.claim("a", "");
    world.settle();
    assert_eq!(world.sent(0), NONE);
    world.claim("b", "");
    world.settle();
    assert_eq!(world.sent(0), ["-b 0.0.0.0:80/tcp"]);
    world.quiet();
}

#[test]
fn a_forward_asked_for_by_two_bindings_passes_to_the_owner_that_stays() {
    let mut world = World::new(false, &[Role::Peer]);
    world.claim("a", "0.0.0.0:80/tcp");
    world.claim("b", "127.0.0.1:80/tcp");
    world.settle();
    assert_eq!(world.sent(0), ["+a 127.0.0.1:80/tcp"]);
    world.claim("a", "");
    world.reset(0);
    world.settle();
    assert_eq!(world.sent(0), ["+b 127.0.0.1:80/tcp"]);
    world.claim("b", "");
    world.settle();
    assert_eq!(world.sent(0), ["-b 127.0.0.1:80/tcp"]);
    world.quiet();
}

#[test]
fn a_binding_that_passes_to_another_owner_in_a_snapshot_is_left_alone() {
    let mut world = peer();
    world.snapshot(&[("a", "0.0.0.0:80/tcp")]);
    world.settle();
    world.sent(0);
    world.snapshot(&[("b", "0.0.0.0:80/tcp")]);
    world.settle();
    assert_eq!(world.sent(0), NONE);
    world.quiet();
}

#[test]
fn what_one_owner_changes_arrives_in_order() {
    let mut world = peer();
    world.claim("a", "0.0.0.0:80/tcp");
    world.claim("a", "127.0.0.1:80/tcp");
    world.claim("b", "0.0.0.0:81/tcp");
    assert_eq!(world.sent(0), ["+a 0.0.0.0:80/tcp", "+b 0.0.0.0:81/tcp"], "nothing overtakes an owner's document");
    world.settle();
    assert_eq!(world.sent(0), ["-a 0.0.0.0:80/tcp", "+a 127.0.0.1:80/tcp"]);
    world.quiet();
}

#[test]
fn a_claim_taken_back_before_it_is_sent_is_never_sent() {
    let mut world = peer();
    world.claim("a", "0.0.0.0:80/tcp");
    world.claim("a", "0.0.0.0:80/tcp 0.0.0.0:81/tcp");
    world.claim("a", "0.0.0.0:80/tcp");
    world.settle();
    assert_eq!(world.sent(0), ["+a 0.0.0.0:80/tcp"]);
    world.quiet();
}

#[test]
fn no_more_documents_than_the_window_are_on_their_way() {
    let mut world = peer();
    for key in 0..100_u16 {
        world.claim_all(&key.to_string(), tcp(1000 + key..1001 + key));
    }
    assert_eq!(world.sent(0).len(), 32);
    world.carry_out(0, Outcome::Done);
    world.answer(0);
    assert_eq!(world.sent(0).len(), 1);
    world.settle();
    assert_eq!(world.sinks[0].held.len(), 100);
    world.quiet();
}

#[test]
fn s29_a_sink_that_hangs_does_not_delay_another() {
    let mut world = World::new(true, &[Role::Peer, Role::Peer]);
    for key in 0..100_u16 {
        world.claim_all(&key.to_string(), tcp(1000 + key..1001 + key));
        world.carry_out(1, Outcome::Done);
        world.answer(1);
    }
    assert_eq!((world.sinks[0].held.len(), world.sinks[1].held.len()), (0, 100));
    world.quiet();
}

#[test]
fn claims_over_the_limit_are_refused_with_a_report_and_displace_nothing() {
    let mut world = peer();
    let mut all = Bindings::new();
    for ip in ["10.0.0.2", "10.0.0.3"] {
        all.extend(tcp(1..65_535).into_iter().map(|(b, port)| (b.on(ip.parse().unwrap()), port)));
    }
    let free = BINDINGS_MAX - all.len();
    world.claim_all("many", all.clone());
    world.claim_all("z", tcp(1000..1000 + free as u16));
    world.settle();
    assert!(!world.reports.iter().any(|r| matches!(r, Report::Skipped { .. })), "exactly full");
    world.claim_all("z", tcp(999..1000 + free as u16));
    world.settle();
    assert!(matches!(&world.reports.last().unwrap(), Report::Skipped { count: 1, .. }));
    let held = |port: usize| world.sinks[0].held.contains(&binding(&format!("0.0.0.0:{port}/tcp")));
    assert!(!held(999), "refused");
    assert!(held(1000) && held(999 + free), "what was held before stays");

    // A snapshot that fits as a whole is not refused because of what it takes away.
    let mut claims = rancher_desktop_agent::ordered::Map::from([(owner("many").key, all)]);
    claims.insert(owner("a").key, tcp(2000..2000 + free as u16));
    world.apply(Event::Snapshot { source: Source::Docker, claims });
    world.settle();
    assert!(!world.reports.iter().any(|r| matches!(r, Report::Skipped { count: 2, .. })), "refused what fits");
}

#[test]
fn skipped_input_is_counted() {
    let mut world = peer();
    for _ in 0..3 {
        world.apply(Event::Skipped { source: Source::Docker, reason: "not JSON".into() });
    }
    let count = |r: &Report| match r {
        Report::Skipped { count, .. } => *count,
        _ => 0,
    };
    assert_eq!(world.reports.iter().map(count).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn a_claim_that_changes_only_what_is_behind_a_port_keeps_the_forward() {
    let mut world = peer();
    world.claim("a", "0.0.0.0:80/tcp");
    world.settle();
    let moved = bindings("0.0.0.0:80/tcp").into_iter().map(|(b, _)| (b, NonZeroU16::new(8080).unwrap())).collect();
    world.claim_all("a", moved);
    world.settle();
    assert_eq!(world.sent(0), ["+a 0.0.0.0:80/tcp"]);
    world.quiet();
}
