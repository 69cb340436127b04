//! What `ctr` prints, and how nerdctl records the ports that it publishes.
//!
//! Sources of the formats: `ctr` of containerd 1.6 to 2.1, whose events are one line each (a Go time in four words,
//! namespace, topic, JSON); nerdctl's label `nerdctl/ports` (to 2.1.2), and `network-config.json` in the directory that
//! its label `nerdctl/state-dir` names (from 2.1.3). A port that is not a port is left out and named; the others of its
//! container still count.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::ParseError;
use super::published::{Published, name};

/// Ports as JSON.
const PORTS_LABEL: &str = "nerdctl/ports";

/// The directory with [`NETWORK_CONFIG`].
const STATE_DIR_LABEL: &str = "nerdctl/state-dir";

/// What people call the container.
const NAME_LABEL: &str = "nerdctl/name";

/// The file in a state directory that holds the ports.
pub const NETWORK_CONFIG: &str = "network-config.json";

/// What `ctr containers ls` is to be filtered by, one or the other: containers that may have ports.
pub const FILTERS: [&str; 2] = ["labels.\"nerdctl/ports\"", "labels.\"nerdctl/state-dir\""];

/// The longest namespace or container id that containerd accepts, in bytes.
const IDENTIFIER_BYTES_MAX: usize = 76;

/// Namespaces that one containerd may have.
const NAMESPACES_MAX: usize = 1024;

/// Bytes of a state directory's path, as the kernel has it.
const PATH_BYTES_MAX: usize = 4095;

/// Namespaces whose containers publish nothing through nerdctl: Docker's own, which the docker source watches, and
/// BuildKit's.
const UNWATCHED: &[&str] = &["moby", "buildkit"];

/// A container: its namespace and its id, both checked, so that they can be arguments of `ctr`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Container {
    /// `NAMESPACE/ID`. Neither has a slash of its own.
    key: Arc<str>,
}

impl Container {
    /// `None`: one of them is nothing that containerd would accept.
    pub fn new(namespace: &str, id: &str) -> Option<Container> {
        let valid = is_identifier(namespace) && is_identifier(id);
        valid.then(|| Container { key: format!("{namespace}/{id}").into() })
    }

