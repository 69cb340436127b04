//! What the configuration means for the reconciler, and for who connects to what.

use caps::Capability;

use crate::config::{Config, SinkConfig};
use crate::event::{SinkId, Source};
use crate::net::{self, Outward};
use crate::policy::{Policy, Rule};
use crate::port::Protocol;
use crate::reconciler::{Role, SinkSettings};
use crate::source::child::Privileges;

/// Bindings that host-switch is told of in one go. A request each, some of them at once: a fraction of a second.
const EXPOSE_BINDINGS_MAX: usize = 64;

pub(super) fn sink_settings(config: &Config) -> Vec<SinkSettings> {
    let is_host_switch = |(sink, _): &(SinkConfig, _)| matches!(sink, SinkConfig::HostSwitch(_));
    let host_switch = config.sinks.iter().position(is_host_switch).map(SinkId);
    let settings = |(sink, feeds): &(SinkConfig, &'static [Source])| {
        let peer = SinkSettings { feeds, ..SinkSettings::of_all(Role::Peer) };
        match sink {
            SinkConfig::Listener => SinkSettings { role: Role::Listener, ..peer },
            SinkConfig::Stdout | SinkConfig::Vtunnel(_) => peer,
            SinkConfig::HostSwitch(_) => {
                SinkSettings { ipv4_only: true, document_bindings_max: EXPOSE_BINDINGS_MAX, ..peer }
            }
            SinkConfig::WslProxy(_) => SinkSettings { ipv4_only: true, after: host_switch, ..peer },
        }
    };
    let ipv4_only = !config.sinks.iter().any(|(sink, _)| matches!(sink, SinkConfig::Vtunnel(_)));
    let relay = needs_relay(config).then(|| SinkSettings { ipv4_only, ..SinkSettings::of_all(Role::Relay) });
    config.sinks.iter().map(settings).chain(relay).collect()
}

/// The sources that run.
pub(super) fn sources(config: &Config) -> Vec<Source> {
    let runs = |source: &Source| match source {
        Source::Docker => config.docker.is_some(),
        Source::Containerd => config.containerd.is_some(),
        Source::Nat => config.nat_interval.is_some(),
        Source::Kubernetes => config.kubernetes.is_some(),
        Source::Sockets => config.socket_interval.is_some(),
        Source::Agent => false,
    };
    Source::ALL.iter().copied().filter(runs).collect()
}

/// The configured policy; and UDP ports that the kernel gives to clients are not published for a socket alone.
pub(super) fn policy(config: &Config) -> Policy {
    let mut policy = config.policy.clone();
    policy.rules.extend(net::ephemeral_ports().map(|ports| Rule::not_sockets(Protocol::Udp, ports)));
    policy
}

/// Where the host connects to, for each kind of sink that has it connect.
pub fn outward(config: &Config) -> Vec<Outward> {
    let any = |wanted: fn(&SinkConfig) -> bool| config.sinks.iter().any(|(sink, _)| wanted(sink));
    let interface = any(|sink| matches!(sink, SinkConfig::Vtunnel(_)));
    let tap = any(|sink| matches!(sink, SinkConfig::HostSwitch(_)));
    let interface = interface.then(|| Outward::Interface(config.interface.clone()));
    interface.into_iter().chain(tap.then_some(Outward::Address(config.tap_ip))).collect()
}

/// Only a host that connects back needs it.
pub fn needs_relay(config: &Config) -> bool {
    !outward(config).is_empty()
}

/// The privileges that the agent keeps.
pub fn needed_capabilities(config: &Config) -> Vec<Capability> {
    let mut needed = Vec::new();
    if needs_relay(config) || config.sinks.iter().any(|(sink, _)| *sink == SinkConfig::Listener) {
        needed.push(Capability::CAP_NET_BIND_SERVICE);
    }
    if config.nat_interval.is_some() {
        needed.extend(Privileges::NetAdmin.capabilities());
    }
    needed
}
