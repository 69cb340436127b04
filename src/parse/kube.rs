//! The Kubernetes API's answers about Services: the list, the lines of a watch, and `Status`.
//!
//! Only what publishes ports is kept while reading; everything else of an object is skipped over without being stored, so
//! that a list of thousands costs little more than its claims. A Service that cannot be read, or a port that is not a
//! port, is left out and named; the others still count. A list that is not whole counts for nothing. What counts as
//! published:
//!
//! | type | |
//! |---|---|
//! | `NodePort` | each `nodePort` |
//! | `LoadBalancer` | each `nodePort`; each `port` once `status.loadBalancer.ingress` names somebody who answers |
//! | others | nothing |
//!
//! Service ports are published at the address that the user chose for Kubernetes, and at its like in IPv6 where
//! `ipFamilies` has it.
//!
//! Source of the formats: the Kubernetes API reference (`ServiceList`, `Service`, `WatchEvent`, `Status`; API concepts:
//! "Efficient detection of changes", "Resource versions").

mod pieces;

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::sync::Arc;

use serde_json::{Map, Value};

use self::pieces::Pieces;
use super::ParseError;
use super::prune::{ELEMENTS_MAX, Want, prune};
use super::published::{COMPLAINTS_MAX, Published, port};
use crate::ordered;
use crate::port::{Binding, Bindings, Protocol};

/// Services of a list that are read.
const ITEMS_MAX: usize = 100_000;

/// Ports that all Services of a list together publish: twice what the agent takes. 256 MB of them would be 1.5 GB of claims.
const LIST_BINDINGS_MAX: usize = 262_144;

/// Of a Service's name, or its namespace's, in bytes: a DNS name.
const NAME_BYTES_MAX: usize = 253;

/// Of a resource version, in bytes. etcd's are numbers of at most 20 digits.
const RESOURCE_VERSION_BYTES_MAX: usize = 128;

/// What is shown of text that the server sent, in characters.
const SHOWN_CHARS_MAX: usize = 200;

/// What is shown of a name that is none, in characters.
const NAME_CHARS_SHOWN_MAX: usize = 64;

/// A complete list of Services.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ServiceList {
    /// Where a watch goes on from.
    pub resource_version: String,
    /// What each Service publishes, by `namespace/name`. Services that publish nothing are not in it.
    pub claims: ordered::Map<Arc<str>, Bindings>,
    /// Complaints about what could not be read.
    pub skipped: Vec<String>,
}

/// One line of a watch.
#[derive(Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// A Service is there, or has changed (`ADDED`, `MODIFIED`): this is all that it publishes now.
    Published {
        /// `namespace/name`.
        key: Arc<str>,
        /// Its ports, with complaints about those that are none.
        published: Published,
        /// Where a watch would go on from.
        resource_version: String,
    },
    /// A Service is gone (`DELETED`).
    Gone {
        /// `namespace/name`.
        key: Arc<str>,
        /// Where a watch would go on from.
        resource_version: String,
    },
    /// Nothing has happened up to here (`BOOKMARK`).
    Bookmark {
        /// Where a watch would go on from.
        resource_version: String,
    },
    /// The watch cannot go on (`ERROR`).
    Error(Status),
}

/// The API's word for "it did not work".
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Status {
    /// The HTTP status that goes with it: 410 asks for a new list. 0: not given.
    pub code: u16,
    /// For people: shortened, and nothing in it that a terminal would act on.
    pub message: String,
}

/// What is read of a Service; and of a `Status`, since a watch can have either.
const OBJECT: Want = Want::Keys(&[
    ("kind", Want::Plain),
    ("code", Want::Plain),
    ("reason", Want::Plain),
    ("message", Want::Plain),
    ("metadata", Want::Keys(&[("namespace", Want::Plain), ("name", Want::Plain), ("resourceVersion", Want::Plain)])),
    (
        "spec",
        Want::Keys(&[
            ("type", Want::Plain),
            ("ipFamilies", Want::Each(&Want::Plain)),
            (
                "ports",
                Want::Each(&Want::Keys(&[("protocol", Want::Plain), ("port", Want::Plain), ("nodePort", Want::Plain)])),
            ),
        ]),
    ),
    ("status", Want::Keys(&[("loadBalancer", Want::Keys(&[("ingress", Want::Each(&INGRESS))]))])),
]);

const INGRESS: Want = Want::Keys(&[("ip", Want::Plain), ("hostname", Want::Plain)]);

