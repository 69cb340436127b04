//! Sinks that follow another one, forwards of an earlier run, rules, and claims of sockets beside those of containers.

use std::time::Duration;

use rancher_desktop_agent::event::{Event, Report, SinkId, Source};
use rancher_desktop_agent::ordered::Map;
use rancher_desktop_agent::policy::{Policy, Rule};
use rancher_desktop_agent::reconciler::{Role, SinkSettings};

use super::oracle::GRACE;
use super::sim::{binding, bindings};
use super::sinks::{Agent, owner};
use super::world::World;

/// host-switch, wsl-proxy behind it, and the relay.
fn rancher_desktop(policy: Policy, sources: &[Source]) -> Agent {
    let ipv4 = |role| SinkSettings { ipv4_only: true, ..SinkSettings::of_all(role) };
    let wsl_proxy = SinkSettings { after: Some(SinkId(0)), feeds: Source::WITH_AGENT, ..ipv4(Role::Peer) };
    Agent::with(&[ipv4(Role::Peer), wsl_proxy, ipv4(Role::Relay)], policy, sources)
}

fn held(agent: &Agent) -> [String; 3] {
    [agent.held(0), agent.held(1), agent.held(2)]
}

fn rules(rules: &[(&str, bool)]) -> Policy {
    Policy::new(true, rules.iter().map(|(text, allow)| Rule::parse(text, *allow).unwrap()).collect())
}

#[test]
fn s13_wsl_proxy_hears_of_a_port_once_host_switch_has_it() {
    let mut agent = rancher_desktop(Policy::default(), &[]);
    agent.busy = bindings("127.0.0.1:80/tcp");
    agent.claim(Source::Docker, "a", "0.0.0.0:80/tcp 0.0.0.0:81/tcp");
    assert_eq!(held(&agent), ["127.0.0.1:81/tcp", "127.0.0.1:81/tcp", ""]);
    agent.busy.clear();
    agent.pass(Duration::from_secs(6));
    assert_eq!(held(&agent), ["127.0.0.1:80/tcp 127.0.0.1:81/tcp", "127.0.0.1:80/tcp 127.0.0.1:81/tcp", ""]);
    agent.claim(Source::Docker, "a", "");
    assert_eq!(held(&agent), ["", "", ""]);
}

#[test]
fn s12_a_loopback_publish_goes_through_the_relay_then_to_host_switch_then_to_wsl_proxy() {
    let mut agent = rancher_desktop(Policy::new(true, Vec::new()), &[]);
    agent.claim(Source::Docker, "a", "127.0.0.1:80/tcp 0.0.0.0:81/tcp");
    let both = "0.0.0.0:81/tcp 127.0.0.1:80/tcp";
    assert_eq!(held(&agent), [both, both, "127.0.0.1:80/tcp"]);
    assert_eq!(agent.documents, 3, "one each");
}

#[test]
fn what_is_for_one_sink_alone_waits_for_no_other() {
    let mut agent = rancher_desktop(Policy::default(), &[]);
    agent.claim(Source::Agent, "kube-apiserver", "127.0.0.1:6443/tcp");
    assert_eq!(held(&agent), ["", "127.0.0.1:6443/tcp", ""]);
}

/// What goes to a peer by way of the relay is left out with it, whatever the peer could do.
#[test]
fn s27_another_peer_does_not_hide_what_the_relay_leaves_out() {
    let ipv4 = |role| SinkSettings { ipv4_only: true, ..SinkSettings::of_all(role) };
    let sinks = [ipv4(Role::Peer), SinkSettings::of_all(Role::Peer), ipv4(Role::Relay)];
    let mut agent = Agent::with(&sinks, Policy::default(), &[]);
    agent.claim(Source::Docker, "a", "[::]:80/tcp [::1]:81/tcp");
    assert_eq!(held(&agent), ["", "[::1]:80/tcp", ""]);
    let left_out = |report: &Report| match report {
        Report::LeftOut { sink, binding, .. } => Some((sink.0, binding.to_string())),
        _ => None,
    };
    let left_out: Vec<_> = agent.reports.iter().filter_map(left_out).collect();
    assert_eq!(left_out, [(0, "[::1]:81/tcp".to_owned())]);
}

