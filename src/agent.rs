//! The agent: starts the threads, and carries events to the reconciler and its commands to the sinks.
//!
//! One thread, this one, owns the reconciler. It waits for the next event (or for the reconciler's deadline), applies
//! it, hands out what comes back, and logs what changed. It never waits for a sink or a source.

#![deny(clippy::wildcard_enum_match_arm)]

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::config::{Config, ContainerdConfig, SinkConfig};
use crate::event::{Command, EVENTS_MAX, Event, FailureKind, ForwardState, Owner, Report, SinkId, Source};
use crate::net::{self, Outward};
use crate::policy::{Policy, Rule};
use crate::port::Protocol;
use crate::queue::{self, Receiver, Sender};
use crate::reconciler::{Reconciler, Role, Settings, SinkSettings};
use crate::relay::Limits;
use crate::sink::vtunnel::{Address, Vtunnel};
use crate::sink::{
    self, Running, Sink, handshake, host_switch::HostSwitch, listener::Listener, relay::RelaySink, stdout::Stdout,
    wsl_proxy::WslProxy,
};
#[cfg(feature = "kubernetes")]
use crate::source::kubernetes;
use crate::source::{containerd, docker, interface, nat, sockets};
use crate::stop::Stop;
use crate::supervisor::{Context, Supervised, supervise};

/// The longest that withdrawing everything may take at the end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest wait for threads to end, after that.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Bounds of the relay, before the limit on open files is taken into account.
const RELAY_LIMITS: Limits = Limits {
    connections_max: 1024,
    flows_max: 1024,
    flow_idle: Duration::from_secs(90),
    connect_timeout: Duration::from_secs(5),
};

/// Bindings that host-switch is told of in one go. A request each, some of them at once: a fraction of a second.
const EXPOSE_BINDINGS_MAX: usize = 64;

/// Descriptors of one relayed connection: two sockets and two pipes.
const CONNECTION_FDS: usize = 6;

/// Why the agent could not start.
#[derive(Debug)]
pub struct StartError {
    what: &'static str,
    error: io::Error,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot start {}: {}", self.what, self.error)
    }
}

impl std::error::Error for StartError {}

fn starting(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |error| StartError { what, error }
}

/// An agent whose threads run.
pub struct Agent {
    events: Receiver<Event>,
    sender: Sender<Event>,
    reconciler: Reconciler,
    sinks: Vec<Running>,
    names: Vec<String>,
    threads: Vec<Supervised>,
}

impl Agent {
    /// Starts sinks, then sources. `files_max` is the limit on open descriptors.
    pub fn start(config: &Config, files_max: usize) -> Result<Agent, StartError> {
        let (sender, events) = queue::bounded(EVENTS_MAX);
        let mut agent = Agent {
            events,
            sender,
            reconciler: Reconciler::new(
                Settings {
                    policy: policy(config),
                    grace: config.grace,
                    sinks: sink_settings(config),
                    sources: sources(config),
                },
                Instant::now(),
            ),
            sinks: Vec::new(),
            names: Vec::new(),
            threads: Vec::new(),
        };
        agent.start_sinks(config, files_max)?;
        agent.claim_own(config);
        agent.start_sources(config)?;
        Ok(agent)
    }

    /// Where to send events from outside, a shutdown among them.
    pub fn sender(&self) -> Sender<Event> {
        self.sender.clone()
    }

    fn start_sinks(&mut self, config: &Config, files_max: usize) -> Result<(), StartError> {
        for (sink, _) in &config.sinks {
            let worker: Box<dyn Sink> = match sink {
                SinkConfig::Listener => Box::new(Listener::start().map_err(starting("the listeners"))?),
                SinkConfig::Stdout => Box::new(Stdout),
                SinkConfig::Vtunnel(address) => Box::new(Vtunnel::new(address.clone(), config.interface.clone())),
                SinkConfig::HostSwitch(config) => Box::new(HostSwitch::new(config.clone())),
                SinkConfig::WslProxy(path) => Box::new(WslProxy::new(path.clone())),
            };
            self.start_sink(sink.to_string(), worker)?;
        }
        if needs_relay(config) {
            let half = (files_max / 2 / CONNECTION_FDS).max(1);
            let limits = Limits { connections_max: RELAY_LIMITS.connections_max.min(half), ..RELAY_LIMITS };
            let relay = RelaySink::start(outward(config), config.relay_peers.clone(), limits);
            self.start_sink("relay".into(), Box::new(relay.map_err(starting("the relay"))?))?;
        }
        let of_kind = |wanted: fn(&SinkConfig) -> bool| -> Vec<SinkId> {
            config.sinks.iter().enumerate().filter(|(_, (s, _))| wanted(s)).map(|(i, _)| SinkId(i)).collect()
        };
        let vsock = of_kind(|sink| matches!(sink, SinkConfig::Vtunnel(Address::Vsock { .. })));
        if !vsock.is_empty() {
            let thread = handshake::listen(vsock, self.context()?);
            self.threads.push(thread.map_err(starting("the handshake"))?);
        }
        let mut addressed = of_kind(|sink| matches!(sink, SinkConfig::Vtunnel(_)));
        if needs_relay(config) {
            addressed.push(SinkId(config.sinks.len()));
            let thread = interface::watch(outward(config), addressed, self.context()?);
            self.threads.push(thread.map_err(starting("the watch on addresses"))?);
        }
        Ok(())
    }

