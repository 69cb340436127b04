//! The output of `nft -j list tables` and `nft -j list table ip|ip6 cni_hostport`: the rules of CNI's portmap plugin
//! where it uses nftables (1.6 and later), in any chain of its table.
//!
//! Source of the format: libnftables-json(5), and what nft 1.0.6 was seen to print for rules of portmap's shape.

use std::net::IpAddr;

use serde_json::Value;

use super::ParseError;
use super::nat::{Builder, Destination, Ports, Rule, View};
use crate::port::Protocol;

/// The name of portmap's tables.
pub const TABLE: &str = "cni_hostport";

/// Whether `nft -j list tables` names portmap's table of that family (`ip` or `ip6`).
pub fn has_table(output: &[u8], family: &str) -> Result<bool, ParseError> {
    let is = |table: &Value, key: &str, text: &str| table.get(key).and_then(Value::as_str) == Some(text);
    let tables = objects(output, "table")?;
    Ok(tables.iter().any(|table| is(table, "family", family) && is(table, "name", TABLE)))
}

/// What the rules of one table publish.
pub fn table(output: &[u8]) -> Result<View, ParseError> {
    let mut builder = Builder::default();
    for value in objects(output, "rule")? {
        let text = |key| value.get(key).and_then(Value::as_str);
        let chain = text("chain").ok_or(ParseError::Field { path: "rule.chain", expected: "a string" })?;
        let statements = value.get("expr").and_then(Value::as_array);
        let statements = statements.ok_or(ParseError::Field { path: "rule.expr", expected: "an array" })?;
        let shown = || format!("{TABLE} {chain} {}", Value::Array(statements.clone()));
        match rule(text("comment").unwrap_or(chain), statements) {
            Ok(Some(rule)) => builder.add(&rule, shown)?,
            Ok(None) => {}
            Err(reason) => builder.view.leave_out(reason, &shown()),
        }
    }
    Ok(builder.view)
}

/// The objects of one kind in `{"nftables":[{KIND:{…}},…]}`.
fn objects(output: &[u8], kind: &str) -> Result<Vec<Value>, ParseError> {
    let mut value: Value = serde_json::from_slice(output)?;
    let list = value.get_mut("nftables").and_then(Value::as_array_mut);
    let list = list.ok_or(ParseError::Field { path: "nftables", expected: "an array" })?;
    Ok(list.iter_mut().filter_map(|object| object.get_mut(kind).map(Value::take)).collect())
}

/// `None`: it changes no destination. An error: it does, and says more than is understood.
fn rule<'a>(name: &'a str, statements: &[Value]) -> Result<Option<Rule<'a>>, &'static str> {
    if !statements.iter().any(|statement| statement.get("dnat").is_some()) {
        return Ok(None);
    }
    let (mut host_ip, mut ports, mut to) = (None, None, None);
    for statement in statements {
        let (kind, body) = only(statement).ok_or("it has more than is understood")?;
        match kind {
            "counter" => {}
            "match" => match matched(body)? {
                Matched::Address(ip) if host_ip.is_none() => host_ip = Some(ip),
                Matched::Ports(protocol, list) if ports.is_none() => ports = Some((protocol, list)),
                Matched::Address(_) | Matched::Ports(..) => return Err("it says something twice"),
            },
            "dnat" if to.is_none() => to = Some(destination(body).ok_or("where it leads is not understood")?),
            _ => return Err("it has more than is understood"),
        }
    }
    let (protocol, ports) = ports.ok_or("it has no port")?;
    Ok(Some(Rule { name, podman: false, protocol, host_ip, ports, to: to.ok_or("it leads nowhere")? }))
}

/// The one key of an object with its value.
fn only(value: &Value) -> Option<(&str, &Value)> {
    let object = value.as_object()?;
    let (key, value) = object.iter().next()?;
    (object.len() == 1).then_some((key, value))
}

enum Matched {
    Address(IpAddr),
    Ports(Protocol, Vec<Ports>),
}

/// `{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":8080}`.
fn matched(body: &Value) -> Result<Matched, &'static str> {
    let text = |value: Option<&'_ Value>| value.and_then(Value::as_str).map(str::to_owned).unwrap_or_default();
    if text(body.get("op")) != "==" {
        return Err("it says what it does not match");
    }
    let payload = body.get("left").and_then(only).filter(|(kind, _)| *kind == "payload").map(|(_, payload)| payload);
    let payload = payload.ok_or("it has more than is understood")?;
    let (protocol, field) = (text(payload.get("protocol")), text(payload.get("field")));
    let right = body.get("right").unwrap_or(&Value::Null);
    match (protocol.as_str(), field.as_str()) {
        ("ip" | "ip6", "daddr") => {
            let address = right.as_str().and_then(|address| address.parse().ok());
            Ok(Matched::Address(address.ok_or("its destination is not one address")?))
        }
        (protocol, "dport") => {
            let protocol = Protocol::parse(protocol).ok_or("its protocol is neither tcp nor udp")?;
            let set = right.get("set").and_then(Value::as_array);
            let list = set.map_or(std::slice::from_ref(right), Vec::as_slice);
            let ports: Option<Vec<Ports>> = list.iter().map(ports).collect();
            let ports = ports.filter(|ports| !ports.is_empty()).ok_or("its ports are not understood")?;
            Ok(Matched::Ports(protocol, ports))
        }
        _ => Err("it has more than is understood"),
    }
}

/// `8080` or `{"range":[8000,8010]}`.
fn ports(value: &Value) -> Option<Ports> {
    if let Some(port) = value.as_u64() {
        return Ports::new(port, port);
    }
    let ("range", range) = only(value)? else { return None };
    let [first, last] = range.as_array()?.as_slice() else { return None };
    Ports::new(first.as_u64()?, last.as_u64()?)
}

/// `{"addr":"10.4.0.5","port":80}`, or with both in `{"addr":{"concat":["10.4.0.5",80]}}`.
fn destination(body: &Value) -> Option<Destination> {
    // `flags` (random, persistent) are about the choice of a port or address, not about what is published.
    if !body.as_object()?.keys().all(|key| matches!(key.as_str(), "addr" | "port" | "family" | "flags")) {
        return None;
    }
    let (address, port) = match body.get("addr")? {
        Value::String(address) => (address, body.get("port")),
        concat => {
            let ("concat", parts) = only(concat)? else { return None };
            let [Value::String(address), port] = parts.as_array()?.as_slice() else { return None };
            (address, Some(port).filter(|_| body.get("port").is_none()))
        }
    };
    let ports = match port {
        Some(port) => Some(ports(port)?),
        None if matches!(body.get("addr"), Some(Value::String(_))) => None,
        None => return None,
    };
    Some(Destination { address: address.parse().ok()?, ports, base: None })
}

#[cfg(test)]
mod tests;
