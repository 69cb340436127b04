//! Lists and watches as API servers write them, cut, and as nobody should write them.

use super::*;

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// As `GET /api/v1/services` answers, with less of what is not read.
const LIST: &str = r#"{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"1042"},"items":[
  {"metadata":{"name":"kubernetes","namespace":"default","uid":"0a","labels":{"a":"b"}},
   "spec":{"ports":[{"name":"https","protocol":"TCP","port":443,"targetPort":6443}],"clusterIP":"10.43.0.1",
           "type":"ClusterIP","ipFamilies":["IPv4"]},"status":{"loadBalancer":{}}},
  {"metadata":{"name":"traefik","namespace":"kube-system","managedFields":[{"manager":"helm","fieldsV1":{"f:spec":{}}}]},
   "spec":{"ports":[{"name":"web","protocol":"TCP","port":80,"targetPort":"web","nodePort":31080},
                    {"name":"h3","protocol":"UDP","port":443,"targetPort":"h3","nodePort":31443}],
           "type":"LoadBalancer","ipFamilies":["IPv4"],"ipFamilyPolicy":"PreferDualStack"},
   "status":{"loadBalancer":{"ingress":[{"ip":"192.168.127.2","ipMode":"VIP"}]}}},
  {"metadata":{"name":"web","namespace":"default"},"spec":{"ports":[{"port":8080,"nodePort":30080}],"type":"NodePort"}}
 ]}"#;

/// As a watch has it.
const EVENT: &str = r#"{"type":"ADDED","object":{"kind":"Service","apiVersion":"v1","metadata":{"name":"web","namespace":"default","resourceVersion":"1043"},"spec":{"ports":[{"protocol":"TCP","port":8080,"nodePort":30080}],"type":"NodePort"},"status":{"loadBalancer":{}}}}"#;

fn names(bindings: &Bindings) -> Vec<String> {
    bindings.iter().map(|(b, port)| format!("{b}->{port}")).collect()
}

#[test]
fn reads_a_list() {
    let list = services(LIST.as_bytes(), ANY).unwrap();
    assert_eq!(list.resource_version, "1042");
    assert_eq!(list.skipped, [""; 0]);
    let claims: Vec<_> = list.claims.iter().map(|(key, bindings)| (key.as_ref(), names(bindings))).collect();
    let traefik = ["0.0.0.0:80/tcp->80", "0.0.0.0:31080/tcp->80", "0.0.0.0:443/udp->443", "0.0.0.0:31443/udp->443"];
    let web = ["0.0.0.0:30080/tcp->8080"];
    assert_eq!(
        claims,
        [
            ("default/web", web.map(str::to_owned).to_vec()),
            ("kube-system/traefik", traefik.map(str::to_owned).to_vec())
        ]
    );
}

#[test]
fn a_cut_list_is_an_error_wherever_it_is_cut() {
    for end in 0..LIST.len() {
        services(&LIST.as_bytes()[..end], ANY).unwrap_err();
    }
}

#[test]
fn a_cut_event_is_an_error_wherever_it_is_cut() {
    assert!(matches!(watch_event(EVENT.as_bytes(), ANY), Ok(WatchEvent::Published { .. })));
    for end in 0..EVENT.len() {
        watch_event(&EVENT.as_bytes()[..end], ANY).unwrap_err();
    }
}

/// Input in pieces of so many bytes, with an interruption before each.
struct Slowly<'a>(&'a [u8], usize, bool);

impl Read for Slowly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.2 = !self.2;
        if self.2 {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        let (now, later) = self.0.split_at(self.0.len().min(buffer.len()).min(self.1));
        buffer[..now.len()].copy_from_slice(now);
        self.0 = later;
        Ok(now.len())
    }
}