    fn start_sink(&mut self, name: String, worker: Box<dyn Sink>) -> Result<(), StartError> {
        let id = SinkId(self.sinks.len());
        let thread_name = name.split(':').next().unwrap_or_default();
        let running = sink::Running::start(id, &format!("sink-{thread_name}"), worker, self.sender.clone());
        self.sinks.push(running.map_err(starting("a sink"))?);
        self.names.push(name);
        Ok(())
    }

    fn start_sources(&mut self, config: &Config) -> Result<(), StartError> {
        if let Some(socket) = config.docker.clone() {
            let session = move |context: &Context| docker::session(&socket, context);
            let thread = supervise(Source::Docker, self.context()?, session);
            self.threads.push(thread.map_err(starting("the docker source"))?);
        }
        if let Some(ContainerdConfig { socket, ctr }) = config.containerd.clone() {
            let mut source = containerd::Containerd::new(socket, ctr);
            let thread = supervise(Source::Containerd, self.context()?, move |context| source.session(context));
            self.threads.push(thread.map_err(starting("the containerd source"))?);
        }
        #[cfg(feature = "kubernetes")]
        if let Some(config) = config.kubernetes.clone() {
            let session = move |context: &Context| kubernetes::session(&config, context);
            let thread = supervise(Source::Kubernetes, self.context()?, session);
            self.threads.push(thread.map_err(starting("the kubernetes source"))?);
        }
        if let Some(interval) = config.socket_interval {
            let mut source = sockets::Sockets::new(interval, outward(config));
            let thread = supervise(Source::Sockets, self.context()?, move |context| source.session(context));
            self.threads.push(thread.map_err(starting("the sockets source"))?);
        }
        if let Some(interval) = config.nat_interval {
            let mut source = nat::Nat::new(interval);
            let thread = supervise(Source::Nat, self.context()?, move |context| source.session(context));
            self.threads.push(thread.map_err(starting("the nat source"))?);
        }
        Ok(())
    }

    /// What the configuration itself asks for.
    fn claim_own(&self, config: &Config) {
        let told = |(sink, _): &(SinkConfig, _)| matches!(sink, SinkConfig::WslProxy(_));
        if let Some(kubernetes) = config.kubernetes.as_ref().filter(|_| config.sinks.iter().any(told)) {
            let owner = Owner { source: Source::Agent, key: "kube-apiserver".into() };
            let bindings = [(kubernetes.api_server, kubernetes.api_server.host_port)].into_iter().collect();
            // The channel is empty yet, and its other end is ours.
            let _ = self.sender.send(Event::Claim { owner, bindings });
        }
    }

    fn context(&self) -> Result<Context, StartError> {
        let stop = Stop::new().map_err(starting("a thread"))?;
        Ok(Context { events: self.sender.clone(), stop })
    }

    /// Runs until a shutdown has been asked for and carried out, or has taken too long.
    pub fn run(mut self) {
        let mut end: Option<Instant> = None;
        loop {
            let now = Instant::now();
            if end.is_some_and(|end| self.reconciler.is_empty() || now >= end) {
                break;
            }
            let deadline = self.reconciler.deadline().into_iter().chain(end).min();
            let event = match self.events.recv(deadline.map(|at| at.saturating_duration_since(now))) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => Event::Tick,
                // Cannot happen while we hold a sender ourselves.
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if event == Event::Shutdown && end.is_none() {
                log::info!("stopping: withdrawing everything");
                end = Some(Instant::now() + SHUTDOWN_TIMEOUT);
                self.threads.iter().for_each(|thread| thread.stop.raise());
                self.sinks.iter().for_each(Running::hurry);
            }
            self.react(event);
        }
        if self.reconciler.is_empty() {
            log::info!("stopped: everything is withdrawn");
        } else {
            log::warn!("stopped: not everything could be withdrawn within {} s", SHUTDOWN_TIMEOUT.as_secs());
        }
        self.finish();
    }

