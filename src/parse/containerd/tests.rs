//! `ctr`'s output as containerd 1.6 and 2.1 write it, cut, and as nobody should write it.

use super::*;
use crate::port::Bindings;

const EXIT: &str = r#"2026-11-21 00:29:10.456220417 +0000 UTC default /tasks/exit {"container_id":"c1","id":"c1","pid":6004,"exit_status":137,"exited_at":"2026-11-21T00:29:10.456151317Z"}"#;

fn line(namespace: &str, topic: &str, json: &str) -> String {
    format!("2026-11-21 00:29:10.4 +0000 UTC {namespace} {topic} {json}")
}

fn read(namespace: &str, topic: &str, json: &str) -> Option<TaskEvent> {
    event(line(namespace, topic, json).as_bytes()).unwrap()
}

fn c1() -> Container {
    Container::new("default", "c1").unwrap()
}

fn names(bindings: &Bindings) -> Vec<String> {
    bindings.iter().map(|(b, port)| format!("{b}->{port}")).collect()
}

fn labels(labels: &str) -> Result<Record, ParseError> {
    info(format!(r#"{{"ID":"c1","Labels":{labels},"Spec":{{"process":null}}}}"#).as_bytes())
}

fn label(ports: &str) -> Result<Record, ParseError> {
    labels(&serde_json::json!({ "nerdctl/ports": ports, "nerdctl/state-dir": "/s" }).to_string())
}

#[test]
fn events_that_matter() {
    assert_eq!(event(EXIT.as_bytes()).unwrap(), Some(TaskEvent::Ended(c1(), Some(6004))));
    for (topic, json, expect) in [
        ("/tasks/start", r#"{"container_id":"c1","pid":6004}"#, TaskEvent::Started(c1(), 6004)),
        // Newer versions write the time as an object; zero values are left out.
        (
            "/tasks/exit",
            r#"{"container_id":"c1","id":"c1","exited_at":{"seconds":1,"nanos":2}}"#,
            TaskEvent::Ended(c1(), None),
        ),
        ("/tasks/delete", r#"{"container_id":"c1","pid":6004,"exit_status":1}"#, TaskEvent::Ended(c1(), Some(6004))),
        ("/tasks/delete", r#"{"container_id":"c1","id":"c1"}"#, TaskEvent::Ended(c1(), None)),
        ("/containers/delete", r#"{"id":"c1"}"#, TaskEvent::Ended(c1(), None)),
        ("/containers/update", r#"{"id":"c1","image":"x","labels":{"a":"{ }"}}"#, TaskEvent::Updated(c1())),
    ] {
        assert_eq!(read("default", topic, json), Some(expect), "{topic} {json}");
    }
}

#[test]
fn events_that_do_not() {
    for (namespace, topic, json) in [
        ("default", "/tasks/exit", r#"{"container_id":"c1","id":"exec1","pid":7}"#),
        ("default", "/tasks/delete", r#"{"container_id":"c1","id":"exec1","pid":7}"#),
        ("default", "/tasks/exec-started", r#"{"container_id":"c1","exec_id":"e","pid":7}"#),
        ("default", "/tasks/paused", r#"{"container_id":"c1"}"#),
        ("default", "/containers/create", r#"{"id":"c1"}"#),
        ("default", "/images/create", r#"{"name":"busybox not read}"#),
        ("moby", "/tasks/start", r#"{"container_id":"c1","pid":7}"#),
        ("buildkit", "/tasks/exit", r#"{"container_id":"c1","id":"c1","pid":7}"#),
    ] {
        assert_eq!(read(namespace, topic, json), None, "{namespace} {topic}");
    }
    assert!(matches!(read("k8s.io", "/tasks/start", r#"{"container_id":"c1","pid":7}"#), Some(TaskEvent::Started(..))));
}

#[test]
fn a_cut_event_is_an_error_wherever_it_is_cut() {
    for whole in [EXIT.to_owned(), line("default", "/containers/create", r#"{"id":"c1"}"#)] {
        for end in 0..whole.len() {
            assert!(event(&whole.as_bytes()[..end]).is_err(), "cut at {end}");
        }
    }
}

#[test]
fn bad_events_are_errors() {
    let long = "x".repeat(77);
    for (topic, json) in [
        ("/tasks/start", r#"{"container_id":"c1"}"#.to_owned()),
        ("/tasks/start", r#"{"container_id":"c1","pid":0}"#.to_owned()),
        ("/tasks/start", r#"{"container_id":"c1","pid":4294967296}"#.to_owned()),
        ("/tasks/start", r#"{"container_id":"c1","pid":"6"}"#.to_owned()),
        ("/tasks/start", r#"{"container_id":7,"pid":6}"#.to_owned()),
        ("/tasks/exit", r#"{"id":"c1"}"#.to_owned()),
        ("/tasks/exit", r#"{"container_id":"--help","id":"--help"}"#.to_owned()),
        ("/tasks/exit", r#"{"container_id":"../../x"}"#.to_owned()),
        ("/tasks/exit", r#"{"container_id":"a/b"}"#.to_owned()),
        ("/tasks/exit", r#"{"container_id":"a b"}"#.to_owned()),
        ("/tasks/exit", r#"{"container_id":""}"#.to_owned()),
        ("/containers/delete", format!(r#"{{"id":"{long}"}}"#)),
        ("/containers/update", r#"{"id":null}"#.to_owned()),
        ("/containers/update", "{]}".to_owned()),
    ] {
        assert!(event(line("default", topic, &json).as_bytes()).is_err(), "{topic} {json}");
    }
    let start = r#"{"container_id":"c1","pid":7}"#;
    for namespace in ["-n", "a/b", "", "\u{1b}[2J", &long] {
        assert!(event(line(namespace, "/tasks/start", start).as_bytes()).is_err(), "{namespace:?}");
    }
    for bad in [&b"\xff\xfe"[..], b"", b"{}", b"a b c d e /f {}", b"ctr: cannot {} connect {} to {} the {} daemon {}"] {
        assert!(event(bad).is_err(), "{}", String::from_utf8_lossy(bad));
    }
}

#[test]
fn lists() {
    let list = namespaces(b"a.b\nbuildkit\nk8s.io\nmoby\n-x\n\n").unwrap();
    assert_eq!((list.items, list.skipped), (vec!["a.b".into(), "k8s.io".into()], 2));
    assert_eq!(namespaces(b"").unwrap(), List::new());
    assert!(namespaces("n\n".repeat(NAMESPACES_MAX).as_bytes()).is_ok());
    assert!(namespaces("n\n".repeat(NAMESPACES_MAX + 1).as_bytes()).is_err());
    let output = b"TASK    PID     STATUS    \nc1      3970    RUNNING\nc2      1       STOPPED\nc3 5 PAUSED\n\
        c4 6 CREATED\nc5 7 UNKNOWN\n--bad 8 RUNNING\n";
    let list = tasks("n2", output).unwrap();
    let shown: Vec<String> = list.items.iter().map(|(c, pid)| format!("{c} {pid}")).collect();
    assert_eq!((shown, list.skipped), (vec!["n2/c1 3970".into(), "n2/c3 5".into(), "n2/c5 7".into()], 1));
    let list = containers("n2", b"c2\nc1\na b\n").unwrap();
    assert_eq!(list.items.iter().map(Container::id).collect::<Vec<_>>(), ["c1", "c2"]);
    assert_eq!((list.items[0].namespace(), list.skipped), ("n2", 1));
}

#[test]
fn a_partial_list_is_an_error() {
    let header = "TASK PID STATUS\n";
    for rest in ["c1", "c1 5", "c1 5\n", "c1 5 RUNNING", "c1 x RUNNING\n", "c1 5 RUNNING more\n", "\n"] {
        assert!(tasks("n", format!("{header}{rest}").as_bytes()).is_err(), "{rest:?}");
    }
    for bad in [&b""[..], b"c1 5 RUNNING\n", b"TASK", b"\xff\n"] {
        assert!(tasks("n", bad).is_err());
    }
    assert!(
        namespaces(b"default").is_err() && containers("n", b"c1\nc").is_err() && containers("n", b"\xff\n").is_err()
    );
}

#[test]
fn ports_in_a_label() {
    let ports = r#"[{"HostPort":12345,"ContainerPort":10000,"Protocol":"tcp","HostIP":"0.0.0.0"},
        {"HostPort":53,"ContainerPort":54,"Protocol":"UDP","HostIP":"::ffff:127.0.0.1"},
        {"HostPort":80,"ContainerPort":81,"Protocol":"tcp","HostIP":""},
        {"HostPort":82,"ContainerPort":83,"Protocol":"tcp"},{"HostPort":84,"ContainerPort":85,"Protocol":"tcp","HostIP":"::1"}]"#;
    let Ok(Record::Ports(published)) = label(ports) else { panic!() };
    let expect = [
        "0.0.0.0:80/tcp->81",
        "0.0.0.0:82/tcp->83",
        "0.0.0.0:12345/tcp->10000",
        "[::1]:84/tcp->85",
        "127.0.0.1:53/udp->54",
    ];
    assert_eq!(names(&published.bindings), expect);
    assert!(published.skipped.is_empty());
    for (name, expect) in [("\"web\"", Some("web")), ("\"\"", None), ("7", None)] {
        let record = labels(&format!(r#"{{"nerdctl/ports":"[]","nerdctl/name":{name}}}"#)).unwrap();
        assert!(matches!(record, Record::Ports(published) if published.name.as_deref() == expect), "{name}");
    }
    for none in ["[]", "null"] {
        assert_eq!(label(none).unwrap(), Record::Ports(Published::default()));
    }
    for bad in ["", "{}", "7", "[{]", "nonsense", "\"[]\""] {
        assert!(label(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_bad_port_does_not_cost_the_good_ones() {
    let ports = r#"[{"HostPort":0,"ContainerPort":1,"Protocol":"tcp"},{"HostPort":70000,"ContainerPort":1,"Protocol":"tcp"},
        {"HostPort":1,"ContainerPort":0,"Protocol":"tcp"},{"HostPort":-1,"ContainerPort":1,"Protocol":"tcp"},
        {"HostPort":1,"ContainerPort":1,"Protocol":"sctp"},{"HostPort":1,"ContainerPort":1,"Protocol":"tcp","HostIP":7},
        {"HostPort":"1","ContainerPort":1,"Protocol":"tcp"},{"HostPort":1,"ContainerPort":1,"Protocol":"tcp","HostIP":"\u001b[2J"},
        null,7,[],{"HostPort":9,"ContainerPort":9,"Protocol":"tcp"}]"#;
    let Ok(Record::Ports(published)) = label(ports) else { panic!() };
    assert_eq!(names(&published.bindings), ["0.0.0.0:9/tcp->9"]);
    assert_eq!(published.skipped.len(), 8, "as many as are kept: {:?}", published.skipped);
    assert!(!published.skipped.concat().contains('\u{1b}'));
}

#[test]
fn ports_in_the_state_directory() {
    let dir = |dir: &str| labels(&serde_json::json!({ "nerdctl/state-dir": dir }).to_string());
    assert_eq!(dir("/var/lib/nerdctl/1/a..b").unwrap(), Record::StateDir("/var/lib/nerdctl/1/a..b".into(), None));
    let named = labels(r#"{"nerdctl/state-dir":"/a","nerdctl/name":"web"}"#);
    assert_eq!(named.unwrap(), Record::StateDir("/a".into(), Some("web".into())));
    let long = format!("/{}", "x".repeat(5000));
    for bad in ["", "/", "relative", "./x", "/a/../b", "/a/./b", "/a/..", "/a\0b", &long] {
        assert!(dir(bad).is_err(), "{bad:?}");
    }
    let published = network_config(
        br#"{"portMappings":[{"HostPort":1,"ContainerPort":2,"Protocol":"udp","HostIP":"127.0.0.1"}],"other":[]}"#,
    );
    assert_eq!(names(&published.unwrap().bindings), ["127.0.0.1:1/udp->2"]);
    for none in ["{}", r#"{"portMappings":null}"#, r#"{"portMappings":[]}"#] {
        assert_eq!(network_config(none.as_bytes()).unwrap(), Published::default());
    }
    for bad in ["", "[]", "null", "{", r#"{"portMappings":{}}"#, r#"{"portMappings":"x"}"#, "\u{0}"] {
        assert!(network_config(bad.as_bytes()).is_err(), "{bad:?}");
    }
    let cut = br#"{"portMappings":[{"HostPort":1,"ContainerPort":2,"Protocol":"udp"}]}"#;
    assert!((0..cut.len()).all(|end| network_config(&cut[..end]).is_err()));
}

#[test]
fn containers_without_ports() {
    for none in ["null", "{}", r#"{"io.cri-containerd.kind":"sandbox"}"#] {
        assert_eq!(labels(none).unwrap(), Record::None);
    }
    assert_eq!(info(b"{}").unwrap(), Record::None);
    for bad in ["[]", "7", r#"{"nerdctl/ports":7}"#, r#"{"nerdctl/state-dir":{}}"#] {
        assert!(labels(bad).is_err(), "{bad}");
    }
    for bad in ["", "null", "[]", "{", "7"] {
        assert!(info(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn five_thousand_ports() {
    let entry = |port| format!(r#"{{"HostPort":{port},"ContainerPort":{port},"Protocol":"tcp","HostIP":"0.0.0.0"}}"#);
    let entries: Vec<String> = (10_000..15_000).map(entry).collect();
    let text = format!(r#"{{"portMappings":[{}]}}"#, entries.join(","));
    assert_eq!(network_config(text.as_bytes()).unwrap().bindings.len(), 5000);
}
