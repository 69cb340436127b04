//! Starting over, other rules, and what the reconciler shows of itself.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use rancher_desktop_agent::event::{Command, Event, ForwardState, Report, Scope, SinkId, Source};
use rancher_desktop_agent::policy::parse_rules;
use rancher_desktop_agent::reconciler::Role;
use rancher_desktop_agent::view::{Decision, SinkState, SourceState, State, View};

use super::sim::{Outcome, binding, owner};
use super::world::World;

fn view(world: &World) -> View {
    world.reconciler.view(Scope { rows: true, claims_on: NonZeroU16::new(80) }, world.now)
}

/// Protocol and address on the host (or as published), sink, state and reason of each row.
fn rows(world: &World) -> Vec<String> {
    let row = |row: &rancher_desktop_agent::view::Row| {
        let sink = row.sink.map_or("-".to_owned(), |sink| sink.0.to_string());
        let ip = row.host_ip.map_or("nowhere".to_owned(), |ip| ip.to_string());
        let reason = row.reason.as_deref().map_or(String::new(), |reason| format!(" ({reason})"));
        format!("{ip}:{}/{} {sink} {}{reason}", row.port, row.protocol, row.state.as_str())
    };
    view(world).rows.iter().map(row).collect()
}

fn adopt(world: &mut World, text: &str) -> Vec<String> {
    let commands = world.reconciler.adopt_rules(parse_rules(text).unwrap(), world.now);
    let mut denied = Vec::new();
    for command in commands {
        match command {
            Command::Send(sink, document) => world.sinks[sink.0].queue.push_back(document),
            Command::Report(Report::Denied { binding, rule, .. }) => denied.push(format!("{binding} {rule}")),
            Command::Report(Report::Narrowed { published, exposed, .. }) => {
                denied.push(format!("{published} narrowed to {exposed}"));
            }
            Command::Report(_) | Command::Restart => {}
        }
    }
    denied
}

#[test]
fn starting_over_withdraws_everything_and_asks_the_sources() {
    let mut world = World::new(true, &[Role::Peer, Role::Relay]);
    world.find(0, &[binding("0.0.0.0:99/tcp")]);
    world.snapshot(&[("a", "0.0.0.0:80/tcp"), ("b", "127.0.0.1:81/tcp")]);
    world.settle();
    assert_eq!(world.held(0), "0.0.0.0:80/tcp 127.0.0.1:81/tcp");
    world.reports.clear();
    world.apply(Event::StartOver);
    assert_eq!(world.reports, [Report::StartingOver]);
    // What was on its way is no news any more.
    world.claim("c", "0.0.0.0:82/tcp");
    world.snapshot(&[("a", "0.0.0.0:80/tcp")]);
    assert_eq!(view(&world).sources[0].state, SourceState::Ready, "nobody was asked again yet");
    world.settle();
    assert_eq!((world.held(0), world.held(1)), (String::new(), String::new()));
    assert_eq!(world.reports.last(), Some(&Report::StartedOver { left: 0 }));
    assert_eq!(view(&world).sources[0].state, SourceState::Starting);
    assert!(rows(&world).is_empty());
    world.snapshot(&[("a", "0.0.0.0:80/tcp")]);
    world.settle();
    assert_eq!(world.held(0), "0.0.0.0:80/tcp");
    world.quiet();
}

#[test]
fn starting_over_does_not_wait_for_ever_for_a_peer_that_is_away() {
    let mut world = World::new(true, &[Role::Peer, Role::Peer]);
    world.claim("a", "0.0.0.0:80/tcp");
    world.settle();
    world.sinks[0].mode = Outcome::Unreachable;
    world.apply(Event::StartOver);
    world.pass(Duration::from_millis(4_900));
    assert!(!world.reports.iter().any(|report| matches!(report, Report::StartedOver { .. })));
    world.pass(Duration::from_millis(200));
    assert!(world.reports.contains(&Report::StartedOver { left: 1 }));
    assert_eq!(world.held(1), "", "the other one was told");
    assert_eq!(rows(&world), ["0.0.0.0:80/tcp 0 pending (refused)"]);
    world.claim("a", "0.0.0.0:80/tcp");
    world.quiet();
    assert_eq!((world.held(0), world.held(1)), ("0.0.0.0:80/tcp".to_owned(), "0.0.0.0:80/tcp".to_owned()));
}

