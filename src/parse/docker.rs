//! The Docker Engine API's answers, as Docker (API 1.24 to 1.52) and Podman's compatible service write them.
//!
//! Only fields that every one of those versions has are read. Source of the formats: Docker's published API
//! reference (`/version`, `/events`, `/containers/json`, `/containers/{id}/json`), and what Podman 4.3 was seen to
//! answer. A port that is not a port is left out and named; the others of its container still count.

use std::sync::Arc;

use serde_json::Value;

use super::ParseError;
use super::published::{COMPLAINTS_MAX, Published, name};
use crate::ordered::Map;
use crate::port::Bindings;

/// The API versions an engine speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    /// Before the dot.
    pub major: u16,
    /// Behind the dot.
    pub minor: u16,
}

impl ApiVersion {
    /// Reads `1.41`.
    pub fn parse(text: &str) -> Option<ApiVersion> {
        let (major, minor) = text.split_once('.')?;
        Some(ApiVersion { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The body of `GET /version`: the newest API version, and the oldest where the engine names one.
pub fn versions(body: &[u8]) -> Result<(ApiVersion, Option<ApiVersion>), ParseError> {
    let value: Value = serde_json::from_slice(body)?;
    let version = |key: &str| value.get(key).and_then(Value::as_str).and_then(ApiVersion::parse);
    let newest = version("ApiVersion").ok_or(ParseError::Field { path: "ApiVersion", expected: "MAJOR.MINOR" })?;
    Ok((newest, version("MinAPIVersion")))
}

/// Whether the body of `GET /version` is Podman's.
pub fn is_podman(body: &[u8]) -> bool {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let components = value.get("Components").and_then(Value::as_array).into_iter().flatten();
    components.filter_map(|component| component.get("Name")?.as_str()).any(|name| name == "Podman Engine")
}

/// What an event means for published ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerEvent {
    /// The container runs: its ports are to be looked up.
    Started(Arc<str>),
    /// The container does not run any more: its ports are gone, whatever they were.
    Ended(Arc<str>),
    /// The container joined or left a network, which can change its ports.
    NetworkChanged(Arc<str>),
    /// People call the container by this name now.
    Renamed(Arc<str>, Arc<str>),
}

/// One line of `GET /events`. `None`: an event that means nothing here.
pub fn event(line: &[u8]) -> Result<Option<DockerEvent>, ParseError> {
    let value: Value = serde_json::from_slice(line)?;
    let text = |path: &'static str, value: Option<&Value>| match value {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) | None => Err(ParseError::Field { path, expected: "a string" }),
    };
    let action = text("Action", value.get("Action"))?;
    let actor = value.get("Actor");
    let id = |path: &'static str, value: Option<&Value>| container_id(path, value);
    match text("Type", value.get("Type"))?.as_str() {
        "container" => {
            let actor_id = || id("Actor.ID", actor.and_then(|a| a.get("ID")));
            match action.as_str() {
                "start" => Ok(Some(DockerEvent::Started(actor_id()?))),
                // Podman says `remove` where Docker says `destroy`.
                "die" | "stop" | "destroy" | "remove" => Ok(Some(DockerEvent::Ended(actor_id()?))),
                "rename" => {
                    let new = actor.and_then(|a| a.get("Attributes")?.get("name")).and_then(name);
                    Ok(Some(actor_id()?).zip(new).map(|(id, new)| DockerEvent::Renamed(id, new)))
                }
                _ => Ok(None),
            }
        }
        "network" if action == "connect" || action == "disconnect" => {
            let attributes = actor.and_then(|a| a.get("Attributes"));
            // Podman's actor is the container, Docker's the network.
            let container = attributes.and_then(|a| a.get("container")).or_else(|| actor?.get("ID"));
            let container = id("Actor.Attributes.container", container)?;
            Ok(Some(DockerEvent::NetworkChanged(container)))
        }
        _ => Ok(None),
    }
}

/// An id as engines make them. It goes into request paths, so nothing else is let through.
fn container_id(path: &'static str, value: Option<&Value>) -> Result<Arc<str>, ParseError> {
    let valid = |id: &&str| {
        (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    let id = value.and_then(Value::as_str).filter(valid);
    id.map(Arc::from).ok_or(ParseError::Field { path, expected: "a container id" })
}

/// The running containers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// The published ports of each, empty ones included.
    pub claims: Map<Arc<str>, Bindings>,
    /// The names of those that publish something.
    pub names: Map<Arc<str>, Arc<str>>,
    /// Complaints about single ports of theirs.
    pub skipped: Vec<String>,
}

/// The body of `GET /containers/json`.
pub fn containers(body: &[u8]) -> Result<Running, ParseError> {
    let value: Value = serde_json::from_slice(body)?;
    let list = value.as_array().ok_or(ParseError::Field { path: "(the list)", expected: "an array" })?;
    let mut running = Running::default();
    for container in list {
        let id = container_id("[].Id", container.get("Id"))?;
        let ipv6_too = has_ipv6(container);
        let mut published = Published::default();
        for entry in container.get("Ports").and_then(Value::as_array).into_iter().flatten() {
            // Exposed, but not published.
            let Some(host_port) = entry.get("PublicPort").filter(|p| !p.is_null()) else { continue };
            let text = |key| entry.get(key).and_then(Value::as_str).unwrap_or_default();
            let number = |value: Option<&Value>| value.and_then(Value::as_u64).unwrap_or_default();
            let inside = (number(entry.get("PrivatePort")), text("Type"));
            published.add(inside, text("IP"), number(Some(host_port)), ipv6_too);
        }
        running.skipped.append(&mut published.skipped);
        if !published.bindings.is_empty() {
            // With links, names by which others know it are among them: `/other/alias`.
            let mut names = container.get("Names").and_then(Value::as_array).into_iter().flatten().filter_map(name);
            running.names.extend(names.find(|name| !name.contains('/')).map(|name| (id.clone(), name)));
        }
        running.claims.insert(id, published.bindings);
    }
    running.skipped.truncate(COMPLAINTS_MAX);
    Ok(running)
}

/// The body of `GET /containers/{id}/json`: what the container publishes now; nothing unless it runs.
pub fn inspect(body: &[u8]) -> Result<Published, ParseError> {
    let value: Value = serde_json::from_slice(body)?;
    let mut published = Published::default();
    let running = value.get("State").and_then(|s| s.get("Running")).and_then(Value::as_bool);
    match running {
        Some(true) => {}
        Some(false) => return Ok(published),
        None => return Err(ParseError::Field { path: "State.Running", expected: "a boolean" }),
    }
    let ipv6_too = has_ipv6(&value);
    let ports = value.get("NetworkSettings").and_then(|n| n.get("Ports")).and_then(Value::as_object);
    for (key, hosts) in ports.into_iter().flatten() {
        let (number, protocol) = key.split_once('/').unwrap_or((key, "tcp"));
        let inside = (number.parse().unwrap_or_default(), protocol);
        for host in hosts.as_array().into_iter().flatten() {
            let text = |name| host.get(name).and_then(Value::as_str).unwrap_or_default();
            published.add(inside, text("HostIp"), text("HostPort").parse().unwrap_or_default(), ipv6_too);
        }
    }
    published.name = value.get("Name").and_then(name);
    Ok(published)
}

fn has_ipv6(container: &Value) -> bool {
    let networks = container.get("NetworkSettings").and_then(|n| n.get("Networks")).and_then(Value::as_object);
    networks.into_iter().flatten().any(|(_, network)| {
        network.get("GlobalIPv6Address").and_then(Value::as_str).is_some_and(|address| !address.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(bindings: &Bindings) -> Vec<String> {
        bindings.iter().map(|(b, port)| format!("{b}->{port}")).collect()
    }

    #[test]
    fn versions_of_docker_and_podman() {
        let v = |minor| ApiVersion { major: 1, minor };
        let both = versions(br#"{"Version":"20.10","ApiVersion":"1.41","MinAPIVersion":"1.12"}"#).unwrap();
        assert_eq!(both, (v(41), Some(v(12))));
        assert_eq!(versions(br#"{"ApiVersion":"1.9"}"#).unwrap(), (v(9), None));
        assert!(v(9) < v(41), "compared as numbers");
        assert!(is_podman(br#"{"Components":[{"Name":"Podman Engine","Version":"4.3.1"}],"ApiVersion":"1.41"}"#));
        for other in [&br#"{"Components":[{"Name":"Engine"}]}"#[..], br#"{"Components":[{}]}"#, b"{}", b""] {
            assert!(!is_podman(other));
        }
        for bad in ["", "{}", "[]", r#"{"ApiVersion":1.41}"#, r#"{"ApiVersion":"1"}"#, r#"{"ApiVersion":"1.x"}"#] {
            assert!(versions(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn events_that_matter_and_events_that_do_not() {
        let id: Arc<str> = "4f1d".into();
        let container = |action: &str| format!(r#"{{"Type":"container","Action":"{action}","Actor":{{"ID":"4f1d"}}}}"#);
        for (action, expect) in [
            ("start", Some(DockerEvent::Started(id.clone()))),
            ("die", Some(DockerEvent::Ended(id.clone()))),
            ("stop", Some(DockerEvent::Ended(id.clone()))),
            ("destroy", Some(DockerEvent::Ended(id.clone()))),
            ("remove", Some(DockerEvent::Ended(id.clone()))),
            ("exec_die", None),
            ("kill", None),
        ] {
            assert_eq!(event(container(action).as_bytes()).unwrap(), expect, "{action}");
        }
        let renamed = |name: &str| {
            format!(
                r#"{{"Type":"container","Action":"rename","Actor":{{"ID":"4f1d","Attributes":{{"name":{name}}}}}}}"#
            )
        };
        let called = |name: &str| Some(DockerEvent::Renamed(id.clone(), name.into()));
        assert_eq!(event(renamed("\"web\"").as_bytes()).unwrap(), called("web"));
        let long = "ü".repeat(200);
        assert_eq!(event(renamed(&format!("\"/{long}\"")).as_bytes()).unwrap(), called(&"ü".repeat(128)));
        for none in ["7", "\"\"", "\"/\"", "null"] {
            assert_eq!(event(renamed(none).as_bytes()).unwrap(), None, "{none}");
        }
        let network = r#"{"Type":"network","Action":"connect","Actor":{"ID":"n","Attributes":{"container":"4f1d"}}}"#;
        let podmans = r#"{"Type":"network","Action":"connect","Actor":{"ID":"4f1d","Attributes":{"name":"web"}}}"#;
        for network in [network, podmans] {
            assert_eq!(event(network.as_bytes()).unwrap(), Some(DockerEvent::NetworkChanged(id.clone())));
        }
        assert_eq!(event(br#"{"Type":"volume","Action":"mount"}"#).unwrap(), None);
    }

    #[test]
    fn bad_event_lines_are_errors() {
        let cut = br#"{"Type":"container","Action":"start","Actor":{"ID":"4f1d"}}"#;
        for end in 0..cut.len() {
            assert!(event(&cut[..end]).is_err(), "cut at {end}");
        }
        for bad in [
            &b"\xff\xfe"[..],
            b"null",
            b"[]",
            br#"{"Type":1,"Action":"start"}"#,
            br#"{"Type":"container","Action":"start","Actor":null}"#,
            br#"{"Type":"container","Action":"start","Actor":{"ID":7}}"#,
            br#"{"Type":"container","Action":"die","Actor":{"ID":"../../x"}}"#,
            br#"{"Type":"network","Action":"connect","Actor":{"Attributes":{}}}"#,
        ] {
            assert!(event(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn lists_published_ports_only() {
        let body = br#"[
            {"Id":"a","Names":["/db/alias","/web"],"Ports":[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"},
                               {"IP":"::","PrivatePort":80,"PublicPort":8081,"Type":"tcp"},
                               {"PrivatePort":443,"Type":"tcp"},
                               {"PrivatePort":53,"PublicPort":5353,"Type":"udp"},
                               {"IP":"0.0.0.0","PrivatePort":9,"PublicPort":9,"Type":"sctp"}]},
            {"Id":"b","Names":["/nothing-published"],"Ports":null},{"Id":"c"},
            {"Id":"d","Names":[7,null],"Ports":[{"PrivatePort":1,"PublicPort":1,"Type":"tcp"}]}]"#;
        let Running { claims, names: called, skipped } = containers(body).unwrap();
        assert_eq!(
            names(claims.get("a").unwrap()),
            ["0.0.0.0:8080/tcp->80", "[::]:8081/tcp->80", "0.0.0.0:5353/udp->53"],
            "IPv4 and IPv6 apart, no host address is every IPv4 address"
        );
        assert!(claims.get("b").unwrap().is_empty() && claims.get("c").unwrap().is_empty());
        assert_eq!(called.iter().map(|(id, name)| format!("{id}={name}")).collect::<Vec<_>>(), ["a=web"]);
        assert_eq!(skipped, ["published port 0.0.0.0:9 -> 9/sctp"]);
        for bad in ["{}", "[{}]", r#"[{"Id":"a b"}]"#, "[", "null"] {
            assert!(containers(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn inspects_what_a_running_container_publishes() {
        let body = br#"{"Name":"/web","State":{"Running":true},"NetworkSettings":{
            "Ports":{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"},{"HostIp":"::","HostPort":"8080"}],
                     "81/tcp":null,"82/tcp":[],
                     "53/udp":[{"HostIp":"::ffff:127.0.0.1","HostPort":"5353"}]}}}"#;
        let published = inspect(body).unwrap();
        assert_eq!(names(&published.bindings), ["0.0.0.0:8080/tcp->80", "[::]:8080/tcp->80", "127.0.0.1:5353/udp->53"]);
        assert_eq!((published.name.as_deref(), published.skipped.len()), (Some("web"), 0));
        let stopped = br#"{"State":{"Running":false},"NetworkSettings":{"Ports":{"80/tcp":[{"HostPort":"80"}]}}}"#;
        assert_eq!(inspect(stopped).unwrap(), Published::default());
        assert!(inspect(b"{}").is_err() && inspect(br#"{"State":{"Running":"yes"}}"#).is_err());
    }

    #[test]
    fn a_bad_port_does_not_cost_the_good_ones() {
        let body = br#"{"State":{"Running":true},"NetworkSettings":{"Ports":{
            "80/tcp":[{"HostIp":"0.0.0.0","HostPort":"0"},{"HostIp":"0.0.0.0","HostPort":"70000"},
                      {"HostIp":"nonsense\u001b[2J","HostPort":"81"},{"HostIp":"0.0.0.0","HostPort":"82"}],
            "0/tcp":[{"HostIp":"","HostPort":"83"}],"x/tcp":[{"HostIp":"","HostPort":"84"}],"85/tcp":"wrong"}}}"#;
        let published = inspect(body).unwrap();
        assert_eq!(names(&published.bindings), ["0.0.0.0:82/tcp->80"]);
        assert_eq!(published.skipped.len(), 5, "{:?}", published.skipped);
        assert!(!published.skipped.concat().contains('\u{1b}'));
    }

    #[test]
    fn podman_leaves_the_address_out() {
        let body = |ip6: &str| {
            format!(
                r#"{{"State":{{"Running":true}},"NetworkSettings":{{"Networks":{{"podman":{{"GlobalIPv6Address":"{ip6}"}}}},
                "Ports":{{"80/tcp":[{{"HostIp":"","HostPort":"8080"}}]}}}}}}"#
            )
        };
        assert_eq!(names(&inspect(body("").as_bytes()).unwrap().bindings), ["0.0.0.0:8080/tcp->80"]);
        let both = inspect(body("fd00::2").as_bytes()).unwrap();
        assert_eq!(names(&both.bindings), ["0.0.0.0:8080/tcp->80", "[::]:8080/tcp->80"]);
    }
}
