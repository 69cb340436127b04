//! `explain`: who publishes a port, what was decided, what each sink did, and what to do about it.

use std::time::SystemTime;

use serde_json::Value;

use super::connection::{Connection, Document, request, socket};
use super::document::{age, endpoint, is, key, list, number, owner, plain, raw, sink, text};
use super::ports::port;
use super::table::wrap;
use super::{Exit, Failure, print};
use crate::flags::Parsed;
use crate::view::sink_kind;

/// How far what belongs to a line is indented below it.
const INDENT: usize = 4;

/// Explains it.
///
/// # Errors
/// On wrong usage, or where the agent does not answer.
pub fn run(parsed: &Parsed) -> Result<Exit, Failure> {
    let Some(operand) = parsed.operands().first() else {
        return Err(Failure::new(Exit::Usage, "which port? explain PORT, such as explain 8080"));
    };
    let mut explain = request("explain");
    port(&mut explain, "port", operand).map_err(|error| {
        // There is no flag here that it could be the value of.
        let message = error.to_string();
        Failure::new(Exit::Usage, message.strip_prefix("--port ").unwrap_or(&message))
    })?;
    let mut connection = Connection::open(&socket(parsed)?)?;
    let documents = connection.answer(explain)?;
    let of_type = |kind: &str| -> Vec<&Value> {
        documents.iter().map(|document| &document.value).filter(|value| raw(value, "type") == kind).collect()
    };
    let (claims, forwards) = (of_type("claim"), of_type("forward"));
    let is_forwarded = forwards.iter().any(|forward| tells(forward) && raw(forward, "state") == "forwarding");
    if parsed.on("json") {
        print(&documents.iter().map(Document::json).collect::<String>())?;
    } else {
        let status = connection.one(request("status"))?;
        print(&shown(operand, &claims, &forwards, &status.value, SystemTime::now()))?;
    }
    Ok(if is_forwarded && !claims.is_empty() { Exit::Ok } else { Exit::NotWell })
}

/// Whether that is a forward at somebody's who is told, and not the agent's own relay.
fn tells(forward: &Value) -> bool {
    sink_kind(raw(forward, "sink")) != "relay"
}

fn shown(port: &str, claims: &[&Value], forwards: &[&Value], status: &Value, now: SystemTime) -> String {
    let mut out = String::new();
    let told = || forwards.iter().filter(|forward| tells(forward));
    let (there, all) = (told().filter(|forward| raw(forward, "state") == "forwarding").count(), told().count());
    out.push_str(&match (claims.len(), there) {
        (0, 0) => format!("{port}: nobody publishes it\n"),
        (0, _) => format!("{port}: forwarded since an earlier run; nobody publishes it now\n"),
        (_, 0) => format!("{port}: not forwarded\n"),
        (_, there) if there == all => format!("{port}: forwarded\n"),
        (_, there) => format!("{port}: forwarded, but not everywhere: {there} of {all}\n"),
    });
    for claim in claims {
        out.push('\n');
        claimed(&mut out, claim);
        let is_own = |forward: &&&Value| raw(forward, "published_ip") == raw(claim, "published_ip");
        if raw(claim, "decision") == "counts" && there > 0 && !forwards.iter().any(|forward| is_own(&forward)) {
            wrap(&mut out, "told to no sink by itself: the port goes to the host as IPv4", INDENT, INDENT);
        }
    }
    if !forwards.is_empty() {
        out.push('\n');
    }
    let mut before = String::new();
    for forward in forwards {
        let mut text = String::new();
        forwarded(&mut text, forward, now);
        // What is denied is so for each owner and address, for the same reason.
        if text != before {
            out.push_str(&text);
        }
        before = text;
    }
    let mut advice: Vec<String> = Vec::new();
    forwards.iter().for_each(|forward| advise(&mut advice, forward, status));
    for claim in claims.iter().filter(|claim| raw(claim, "decision") == "denied") {
        // Of what the agent's own rules deny there is no forward.
        if !forwards.iter().any(|forward| raw(forward, "reason") == raw(claim, "rule")) {
            let (rule, what) = (text(claim, "rule"), rule_of(claim));
            advice.push(format!("{rule} is one of the agent's own: start it with --allow {what}@sockets."));
        }
    }
    if claims.is_empty() {
        advise_unknown(&mut advice, status);
    }
    if !advice.is_empty() {
        out.push_str("\nWhat to do:\n");
        advice.iter().for_each(|words| wrap(&mut out, &format!("- {words}"), 0, 2));
    }
    out
}

