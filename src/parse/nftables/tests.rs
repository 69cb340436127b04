//! Outputs as nft 1.0.6 printed them, and what they mean.

use super::*;

fn rule_json(comment: &str, expr: &str) -> String {
    format!(
        r#"{{"rule": {{"family": "ip", "table": "cni_hostport", "chain": "hostports", "handle": 3, {comment}"expr": [{expr}]}}}}"#
    )
}

fn output(rules: &[String]) -> String {
    format!(
        r#"{{"nftables": [{{"metainfo": {{"version": "1.0.6", "json_schema_version": 1}}}}, {{"table": {{"family": "ip", "name": "cni_hostport", "handle": 1}}}}, {{"chain": {{"family": "ip", "table": "cni_hostport", "name": "hostports", "handle": 1}}}}, {}, {{"rule": {{"family": "ip", "table": "cni_hostport", "chain": "prerouting", "handle": 10, "expr": [{{"jump": {{"target": "hostports"}}}}]}}}}]}}"#,
        rules.join(", ")
    )
}

fn port(protocol: &str, right: &str) -> String {
    format!(
        r#"{{"match": {{"op": "==", "left": {{"payload": {{"protocol": "{protocol}", "field": "dport"}}}}, "right": {right}}}}}"#
    )
}

fn address(family: &str, right: &str) -> String {
    format!(
        r#"{{"match": {{"op": "==", "left": {{"payload": {{"protocol": "{family}", "field": "daddr"}}}}, "right": {right}}}}}"#
    )
}