fn list(items: &str) -> Result<ServiceList, ParseError> {
    let body = format!(r#"{{"metadata":{{"resourceVersion":"1"}},"items":[{items}],"kind":"ServiceList"}}"#);
    services(body.as_bytes(), ANY)
}

fn service(name: &str, spec: &str) -> String {
    format!(r#"{{"metadata":{{"namespace":"n","name":"{name}"}},"spec":{spec}}}"#)
}

#[test]
fn it_does_not_matter_how_a_list_arrives() {
    let whole = services(LIST.as_bytes(), ANY).unwrap();
    for size in 1..40 {
        assert_eq!(services(Slowly(LIST.as_bytes(), size, false), ANY).unwrap(), whole, "{size} bytes at a time");
    }
    let broken = LIST.as_bytes().chain(Broken);
    assert!(matches!(services(broken, ANY), Err(ParseError::Input(_))), "the end has not been seen");
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::TimedOut.into())
    }
}

#[test]
fn lists_that_are_none_say_why() {
    let check = |body: &str, expect: &str| {
        assert_eq!(services(body.as_bytes(), ANY).unwrap_err().to_string(), expect, "{body}");
    };
    check("", "no list where it should be");
    check("<html>", "no list where it should be");
    check("[]", "no list where it should be");
    check("{", "no end of the list where it should be");
    check("{}", "field kind: expected ServiceList");
    check(r#"{"kind":"ServiceList"}"#, "field items: expected an array");
    check(r#"{"kind":"Status","code":403}"#, "field kind: expected ServiceList");
    check(r#"{"items":[],"kind":"PodList"}"#, "field kind: expected ServiceList");
    check(r#"{"kind":"ServiceList","items":[]}"#, "field metadata.resourceVersion: expected a version");
    check(r#"{"kind":"ServiceList","items":{}}"#, "field items: expected an array");
    check(r#"{"kind":"ServiceList","items":[],"items":[]}"#, "more than 1 lists of items");
    check(r#"{"kind":"ServiceList","items":[] "metadata":{}}"#, "no comma or end of the list where it should be");
    check(r#"{"kind":"ServiceList","items":[{} {}]}"#, "no comma or end of the list where it should be");
    check(r#"{"kind" "ServiceList"}"#, "no colon where it should be");
    check(r#"{7:1}"#, "no key where it should be");
    let whole = |metadata: &str| format!(r#"{{"kind":"ServiceList","metadata":{metadata},"items":null}}"#);
    assert_eq!(services(whole(r#"{"resourceVersion":"7"}"#).as_bytes(), ANY).unwrap().claims.len(), 0);
    check(&(whole(r#"{"resourceVersion":"7"}"#) + "x"), "no end of the input where it should be");
    for part in ["\"abc\"", "7", "{}"] {
        check(
            &whole(&format!(r#"{{"resourceVersion":"7","continue":{part}}}"#)),
            "field metadata.continue: expected nothing: the list is to be whole",
        );
    }
    for all in ["\"\"", "null"] {
        let body = whole(&format!(r#"{{"resourceVersion":"7","continue":{all}}}"#));
        assert_eq!(services(body.as_bytes(), ANY).unwrap().resource_version, "7");
    }
    for bad in ["7", "\"\"", "\"1&watch=0\"", "\"1 2\"", "\"1\\r\\n\"", "null", &format!("\"{}\"", "1".repeat(129))] {
        check(&whole(&format!(r#"{{"resourceVersion":{bad}}}"#)), "field metadata.resourceVersion: expected a version");
    }
    for not_json in [r#"{"kind":nonsense}"#, r#"{"items":[{]}"#, r#"{"items":[{"a":tru}]}"#, "{\"a\":\"\u{1}\"}"] {
        assert!(services(not_json.as_bytes(), ANY).is_err(), "{not_json}");
    }
}

#[test]
fn bad_items_are_left_out_and_named() {
    let check = |item: &str, expect: &str| {
        let good = service("good", r#"{"type":"NodePort","ports":[{"port":1,"nodePort":30001}]}"#);
        let list = list(&format!("{item},{good}")).unwrap();
        assert_eq!(list.skipped, [expect], "{item}");
        assert_eq!(list.claims.keys().map(AsRef::as_ref).collect::<Vec<_>>(), ["n/good"], "{item}");
    };
    check("7", "item 0, ?/?: field metadata.namespace: expected a DNS name in lower case");
    check("[]", "item 0, ?/?: field metadata.namespace: expected a DNS name in lower case");
    check("{}", "item 0, ?/?: field metadata.namespace: expected a DNS name in lower case");
    check(r#"{"metadata":"x"}"#, "item 0, ?/?: field metadata.namespace: expected a DNS name in lower case");
    check(
        r#"{"metadata":{"namespace":"n","name":{"a":1}}}"#,
        "item 0, n/?: field metadata.name: expected a DNS name in lower case",
    );
    check(
        r#"{"metadata":{"namespace":"n","name":"\u001b[2J"}}"#,
        "item 0, n/\\u{1b}[2J: field metadata.name: expected a DNS name in lower case",
    );
    let long = "a".repeat(254);
    let shown = "a".repeat(64);
    check(&service(&long, "{}"), &format!("item 0, n/{shown}: field metadata.name: expected a DNS name in lower case"));
    check(r#"{"kind":"Pod","metadata":{"namespace":"n","name":"p"}}"#, "item 0, n/p: field kind: expected Service");
    check(&service("s", "\"text\""), "n/s: field spec: expected an object");
    check(&service("s", r#"{"type":"NodePort","ports":7}"#), "n/s: field spec.ports: expected an array");
    check(&service("s", r#"{"type":7}"#), "n/s: field spec.type: expected a string");
    let huge = service("s", &format!("\"{}\"", "x".repeat(pieces::PIECE_BYTES_MAX)));
    check(&huge, "item 0: larger than 4194304 bytes");
    let many = list(&["7"; 20].join(",")).unwrap();
    assert_eq!((many.skipped.len(), many.skipped[8].as_str()), (9, "and at least 12 more"));
}

#[test]
fn limits_hold() {
    let many = |count| list(&vec!["{}"; count].join(","));
    assert!(many(ITEMS_MAX).is_ok());
    assert_eq!(many(ITEMS_MAX + 1).unwrap_err().to_string(), "more than 100000 Services");
    let huge = format!(r#"{{"{}":1}}"#, "x".repeat(pieces::PIECE_BYTES_MAX));
    assert_eq!(services(huge.as_bytes(), ANY).unwrap_err().to_string(), "more than 4194304 bytes in a field");
    let ports: Vec<_> = (1..=1002).map(|n| format!(r#"{{"port":{n},"nodePort":{n}}}"#)).collect();
    let list = list(&service("s", &format!(r#"{{"type":"NodePort","ports":[{}]}}"#, ports.join(",")))).unwrap();
    assert_eq!(
        (list.claims.get("n/s").unwrap().len(), list.skipped),
        (1000, vec!["n/s: more than 1000 ports".to_owned()])
    );
}

/// What a Service of that `spec` and `status.loadBalancer` publishes, and the complaints.
fn published_by(spec: &str, balancer: &str, listener_ip: Ipv4Addr) -> (Vec<String>, Vec<String>) {
    let line = format!(
        r#"{{"object":{{"status":{{"loadBalancer":{balancer}}},"spec":{spec},"kind":"Service",
        "metadata":{{"resourceVersion":"9","name":"s","namespace":"n"}}}},"type":"MODIFIED"}}"#
    );
    match watch_event(line.as_bytes(), listener_ip).unwrap() {
        WatchEvent::Published { key, published, resource_version } => {
            assert_eq!((key.as_ref(), resource_version.as_str()), ("n/s", "9"));
            (names(&published.bindings), published.skipped)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_type_publishes() {
    const PORTS: &str = r#""ports":[{"port":80,"nodePort":30080,"protocol":"TCP"}]"#;
    let check = |kind: &str, balancer: &str, expect: &[&str]| {
        let (names, skipped) = published_by(&format!(r#"{{{kind}{PORTS}}}"#), balancer, ANY);
        assert_eq!((names, skipped), (expect.iter().map(|&n| n.to_owned()).collect(), vec![]), "{kind} {balancer}");
    };
    let (node, both) = ("0.0.0.0:30080/tcp->80", &["0.0.0.0:80/tcp->80", "0.0.0.0:30080/tcp->80"]);
    let answers = r#"{"ingress":[{"ip":"10.0.0.1"}]}"#;
    check(r#""type":"NodePort","#, "{}", &[node]);
    check(r#""type":"NodePort","#, answers, &[node]);
    for none in [r#""type":"ClusterIP","#, r#""type":"ExternalName","#, r#""type":"Other","#, r#""type":null,"#, ""] {
        check(none, answers, &[]);
    }
    let balancer = r#""type":"LoadBalancer","#;
    check(balancer, answers, both);
    check(balancer, r#"{"ingress":[{"ip":""},{"hostname":"lb.example"}]}"#, both);
    for pending in ["{}", "null", "7", r#"{"ingress":null}"#, r#"{"ingress":[]}"#, r#"{"ingress":[{"ip":""},7]}"#] {
        check(balancer, pending, &[node]);
    }
    // Without node ports of their own.
    for none in ["", r#","nodePort":0"#, r#","nodePort":null"#] {
        let spec = format!(r#"{{"type":"LoadBalancer","ports":[{{"port":80{none}}}]}}"#);
        assert_eq!(published_by(&spec, answers, ANY).0, ["0.0.0.0:80/tcp->80"]);
        assert_eq!(published_by(&spec, "{}", ANY), (vec![], vec![]));
    }
    assert_eq!(published_by("null", "{}", ANY), (vec![], vec![]));
}

#[test]
fn addresses_follow_the_families() {
    let check = |families: &str, listener_ip: Ipv4Addr, expect: &[&str]| {
        let spec = format!(r#"{{"type":"NodePort","ports":[{{"port":80,"nodePort":30080}}],"ipFamilies":{families}}}"#);
        let (names, _) = published_by(&spec, "{}", listener_ip);
        let expect: Vec<String> = expect.iter().map(|address| format!("{address}:30080/tcp->80")).collect();
        assert_eq!(names, expect, "{families}");
    };
    for v4 in ["null", "[]", "7", r#"["IPv4"]"#, r#"["other"]"#] {
        check(v4, ANY, &["0.0.0.0"]);
        check(v4, Ipv4Addr::LOCALHOST, &["127.0.0.1"]);
    }
    check(r#"["IPv6","IPv4"]"#, ANY, &["0.0.0.0", "[::]"]);
    check(r#"["IPv4","IPv6"]"#, Ipv4Addr::LOCALHOST, &["127.0.0.1", "[::1]"]);
    check(r#"["IPv6"]"#, ANY, &["[::]"]);
    check(r#"["IPv6"]"#, Ipv4Addr::LOCALHOST, &["[::1]"]);
}

#[test]
fn a_bad_port_does_not_cost_the_good_ones() {
    let check = |entry: &str, expect: &str| {
        let spec =
            format!(r#"{{"type":"NodePort","ports":[{entry},{{"port":53,"nodePort":30053,"protocol":"UDP"}}]}}"#);
        let (names, skipped) = published_by(&spec, "{}", ANY);
        assert_eq!((names, skipped), (vec!["0.0.0.0:30053/udp->53".to_owned()], vec![expect.to_owned()]), "{entry}");
    };
    check(r#"{"port":9,"nodePort":30009,"protocol":"SCTP"}"#, "n/s port 9: SCTP is not forwarded");
    check(r#"{"port":9,"nodePort":30009,"protocol":"tcp"}"#, "n/s port 9: tcp is not forwarded");
    check(r#"{"port":9,"nodePort":30009,"protocol":7}"#, "n/s port 9: protocol: expected a string");
    for number in ["0", "65536", "-1", "80.5", "18446744073709551616"] {
        let spec = format!(r#"{{"type":"NodePort","ports":[{{"port":{number},"nodePort":30009}}]}}"#);
        let (names, skipped) = published_by(&spec, "{}", ANY);
        assert!(names.is_empty() && skipped[0].ends_with("port: expected 1 to 65535"), "{skipped:?}");
    }
    check(r#"{"port":"80","nodePort":30009}"#, "n/s port ?: port: expected 1 to 65535");
    check(r#"{"nodePort":30009}"#, "n/s port ?: port: expected 1 to 65535");
    check("7", "n/s port ?: port: expected 1 to 65535");
    check(r#"{"port":9,"nodePort":70000}"#, "n/s port 9: nodePort: expected 1 to 65535");
    check(r#"{"port":9,"nodePort":-30009}"#, "n/s port 9: nodePort: expected 1 to 65535");
    check(r#"{"port":9,"nodePort":30009.0}"#, "n/s port 9: nodePort: expected 1 to 65535");
    check(r#"{"port":9,"nodePort":"30009"}"#, "n/s port 9: nodePort: expected 1 to 65535");
    let escape = published_by(r#"{"type":"NodePort","ports":[{"port":1,"protocol":"\u001b[2J"}]}"#, "{}", ANY);
    assert_eq!(escape.1, ["n/s port 1: \\u{1b}[2J is not forwarded"]);
}

#[test]
fn events_of_every_type() {
    let event =
        |kind: &str, object: &str| watch_event(format!(r#"{{"type":"{kind}","object":{object}}}"#).as_bytes(), ANY);
    let gone = r#"{"kind":"Service","metadata":{"namespace":"n","name":"s","resourceVersion":"8"},"spec":7}"#;
    let resource_version = "8".to_owned();
    assert_eq!(event("DELETED", gone).unwrap(), WatchEvent::Gone { key: "n/s".into(), resource_version });
    let bookmark = r#"{"kind":"Service","metadata":{"resourceVersion":"12746","creationTimestamp":null},"spec":{}}"#;
    let resource_version = "12746".to_owned();
    assert_eq!(event("BOOKMARK", bookmark).unwrap(), WatchEvent::Bookmark { resource_version });
    let check = |status: &str, code: u16, message: &str| {
        let expect = Status { code, message: message.to_owned() };
        assert_eq!(event("ERROR", status).unwrap(), WatchEvent::Error(expect), "{status}");
    };
    check(r#"{"kind":"Status","code":410,"reason":"Expired","message":"too old"}"#, 410, "too old");
    check(r#"{"kind":"Status","reason":"Gone"}"#, 410, "Gone");
    check(r#"{"kind":"Status","reason":"Expired","code":0}"#, 410, "Expired");
    check(r#"{"kind":"Status","code":500,"message":"a\u001bb"}"#, 500, "a\\u{1b}b");
    check(r#"{"code":70000,"message":7}"#, 0, "");
    check("7", 0, "");
}

#[test]
fn events_that_are_none_say_why() {
    let check = |line: &str, expect: &str| {
        assert_eq!(watch_event(line.as_bytes(), ANY).unwrap_err().to_string(), expect, "{line}");
    };
    check("null", "field type: expected a string");
    check(r#"{"type":7}"#, "field type: expected a string");
    check(r#"{"type":"RE\u0007NAMED","object":{}}"#, "unknown type of event RE\\u{7}NAMED");
    check(&format!(r#"{{"type":"{}"}}"#, "x".repeat(999)), &format!("unknown type of event {}", "x".repeat(200)));
    check(r#"{"type":"ADDED"}"#, "field object.kind: expected Service");
    check(r#"{"type":"ADDED","object":{"kind":"Pod"}}"#, "field object.kind: expected Service");
    check(r#"{"type":"ADDED","object":{"kind":"Service"}}"#, "field metadata.resourceVersion: expected a version");
    check(
        r#"{"type":"ADDED","object":{"kind":"Service","metadata":{"resourceVersion":"1","namespace":"n"}}}"#,
        "field metadata.name: expected a DNS name in lower case",
    );
    for bad in ["\u{fffd}", "{} {}", "{\"type\":\"ADDED\"}}"] {
        assert!(matches!(watch_event(bad.as_bytes(), ANY), Err(ParseError::Json(_))), "{bad}");
    }
    assert!(watch_event(b"\xff\xfe", ANY).is_err());
}

#[test]
fn any_body_is_a_status() {
    let check = |body: &[u8], code: u16, message: &str| {
        assert_eq!(status(body), Status { code, message: message.to_owned() });
    };
    check(br#"{"kind":"Status","code":403,"message":"User \"x\" cannot list"}"#, 403, "User \"x\" cannot list");
    check(br#"{"kind":"Pod","code":403}"#, 0, r#"{"kind":"Pod","code":403}"#);
    check(b"404 page not found\n", 0, "404 page not found");
    check(b"", 0, "");
    check(b"\xff\x1b[2J", 0, "\u{fffd}\\u{1b}[2J");
    check(&[b'x'; 9999], 0, &"x".repeat(200));
}

#[test]
fn depth_is_no_danger() {
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(500_000), close.repeat(500_000));
    for (open, close) in [("[", "]"), (r#"{"spec":"#, "}"), (r#"{"x":"#, "}"), (r#"{"ports":["#, "]}")] {
        let body = format!(r#"{{"items":[{},"#, deep(open, close));
        assert!(services(body.as_bytes(), ANY).is_err());
        assert!(services(open.repeat(500_000).as_bytes(), ANY).is_err());
        assert!(watch_event(deep(open, close).as_bytes(), ANY).is_err());
        assert_eq!(status(deep(open, close).as_bytes()).code, 0);
    }
}

#[test]
fn no_input_makes_it_panic() {
    let mut state = 7_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 40).unwrap()
    };
    let tokens: &[&[u8]] =
        &[b"{", b"}", b"[", b"]", b"\"", b"\\", b",", b"null", b"-1", b"1e999", b"\xff", b"\"items\":"];
    for _ in 0..10_000 {
        let fixture = if next() % 2 == 0 { LIST } else { EVENT };
        let mut bytes = fixture.as_bytes().to_vec();
        for _ in 0..=next() % 3 {
            let (at, token) = (next() % bytes.len(), tokens[next() % tokens.len()]);
            let end = (at + next() % 3).min(bytes.len());
            bytes.splice(at..end, token.iter().copied());
        }
        // Whatever it says, a list has a version, and keys are names.
        if let Ok(list) = services(bytes.as_slice(), ANY) {
            assert!(!list.resource_version.is_empty() && list.claims.keys().all(|key| key.contains('/')));
        }
        drop(watch_event(&bytes, ANY));
        drop(status(&bytes));
    }
}

#[test]
fn s26_a_list_of_more_ports_than_anybody_has_is_refused() {
    let list = |count: usize| {
        let ports: Vec<String> = (0..1000).map(|n| format!(r#"{{"port":1,"nodePort":{}}}"#, 1 + n)).collect();
        let service = |n| {
            let (name, ports) = (format!(r#"{{"namespace":"a","name":"s{n}"}}"#), ports.join(","));
            format!(r#"{{"metadata":{name},"spec":{{"type":"NodePort","ports":[{ports}]}}}}"#)
        };
        let items: Vec<String> = (0..count).map(service).collect();
        let text =
            format!(r#"{{"kind":"ServiceList","metadata":{{"resourceVersion":"1"}},"items":[{}]}}"#, items.join(","));
        services(text.as_bytes(), Ipv4Addr::UNSPECIFIED)
    };
    assert_eq!(list(262).unwrap().claims.len(), 262);
    assert!(matches!(list(263), Err(ParseError::TooMany { what: "published ports", .. })));
}