fn claimed(out: &mut String, claim: &Value) {
    let (who, published) = (owner(claim), endpoint(claim, "published_ip"));
    let key = if raw(claim, "name").is_empty() { String::new() } else { format!(" ({})", key(claim)) };
    let behind = number(claim, "container_port");
    wrap(out, &format!("{who}{key} publishes {published}, for its port {behind}"), 0, INDENT);
    let mut say = |words: &str| wrap(out, words, INDENT, INDENT);
    let rule = match text(claim, "rule") {
        none if none.is_empty() => "no rule matches".to_owned(),
        rule => format!("by the rule {rule}"),
    };
    match raw(claim, "decision") {
        "counts" => say(&format!("allowed ({rule}), on {} of the host", text(claim, "host_ip"))),
        "behind" => say("another one that publishes the same comes before it"),
        "denied" => say(&format!("denied {rule}")),
        "doubted" => say("most likely what is left of a container: waits until it is seen again"),
        other => say(&plain(other)),
    }
    if is(claim, "narrowed") {
        say("published on one address of this VM, which the host does not have: its loopback instead");
    }
    if is(claim, "stale") {
        say("what it leads to is gone");
    }
}

fn forwarded(out: &mut String, forward: &Value, now: SystemTime) {
    let (state, since) = (text(forward, "state"), age(raw(forward, "since"), now));
    let sink = match sink(forward) {
        none if none.is_empty() => "nowhere".to_owned(),
        sink => format!("at {sink}"),
    };
    wrap(out, &format!("{sink}: {state} for {since}"), 0, INDENT);
    let mut say = |words: &str| wrap(out, words, INDENT, INDENT);
    match (endpoint(forward, "host_ip").as_str(), number(forward, "failures")) {
        ("-", _) => {}
        (host, 0) => say(host),
        (host, failures) => say(&format!("{host}, failures: {failures}")),
    }
    let reason = text(forward, "reason");
    if !reason.is_empty() && state != "forwarding" {
        say(&reason);
    }
}

/// What to do about one forward; once where several want the same.
fn advise(advice: &mut Vec<String>, forward: &Value, status: &Value) {
    let (sink, reason) = (sink(forward), text(forward, "reason"));
    let words = match raw(forward, "state") {
        "conflict" if sink == "listener" => {
            "A program of this VM listens there already: WSL forwards the port to that one.".to_owned()
        }
        "conflict" => "Somebody else has the port: stop who has it, or publish another port. The agent tries again by \
                       itself and takes it when it is free."
            .to_owned(),
        "denied" if sink.is_empty() => denied_by(&reason, status),
        "denied" => format!("{sink} does not allow it: publish another port, or change what it allows."),
        "left-out" => format!("{sink} cannot carry it: publish it on another address or port, or name another --sink."),
        "failed" => "The agent tries again by itself; the reason says what is wrong.".to_owned(),
        "pending" => match list(status, "sinks").iter().find(|s| raw(s, "sink") == raw(forward, "sink")) {
            Some(peer) if raw(peer, "state") == "unreachable" => {
                format!("{sink} cannot be reached: is it running? {}", text(peer, "reason"))
            }
            _ => "It is about to be told; ask again.".to_owned(),
        },
        _ => return,
    };
    if !advice.contains(&words) {
        advice.push(words);
    }
}

/// `protocol/port`, as rules have it.
fn rule_of(claim: &Value) -> String {
    format!("{}/{}", text(claim, "protocol"), number(claim, "port"))
}

/// Where a rule comes from. One of the agent's own denies nothing that is a forward.
fn denied_by(rule: &str, status: &Value) -> String {
    if rule.starts_with("--") {
        return format!("The agent was started with {rule}: start it without, or with an --allow before it.");
    }
    let file = status.get("policy").map_or_else(String::new, |policy| text(policy, "rules_file"));
    format!("Change {rule} in {file}, or put an allow line before it; then send the agent SIGHUP.")
}