#[test]
fn s27_ipv6_is_one_with_its_equal_in_ipv4_and_is_reported_without() {
    let mut agent = rancher_desktop(Policy::default(), &[]);
    agent.claim(
        Source::Docker,
        "a",
        "0.0.0.0:80/tcp [::]:80/tcp [::]:81/tcp 127.0.0.1:82/tcp [::1]:82/tcp [::1]:83/udp",
    );
    assert_eq!(agent.held(0), "127.0.0.1:80/tcp 127.0.0.1:82/tcp");
    let left_out = |report: &Report| match report {
        Report::LeftOut { sink: SinkId(0), binding, reason, .. } => Some(format!("{binding} {reason}")),
        _ => None,
    };
    let reason = "only IPv4 is forwarded there, and the port is not published on IPv4";
    let left_out: Vec<String> = agent.reports.iter().filter_map(left_out).collect();
    assert_eq!(left_out, [format!("[::]:81/tcp {reason}"), format!("[::1]:83/udp {reason}")]);
}

#[test]
fn the_relay_is_not_needed_where_the_port_answers_on_every_address() {
    let mut agent = rancher_desktop(Policy::default(), &[]);
    agent.claim(Source::Sockets, "tcp/80", "0.0.0.0:80/tcp 127.0.0.1:80/tcp");
    agent.claim(Source::Sockets, "udp/80", "127.0.0.1:80/udp");
    assert_eq!(
        held(&agent),
        ["127.0.0.1:80/tcp 127.0.0.1:80/udp", "127.0.0.1:80/tcp 127.0.0.1:80/udp", "127.0.0.1:80/udp"]
    );
    agent.claim(Source::Sockets, "tcp/80", "127.0.0.1:80/tcp");
    assert_eq!(agent.held(2), "127.0.0.1:80/tcp 127.0.0.1:80/udp");
    agent.claim(Source::Docker, "a", "0.0.0.0:80/tcp");
    assert_eq!(agent.held(2), "127.0.0.1:80/udp");
    agent.claim(Source::Docker, "a", "");
    assert_eq!(held(&agent)[2], "127.0.0.1:80/tcp 127.0.0.1:80/udp");
    assert_eq!(agent.held(0), "127.0.0.1:80/tcp 127.0.0.1:80/udp");
}

#[test]
fn s24_what_an_earlier_run_left_is_kept_until_it_is_known_whether_it_is_wanted() {
    let mut agent = rancher_desktop(Policy::default(), &[Source::Docker, Source::Sockets]);
    let left = bindings("127.0.0.1:80/tcp 127.0.0.1:81/tcp 0.0.0.0:82/tcp");
    let found = Event::Found { sink: SinkId(0), bindings: left.keys().copied().collect() };
    agent.apply(found.clone());
    agent.claim(Source::Docker, "a", "0.0.0.0:80/tcp");
    agent.snapshot(Source::Docker, &[("a", "0.0.0.0:80/tcp")]);
    assert_eq!(agent.documents, 1, "wsl-proxy is told again, and host-switch has it");
    assert_eq!(agent.held(1), "127.0.0.1:80/tcp");
    // The last source speaks: what nobody wants goes, also what would be bound otherwise today.
    agent.snapshot(Source::Sockets, &[]);
    let gone: Vec<String> = agent
        .reports
        .iter()
        .filter_map(|report| match report {
            Report::Forward { sink: SinkId(0), binding, owner, state, .. } => {
                Some(format!("{binding} {owner} {state:?}"))
            }
            _ => None,
        })
        .collect();
    assert_eq!(
        gone,
        [
            "127.0.0.1:80/tcp docker:a Forwarding",
            "0.0.0.0:82/tcp agent:earlier-run Withdrawn",
            "127.0.0.1:81/tcp agent:earlier-run Withdrawn"
        ]
    );
    // Found once more, when all is known: gone at once.
    agent.documents = 0;
    agent.apply(found);
    assert_eq!(agent.documents, 2, "a withdrawal at host-switch, and one at wsl-proxy, which may have been told");
}

#[test]
fn s24_a_source_that_never_speaks_does_not_keep_what_an_earlier_run_left() {
    let mut agent = rancher_desktop(Policy::default(), &[Source::Docker]);
    agent.apply(Event::Found { sink: SinkId(0), bindings: [binding("127.0.0.1:80/tcp")].into_iter().collect() });
    agent.pass(GRACE - Duration::from_millis(1));
    assert_eq!(agent.documents, 0);
    agent.pass(Duration::from_millis(1));
    assert_eq!(agent.documents, 2);
}