const EVENT: Want = Want::Keys(&[("type", Want::Plain), ("object", OBJECT)]);

const LIST_METADATA: Want = Want::Keys(&[("resourceVersion", Want::Plain), ("continue", Want::Plain)]);

/// Reads a `ServiceList` as it comes.
///
/// # Errors
/// Where it is no `ServiceList`, or ends too early: nothing of it may then be used.
pub fn services(input: impl Read, listener_ip: Ipv4Addr) -> Result<ServiceList, ParseError> {
    const TOO_LARGE: ParseError = ParseError::TooMany { what: "bytes in a field", max: pieces::PIECE_BYTES_MAX };
    let mut pieces = Pieces::new(input);
    let mut items = None;
    let (mut kind, mut metadata) = (Value::Null, Value::Null);
    pieces.expect(b'{', "list")?;
    let mut more = !pieces.take(b'}')?;
    while more {
        let key = prune(pieces.value()?.ok_or(TOO_LARGE)?, &Want::Plain)?;
        pieces.expect(b':', "colon")?;
        match key.as_str() {
            Some("items") if items.is_some() => return Err(ParseError::TooMany { what: "lists of items", max: 1 }),
            Some("items") => items = Some(read_items(&mut pieces, listener_ip)?),
            Some("kind") => kind = prune(pieces.value()?.ok_or(TOO_LARGE)?, &Want::Plain)?,
            Some("metadata") => metadata = prune(pieces.value()?.ok_or(TOO_LARGE)?, &LIST_METADATA)?,
            Some(_) => drop(prune(pieces.value()?.ok_or(TOO_LARGE)?, &Want::Plain)?),
            None => return Err(ParseError::Missing("key")),
        }
        more = pieces.more(b'}')?;
    }
    if pieces.peek()?.is_some() {
        return Err(ParseError::Missing("end of the input"));
    }
    if kind != "ServiceList" {
        return Err(ParseError::Field { path: "kind", expected: "ServiceList" });
    }
    // Half a list looks like one where the other half's Services are gone.
    if metadata.get("continue").is_some_and(|token| !token.is_null() && token != "") {
        return Err(ParseError::Field { path: "metadata.continue", expected: "nothing: the list is to be whole" });
    }
    let mut list = items.ok_or(ParseError::Field { path: "items", expected: "an array" })?;
    list.resource_version = resource_version(&metadata)?;
    Ok(list)
}

fn read_items<R: Read>(pieces: &mut Pieces<R>, listener_ip: Ipv4Addr) -> Result<ServiceList, ParseError> {
    let mut list = ServiceList::default();
    let (mut left_out, mut bindings): (usize, usize) = (0, 0);
    let mut more = if pieces.take(b'[')? {
        !pieces.take(b']')?
    } else {
        // As Go writes an empty list that was never made.
        let nothing = pieces.value()?.map(|value| prune(value, &Want::Plain)).transpose()?;
        if nothing != Some(Value::Null) {
            return Err(ParseError::Field { path: "items", expected: "an array" });
        }
        false
    };
    let mut index: usize = 0;
    while more {
        if index >= ITEMS_MAX {
            return Err(ParseError::TooMany { what: "Services", max: ITEMS_MAX });
        }
        let mut found = match pieces.value()? {
            Some(item) => {
                let (count, complaints) = read_item(&prune(item, &OBJECT)?, index, listener_ip, &mut list.claims);
                bindings = bindings.saturating_add(count);
                complaints
            }
            None => vec![format!("item {index}: larger than {} bytes", pieces::PIECE_BYTES_MAX)],
        };
        if bindings > LIST_BINDINGS_MAX {
            return Err(ParseError::TooMany { what: "published ports", max: LIST_BINDINGS_MAX });
        }
        let room = COMPLAINTS_MAX.saturating_sub(list.skipped.len());
        left_out = left_out.saturating_add(found.len().saturating_sub(room));
        found.truncate(room);
        list.skipped.append(&mut found);
        index = index.saturating_add(1);
        more = pieces.more(b']')?;
    }
    if left_out > 0 {
        list.skipped.push(format!("and at least {left_out} more"));
    }
    Ok(list)
}