#[test]
fn a_shutdown_ends_starting_over() {
    let mut world = World::new(true, &[Role::Peer]);
    world.claim("a", "0.0.0.0:80/tcp");
    world.settle();
    world.apply(Event::StartOver);
    world.apply(Event::Shutdown);
    world.apply(Event::StartOver);
    world.settle();
    assert!(world.reconciler.is_empty());
    assert!(!world.reports.iter().any(|report| matches!(report, Report::StartedOver { .. })));
}

#[test]
fn rules_that_change_move_what_they_concern_and_nothing_else() {
    let mut world = World::new(true, &[Role::Peer, Role::Relay]);
    world.claim("a", "0.0.0.0:80/tcp 127.0.0.1:80/tcp");
    world.claim("b", "0.0.0.0:81/tcp");
    world.settle();
    assert_eq!(
        (world.held(0).as_str(), world.held(1).as_str()),
        ("0.0.0.0:80/tcp 0.0.0.0:81/tcp 127.0.0.1:80/tcp", "")
    );
    world.sent(0);
    let denied = adopt(&mut world, "deny tcp/80\n");
    let rule = "deny tcp/80 (rules file, line 1)";
    assert_eq!(denied, [format!("0.0.0.0:80/tcp {rule}"), format!("127.0.0.1:80/tcp {rule}")]);
    world.settle();
    assert_eq!(world.held(0), "0.0.0.0:81/tcp");
    assert_eq!(
        rows(&world),
        [
            format!("nowhere:80/tcp - denied ({rule})"),
            format!("nowhere:80/tcp - denied ({rule})"),
            "0.0.0.0:81/tcp 0 forwarding".to_owned(),
        ]
    );
    assert_eq!(view(&world).forwards.of(State::Denied), 2);
    let claims = view(&world).claims;
    assert!(claims.iter().all(|c| c.decision == Decision::Denied && c.rule.as_deref() == Some(rule)));
    // The same rules once more are no news.
    assert!(adopt(&mut world, "deny tcp/80\n").is_empty());
    assert!(adopt(&mut world, "allow tcp/80 # not any more\ndeny tcp/80\n").is_empty());
    world.settle();
    assert_eq!(world.held(0), "0.0.0.0:80/tcp 0.0.0.0:81/tcp 127.0.0.1:80/tcp");
    assert!(!world.sent(0).iter().any(|document| document.contains(":81/")), "an untouched port does not flap");
}

#[test]
fn what_is_not_denied_any_more_is_remarked_upon_as_if_it_were_new() {
    let mut world = World::new(true, &[Role::Peer, Role::Relay]);
    world.claim("a", "192.168.1.5:80/tcp 192.168.1.5:81/tcp");
    world.settle();
    assert_eq!(adopt(&mut world, "deny tcp/80\n").len(), 1);
    world.settle();
    assert_eq!(adopt(&mut world, ""), ["192.168.1.5:80/tcp narrowed to 127.0.0.1:80/tcp"]);
    world.settle();
    assert_eq!(world.held(0), "127.0.0.1:80/tcp 127.0.0.1:81/tcp");
}

#[test]
fn shows_what_each_sink_has_and_why_not() {
    let mut world = World::new(true, &[Role::Peer, Role::Relay]);
    assert_eq!((view(&world).sinks[0].state, view(&world).sources[0].state), (SinkState::Idle, SourceState::Starting));
    world.sinks[0].busy.insert(binding("0.0.0.0:80/tcp"));
    world.claim("a", "0.0.0.0:80/tcp 192.168.1.5:81/tcp");
    assert_eq!(rows(&world)[0], "0.0.0.0:80/tcp 0 pending");
    world.settle();
    assert_eq!(
        rows(&world),
        ["0.0.0.0:80/tcp 0 conflict (Conflict)", "127.0.0.1:81/tcp 0 forwarding", "192.168.1.5:81/tcp 1 forwarding",]
    );
    let seen = view(&world);
    assert_eq!(seen.sinks[0].state, SinkState::Reachable);
    assert_eq!(seen.sinks[0].last_error.as_deref(), Some("Conflict"));
    assert_eq!((seen.forwards.of(State::Forwarding), seen.forwards.of(State::Conflict)), (2, 1));
    assert_eq!((seen.sources[0].owners, seen.sources[0].bindings), (1, 2));
    let since = seen.rows[0].since;
    world.pass(Duration::from_millis(300));
    let later = view(&world);
    assert!(later.rows[0].failures >= 2, "tried again");
    assert_eq!(later.rows[0].since, since, "and still in that state");
    world.lose_source();
    let lost = view(&world);
    assert_eq!((lost.sources[0].state, lost.sources[0].losses), (SourceState::Lost, 1));
    assert_eq!(lost.sources[0].reason.as_deref(), Some("end of stream"));
}