#[test]
fn a_container_s_port_stays_the_container_s() {
    for socket_first in [true, false] {
        let mut agent = rancher_desktop(Policy::default(), &[]);
        let claim = |agent: &mut Agent, socket: bool, text: &str| match socket {
            true => agent.claim(Source::Sockets, "tcp/80", text),
            false => agent.claim(Source::Docker, "a", text),
        };
        claim(&mut agent, socket_first, "0.0.0.0:80/tcp");
        claim(&mut agent, !socket_first, "0.0.0.0:80/tcp");
        assert_eq!(agent.documents, 2, "host-switch and wsl-proxy, once");
        // What listened for the container is about to end, too: nothing stays in the way of the next container.
        claim(&mut agent, false, "");
        assert_eq!((agent.held(0), agent.documents), (String::new(), 4));
        claim(&mut agent, true, "");
        claim(&mut agent, true, "0.0.0.0:80/tcp");
        assert_eq!(agent.held(0), "127.0.0.1:80/tcp", "another program took the port");
        claim(&mut agent, false, "0.0.0.0:80/tcp");
        claim(&mut agent, false, "");
        assert_eq!(agent.held(0), "");
        agent.snapshot(Source::Sockets, &[("tcp/80", "0.0.0.0:80/tcp")]);
        assert_eq!(agent.held(0), "127.0.0.1:80/tcp", "it is still seen to listen");
    }
}

#[test]
fn s19_denied_whatever_the_source_the_address_or_the_protocol() {
    let mut agent = rancher_desktop(rules(&[("*", false)]), &[]);
    let all = "0.0.0.0:80/tcp 127.0.0.1:81/tcp 192.168.1.5:82/udp [::]:83/tcp [::1]:84/udp";
    for source in Source::WITH_AGENT {
        agent.claim(*source, "a", all);
        agent.snapshot(*source, &[("a", all), ("b", "0.0.0.0:85/tcp")]);
    }
    assert_eq!((held(&agent), agent.documents), (Default::default(), 0));
    let denied =
        |report: &&Report| matches!(report, Report::Denied { rule, built_in: false, .. } if rule == "--deny *");
    assert_eq!(agent.reports.iter().filter(denied).count(), 6 * 6, "each once");
    let told = |report: &&Report| matches!(report, Report::LeftOut { .. } | Report::Narrowed { .. });
    assert_eq!(agent.reports.iter().filter(told).count(), 0, "nothing else is said of what is denied");
}

#[test]
fn s19_rules_decide_by_source_port_and_order() {
    let mut agent =
        rancher_desktop(rules(&[("tcp/8080", true), ("tcp/8000-8999", false), ("*/22@sockets", false)]), &[]);
    agent.claim(Source::Docker, "a", "0.0.0.0:8080/tcp 0.0.0.0:8081/tcp 0.0.0.0:8081/udp 0.0.0.0:22/tcp");
    agent.claim(Source::Sockets, "tcp/22", "0.0.0.0:22/tcp");
    agent.claim(Source::Sockets, "udp/68", "0.0.0.0:68/udp");
    agent.claim(Source::Sockets, "udp/67", "0.0.0.0:67/udp");
    agent.claim(Source::Docker, "dhcp", "0.0.0.0:67/udp");
    assert_eq!(agent.held(0), "0.0.0.0:22/tcp 0.0.0.0:8080/tcp 0.0.0.0:67/udp 0.0.0.0:8081/udp");
    // The container's claim goes; the socket's is denied.
    agent.claim(Source::Docker, "a", "");
    agent.claim(Source::Docker, "dhcp", "");
    assert_eq!(agent.held(0), "");
    assert_eq!(owner(Source::Sockets, "udp/68").to_string(), "sockets:udp/68");
}

#[test]
fn s19_what_a_rule_denies_to_a_container_is_not_published_for_what_listens_there() {
    for socket_first in [true, false] {
        let mut agent = rancher_desktop(rules(&[("tcp/80@docker", false)]), &[]);
        let claims = [(Source::Sockets, "tcp/80"), (Source::Docker, "a")];
        let order = if socket_first { [0, 1] } else { [1, 0] };
        for (source, key) in order.map(|at| claims[at]) {
            agent.claim(source, key, "0.0.0.0:80/tcp");
        }
        agent.snapshot(Source::Sockets, &[("tcp/80", "0.0.0.0:80/tcp")]);
        assert_eq!(held(&agent), ["", "", ""], "socket first: {socket_first}");
        // Another source has it, too, and is allowed.
        agent.claim(Source::Containerd, "b", "0.0.0.0:80/tcp");
        assert_eq!(agent.held(0), "0.0.0.0:80/tcp");
        agent.claim(Source::Containerd, "b", "");
        assert_eq!(agent.held(0), "");
        // The container has gone, and the port is still listened on: it is somebody else's.
        agent.claim(Source::Docker, "a", "");
        agent.snapshot(Source::Sockets, &[("tcp/80", "0.0.0.0:80/tcp")]);
        assert_eq!(agent.held(0), "0.0.0.0:80/tcp");
    }
}