/// Adds what one Service of a list publishes; says how many ports that is, and gives the complaints.
fn read_item(
    item: &Value,
    index: usize,
    listener_ip: Ipv4Addr,
    claims: &mut ordered::Map<Arc<str>, Bindings>,
) -> (usize, Vec<String>) {
    // In a list, items need not say what they are.
    let other = item.get("kind").is_some_and(|kind| kind != "Service");
    let key = if other { Err(ParseError::Field { path: "kind", expected: "Service" }) } else { key(item) };
    match key {
        Ok(key) => {
            let published = published(item, &key, listener_ip);
            let count = published.bindings.len();
            if count > 0 {
                claims.insert(key, published.bindings);
            }
            (count, published.skipped)
        }
        Err(error) => {
            let name = |name| {
                let name = metadata(item).and_then(|metadata| text(metadata, name)).unwrap_or("?");
                shown(name, NAME_CHARS_SHOWN_MAX)
            };
            (0, vec![format!("item {index}, {}/{}: {error}", name("namespace"), name("name"))])
        }
    }
}

/// Reads one line of a watch.
///
/// # Errors
/// Where it cannot be told what happened to which Service.
pub fn watch_event(line: &[u8], listener_ip: Ipv4Addr) -> Result<WatchEvent, ParseError> {
    let event = prune(line, &EVENT)?;
    let kind = text(&event, "type").ok_or(ParseError::Field { path: "type", expected: "a string" })?;
    let object = event.get("object").unwrap_or(&Value::Null);
    match kind {
        "ERROR" => return Ok(WatchEvent::Error(read_status(object))),
        "ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK" => {}
        other => return Err(ParseError::Unknown("type of event", shown(other, SHOWN_CHARS_MAX))),
    }
    if text(object, "kind") != Some("Service") {
        return Err(ParseError::Field { path: "object.kind", expected: "Service" });
    }
    let resource_version = resource_version(metadata(object).unwrap_or(&Value::Null))?;
    if kind == "BOOKMARK" {
        return Ok(WatchEvent::Bookmark { resource_version });
    }
    let key = key(object)?;
    if kind == "DELETED" {
        return Ok(WatchEvent::Gone { key, resource_version });
    }
    let published = published(object, &key, listener_ip);
    Ok(WatchEvent::Published { key, published, resource_version })
}

/// Reads the body of an answer that is not 200. Total: what is no `Status` gives its beginning as the message.
pub fn status(body: &[u8]) -> Status {
    match prune(body, &OBJECT) {
        Ok(object) if text(&object, "kind") == Some("Status") => read_status(&object),
        Ok(_) | Err(_) => {
            // A character has 4 bytes at most.
            let beginning = body.get(..SHOWN_CHARS_MAX.saturating_mul(4)).unwrap_or(body);
            Status { code: 0, message: shown(String::from_utf8_lossy(beginning).trim(), SHOWN_CHARS_MAX) }
        }
    }
}

fn read_status(object: &Value) -> Status {
    let reason = text(object, "reason").unwrap_or_default();
    let code = object.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
    // The code may be missing where the reason is not.
    let code = if matches!(reason, "Expired" | "Gone") { Some(410) } else { code };
    let message = text(object, "message").filter(|message| !message.is_empty()).unwrap_or(reason);
    Status { code: code.unwrap_or_default(), message: shown(message, SHOWN_CHARS_MAX) }
}

fn metadata(object: &Value) -> Option<&Value> {
    object.get("metadata")
}

fn text<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str)
}

/// Text of the server's for people: shortened, and nothing in it that a terminal would act on.
fn shown(text: &str, chars_max: usize) -> String {
    let escape = |c: char| if matches!(c, '"' | '\'' | '\\') { c.to_string() } else { c.escape_debug().to_string() };
    text.chars().take(chars_max).map(escape).collect()
}

/// It goes into a request's path.
fn resource_version(metadata: &Value) -> Result<String, ParseError> {
    let valid = |version: &&str| {
        (1..=RESOURCE_VERSION_BYTES_MAX).contains(&version.len())
            && version.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'~' | b'-'))
    };
    let version = text(metadata, "resourceVersion").filter(valid);
    version.map(str::to_owned).ok_or(ParseError::Field { path: "metadata.resourceVersion", expected: "a version" })
}

/// `namespace/name`.
fn key(service: &Value) -> Result<Arc<str>, ParseError> {
    let part = |path, key| {
        let valid = |name: &&str| {
            (1..=NAME_BYTES_MAX).contains(&name.len())
                && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'))
        };
        let name = metadata(service).and_then(|metadata| text(metadata, key)).filter(valid);
        name.ok_or(ParseError::Field { path, expected: "a DNS name in lower case" })
    };
    let (namespace, name) = (part("metadata.namespace", "namespace")?, part("metadata.name", "name")?);
    Ok(format!("{namespace}/{name}").into())
}