#[test]
fn what_is_put_back_after_a_restart_is_told_again() {
    let mut world = World::new(true, &[Role::Peer]);
    world.claim("a", "0.0.0.0:80/tcp");
    world.settle();
    let again = |report: &Report| match report {
        Report::Forward { state: ForwardState::Forwarding, again, .. } => Some(*again),
        _ => None,
    };
    world.sinks[0].restart();
    world.reset(0);
    assert_eq!(rows(&world), ["0.0.0.0:80/tcp 0 pending"], "who waits for it must not believe that it is there");
    world.settle();
    assert_eq!(rows(&world), ["0.0.0.0:80/tcp 0 forwarding"]);
    assert_eq!(world.reports.iter().filter_map(again).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn a_peer_that_is_seen_to_be_away_is_told_everything_when_it_is_back() {
    let mut world = World::new(true, &[Role::Peer]);
    let seen = |problem: Option<&str>| Event::SinkSeen { sink: SinkId(0), problem: problem.map(str::to_owned) };
    world.apply(seen(Some("no answer")));
    assert_eq!(view(&world).sinks[0].state, SinkState::Unreachable);
    assert_eq!(view(&world).sinks[0].reason.as_deref(), Some("no answer"));
    world.apply(seen(None));
    assert!(matches!(view(&world).sinks[0].state, SinkState::Idle));
    assert_eq!(world.reports.len(), 2, "{:?}", world.reports);
    world.claim("a", "0.0.0.0:80/tcp");
    world.settle();
    world.sinks[0].mode = Outcome::Unreachable;
    world.sinks[0].restart();
    world.apply(seen(Some("no answer")));
    assert_eq!(rows(&world), ["0.0.0.0:80/tcp 0 pending (no answer)"]);
    world.sinks[0].mode = Outcome::Done;
    world.apply(seen(None));
    world.settle();
    assert_eq!(world.held(0), "0.0.0.0:80/tcp");
    world.quiet();
}

#[test]
fn names_are_kept_as_long_as_their_claims() {
    let mut world = World::new(true, &[Role::Peer]);
    let names = |all: &[(&str, &str)]| Event::Named {
        source: Source::Docker,
        names: all.iter().map(|(key, name)| (Arc::from(*key), Arc::from(*name))).collect(),
    };
    let name = |world: &World, key: &str| world.reconciler.name(&owner(key)).map(|name| name.to_string());
    world.apply(names(&[("a", "web"), ("b", "nothing is claimed for it")]));
    world.snapshot(&[("a", "0.0.0.0:80/tcp")]);
    assert_eq!((name(&world, "a").as_deref(), name(&world, "b")), (Some("web"), None));
    assert_eq!(view(&world).claims[0].name.as_deref(), Some("web"));
    assert_eq!(view(&world).rows[0].name.as_deref(), Some("web"));
    world.apply(names(&[("a", "renamed")]));
    assert_eq!(name(&world, "a").as_deref(), Some("renamed"));
    // Its forwards have yet to be withdrawn, and people want to know whose they were. But not of everybody for ever.
    world.claim("a", "");
    assert_eq!(name(&world, "a").as_deref(), Some("renamed"));
    for other in 0..1024 {
        let key = format!("b{other}");
        world.apply(names(&[(&key, "other")]));
        world.claim(&key, "0.0.0.0:80/tcp");
        world.claim(&key, "");
    }
    assert_eq!(name(&world, "a"), None);
    // Whatever its key is, who went last is known.
    world.apply(names(&[("0", "last")]));
    world.claim("0", "0.0.0.0:80/tcp");
    world.claim("0", "");
    assert_eq!(name(&world, "0").as_deref(), Some("last"));
}

#[test]
fn who_claims_a_port_and_what_was_decided() {
    let mut world = World::new(false, &[Role::Peer, Role::Relay]);
    world.claim("a", "192.168.1.5:80/tcp");
    world.claim("b", "192.168.1.5:80/tcp 0.0.0.0:81/tcp");
    world.apply(Event::Stale { source: Source::Docker, keys: [Arc::from("b")].into_iter().collect() });
    let claims = view(&world).claims;
    let told: Vec<_> = claims.iter().map(|c| (&*c.owner.key, c.decision, c.narrowed, c.stale)).collect();
    assert_eq!(told, [("a", Decision::Counts, true, false), ("b", Decision::Behind, true, true)]);
    assert_eq!(claims[0].host_ip, Some("127.0.0.1".parse().unwrap()));
    assert_eq!(claims[0].rule, None);
}