#[test]
fn s19_nothing_leads_past_the_relay_to_what_a_rule_denies() {
    let mut agent = rancher_desktop(rules(&[("tcp/80@sockets", false)]), &[]);
    // Where host-switch leads to, there is the socket: without the relay it would be reached in place of the container.
    agent.claim(Source::Sockets, "tcp/80", "0.0.0.0:80/tcp");
    agent.claim(Source::Nat, "a", "127.0.0.1:80/tcp");
    assert_eq!(agent.held(2), "127.0.0.1:80/tcp");
    agent.claim(Source::Containerd, "b", "0.0.0.0:80/tcp");
    assert_eq!((agent.held(2), agent.held(0)), (String::new(), "0.0.0.0:80/tcp 127.0.0.1:80/tcp".into()));
    agent.claim(Source::Containerd, "b", "");
    assert_eq!((agent.held(2), agent.held(0)), ("127.0.0.1:80/tcp".into(), "127.0.0.1:80/tcp".into()));
}

#[test]
fn s24_what_was_found_is_kept_over_a_restart_of_the_host_s_end() {
    let mut agent = rancher_desktop(Policy::default(), &[Source::Docker, Source::Sockets]);
    let left = bindings("127.0.0.1:80/tcp 127.0.0.1:81/tcp");
    agent.apply(Event::Found { sink: SinkId(0), bindings: left.keys().copied().collect() });
    for sink in [SinkId(0), SinkId(1)] {
        agent.apply(Event::SinkReset { sink, reason: "it answers again".into() });
    }
    assert_eq!(agent.documents, 0, "whether it is wanted is not known yet");
    agent.snapshot(Source::Docker, &[("a", "0.0.0.0:80/tcp")]);
    assert_eq!(agent.held(1), "127.0.0.1:80/tcp");
    agent.documents = 0;
    agent.snapshot(Source::Sockets, &[]);
    assert_eq!(agent.documents, 2, "the other one is withdrawn, at both");
    // And if a source never speaks: after the grace time.
    agent.apply(Event::Found { sink: SinkId(0), bindings: [binding("127.0.0.1:82/tcp")].into_iter().collect() });
    assert_eq!(agent.documents, 4, "all have spoken");
}

#[test]
fn s14_what_is_found_while_the_agent_ends_goes_at_once() {
    let mut agent = rancher_desktop(Policy::default(), &[Source::Docker]);
    agent.apply(Event::Shutdown);
    agent.apply(Event::Found { sink: SinkId(0), bindings: [binding("127.0.0.1:80/tcp")].into_iter().collect() });
    assert_eq!(agent.documents, 2);
    assert!(agent.is_empty());
}

/// Found by the simulation: the host was slow to say what it holds.
#[test]
fn what_is_claimed_before_it_is_found_is_not_withdrawn_where_it_follows() {
    let peer = SinkSettings::of_all(Role::Peer);
    let sinks = [peer, SinkSettings { after: Some(SinkId(0)), ..peer }];
    let mut world = World::of(true, &sinks, &[Source::Docker, Source::Nat]);
    world.claim("a", "0.0.0.0:80/tcp");
    world.find(0, &[binding("0.0.0.0:80/tcp"), binding("0.0.0.0:81/tcp")]);
    world.snapshot(&[("a", "0.0.0.0:80/tcp")]);
    world.apply(Event::Snapshot { source: Source::Nat, claims: Map::new() });
    assert_eq!(world.sent(0), ["+a 0.0.0.0:80/tcp", "-earlier-run 0.0.0.0:81/tcp"], "and no answer");
    assert_eq!(world.sent(1), ["-earlier-run 0.0.0.0:81/tcp"]);
    world.settle();
    assert_eq!(world.sent(1), ["+a 0.0.0.0:80/tcp"]);
    world.quiet();
}
