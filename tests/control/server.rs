//! What clients are answered, and where: the socket's file, requests and responses, changes, and the end.

use std::fs;
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::time::{Duration, Instant};

use rancher_desktop_agent::control::Control;
use rancher_desktop_agent::event::{EVENTS_MAX, Report, Scope, SinkId, Source};
use rancher_desktop_agent::queue::bounded;
use rancher_desktop_agent::view::{SourceState, State};

use crate::support::{TempDir, eventually};
use crate::world::{Client, World, facts, forward_change, owner, port, row, types};

fn rows() -> Vec<rancher_desktop_agent::view::Row> {
    vec![row(80, 0, State::Forwarding), row(80, 1, State::Conflict), row(8080, 1, State::Forwarding)]
}

#[test]
fn status_is_one_document() {
    let world = World::new(rows());
    let mut client = world.client();
    let response = client.ask(r#"{"op":"status","schema":1}"#);
    assert_eq!(types(&response), ["status", "end"]);
    let status = &response[0];
    assert_eq!((&status["health"], &status["pid"]), (&"degraded".into(), &std::process::id().into()));
    assert_eq!(status["problems"], serde_json::json!(["1 forward in conflict"]));
    assert_eq!(status["arguments"], serde_json::json!(["-docker", "--sink=stdout:"]));
    assert_eq!(status["sources"].as_array().unwrap().len(), 2);
    assert_eq!(status["sinks"][1]["kind"], "host-switch");
    assert_eq!(status["forwards"]["forwarding"], 2);
    assert_eq!(status["reconciler"], serde_json::json!({"events": 9, "seconds": 1.5, "seconds_max": 0.00007}));
    assert_eq!(status["clients"], serde_json::json!({"now": 1, "served": 1, "refused": 0}));
    assert_eq!(response[1]["count"], 1);
    assert_eq!(world.asked(), [Scope::default()], "no more than is needed");
}

#[test]
fn ports_are_filtered() {
    let world = World::new(rows());
    let mut client = world.client();
    for (filter, expect) in [
        ("", 3),
        (r#","port":80"#, 2),
        (r#","port":81"#, 0),
        (r#","port":80,"sink":"host-switch""#, 1),
        (r#","sink":"host-switch:http://192.168.127.1:80""#, 2),
        (r#","state":"conflict""#, 1),
        (r#","source":"docker""#, 3),
        (r#","source":"nat""#, 0),
        (r#","host_ip":"127.0.0.1","protocol":"tcp""#, 3),
        (r#","protocol":"udp""#, 0),
    ] {
        let response = client.ask(&format!(r#"{{"op":"ports"{filter}}}"#));
        assert_eq!(response.len(), expect + 1, "{filter}: {response:?}");
        assert_eq!(response[expect]["count"], expect, "{filter}");
        assert!(response[..expect].iter().all(|document| document["type"] == "forward"));
    }
}

#[test]
fn explain_has_claims_and_forwards_of_its_port() {
    let world = World::new(rows());
    // Those of another port are asked for with a request of their own, whoever asks first.
    world.answers(false);
    let mut clients: Vec<Client> = [80, 8080, 80].map(|_| world.client()).into();
    let ports = [80, 8080, 80];
    for (client, port) in clients.iter_mut().zip(ports) {
        client.send(&format!(r#"{{"op":"explain","port":{port}}}"#));
    }
    world.answers(true);
    for (client, port) in clients.iter_mut().zip(ports) {
        let response = client.response();
        let expect: &[&str] =
            if port == 80 { &["claim", "forward", "forward", "end"] } else { &["claim", "forward", "end"] };
        assert_eq!(types(&response), expect);
        assert!(response[..expect.len() - 1].iter().all(|document| document["port"] == port), "{response:?}");
    }
    let asked: Vec<_> = world.asked().iter().filter_map(|scope| scope.claims_on).collect();
    assert!(asked.contains(&port(80)) && asked.contains(&port(8080)), "{asked:?}");
}

#[test]
fn one_view_serves_all_who_wait_for_it() {
    let world = World::new(rows());
    world.answers(false);
    let mut first = world.client();
    first.send(r#"{"op":"status"}"#);
    eventually("the first is asked for", || (world.asked().len() == 1).then_some(()).ok_or(world.asked()));
    let mut others: Vec<Client> = (0..20).map(|_| world.client()).collect();
    others.iter_mut().for_each(|client| client.send(r#"{"op":"ports"}"#));
    // They have been let in and read once this one has been answered by nobody but the socket.
    assert_eq!(world.client().ask("x")[0]["code"], "request");
    world.answers(true);
    assert_eq!(types(&first.response()), ["status", "end"]);
    others.iter_mut().for_each(|client| assert_eq!(client.response().len(), 4));
    assert!(world.asked().len() <= 3, "{:?}", world.asked());
}

#[test]
fn requests_may_be_sent_ahead_and_in_pieces() {
    let world = World::new(rows());
    let mut client = world.client();
    client.send("{\"op\":\"ports\"}\n{\"op\":\"nonsense\"}\n\n{\"op\":\"status\"}\n{\"op\":\"explain\",\"port\":80}");
    for expect in [
        &["forward", "forward", "forward", "end"][..],
        &["error"],
        &["error"],
        &["status", "end"],
        &["claim", "forward", "forward", "end"],
    ] {
        assert_eq!(types(&client.response()), expect);
    }
    for piece in ["{\"op\"", ":\"status\"", ",\"schema\":1", "}\n"] {
        std::io::Write::write_all(client.0.get_mut(), piece.as_bytes()).unwrap();
    }
    assert_eq!(types(&client.response()), ["status", "end"]);
    // The last may lack its end, where nothing follows.
    std::io::Write::write_all(client.0.get_mut(), b"{\"op\":\"status\"}").unwrap();
    client.0.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(types(&client.response()), ["status", "end"]);
    assert_eq!(client.next(), None);
}

#[test]
fn hundreds_of_requests_ahead_are_answered_in_order() {
    let world = World::new(rows());
    let mut client = world.client();
    let mut writer = client.0.get_ref().try_clone().unwrap();
    let thread = std::thread::spawn(move || {
        for n in 1..=500 {
            let line = format!("{{\"op\":\"ports\",\"port\":{n}}}\n{{\"op\":\"{n}\"}}\n");
            std::io::Write::write_all(&mut writer, line.as_bytes()).unwrap();
        }
    });
    for n in 1..=500 {
        assert_eq!(client.response().len(), if n == 80 { 3 } else { 1 });
        assert!(client.error("request").contains(&format!("\"{n}\"")));
    }
    thread.join().unwrap();
}

#[test]
fn a_replay_and_what_follows_it_miss_nothing() {
    let world = World::new(rows());
    world.answers(false);
    let mut client = world.client();
    client.send(r#"{"op":"watch","replay":true}"#);
    eventually("it is asked for", || world.asked().first().map(|_| ()).ok_or("not yet"));
    // What is told before the view is in it.
    world.tell(vec![forward_change(1)]);
    world.answers(true);
    for _ in 0..3 {
        client.expect("forward");
    }
    assert_eq!(client.expect("replayed")["count"], 3);
    world.tell(vec![forward_change(2), forward_change(3)]);
    assert_eq!(client.expect("forward")["port"], 2);
    assert_eq!(client.expect("forward")["port"], 3);
    // What a client that watches sends is of no interest, until it has no more to send.
    client.send(r#"{"op":"status"}"#);
    world.tell(vec![forward_change(4)]);
    assert_eq!(client.expect("forward")["port"], 4);
    client.0.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.next(), None);
    eventually("nobody watches", || (!world.control.as_ref().unwrap().is_watched()).then_some(()).ok_or("somebody"));
}

#[test]
fn those_who_watch_are_told_what_they_asked_for() {
    let world = World::new(rows());
    let mut all = world.watcher(r#"{"op":"watch"}"#);
    let mut nat = world.client();
    nat.send("{\"op\":\"watch\",\"source\":\"nat\"}\n");
    let mut sink = world.client();
    sink.send(r#"{"op":"watch","sink":"host-switch"}"#);
    let mut port = world.client();
    port.send(r#"{"op":"watch","port":7}"#);
    // They all watch once a later one has been answered.
    assert_eq!(types(&world.client().ask(r#"{"op":"status"}"#)), ["status", "end"]);
    world.report(Report::Source { source: Source::Nat, problem: Some("gone".into()), lost: true, losses: 3 });
    world.show(|view| view.sources[1].state = SourceState::Lost);
    world.report(Report::Peer { sink: SinkId(1), problem: Some("refused".into()) });
    world.report(Report::Rules { count: 3, problem: None });
    world.report(Report::Skipped { source: Source::Nat, count: 4, reason: "odd".into() });
    world.report(Report::Stale { owner: owner(Source::Nat, "x"), stale: true });
    world.tell(vec![forward_change(7)]);
    for kind in ["source", "sink", "rules", "skipped", "stale", "forward"] {
        all.expect(kind);
    }
    let lost = nat.expect("source");
    assert_eq!((&lost["state"], &lost["reason"], &lost["losses"]), (&"lost".into(), &"gone".into(), &3.into()));
    assert_eq!((&lost["owners"], &lost["last_error"]), (&5.into(), &"gone".into()), "with what is known of it now");
    nat.expect("skipped");
    nat.expect("stale");
    let away = sink.expect("sink");
    assert_eq!(
        (&away["state"], &away["reason"], &away["documents"]),
        (&"unreachable".into(), &"refused".into(), &7.into())
    );
    assert_eq!(sink.expect("forward")["port"], 7);
    assert_eq!(port.expect("forward")["port"], 7);
}

#[test]
fn a_reset_is_followed_to_its_end() {
    let world = World::new(rows());
    let mut client = world.client();
    for _ in 0..2 {
        let response = client.ask(r#"{"op":"reset"}"#);
        assert_eq!(types(&response), ["reset", "reset", "end"]);
        assert_eq!((&response[0]["state"], &response[0]["left"]), (&"begun".into(), &0.into()));
        assert_eq!((&response[1]["state"], &response[1]["left"]), (&"done".into(), &2.into()));
        assert_eq!(response[2]["count"], 2);
    }
    assert_eq!(types(&client.ask(r#"{"op":"status"}"#)), ["status", "end"]);
}

#[test]
fn a_change_is_told_at_once() {
    let world = World::new(Vec::new());
    let mut client = world.watcher(r#"{"op":"watch"}"#);
    let mut times: Vec<Duration> = (1..=200)
        .map(|n| {
            let begun = Instant::now();
            world.tell(vec![forward_change(n)]);
            assert_eq!(client.expect("forward")["port"], n);
            begun.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[100] < Duration::from_millis(20), "{:?}", times[100]);
}

#[test]
fn the_socket_is_its_owners_alone() {
    let world = World::new(Vec::new());
    assert_eq!(fs::metadata(&world.path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(world.path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    // A directory that is there is somebody's own.
    let dir = TempDir::new();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (events, _receiver) = bounded(EVENTS_MAX);
    let control = Control::start(&dir.join("s"), facts(), events).unwrap();
    assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::metadata(dir.join("s")).unwrap().permissions().mode() & 0o777, 0o600);
    control.finish().unwrap().join().unwrap();
}

#[test]
#[ignore = "needs root (to be somebody else)"]
fn others_are_refused() {
    let world = World::new(Vec::new());
    // As if somebody had opened it for everybody.
    fs::set_permissions(world.path.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&world.path, fs::Permissions::from_mode(0o666)).unwrap();
    // It is told so unasked; socat gives up reading where it cannot write any more.
    let socket = format!("UNIX-CONNECT:{}", world.path.display());
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups", "socat", "-u", &socket, "-"]);
    let output = setpriv.output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let answer: serde_json::Value =
        serde_json::from_str(lines.trim()).unwrap_or_else(|error| panic!("{lines}: {error}"));
    assert_eq!((&answer["type"], &answer["code"]), (&"error".into(), &"not-allowed".into()), "one line alone");
    assert_eq!(world.client().ask(r#"{"op":"status"}"#)[0]["clients"]["refused"], 1);
}

#[test]
fn what_is_in_the_way() {
    let dir = TempDir::new();
    let path = dir.join("s");
    let start = || {
        let (events, _receiver) = bounded(EVENTS_MAX);
        Control::start(&path, facts(), events)
    };
    // What an agent left that died is taken over.
    drop(UnixListener::bind(&path).unwrap());
    let control = start().unwrap_or_else(|error| panic!("{error}"));
    // Who is alive is left alone.
    let error = start().err().unwrap();
    assert!(error.to_string().contains("another agent answers"), "{error}");
    assert_eq!(Client::new(&path).ask("x")[0]["code"], "request", "it answers all the same");
    // What is not ours is not removed at the end.
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    control.finish().unwrap().join().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    // Nobody is kept waiting by one that has no room for clients.
    let mut waiting = Vec::new();
    while waiting.len() < 4096 {
        let flags = nix::sys::socket::SockFlag::SOCK_NONBLOCK;
        let (family, kind) = (nix::sys::socket::AddressFamily::Unix, nix::sys::socket::SockType::Stream);
        let socket = nix::sys::socket::socket(family, kind, flags, None).unwrap();
        let addr = nix::sys::socket::UnixAddr::new(&path).unwrap();
        let connected = nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &addr);
        waiting.push(socket);
        if connected.is_err() {
            break;
        }
    }
    assert!(start().err().unwrap().to_string().contains("another agent answers"));
    drop((other, waiting));
    // What is no socket stays.
    for make in [
        |path| fs::write(path, "mine"),
        |path: &std::path::Path| symlink("/nowhere", path),
        |path| fs::create_dir(path),
    ] {
        let _ = fs::remove_file(&path);
        make(&path).unwrap();
        let error = start().err().unwrap();
        assert!(error.to_string().contains("no socket"), "{error}");
        assert!(fs::symlink_metadata(&path).is_ok());
    }
}

#[test]
fn the_end_is_told_and_leaves_nothing() {
    let mut world = World::new(rows());
    let mut watcher = world.watcher(r#"{"op":"watch"}"#);
    let mut idle = world.client();
    assert_eq!(types(&idle.ask(r#"{"op":"status"}"#)), ["status", "end"]);
    let took = world.finish();
    assert!(took < Duration::from_secs(2), "{took:?}");
    for client in [&mut watcher, &mut idle] {
        client.error("stopping");
        assert_eq!(client.next(), None);
    }
    assert!(!world.path.exists());
    assert!(UnixStream::connect(&world.path).is_err());
}

#[test]
fn a_process_that_listens_has_its_name_shown() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let number = listener.local_addr().unwrap().port();
    let mut socket = row(number, 1, State::Forwarding);
    (socket.owner, socket.name) = (owner(Source::Sockets, &format!("tcp/{number}")), None);
    socket.published_ip = Some("127.0.0.1".parse().unwrap());
    let mut container = row(number, 1, State::Forwarding);
    container.name = None;
    let world = World::new(vec![socket, container]);
    let own = format!("(pid {})", std::process::id());
    eventually("this process", || {
        let response = world.client().ask(r#"{"op":"ports"}"#);
        assert!(response[1]["name"].is_null(), "a container's name is for its engine to tell");
        response[0]["name"].as_str().filter(|name| name.contains(&own)).map(|_| ()).ok_or(response)
    });
}

#[test]
fn of_agents_that_start_at_once_one_has_the_socket() {
    let dir = TempDir::new();
    let path = dir.join("s");
    let (events, _receiver) = bounded(EVENTS_MAX);
    for round in 0..50 {
        // What an agent left that died.
        drop(UnixListener::bind(&path).unwrap());
        let together = std::sync::Barrier::new(4);
        let start = || {
            together.wait();
            Control::start(&path, facts(), events.clone()).ok()
        };
        let started: Vec<Control> = std::thread::scope(|scope| {
            let all = [(); 4].map(|()| scope.spawn(start));
            all.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(started.len(), 1, "round {round}");
        started.into_iter().for_each(|control| control.finish().unwrap().join().unwrap());
        assert!(!path.exists());
    }
}
