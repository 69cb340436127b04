//! A control socket with a stand-in for the agent behind it, and clients.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rancher_desktop_agent::control::{Control, Facts};
use rancher_desktop_agent::event::{EVENTS_MAX, Event, ForwardState, Owner, Report, Scope, SinkId, Source};
use rancher_desktop_agent::port::{Binding, Protocol};
use rancher_desktop_agent::queue::{Receiver, Sender, bounded};
use rancher_desktop_agent::view::{
    Change, ClaimView, Decision, PolicyView, Row, SinkState, SinkView, SourceState, SourceView, State, Tally, View,
    Work,
};
use serde_json::Value;

use crate::support::TempDir;

pub const SINKS: [&str; 3] = ["relay:", "host-switch:http://192.168.127.1:80", "vtunnel:unix:///run/x"];

pub fn facts() -> Facts {
    Facts {
        started: SystemTime::now(),
        arguments: vec!["-docker".into(), "--sink=stdout:".into()],
        docker_host: Some("unix:///var/run/docker.sock".into()),
        rules_file: Some("/etc/rules".into()),
        sinks: SINKS.map(str::to_owned).into(),
    }
}

pub fn port(n: u16) -> std::num::NonZeroU16 {
    std::num::NonZeroU16::new(n).unwrap()
}

pub fn owner(source: Source, key: &str) -> Owner {
    Owner { source, key: key.into() }
}

pub fn binding(n: u16) -> Binding {
    Binding { protocol: Protocol::Tcp, host_ip: "0.0.0.0".parse().unwrap(), host_port: port(n) }
}

pub fn row(n: u16, sink: usize, state: State) -> Row {
    Row {
        protocol: Protocol::Tcp,
        port: port(n),
        host_ip: Some("127.0.0.1".parse().unwrap()),
        published_ip: Some("0.0.0.0".parse().unwrap()),
        container_port: Some(port(80)),
        sink: Some(SinkId(sink)),
        state,
        reason: (state != State::Forwarding).then(|| "because".into()),
        owner: owner(Source::Docker, &format!("container-{n}")),
        name: Some("web".into()),
        since: Instant::now(),
        failures: 0,
    }
}

pub fn claim(n: u16) -> ClaimView {
    ClaimView {
        published: binding(n),
        container_port: port(80),
        owner: owner(Source::Docker, &format!("container-{n}")),
        name: None,
        decision: Decision::Counts,
        rule: Some("--allow *".into()),
        host_ip: Some("127.0.0.1".parse().unwrap()),
        narrowed: false,
        stale: false,
    }
}

pub fn source_view(source: Source) -> SourceView {
    SourceView {
        source,
        state: SourceState::Ready,
        reason: None,
        since: Instant::now(),
        last_error: None,
        losses: 2,
        skipped: 3,
        events: 4,
        last_event: Some(Instant::now()),
        owners: 5,
        bindings: 6,
    }
}

/// What the stand-in shows, unless a test has it show something else.
pub fn view(rows: Vec<Row>) -> View {
    let mut forwards = Tally::default();
    rows.iter().for_each(|row| forwards.add(row.state));
    let sink = SinkView {
        state: SinkState::Reachable,
        reason: None,
        since: Instant::now(),
        last_error: Some("was away".into()),
        documents: 7,
        failures: 1,
        forwards,
    };
    View {
        at: Instant::now(),
        sources: vec![source_view(Source::Docker), source_view(Source::Nat)],
        sinks: vec![sink.clone(), sink.clone(), sink],
        forwards,
        rows,
        claims: Vec::new(),
        policy: PolicyView { admin: true, rules: vec!["--deny tcp/22".into()], problem: None },
        work: Work { events: 9, time: Duration::from_millis(1500), time_max: Duration::from_micros(70) },
    }
}

pub fn forward_change(n: u16) -> Change {
    let report = Report::Forward {
        sink: SinkId(1),
        owner: owner(Source::Docker, "container"),
        binding: binding(n),
        published: Some(("0.0.0.0".parse().unwrap(), port(80))),
        state: ForwardState::Forwarding,
        failures: 0,
        again: false,
    };
    Change { at: SystemTime::now(), report, name: Some("web".into()) }
}

/// The stand-in: answers at once, unless it is told not to.
struct Agent {
    view: Mutex<View>,
    answers: AtomicBool,
    shown: Mutex<Vec<Scope>>,
}

impl Agent {
    fn run(&self, control: &Control, events: &Receiver<Event>) {
        while let Ok(event) = events.recv(None) {
            match event {
                Event::Show(scope) => {
                    self.shown.lock().unwrap().push(scope);
                    crate::support::eventually("leave to answer", || {
                        self.answers.load(Ordering::SeqCst).then_some(()).ok_or("held back")
                    });
                    control.show(self.view_of(scope));
                }
                Event::StartOver => {
                    let change = |report| Change { at: SystemTime::now(), report, name: None };
                    control.tell(vec![change(Report::StartingOver)]);
                    control.tell(vec![forward_change(1), change(Report::StartedOver { left: 2 })]);
                }
                Event::Shutdown => return,
                other => panic!("{other:?}"),
            }
        }
    }