/// What a Service publishes, by the table at the top.
fn published(service: &Value, key: &str, listener_ip: Ipv4Addr) -> Published {
    let mut published = Published::default();
    let spec = match service.get("spec") {
        Some(Value::Object(spec)) => spec,
        None | Some(Value::Null) => return published,
        Some(_) => {
            published.complain(format!("{key}: field spec: expected an object"));
            return published;
        }
    };
    let balanced = match spec.get("type").unwrap_or(&Value::Null) {
        Value::String(kind) if kind == "NodePort" => false,
        Value::String(kind) if kind == "LoadBalancer" => has_ingress(service),
        Value::String(_) | Value::Null => return published,
        _ => {
            published.complain(format!("{key}: field spec.type: expected a string"));
            return published;
        }
    };
    let ports = match spec.get("ports") {
        Some(Value::Array(ports)) => ports.as_slice(),
        None | Some(Value::Null) => &[],
        Some(_) => {
            published.complain(format!("{key}: field spec.ports: expected an array"));
            &[]
        }
    };
    let addresses = addresses(spec, listener_ip);
    for entry in ports.iter().take(ELEMENTS_MAX) {
        match read_port(entry, balanced) {
            Ok((protocol, container_port, host_ports)) => {
                for host_port in host_ports.into_iter().flatten() {
                    let binding = |host_ip| Binding { protocol, host_ip, host_port };
                    published.bindings.extend(addresses.iter().map(|ip| (binding(*ip), container_port)));
                }
            }
            Err(cause) => {
                let number = entry.get("port").filter(|port| port.is_number());
                let number = number.map_or_else(|| "?".to_owned(), Value::to_string);
                published.complain(format!("{key} port {number}: {cause}"));
            }
        }
    }
    if ports.len() > ELEMENTS_MAX {
        published.complain(format!("{key}: more than {ELEMENTS_MAX} ports"));
    }
    published
}

/// Whether anybody answers for the load balancer. It stays without where its port is taken.
fn has_ingress(service: &Value) -> bool {
    let ingress = service.get("status").and_then(|status| status.get("loadBalancer")?.get("ingress")?.as_array());
    let named = |entry: &Value, key| text(entry, key).is_some_and(|name| !name.is_empty());
    ingress.into_iter().flatten().any(|entry| named(entry, "ip") || named(entry, "hostname"))
}

fn addresses(spec: &Map<String, Value>, listener_ip: Ipv4Addr) -> Vec<IpAddr> {
    let families = spec.get("ipFamilies").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let has = |name: &str| families.iter().any(|family| family == name);
    let (v4, v6) = (has("IPv4"), has("IPv6"));
    let like = if listener_ip.is_unspecified() { Ipv6Addr::UNSPECIFIED } else { Ipv6Addr::LOCALHOST };
    let v4 = (v4 || !v6).then_some(IpAddr::V4(listener_ip));
    v4.into_iter().chain(v6.then_some(IpAddr::V6(like))).collect()
}

/// A port of a Service: its protocol, its number, and the ports that it is published as.
type Port = (Protocol, NonZeroU16, [Option<NonZeroU16>; 2]);

/// One of `spec.ports`; `balanced` where `port` itself is published, too. The error says why it is none.
fn read_port(entry: &Value, balanced: bool) -> Result<Port, String> {
    let protocol = match entry.get("protocol").unwrap_or(&Value::Null) {
        Value::Null => Protocol::Tcp,
        Value::String(name) if name == "TCP" => Protocol::Tcp,
        Value::String(name) if name == "UDP" => Protocol::Udp,
        Value::String(name) => return Err(format!("{name} is not forwarded")),
        _ => return Err("protocol: expected a string".to_owned()),
    };
    let number = |value: &Value| value.as_u64().and_then(port);
    let inside = entry.get("port").and_then(number).ok_or("port: expected 1 to 65535")?;
    let node_port = match entry.get("nodePort").unwrap_or(&Value::Null) {
        Value::Null => None,
        // With `allocateLoadBalancerNodePorts: false`, or not yet allocated.
        value if value.as_u64() == Some(0) => None,
        value => Some(number(value).ok_or("nodePort: expected 1 to 65535")?),
    };
    Ok((protocol, inside, [node_port, balanced.then_some(inside)]))
}

#[cfg(test)]
mod tests;
