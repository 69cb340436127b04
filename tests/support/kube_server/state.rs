//! What the server knows: Services, the log of their changes, open watches, faults. One lock holds it all, and what is
//! written to watches is written under it, so that each of them sees every change once and in order.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::connection;
use super::http::{Answer, Body, LAST_CHUNK, Request, failure, failure_of, framed, status_text, uid};
use super::peer::{Peer, chunk};
use super::service::{Identity, Service};
use super::{Cut, Fault, On};

/// A cluster that has been up for a moment.
const FIRST_VERSION: u64 = 1000;

/// Tokens of older lists have expired.
const SNAPSHOTS_MAX: usize = 16;

type Snapshot = Arc<Vec<(String, Arc<str>)>>;

pub(super) struct State {
    /// The resourceVersion of the latest change of anything.
    pub version: u64,
    /// From older ones no watch can be started.
    pub compacted: u64,
    objects: BTreeMap<String, Object>,
    log: Vec<Change>,
    /// What lists in chunks go on with, by version.
    snapshots: BTreeMap<u64, Snapshot>,
    /// The list of all as of a version.
    list: Option<(u64, Arc<[u8]>)>,
    pub raw_list: Option<Arc<[u8]>>,
    pub tokens: Vec<String>,
    pub requests: Vec<Request>,
    pub faults: Vec<(On, Fault, Option<usize>)>,
    watches: Vec<Watch>,
    /// How many were ever opened; the next one's id.
    pub watches_opened: u64,
    pub stalled: bool,
    pub bookmark_every: Duration,
}

struct Object {
    identity: Identity,
    service: Service,
    json: Arc<str>,
}

struct Change {
    version: u64,
    /// The watch event with its newline.
    line: Vec<u8>,
}

struct Watch {
    id: u64,
    peer: Arc<Peer>,
    /// Later changes are still to be written.
    sent: u64,
    bookmarks: bool,
}

impl Watch {
    fn catch_up(&mut self, log: &[Change]) -> io::Result<()> {
        let first = log.partition_point(|change| change.version <= self.sent);
        for change in &log[first..] {
            self.peer.write_chunk(&change.line)?;
            self.sent = change.version;
        }
        Ok(())
    }
}

impl State {
    pub fn new() -> State {
        State {
            version: FIRST_VERSION,
            compacted: 0,
            objects: BTreeMap::new(),
            log: Vec::new(),
            snapshots: BTreeMap::new(),
            list: None,
            raw_list: None,
            tokens: Vec::new(),
            requests: Vec::new(),
            faults: Vec::new(),
            watches: Vec::new(),
            watches_opened: 0,
            stalled: false,
            bookmark_every: Duration::from_secs(60),
        }
    }

    /// The version of the change, and the instant before it was written.
    pub fn apply(&mut self, service: Service) -> (u64, Instant) {
        self.version += 1;
        let version = self.version;
        let key = service.key();
        let (kind, identity) = match self.objects.get(&key) {
            Some(object) => ("MODIFIED", object.identity.clone()),
            None => {
                let created = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                ("ADDED", Identity { uid: uid(), created })
            }
        };
        let json: Arc<str> = service.json(&identity, version).into();
        let line = event_line(kind, &json);
        self.objects.insert(key, Object { identity, service, json });
        self.change(line)
    }

    /// Panics where there is none.
    pub fn delete(&mut self, namespace: &str, name: &str) -> (u64, Instant) {
        let object = self.objects.remove(&format!("{namespace}/{name}"));
        let Object { identity, service, .. } = object.unwrap_or_else(|| panic!("no service {namespace}/{name}"));
        self.version += 1;
        let line = event_line("DELETED", &service.json(&identity, self.version));
        self.change(line)
    }

    pub fn services(&self) -> Vec<Service> {
        self.objects.values().map(|object| object.service.clone()).collect()
    }

    fn change(&mut self, line: Vec<u8>) -> (u64, Instant) {
        let version = self.version;
        self.log.push(Change { version, line });
        let written = Instant::now();
        self.deliver();
        (version, written)
    }

    fn deliver(&mut self) {
        if !self.stalled {
            let log = &self.log;
            retain(&mut self.watches, |watch| watch.catch_up(log));
        }
    }

    pub fn stall(&mut self, stalled: bool) {
        self.stalled = stalled;
        self.deliver();
    }

    pub fn compact(&mut self) {
        self.compacted = self.version;
        self.snapshots.clear();
    }

    /// To all watches that asked for them, or to that one.
    pub fn bookmark(&mut self, only: Option<u64>) {
        let chunk = chunk(&self.bookmark_line());
        if !self.stalled {
            retain(&mut self.watches, |watch| {
                let wanted = watch.bookmarks && only.is_none_or(|id| id == watch.id);
                if wanted { watch.peer.write(&chunk) } else { Ok(()) }
            });
        }
    }