    fn view_of(&self, scope: Scope) -> View {
        let mut view = self.view.lock().unwrap().clone();
        (view.at, view.claims) = (Instant::now(), Vec::new());
        if !scope.rows {
            view.rows.clear();
        }
        view.claims.extend(scope.claims_on.map(|port| claim(port.get())));
        view
    }
}

pub struct World {
    pub control: Option<Arc<Control>>,
    pub path: PathBuf,
    agent: Arc<Agent>,
    events: Sender<Event>,
    thread: Option<JoinHandle<()>>,
    _dir: TempDir,
}

impl World {
    pub fn new(rows: Vec<Row>) -> World {
        let dir = TempDir::new();
        let path = dir.join("run/control.sock");
        let (events, receiver) = bounded(EVENTS_MAX);
        let control = Arc::new(Control::start(&path, facts(), events.clone()).unwrap());
        let agent =
            Arc::new(Agent { view: Mutex::new(view(rows)), answers: AtomicBool::new(true), shown: Mutex::default() });
        let (of_thread, control_of_thread) = (agent.clone(), control.clone());
        let thread = std::thread::spawn(move || of_thread.run(&control_of_thread, &receiver));
        World { control: Some(control), path, agent, events, thread: Some(thread), _dir: dir }
    }

    pub fn show(&self, change: impl FnOnce(&mut View)) {
        change(&mut self.agent.view.lock().unwrap());
    }

    pub fn answers(&self, does: bool) {
        self.agent.answers.store(does, Ordering::SeqCst);
    }

    /// What the agent was asked for so far.
    pub fn asked(&self) -> Vec<Scope> {
        self.agent.shown.lock().unwrap().clone()
    }

    pub fn tell(&self, changes: Vec<Change>) {
        self.control.as_ref().unwrap().tell(changes);
    }

    pub fn report(&self, report: Report) {
        self.tell(vec![Change { at: SystemTime::now(), report, name: Some("named".into()) }]);
    }

    pub fn client(&self) -> Client {
        Client::new(&self.path)
    }

    /// One that watches, from here on.
    pub fn watcher(&self, request: &str) -> Client {
        let mut client = self.client();
        client.send(request);
        crate::support::eventually("somebody watches", || {
            self.control.as_ref().unwrap().is_watched().then_some(()).ok_or("nobody")
        });
        client
    }

    /// Ends the agent's stand-in and then the socket, as the agent does; how long the latter took.
    pub fn finish(&mut self) -> Duration {
        self.answers(true);
        let _ = self.events.send(Event::Shutdown);
        self.thread.take().unwrap().join().unwrap();
        let control = Arc::into_inner(self.control.take().unwrap()).unwrap();
        let begun = Instant::now();
        control.finish().unwrap().join().unwrap();
        begun.elapsed()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.thread.is_some() && !std::thread::panicking() {
            self.finish();
        }
    }
}

pub struct Client(pub BufReader<UnixStream>);

impl Client {
    pub fn new(path: &Path) -> Client {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Client(BufReader::new(stream))
    }

    pub fn send(&mut self, request: &str) {
        self.0.get_mut().write_all(format!("{request}\n").as_bytes()).unwrap();
    }

    /// The next document; `None`: it is closed.
    pub fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))),
            // What it sent was not read to its end.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// A document of that type is next.
    pub fn expect(&mut self, kind: &str) -> Value {
        let document = self.next().unwrap_or_else(|| panic!("closed, not {kind}"));
        assert_eq!(document["type"], kind, "{document}");
        document
    }

    /// A whole response.
    pub fn response(&mut self) -> Vec<Value> {
        let mut all = Vec::new();
        loop {
            let document = self.next().unwrap_or_else(|| panic!("closed after {all:?}"));
            let is_last = document["type"] == "end" || document["type"] == "error";
            all.push(document);
            if is_last {
                return all;
            }
        }
    }

    pub fn ask(&mut self, request: &str) -> Vec<Value> {
        self.send(request);
        self.response()
    }

    /// The error that is all there is.
    pub fn error(&mut self, code: &str) -> String {
        let error = self.expect("error");
        assert_eq!(error["code"], code, "{error}");
        error["message"].as_str().unwrap().to_owned()
    }
}

/// The types of documents.
pub fn types(documents: &[Value]) -> Vec<&str> {
    documents.iter().map(|document| document["type"].as_str().unwrap()).collect()
}