/// What to do where no source knows of it.
fn advise_unknown(advice: &mut Vec<String>, status: &Value) {
    let sources = list(status, "sources");
    for source in sources.iter().filter(|source| raw(source, "state") != "ready") {
        let reason = match text(source, "reason") {
            none if none.is_empty() => "it has not given its view yet".to_owned(),
            reason => reason,
        };
        advice.push(format!("{} is {}: {reason}", text(source, "source"), text(source, "state")));
    }
    for (name, words) in [
        ("docker", "Is it a published port (docker run -p), and does the container run? See docker ps."),
        ("containerd", "Does the container run, and was it started by nerdctl with -p? See nerdctl ps."),
        ("kubernetes", "Is it a NodePort or LoadBalancer? See kubectl get services --all-namespaces."),
        ("nat", "Is there a NAT rule for it? See iptables-save and nft list ruleset."),
        ("sockets", "Does a program listen there? See ss -lntu."),
    ] {
        if sources.iter().any(|source| raw(source, "source") == name && raw(source, "state") == "ready") {
            advice.push(words.to_owned());
        }
    }
    let watched: Vec<&str> = sources.iter().map(|source| raw(source, "source")).collect();
    let watched = plain(&watched.join(", "));
    advice.push(format!("The agent watches only this: {watched}. Its --help has a flag for everything else."));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SINCE: &str = "2026-01-02T03:04:00.678Z";

    fn explained(documents: &[Value], status: &Value) -> String {
        let of = |kind: &str| documents.iter().filter(|d| raw(d, "type") == kind).collect::<Vec<_>>();
        let now = humantime::parse_rfc3339("2026-01-02T03:04:05.678Z").unwrap();
        shown("8080", &of("claim"), &of("forward"), status, now)
    }

    fn claim(decision: &str, rule: Value) -> Value {
        json!({"type": "claim", "protocol": "tcp", "port": 8080, "published_ip": "0.0.0.0", "container_port": 80,
            "source": "docker", "owner": "0123456789ab", "name": "web", "decision": decision, "rule": rule,
            "host_ip": "127.0.0.1", "narrowed": false, "stale": false})
    }

    fn forward(sink: Value, state: &str, reason: Value) -> Value {
        json!({"type": "forward", "protocol": "tcp", "port": 8080, "host_ip": "127.0.0.1", "published_ip": "0.0.0.0",
            "container_port": 80, "sink": sink, "state": state, "reason": reason, "source": "docker",
            "owner": "0123456789ab", "name": "web", "since": SINCE, "failures": 0})
    }

    #[test]
    fn a_conflict_says_who_and_what_to_do() {
        let documents = [
            claim("counts", Value::Null),
            forward(json!("relay:eth0"), "forwarding", Value::Null),
            forward(json!("host-switch:http://x"), "conflict", json!("address already in use")),
        ];
        let expect = "\
8080: not forwarded

docker:web (0123456789ab) publishes 0.0.0.0:8080/tcp, for its port 80
    allowed (no rule matches), on 127.0.0.1 of the host

at relay:eth0: forwarding for 5s
    127.0.0.1:8080/tcp
at host-switch:http://x: conflict for 5s
    127.0.0.1:8080/tcp
    address already in use

What to do:
- Somebody else has the port: stop who has it, or publish another port. The
  agent tries again by itself and takes it when it is free.
";
        assert_eq!(explained(&documents, &json!({})), expect);
    }

    #[test]
    fn a_denial_says_where_the_rule_is() {
        let mut row = forward(Value::Null, "denied", json!("--deny tcp/8080"));
        row["host_ip"] = Value::Null;
        let documents = [claim("denied", json!("--deny tcp/8080")), row.clone(), row];
        let text = explained(&documents, &json!({})).replace("\n  ", " ");
        assert!(text.contains("The agent was started with --deny tcp/8080: "), "{text}");
        assert!(text.contains("denied by the rule --deny tcp/8080"), "{text}");
        assert_eq!(text.matches("nowhere: denied for 5s").count(), 1, "{text}");
        let text = explained(&[claim("denied", json!("--deny tcp/6443@sockets"))], &json!({})).replace("\n  ", " ");
        assert!(text.contains("one of the agent's own: start it with --allow tcp/8080@sockets."), "{text}");
        let rule = "deny tcp/8080 (rules file, line 1)";
        let mut row = documents[1].clone();
        row["reason"] = json!(rule);
        let status = json!({"policy": {"rules_file": "/etc/r"}});
        let text = explained(&[claim("denied", json!(rule)), row], &status).replace("\n  ", " ");
        assert!(text.contains("Change deny tcp/8080 (rules file, line 1) in /etc/r, or "), "{text}");
    }

    #[test]
    fn a_port_on_both_families_is_one_for_a_host_of_ipv4() {
        let mut v6 = claim("counts", Value::Null);
        v6["published_ip"] = json!("::");
        let documents = [claim("counts", Value::Null), v6, forward(json!("host-switch:x"), "forwarding", Value::Null)];
        let text = explained(&documents, &json!({}));
        assert!(text.starts_with("8080: forwarded\n"), "{text}");
        assert_eq!(text.matches("told to no sink by itself").count(), 1, "{text}");
    }

    #[test]
    fn what_nobody_publishes_is_looked_for() {
        let status = json!({"sources": [
            {"source": "docker", "state": "lost", "reason": "connection refused\u{1b}"}, {"source": "nat", "state": "ready"}
        ]});
        let text = explained(&[], &status);
        let expect = "\
8080: nobody publishes it

What to do:
- docker is lost: connection refused\\u{1b}
- Is there a NAT rule for it? See iptables-save and nft list ruleset.
- The agent watches only this: docker, nat. Its --help has a flag for everything
  else.
";
        assert_eq!(text, expect);
        let pending = [claim("counts", Value::Null), forward(json!("stdout:"), "pending", Value::Null)];
        let status = json!({"sinks": [{"sink": "stdout:", "state": "unreachable", "reason": "away"}]});
        assert!(explained(&pending, &status).contains("stdout cannot be reached: is it running? away"));
    }
}