/// What one rule publishes, and how many were left out.
fn read(expr: &[&str]) -> (Vec<String>, usize) {
    let view = table(output(&[rule_json(r#""comment": "cid", "#, &expr.join(", "))]).as_bytes()).unwrap();
    let lines = view.targets.iter().flat_map(|(key, target)| {
        target.bindings.iter().map(move |(binding, port)| format!("{key}: {binding}->{port}"))
    });
    (lines.collect(), view.skipped.len())
}

const TO: &str = r#"{"dnat": {"addr": "10.4.0.5", "port": 80}}"#;

#[test]
fn portmaps_shapes() {
    let (tcp, udp) = (port("tcp", "8080"), port("udp", "53"));
    let all = |lines: &[&str]| (lines.iter().map(|line| format!("cid {line}")).collect::<Vec<_>>(), 0);
    assert_eq!(read(&[&tcp, TO]), all(&["10.4.0.5: 0.0.0.0:8080/tcp->80"]));
    assert_eq!(read(&[&address("ip", r#""127.0.0.1""#), &udp, TO]), all(&["10.4.0.5: 127.0.0.1:53/udp->80"]));
    let v6 = r#"{"dnat": {"addr": "fd00::5", "port": 80}}"#;
    assert_eq!(read(&[&tcp, v6]), all(&["fd00::5: [::]:8080/tcp->80"]));
    assert_eq!(read(&[&address("ip6", r#""::1""#), &udp, v6]), all(&["fd00::5: [::1]:53/udp->80"]));
    let concat = r#"{"dnat": {"family": "ip", "addr": {"concat": ["10.4.0.5", 53]}}}"#;
    assert_eq!(read(&[&tcp, concat]), all(&["10.4.0.5: 0.0.0.0:8080/tcp->53"]));
    let same = r#"{"dnat": {"addr": "10.4.0.5"}}"#;
    let range = port("tcp", r#"{"range": [9000, 9001]}"#);
    assert_eq!(
        read(&[&range, r#"{"counter": {"packets": 0, "bytes": 0}}"#, same]),
        all(&["10.4.0.5: 0.0.0.0:9000/tcp->9000", "10.4.0.5: 0.0.0.0:9001/tcp->9001"])
    );
    let set = port("tcp", r#"{"set": [{"range": [7005, 7006]}, 7010]}"#);
    let to_range = r#"{"dnat": {"addr": "10.4.0.5", "port": {"range": [80, 81]}}}"#;
    assert_eq!(read(&[&set, same]).0.len(), 3);
    assert_eq!(read(&[&range, to_range]), all(&["10.4.0.5: 0.0.0.0:9000/tcp->80", "10.4.0.5: 0.0.0.0:9001/tcp->81"]));
    let unnamed = table(output(&[rule_json("", &[&*tcp, TO].join(", "))]).as_bytes()).unwrap();
    assert_eq!(unnamed.targets.keys().next().unwrap().as_ref(), "hostports 10.4.0.5");
}

#[test]
fn what_is_not_understood_is_left_out_and_named() {
    let tcp = port("tcp", "8080");
    let iifname = r#"{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth0"}}"#;
    let source = address("ip", r#""1.2.3.4""#).replace("daddr", "saddr");
    let map = r#"{"dnat": {"family": "ip", "addr": {"map": {"key": {"payload": {"protocol": "tcp", "field": "dport"}}, "data": {"set": [[80, {"concat": ["10.0.0.1", 80]}]]}}}}}"#;
    let cases: &[&[&str]] = &[
        &[&tcp.replace("==", "!="), TO],
        &[&source, &tcp, TO],
        &[iifname, &tcp, TO],
        &[&address("ip", r#"{"prefix": {"addr": "10.0.0.0", "len": 8}}"#), &tcp, TO],
        &[&address("ip", r#"{"set": ["10.0.0.1", "10.0.0.2"]}"#), &tcp, TO],
        &[&address("ip", r#""0.0.0.0""#), &tcp, TO],
        &[&address("ip6", r#""::1""#), &tcp, TO],
        &[&tcp, &tcp, TO],
        &[&tcp, TO, TO],
        &[&port("th", "99"), TO],
        &[&port("sctp", "99"), TO],
        &[&port("tcp", "\"@ports\""), TO],
        &[&port("tcp", "0"), TO],
        &[&port("tcp", "70000"), TO],
        &[&port("tcp", "{\"set\": []}"), TO],
        &[&port("tcp", "{\"range\": [2, 1]}"), TO],
        &[TO],
        &[&tcp, map],
        &[&tcp, r#"{"dnat": {"port": 80}}"#],
        &[&tcp, r#"{"dnat": {"addr": "10.4.0.5", "port": 0}}"#],
        &[&tcp, r#"{"dnat": {"addr": "nowhere"}}"#],
        &[&tcp, r#"{"dnat": {"addr": "10.4.0.5", "unheard": 1}}"#],
        &[&tcp, r#"{"dnat": null}"#],
        &[&tcp, r#"{"limit": {"rate": 1}}"#, TO],
        &[&tcp, r#"{}"#, TO],
        &[&tcp, "null", TO],
    ];
    for expr in cases {
        assert_eq!(read(expr), (Vec::new(), 1), "{expr:?}");
    }
    assert_eq!(read(&[&tcp, r#"{"masquerade": null}"#]), (Vec::new(), 0), "no DNAT");
}

#[test]
fn cut_anywhere_it_is_an_error() {
    let whole = output(&[rule_json("", &[&*port("tcp", "8080"), TO].join(", "))]);
    for end in 0..whole.len() {
        assert!(table(&whole.as_bytes()[..end]).is_err(), "cut at {end}");
    }
    for bad in ["{}", "[]", "null", r#"{"nftables": [{"rule": {}}]}"#, r#"{"nftables": [{"rule": {"chain": "x"}}]}"#] {
        assert!(table(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn tables_by_family_and_name() {
    let tables = br#"{"nftables": [{"metainfo": {}}, {"table": {"family": "ip", "name": "cni_hostport", "handle": 1}}, {"table": {"family": "ip6", "name": "nat", "handle": 2}}]}"#;
    assert!(has_table(tables, "ip").unwrap());
    assert!(!has_table(tables, "ip6").unwrap());
    assert!(!has_table(br#"{"nftables": []}"#, "ip").unwrap());
    assert!(has_table(b"", "ip").is_err());
}

#[test]
fn many_rules_count() {
    let rules: Vec<String> =
        (1..=5_000).map(|n| rule_json("", &[&*port("tcp", &n.to_string()), TO].join(", "))).collect();
    let text = output(&rules);
    assert_eq!(table(text.as_bytes()).unwrap().targets.get("hostports 10.4.0.5").unwrap().bindings.len(), 5_000);
}