    fn react(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for command in self.reconciler.apply(event, Instant::now()) {
                match command {
                    Command::Send(sink, document) => {
                        if let Some(running) = self.sinks.get(sink.0) {
                            log::debug!(
                                "send sink={} {:?} {} {}",
                                self.name(sink),
                                document.operation,
                                document.owner,
                                document.bindings.len()
                            );
                            events.extend(running.send(document));
                        }
                    }
                    Command::Report(report) => self.report(&report),
                    Command::Restart => {}
                }
            }
        }
    }

    fn name(&self, sink: SinkId) -> &str {
        self.names.get(sink.0).map_or("?", String::as_str)
    }

    /// One line a change.
    fn report(&self, report: &Report) {
        match report {
            Report::Forward { again: true, .. } => {}
            Report::Forward { sink, owner, binding, state, .. } => {
                let sink = self.name(*sink);
                match state {
                    ForwardState::Forwarding => log::info!("forwarding binding={binding} owner={owner} sink={sink}"),
                    ForwardState::Withdrawn => log::info!("withdrawn binding={binding} owner={owner} sink={sink}"),
                    ForwardState::Failing(failure) => {
                        let kind = match failure.kind {
                            FailureKind::Conflict => "conflict",
                            FailureKind::Denied => "denied",
                            FailureKind::Failed => "failed",
                        };
                        log::warn!("{kind} binding={binding} owner={owner} sink={sink} reason={:?}", failure.reason);
                    }
                }
            }
            Report::Peer { sink, problem: None } => log::info!("sink reachable sink={}", self.name(*sink)),
            Report::Peer { sink, problem: Some(reason) } => {
                log::warn!("sink unreachable, trying on sink={} reason={reason:?}", self.name(*sink));
            }
            Report::Reset { sink, reason } => {
                log::info!("announcing everything again sink={} reason={reason:?}", self.name(*sink));
            }
            Report::Source { source, problem: None, .. } => log::info!("source ready source={source}"),
            Report::Source { source, problem: Some(reason), lost: true, losses } => {
                log::warn!("source lost, trying on source={source} losses={losses} reason={reason:?}");
            }
            Report::Source { source, problem: Some(reason), lost: false, .. } => {
                log::warn!("source in trouble, trying on source={source} reason={reason:?}");
            }
            Report::Denied { owner, binding, rule, built_in: false } => {
                log::warn!("denied binding={binding} owner={owner} rule={rule:?}");
            }
            Report::Denied { owner, binding, rule, built_in: true } => {
                log::debug!("not published binding={binding} owner={owner} rule={rule:?}");
            }
            Report::Stale { owner, stale: true } => {
                log::warn!("stale: nothing is left of what it leads to owner={owner}");
            }
            Report::Stale { owner, stale: false } => log::info!("not stale any more owner={owner}"),
            Report::LeftOut { sink, owner, binding, reason } => {
                log::warn!("left out binding={binding} owner={owner} sink={} reason={reason:?}", self.name(*sink));
            }
            Report::Skipped { source, count, reason } => {
                log::warn!("skipped input source={source} count={count} reason={reason:?}");
            }
            Report::Rules { count, problem: None } => log::info!("rules file read rules={count}"),
            Report::Rules { problem: Some(reason), .. } => {
                log::warn!("rules file not taken, the rules before it stay reason={reason:?}");
            }
            Report::StartingOver => log::info!("starting over: withdrawing everything"),
            Report::StartedOver { left: 0 } => log::info!("starting over: everything is withdrawn, asking the sources"),
            Report::StartedOver { left } => {
                log::warn!("starting over: not everything could be withdrawn yet, asking the sources left={left}");
            }
            Report::Narrowed { owner, published, exposed } => {
                log::warn!("exposed on the host's loopback only owner={owner} published={published} exposed={exposed}")
            }
        }
    }

    /// Joins every thread, as far as they end in time: what still hangs in a connection ends with the process.
    fn finish(self) {
        drop(self.events);
        drop(self.sender);
        self.threads.iter().for_each(|thread| thread.stop.raise());
        let handles: Vec<JoinHandle<()>> = self
            .threads
            .into_iter()
            .map(|thread| thread.thread)
            .chain(self.sinks.into_iter().map(Running::finish))
            .collect();
        let end = Instant::now() + JOIN_TIMEOUT;
        for handle in handles {
            while !handle.is_finished() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(1));
            }
            if handle.is_finished() {
                // A panic aborts the process in release builds, and its message is on standard error in others.
                let _ = handle.join();
            }
        }
    }
}

fn sink_settings(config: &Config) -> Vec<SinkSettings> {
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
fn sources(config: &Config) -> Vec<Source> {
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
fn policy(config: &Config) -> Policy {
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