    fn bookmark_line(&self) -> Vec<u8> {
        format!(
            "{{\"type\":\"BOOKMARK\",\"object\":{{\"kind\":\"Service\",\"apiVersion\":\"v1\",\"metadata\":\
             {{\"resourceVersion\":\"{}\",\"creationTimestamp\":null}},\"spec\":{{}},\"status\":{{\"loadBalancer\":\
             {{}}}}}}}}\n",
            self.version
        )
        .into_bytes()
    }

    /// One chunk of any bytes to all watches.
    pub fn raw_event(&mut self, bytes: &[u8]) {
        let chunk = chunk(bytes);
        retain(&mut self.watches, |watch| watch.peer.write(&chunk));
    }

    /// An ERROR event with a Status 410 to all watches, which end with it.
    pub fn expire_watches(&mut self) {
        let line = error_line(&too_old(self.compacted, self.version));
        for watch in self.watches.drain(..) {
            let _ = watch.peer.write_chunk(&line).and_then(|()| watch.peer.write(LAST_CHUNK));
        }
    }

    pub fn cut_watches(&mut self, how: Cut) {
        let bookmark = chunk(&self.bookmark_line());
        for watch in self.watches.drain(..) {
            let half = match how {
                Cut::MidLine => &bookmark[..bookmark.len() / 2],
                Cut::BetweenLines => &[],
                Cut::InOrder => LAST_CHUNK,
            };
            let _ = watch.peer.write(half);
            if how != Cut::InOrder {
                watch.peer.cut();
            }
        }
    }

    pub fn watches(&self) -> usize {
        self.watches.len()
    }

    pub fn is_open(&self, id: u64) -> bool {
        self.watches.iter().any(|watch| watch.id == id)
    }

    /// Forgets a watch, and says its end where it is still open.
    pub fn end_watch(&mut self, id: u64) -> io::Result<()> {
        let Some(at) = self.watches.iter().position(|watch| watch.id == id) else { return Ok(()) };
        self.watches.remove(at).peer.write(LAST_CHUNK)
    }

    pub fn forget_watch(&mut self, id: u64) {
        self.watches.retain(|watch| watch.id != id);
    }

    /// The fault for that request; one time less is left of it.
    pub fn take_fault(&mut self, matches: impl Fn(On, Fault) -> bool) -> Option<Fault> {
        let at = self.faults.iter().position(|(on, fault, _)| matches(*on, *fault))?;
        let (_, fault, times) = &mut self.faults[at];
        let fault = *fault;
        if let Some(times) = times {
            *times -= 1;
            if *times == 0 {
                self.faults.remove(at);
            }
        }
        Some(fault)
    }

    pub fn list(&mut self, request: &Request) -> Answer {
        if let Some(raw) = &self.raw_list {
            return Answer { code: 200, body: Body::Chunked(raw.clone()), retry_after: None };
        }
        let version = request.parameter("resourceVersion");
        if let Err(status) = self.check_version(version) {
            return Answer::status(&status);
        }
        let Ok(limit) = Some(request.parameter("limit")).filter(|limit| !limit.is_empty()).unwrap_or("0").parse()
        else {
            return Answer::status(&failure(400, "BadRequest", "invalid limit", Value::Null));
        };
        let token = request.parameter("continue");
        // From the watch cache, which "0" means, a list always comes whole.
        if token.is_empty() && (limit == 0 || version == "0") {
            return self.whole_list();
        }
        self.part_of_list(limit, token).unwrap_or_else(|status| Answer::status(&status))
    }

    fn whole_list(&mut self) -> Answer {
        let current = self.version;
        let body = match &self.list {
            Some((version, body)) if *version == current => body.clone(),
            _ => {
                let objects: Vec<&str> = self.objects.values().map(|object| &*object.json).collect();
                let body: Arc<[u8]> = list_text(&json!(current.to_string()), "", &objects).into();
                let body = if body.len() > 2048 { framed(&body).into() } else { body };
                self.list = Some((current, body.clone()));
                body
            }
        };
        // A short one has no frames.
        let body = if body.starts_with(b"{") { Body::Json(body.to_vec()) } else { Body::Chunked(body) };
        Answer { code: 200, body, retry_after: None }
    }

    fn part_of_list(&mut self, limit: usize, token: &str) -> Result<Answer, Value> {
        let (version, start) = if token.is_empty() { (self.version, String::new()) } else { read_token(token)? };
        // -1: go on with what there is now.
        let now = version == self.version || version == u64::MAX;
        let version = if now { self.version } else { version };
        if now && !self.snapshots.contains_key(&version) {
            let all = self.objects.iter().map(|(key, object)| (key.clone(), object.json.clone()));
            self.snapshots.insert(version, Arc::new(all.collect()));
            if self.snapshots.len() > SNAPSHOTS_MAX {
                self.snapshots.pop_first();
            }
        }
        let Some(snapshot) = self.snapshots.get(&version).cloned() else {
            let message = "The provided continue parameter is too old to display a consistent list result. You can \
                start a new list without the continue parameter, or use the continue token in this response to \
                retrieve the remainder of the results. Continuing with the provided token results in an inconsistent \
                list - objects that were created, modified, or deleted between the time the first chunk was returned \
                and now may show up in the list.";
            let mut status = failure(410, "Expired", message, Value::Null);
            status["metadata"] = json!({"continue": make_token("-1", &start)});
            return Err(status);
        };
        let first = snapshot.partition_point(|(key, _)| *key < start);
        let limit = if limit == 0 { usize::MAX } else { limit };
        let end = first.saturating_add(limit).min(snapshot.len());
        let objects: Vec<&str> = snapshot[first..end].iter().map(|(_, json)| &**json).collect();
        let more = match snapshot[first..end].last() {
            Some((last, _)) if end < snapshot.len() => {
                // The next key there could be.
                let token = make_token(&version.to_string(), &format!("{last}\0"));
                format!(",\"continue\":\"{token}\",\"remainingItemCount\":{}", snapshot.len() - end)
            }
            Some(_) | None => String::new(),
        };
        Ok(Answer::ok(list_text(&json!(version.to_string()), &more, &objects)))
    }