    /// `NAMESPACE/ID`, unique in one containerd.
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// Its id, unique in its namespace.
    pub fn id(&self) -> &str {
        self.key.split_once('/').map_or("", |(_, id)| id)
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

/// As containerd has it, but for doubled separators, which do no harm. The first character keeps it from being a flag.
fn is_identifier(text: &str) -> bool {
    text.len() <= IDENTIFIER_BYTES_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// What an event means for published ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskEvent {
    /// The container runs, as this process: its ports are to be looked up.
    Started(Container, u32),
    /// That process of the container, or whichever it had, is gone, and its ports with it.
    Ended(Container, Option<u32>),
    /// The container's labels may have changed.
    Updated(Container),
}

/// One line of `ctr events`. `None`: an event that means nothing here.
pub fn event(line: &[u8]) -> Result<Option<TaskEvent>, ParseError> {
    let not_an_event = ParseError::Field { path: "(the line)", expected: "a time, a namespace, a topic and JSON" };
    let Some((namespace, topic, payload)) = std::str::from_utf8(line).ok().and_then(split_event) else {
        return Err(not_an_event);
    };
    let wanted =
        matches!(topic, "/tasks/start" | "/tasks/exit" | "/tasks/delete" | "/containers/update" | "/containers/delete");
    if !wanted || UNWATCHED.contains(&namespace) {
        return Ok(None);
    }
    let value: Value = serde_json::from_slice(payload.as_bytes())?;
    let of_task = topic.starts_with("/tasks/");
    let id_field = if of_task { "container_id" } else { "id" };
    let id = value.get(id_field).and_then(Value::as_str);
    let container = id.and_then(|id| Container::new(namespace, id));
    let container =
        container.ok_or(ParseError::Field { path: id_field, expected: "containerd's name of a container" })?;
    // The exit of a process that was executed in the container, which goes on.
    let process = value.get("id").and_then(Value::as_str).unwrap_or_default();
    if of_task && !process.is_empty() && process != container.id() {
        return Ok(None);
    }
    let pid = value.get("pid").and_then(Value::as_u64).and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
    Ok(match topic {
        "/tasks/start" => {
            let pid = pid.ok_or(ParseError::Field { path: "pid", expected: "a process id" })?;
            Some(TaskEvent::Started(container, pid))
        }
        "/tasks/exit" | "/tasks/delete" => Some(TaskEvent::Ended(container, pid)),
        "/containers/delete" => Some(TaskEvent::Ended(container, None)),
        _ => Some(TaskEvent::Updated(container)),
    })
}

/// `2026-11-21 00:29:10.456220417 +0000 UTC NAMESPACE TOPIC {…}` as namespace, topic and JSON.
fn split_event(line: &str) -> Option<(&str, &str, &str)> {
    let mut words = line.splitn(7, ' ');
    let (date, time, offset, _zone) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let (namespace, topic, payload) = (words.next()?, words.next()?, words.next()?.trim_end());
    let digits = |text: &str, and: &[char]| text.chars().all(|c| c.is_ascii_digit() || and.contains(&c));
    let timed = date.len() == 10 && digits(date, &['-']) && digits(time, &[':', '.']) && digits(offset, &['+', '-']);
    let whole = payload.starts_with('{') && payload.ends_with('}');
    (timed && is_identifier(namespace) && topic.starts_with('/') && whole).then_some((namespace, topic, payload))
}

/// What a list holds, with what could not be used of it.
#[derive(Debug, PartialEq, Eq)]
pub struct List<T> {
    /// What could be.
    pub items: Vec<T>,
    /// Lines that name nothing that containerd would accept.
    pub skipped: usize,
}

impl<T> List<T> {
    fn new() -> List<T> {
        List { items: Vec::new(), skipped: 0 }
    }

    fn add(&mut self, item: Option<T>) {
        match item {
            Some(item) => self.items.push(item),
            None => self.skipped += 1,
        }
    }
}

/// The lines of an answer. A cut one is an error, or what is missing would be taken for gone.
fn lines(output: &[u8]) -> Result<std::str::Lines<'_>, ParseError> {
    let text = std::str::from_utf8(output).ok().filter(|text| text.is_empty() || text.ends_with('\n'));
    text.map(str::lines).ok_or(ParseError::Field { path: "(the list)", expected: "whole lines of text" })
}

/// The output of `ctr namespaces ls -q`: the namespaces that are watched.
pub fn namespaces(output: &[u8]) -> Result<List<Arc<str>>, ParseError> {
    let mut list = List::new();
    for name in lines(output)?.filter(|name| !UNWATCHED.contains(name)) {
        list.add(is_identifier(name).then(|| name.into()));
    }
    if list.items.len() > NAMESPACES_MAX {
        return Err(ParseError::Field { path: "(the list)", expected: "at most 1024 namespaces" });
    }
    Ok(list)
}

/// The output of `ctr -n NAMESPACE tasks ls`: the running tasks, paused ones among them, with their process ids.
pub fn tasks(namespace: &str, output: &[u8]) -> Result<List<(Container, u32)>, ParseError> {
    let mut lines = lines(output)?.map(|line| line.split_ascii_whitespace().collect::<Vec<&str>>());
    if lines.next().as_deref() != Some(&["TASK", "PID", "STATUS"]) {
        return Err(ParseError::Field { path: "(the first line)", expected: "TASK PID STATUS" });
    }
    let mut list = List::new();
    for words in lines {
        let &[id, pid, status] = words.as_slice() else {
            return Err(ParseError::Field { path: "(a task)", expected: "an id, a process id and a status" });
        };
        let pid = pid.parse().map_err(|_| ParseError::Field { path: "(a task's PID)", expected: "a process id" })?;
        // One whose state is not known for now (UNKNOWN) is not one that has ended.
        if !matches!(status, "CREATED" | "STOPPED") {
            list.add(Container::new(namespace, id).map(|container| (container, pid)));
        }
    }
    Ok(list)
}

/// The output of `ctr -n NAMESPACE containers ls -q`, in order.
pub fn containers(namespace: &str, output: &[u8]) -> Result<List<Container>, ParseError> {
    let mut list = List::new();
    for id in lines(output)? {
        list.add(Container::new(namespace, id));
    }
    list.items.sort();
    Ok(list)
}

/// Where a container's ports are written down.
#[derive(Debug, PartialEq, Eq)]
pub enum Record {
    /// It has none.
    None,
    /// In its labels.
    Ports(Published),
    /// In [`NETWORK_CONFIG`] in this directory: an absolute path without `.` and `..`, not to be trusted otherwise.
    /// With the container's name.
    StateDir(PathBuf, Option<Arc<str>>),
}

/// The output of `ctr -n NAMESPACE containers info ID`.
pub fn info(output: &[u8]) -> Result<Record, ParseError> {
    let value: Value = serde_json::from_slice(output)?;
    let labels = match value.get("Labels") {
        Some(Value::Object(labels)) => labels,
        None | Some(Value::Null) if value.is_object() => return Ok(Record::None),
        _ => return Err(ParseError::Field { path: "Labels", expected: "an object" }),
    };
    let name = labels.get(NAME_LABEL).and_then(name);
    if let Some(ports) = labels.get(PORTS_LABEL) {
        let text = ports.as_str().ok_or(ParseError::Field { path: PORTS_LABEL, expected: "a string" })?;
        let published = published(PORTS_LABEL, &serde_json::from_slice(text.as_bytes())?)?;
        return Ok(Record::Ports(Published { name, ..published }));
    }
    let Some(dir) = labels.get(STATE_DIR_LABEL) else { return Ok(Record::None) };
    let dir = dir
        .as_str()
        .filter(|dir| is_plain(dir))
        .ok_or(ParseError::Field { path: STATE_DIR_LABEL, expected: "an absolute path without . and .." })?;
    Ok(Record::StateDir(dir.into(), name))
}

/// By its text: the standard library's components leave out what is to be refused.
fn is_plain(path: &str) -> bool {
    let dots = path.split('/').any(|part| matches!(part, "." | ".."));
    let names = Path::new(path).components().any(|part| matches!(part, Component::Normal(_)));
    path.starts_with('/') && names && !dots && path.len() <= PATH_BYTES_MAX && !path.contains('\0')
}

/// The text of [`NETWORK_CONFIG`].
pub fn network_config(text: &[u8]) -> Result<Published, ParseError> {
    const PATH: &str = "portMappings";
    let value: Value = serde_json::from_slice(text)?;
    if !value.is_object() {
        return Err(ParseError::Field { path: "(the file)", expected: "an object" });
    }
    value.get(PATH).map_or_else(|| Ok(Published::default()), |ports| published(PATH, ports))
}

/// `[{"HostPort":12345,"ContainerPort":10000,"Protocol":"tcp","HostIP":"0.0.0.0"}]`, or `null` for none.
fn published(path: &'static str, ports: &Value) -> Result<Published, ParseError> {
    let mut published = Published::default();
    let entries = match ports {
        Value::Array(entries) => entries.as_slice(),
        Value::Null => &[],
        _ => return Err(ParseError::Field { path, expected: "an array" }),
    };
    for entry in entries {
        let number = |name| entry.get(name).and_then(Value::as_u64).unwrap_or_default();
        let text = |name| entry.get(name).and_then(Value::as_str);
        let protocol = text("Protocol").unwrap_or_default().to_ascii_lowercase();
        // Left out or empty, it means every address; anything else that is not text is no address.
        let host_ip = if entry.get("HostIP").is_some() { text("HostIP").unwrap_or("?") } else { "" };
        published.add((number("ContainerPort"), &protocol), host_ip, number("HostPort"), false);
    }
    Ok(published)
}

#[cfg(test)]
mod tests;
