//! The agent: starts the threads, and carries events to the reconciler and its commands to the sinks.
//!
//! One thread, this one, owns the reconciler. It waits for the next event (or for the reconciler's deadline), applies
//! it, hands out what comes back, and logs what changed. It never waits for a sink or a source.

#![deny(clippy::wildcard_enum_match_arm)]

mod journal;
mod settings;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crate::config::{Config, ContainerdConfig, SinkConfig};
use crate::control::{Control, Facts};
use crate::event::{Command, EVENTS_MAX, Event, Owner, Report, Scope, SinkId, Source};
use crate::queue::{self, Receiver, Sender};
use crate::reconciler::{Reconciler, Settings};
use crate::relay::Limits;
use crate::rules_file;
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
use crate::view::{Change, Work};
pub use settings::{needed_capabilities, needs_relay, outward};
use settings::{policy, sink_settings, sources};

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

/// Descriptors of one relayed connection: two sockets and two pipes.
const CONNECTION_FDS: usize = 6;

/// Descriptors that the relay leaves for everything else: engines, peers, programs that are run, clients.
const OTHER_FDS: usize = 48;

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
    sources: Vec<Supervised>,
    config: Config,
    /// Why the rules file was not taken when it was read last.
    rules_problem: Option<String>,
    control: Option<Control>,
    work: Work,
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
            sources: Vec::new(),
            config: config.clone(),
            rules_problem: None,
            control: None,
            work: Work::default(),
        };
        agent.start_sinks(config, files_max)?;
        agent.start_control(config);
        agent.own_claim().into_iter().for_each(|claim| agent.react(claim));
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
            let listening = files_max.saturating_sub(OTHER_FDS).max(files_max / 4);
            let relay = RelaySink::start(outward(config), config.relay_peers.clone(), limits, listening);
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
            self.sources.push(thread.map_err(starting("the docker source"))?);
        }
        if let Some(ContainerdConfig { socket, ctr }) = config.containerd.clone() {
            let mut source = containerd::Containerd::new(socket, ctr);
            let thread = supervise(Source::Containerd, self.context()?, move |context| source.session(context));
            self.sources.push(thread.map_err(starting("the containerd source"))?);
        }
        #[cfg(feature = "kubernetes")]
        if let Some(config) = config.kubernetes.clone() {
            let session = move |context: &Context| kubernetes::session(&config, context);
            let thread = supervise(Source::Kubernetes, self.context()?, session);
            self.sources.push(thread.map_err(starting("the kubernetes source"))?);
        }
        if let Some(interval) = config.socket_interval {
            let mut source = sockets::Sockets::new(interval, outward(config));
            let thread = supervise(Source::Sockets, self.context()?, move |context| source.session(context));
            self.sources.push(thread.map_err(starting("the sockets source"))?);
        }
        if let Some(interval) = config.nat_interval {
            let mut source = nat::Nat::new(interval);
            let thread = supervise(Source::Nat, self.context()?, move |context| source.session(context));
            self.sources.push(thread.map_err(starting("the nat source"))?);
        }
        Ok(())
    }

    /// Forwards matter more than answers: without the socket the agent goes on.
    fn start_control(&mut self, config: &Config) {
        let Some(path) = &config.control_socket else { return };
        // The one that no configuration names.
        let relay = self.names.iter().skip(config.sinks.len()).cloned();
        let facts = Facts {
            started: SystemTime::now(),
            arguments: std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect(),
            docker_host: config.docker.as_ref().map(|socket| format!("unix://{}", socket.display())),
            rules_file: config.rules_file.clone(),
            sinks: config.sinks.iter().map(|(sink, _)| sink.name()).chain(relay).collect(),
        };
        match Control::start(path, facts, self.sender.clone()) {
            Ok(control) => self.control = Some(control),
            Err(error) => log::warn!(
                "no control socket: status, ports and other commands cannot ask this agent path={path:?} reason={:?}",
                error.to_string()
            ),
        }
    }

    /// What the configuration itself asks for.
    fn own_claim(&self) -> Option<Event> {
        let config = &self.config;
        let told = |(sink, _): &(SinkConfig, _)| matches!(sink, SinkConfig::WslProxy(_));
        let kubernetes = config.kubernetes.as_ref().filter(|_| config.sinks.iter().any(told))?;
        let owner = Owner { source: Source::Agent, key: "kube-apiserver".into() };
        let bindings = [(kubernetes.api_server, kubernetes.api_server.host_port)].into_iter().collect();
        Some(Event::Claim { owner, bindings })
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
                self.end_threads();
                self.sinks.iter().for_each(Running::hurry);
            }
            if let Event::Show(scope) = event {
                self.show(scope);
            } else if event == Event::Reread {
                self.reread_rules();
            } else {
                self.react(event);
            }
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
        let mut changes = Vec::new();
        while let Some(event) = events.pop_front() {
            let begun = Instant::now();
            let commands = self.reconciler.apply(event, begun);
            let took = begun.elapsed();
            self.work.events += 1;
            self.work.time += took;
            self.work.time_max = self.work.time_max.max(took);
            self.carry_out(commands, &mut events, &mut changes);
        }
        self.tell(changes);
    }

    fn carry_out(&mut self, commands: Vec<Command>, events: &mut VecDeque<Event>, changes: &mut Vec<Change>) {
        for command in commands {
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
                Command::Report(report) => self.report(report, changes),
                Command::Restart => events.extend(self.start_over()),
            }
        }
    }

    fn report(&self, report: Report, changes: &mut Vec<Change>) {
        journal::line(&report, |sink| self.name(sink));
        if self.control.as_ref().is_some_and(Control::is_watched) {
            let name = report.owner().and_then(|owner| self.reconciler.name(owner));
            changes.push(Change { at: SystemTime::now(), report, name });
        }
    }

    fn tell(&self, changes: Vec<Change>) {
        if let Some(control) = self.control.as_ref().filter(|_| !changes.is_empty()) {
            control.tell(changes);
        }
    }

    fn show(&self, scope: Scope) {
        if let Some(control) = &self.control {
            let mut view = self.reconciler.view(scope, Instant::now());
            view.policy.problem = self.rules_problem.clone();
            view.work = self.work;
            control.show(view);
        }
    }

    /// The file is small, and an ordinary one: reading it takes no time that matters.
    fn reread_rules(&mut self) {
        let Some(path) = &self.config.rules_file else { return };
        let (mut events, mut changes) = (VecDeque::new(), Vec::new());
        let read = rules_file::read(path);
        self.rules_problem = read.as_ref().err().cloned();
        let count = read.as_ref().map_or(0, Vec::len);
        self.report(Report::Rules { count, problem: self.rules_problem.clone() }, &mut changes);
        if let Ok(rules) = read {
            let commands = self.reconciler.adopt_rules(rules, Instant::now());
            self.carry_out(commands, &mut events, &mut changes);
        }
        self.tell(changes);
        events.into_iter().for_each(|event| self.react(event));
    }

    /// Every source begins anew, and what the agent itself asks for.
    fn start_over(&self) -> Option<Event> {
        self.sources.iter().for_each(Supervised::start_over);
        self.own_claim()
    }

    fn name(&self, sink: SinkId) -> &str {
        self.names.get(sink.0).map_or("?", String::as_str)
    }

    fn end_threads(&self) {
        self.threads.iter().chain(&self.sources).for_each(Supervised::end);
    }

    /// Joins every thread, as far as they end in time: what still hangs in a connection ends with the process.
    fn finish(self) {
        drop(self.events);
        drop(self.sender);
        self.threads.iter().chain(&self.sources).for_each(Supervised::end);
        let handles: Vec<JoinHandle<()>> = self
            .threads
            .into_iter()
            .chain(self.sources)
            .map(Supervised::finish)
            .chain(self.sinks.into_iter().map(Running::finish))
            .chain(self.control.and_then(Control::finish))
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