    /// Refuses a version that is no number, or that is still to come.
    fn check_version(&self, text: &str) -> Result<(), Value> {
        if text.is_empty() {
            return Ok(());
        }
        let version = parse_version(text)?;
        if version > self.version {
            let message = format!("Timeout: Too large resource version: {version}, current: {}", self.version);
            let cause = json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
            let details = json!({"causes": [cause], "retryAfterSeconds": 1});
            return Err(failure(504, "Timeout", &message, details));
        }
        Ok(())
    }

    /// Writes the head of a watch and what it has missed, and keeps it. Its id; `None`: it ended there.
    pub fn open_watch(&mut self, request: &Request, peer: &Arc<Peer>, head: &str) -> io::Result<Option<u64>> {
        let from = request.parameter("resourceVersion");
        let from = match if from.is_empty() { Ok(0) } else { parse_version(from) } {
            Ok(version) => version,
            Err(status) => {
                connection::write(peer, request.client, &Answer::status(&status))?;
                return Ok(None);
            }
        };
        peer.write(head.as_bytes())?;
        if from != 0 && from < self.compacted {
            peer.write_chunk(&error_line(&too_old(from, self.compacted)))?;
            peer.write(LAST_CHUNK)?;
            return Ok(None);
        }
        let bookmarks = matches!(request.parameter("allowWatchBookmarks"), "1" | "true");
        let id = self.watches_opened;
        let mut watch = Watch { id, peer: peer.clone(), sent: from, bookmarks };
        if from == 0 {
            // All there is, as if it had just been added.
            for object in self.objects.values() {
                peer.write_chunk(&event_line("ADDED", &object.json))?;
            }
            watch.sent = self.version;
        }
        if !self.stalled {
            watch.catch_up(&self.log)?;
        }
        self.watches.push(watch);
        self.watches_opened += 1;
        Ok(Some(id))
    }
}

/// Does that for all watches, and cuts those where it fails.
fn retain(watches: &mut Vec<Watch>, mut f: impl FnMut(&mut Watch) -> io::Result<()>) {
    watches.retain_mut(|watch| {
        let written = f(watch);
        if written.is_err() {
            watch.peer.cut();
        }
        written.is_ok()
    });
}

/// An object of a list as a watch has it.
fn event_line(kind: &str, json: &str) -> Vec<u8> {
    format!("{{\"type\":\"{kind}\",\"object\":{{\"kind\":\"Service\",\"apiVersion\":\"v1\",{}}}\n", &json[1..])
        .into_bytes()
}

fn error_line(status: &Value) -> Vec<u8> {
    format!("{{\"type\":\"ERROR\",\"object\":{}}}\n", status_text(status).trim_end()).into_bytes()
}

fn too_old(version: u64, oldest: u64) -> Value {
    let mut status = failure_of(410, None);
    status["message"] = json!(format!("too old resource version: {version} ({oldest})"));
    status
}

fn list_text(version: &Value, more: &str, objects: &[&str]) -> Vec<u8> {
    let objects = objects.join(",");
    format!(
        "{{\"kind\":\"ServiceList\",\"apiVersion\":\"v1\",\"metadata\":{{\"resourceVersion\":{version}{more}}},\
         \"items\":[{objects}]}}\n"
    )
    .into_bytes()
}

fn parse_version(text: &str) -> Result<u64, Value> {
    text.parse().map_err(|_| {
        let message = format!(
            "resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax"
        );
        failure(400, "BadRequest", &message, Value::Null)
    })
}

fn make_token(version: &str, start: &str) -> String {
    // Not through `json!`: the version is a number of any sign.
    let text = format!("{{\"v\":\"meta.k8s.io/v1\",\"rv\":{version},\"start\":{}}}", json!(start));
    URL_SAFE_NO_PAD.encode(text)
}

fn read_token(token: &str) -> Result<(u64, String), Value> {
    let read = || {
        let value: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
        let version = value["rv"].as_i64()?;
        Some((u64::try_from(version).unwrap_or(u64::MAX), value["start"].as_str()?.to_owned()))
    };
    read().ok_or_else(|| failure(400, "BadRequest", "continue key is not valid: illegal base64 data", Value::Null))
}
