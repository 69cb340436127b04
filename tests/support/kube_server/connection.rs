//! What happens on a connection: handshake, requests one after the other, watches.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::{self, Answer, Client, Request, failure_of};
use super::peer::{self, Came, Peer, Tls};
use super::state::State;
use super::{Fault, On, SERVICES, Shared};

/// How long a connection may be silent between requests.
const IDLE: Duration = Duration::from_secs(300);

/// For a watch that names no `timeoutSeconds`: the least of what a real server takes, half an hour to an hour.
const WATCH_TIMEOUT: u64 = 1800;

impl Shared {
    /// Serves a connection to its end.
    pub(super) fn connection(&self, socket: &Arc<TcpStream>, tls: &Tls) -> io::Result<()> {
        let stall = self.state.lock().unwrap().take_fault(|_, fault| fault == Fault::HandshakeStall);
        if stall.is_some() {
            peer::hold(socket);
            return Ok(());
        }
        let (peer, known) = Peer::accept(socket.clone(), tls)?;
        let peer = Arc::new(peer);
        let mut input = Vec::new();
        while let Some(mut request) = Request::read(&peer, &mut input, Instant::now() + IDLE) {
            let mut state = self.state.lock().unwrap();
            request.client = client(&request, known, &state.tokens);
            state.requests.push(request.clone());
            let fault = state.take_fault(|on, fault| {
                fault != Fault::HandshakeStall
                    && match on {
                        On::Any => true,
                        On::List => request.is_list(),
                        On::Watch => request.path == SERVICES && request.is_watch(),
                    }
            });
            drop(state);
            if !self.answer(&peer, &mut input, &request, fault)? || request.wants_close() {
                break;
            }
        }
        peer.close();
        Ok(())
    }

    /// Answers to the end of the answer, which for a watch may be long. Whether the connection stays.
    fn answer(
        &self,
        peer: &Arc<Peer>,
        input: &mut Vec<u8>,
        request: &Request,
        fault: Option<Fault>,
    ) -> io::Result<bool> {
        let watch = request.path == SERVICES && request.is_watch();
        match fault {
            Some(Fault::Mute) => {
                peer.hold();
                return Ok(false);
            }
            Some(Fault::Status { code, retry_after }) => {
                return write(peer, request.client, &Answer::status(&failure_of(code, retry_after)));
            }
            Some(Fault::Text { code, retry_after }) => {
                return write(peer, request.client, &Answer::text(code, retry_after));
            }
            Some(Fault::DropAfterHead | Fault::Stall) if watch => {
                peer.write(http::head(200, request.client, None, CHUNKED).as_bytes())?;
                if fault == Some(Fault::Stall) {
                    peer.hold();
                }
                peer.cut();
                return Ok(false);
            }
            Some(Fault::DropAfterHead | Fault::Stall | Fault::HandshakeStall) | None => {}
        }
        if watch && request.client != Client::Unknown && request.method == "GET" {
            return self.watch(peer, input, request);
        }
        let answer = self.state.lock().unwrap().respond(request);
        let Some(fault) = fault else { return write(peer, request.client, &answer) };
        let (head, body) = answer.bytes(request.client);
        peer.write(head.as_bytes())?;
        if fault == Fault::Stall {
            peer.write(&body[..body.len() / 2])?;
            peer.hold();
        }
        peer.cut();
        Ok(false)
    }

    /// Follows a watch until it is over or cut. Whether the connection stays.
    fn watch(&self, peer: &Arc<Peer>, input: &mut Vec<u8>, request: &Request) -> io::Result<bool> {
        let head = http::head(200, request.client, None, CHUNKED);
        let mut state = self.state.lock().unwrap();
        let interval = state.bookmark_every;
        let Some(id) = state.open_watch(request, peer, &head)? else { return Ok(true) };
        drop(state);
        let seconds = request.parameter("timeoutSeconds").parse().ok().filter(|seconds| *seconds > 0);
        let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(WATCH_TIMEOUT));
        let mut bookmark = next_bookmark(end, interval);
        loop {
            let came = peer.read(input, bookmark.min(end));
            let mut state = self.state.lock().unwrap();
            if came == Came::Closed {
                state.forget_watch(id);
                return Ok(false);
            }
            if !state.is_open(id) {
                return Ok(true);
            }
            let now = Instant::now();
            if state.stalled && now >= bookmark.min(end) {
                // Nothing is written, not even the end.
                drop(state);
                bookmark = now + Duration::from_millis(100);
            } else if now >= end {
                return state.end_watch(id).map(|()| true);
            } else if now >= bookmark {
                state.bookmark(Some(id));
                bookmark = next_bookmark(end, interval);
            }
        }
    }
}

const CHUNKED: &str = "Transfer-Encoding: chunked";

/// After the interval, and two seconds before the watch ends, so that its client can go on from there.
fn next_bookmark(end: Instant, interval: Duration) -> Instant {
    let now = Instant::now();
    let last = end.checked_sub(Duration::from_secs(2)).filter(|last| *last > now);
    last.map_or(now + interval, |last| last.min(now + interval))
}

fn client(request: &Request, known: bool, tokens: &[String]) -> Client {
    let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    match token {
        _ if known => Client::Certificate,
        Some(token) if tokens.iter().any(|own| own == token) => Client::Token,
        Some(_) | None => Client::Unknown,
    }
}

/// Whether the connection stays: it does.
pub(super) fn write(peer: &Peer, client: Client, answer: &Answer) -> io::Result<bool> {
    let (head, body) = answer.bytes(client);
    peer.write(&[head.as_bytes(), &body].concat())?;
    Ok(true)
}

impl State {
    fn respond(&mut self, request: &Request) -> Answer {
        if request.client == Client::Unknown {
            return Answer::status(&failure_of(401, None));
        }
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", SERVICES) => self.list(request),
            ("GET", "/version") => Answer::ok(format!("{:#}\n", version()).into_bytes()),
            (_, SERVICES | "/version") => Answer::status(&failure_of(405, None)),
            (_, _) => Answer::status(&failure_of(404, None)),
        }
    }
}

fn version() -> Value {
    json!({"major": "1", "minor": "30", "gitVersion": "v1.30.4+k3s1", "gitTreeState": "clean", "compiler": "gc",
        "gitCommit": "0000000000000000000000000000000000000000", "buildDate": "2024-08-21T00:00:00Z",
        "goVersion": "go1.22.5", "platform": "linux/amd64"})
}
