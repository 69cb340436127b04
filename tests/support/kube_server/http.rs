//! Requests as they come, and the heads and Status bodies of answers as a kube-apiserver writes them.

use std::fmt::Write as _;
use std::time::Instant;

use serde_json::{Value, json};

use super::super::unique;
use super::peer::{Came, Peer};

/// Go's limit of a request's head.
const HEAD_MAX: usize = 1 << 20;

/// Up to this size the length is known before the head is written: the buffer of Go's `net/http`.
const SHORT: usize = 2048;

/// By what a client has said who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    Certificate,
    Token,
    /// By nothing, or by something that does not hold. It gets 401.
    Unknown,
}

/// A request as it was logged.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Decoded, in the order they were given.
    pub query: Vec<(String, String)>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub client: Client,
    pub at: Instant,
}

impl Request {
    /// Waits for a request until then. `None`: the client has hung up, is late, or speaks no HTTP.
    pub(super) fn read(peer: &Peer, input: &mut Vec<u8>, until: Instant) -> Option<Request> {
        let end = loop {
            if let Some(at) = input.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            if input.len() > HEAD_MAX || peer.read(input, until) != Came::Data {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&input[..end]).into_owned();
        input.drain(..end + 4);
        let request = Request::parse(&head)?;
        // What a body says is of no interest here.
        let length = request.header("content-length").map_or(Some(0), |length| length.parse::<usize>().ok())?;
        while input.len() < length {
            if length > HEAD_MAX || peer.read(input, until) != Came::Data {
                return None;
            }
        }
        input.drain(..length);
        Some(request)
    }

    fn parse(head: &str) -> Option<Request> {
        let mut lines = head.split("\r\n");
        let mut first = lines.next()?.split(' ');
        let (method, target) = (first.next()?.to_owned(), first.next()?);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let query = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let headers = lines.filter_map(|line| line.split_once(':'));
        Some(Request {
            method,
            path: path.to_owned(),
            query: query.map(|(name, value)| (decoded(name), decoded(value))).collect(),
            headers: headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect(),
            client: Client::Unknown,
            at: Instant::now(),
        })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// `""` where it is not given.
    pub fn parameter(&self, name: &str) -> &str {
        self.query.iter().find(|(own, _)| own == name).map_or("", |(_, value)| value)
    }

    pub fn is_watch(&self) -> bool {
        matches!(self.parameter("watch"), "1" | "true")
    }

    /// A list of all Services, or a chunk of it.
    pub fn is_list(&self) -> bool {
        self.path == super::SERVICES && !self.is_watch()
    }

    pub(super) fn wants_close(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, more)) = rest.split_first() {
        let code = more.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match (first, code.and_then(|two| u8::from_str_radix(two, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            _ => {
                bytes.push(if first == b'+' { b' ' } else { first });
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An answer that is no watch.
pub(super) struct Answer {
    pub code: u16,
    pub body: Body,
    /// Seconds.
    pub retry_after: Option<u64>,
}

pub(super) enum Body {
    Json(Vec<u8>),
    Text(&'static str),
    /// With its chunks' frames, made once for many answers.
    Chunked(std::sync::Arc<[u8]>),
}

impl Answer {
    pub fn ok(body: Vec<u8>) -> Answer {
        Answer { code: 200, body: Body::Json(body), retry_after: None }
    }

    pub fn status(status: &Value) -> Answer {
        let code = status["code"].as_u64().unwrap() as u16;
        let retry_after = status["details"]["retryAfterSeconds"].as_u64();
        Answer { code, body: Body::Json(status_text(status).into_bytes()), retry_after }
    }

    pub fn text(code: u16, retry_after: Option<u64>) -> Answer {
        let text = match code {
            404 => "404 page not found\n",
            429 => "Too many requests, please try again later.\n",
            _ => "upstream connect error or disconnect/reset before headers\n",
        };
        Answer { code, body: Body::Text(text), retry_after }
    }

    /// Head and body, each as they go out.
    pub fn bytes(&self, client: Client) -> (String, std::borrow::Cow<'_, [u8]>) {
        let (framing, body) = match &self.body {
            Body::Json(body) if body.len() <= SHORT => {
                (format!("Content-Length: {}", body.len()), std::borrow::Cow::Borrowed(&**body))
            }
            Body::Text(text) => (format!("Content-Length: {}", text.len()), text.as_bytes().into()),
            Body::Json(body) => ("Transfer-Encoding: chunked".to_owned(), framed(body).into()),
            Body::Chunked(body) => ("Transfer-Encoding: chunked".to_owned(), std::borrow::Cow::Borrowed(&**body)),
        };
        let head = head(self.code, client, self.retry_after, &framing);
        match self.body {
            Body::Text(_) => (head.replace("application/json", "text/plain; charset=utf-8"), body),
            Body::Json(_) | Body::Chunked(_) => (head, body),
        }
    }
}

/// A body as chunks, with the last one.
pub(super) fn framed(body: &[u8]) -> Vec<u8> {
    // As long as Go's encoder happens to write them, which is no promise: objects go over their borders.
    let mut framed = Vec::with_capacity(body.len() + body.len() / 1024 + 64);
    for part in body.chunks(1 << 15) {
        framed.extend_from_slice(&super::peer::chunk(part));
    }
    framed.extend_from_slice(LAST_CHUNK);
    framed
}

pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

pub(super) fn head(code: u16, client: Client, retry_after: Option<u64>, framing: &str) -> String {
    let mut head = format!("HTTP/1.1 {code} {}\r\nAudit-Id: {}\r\n", phrase(code), uid());
    head.push_str("Cache-Control: no-cache, private\r\nContent-Type: application/json\r\n");
    if let Some(seconds) = retry_after {
        write!(head, "Retry-After: {seconds}\r\n").unwrap();
    }
    if code == 403 {
        head.push_str("X-Content-Type-Options: nosniff\r\n");
    }
    // Who is not known does not get as far as priority and fairness.
    if client != Client::Unknown {
        head.push_str("X-Kubernetes-Pf-Flowschema-Uid: 6f1c2c7e-3d1b-4a55-9b0f-0d8a5a3e7c11\r\n");
        head.push_str("X-Kubernetes-Pf-Prioritylevel-Uid: 2b7d4f0a-98c4-4c11-8f7e-51b1f6a9d2e4\r\n");
    }
    let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
    write!(head, "Date: {date}\r\n{framing}\r\n\r\n").unwrap();
    head
}

fn phrase(code: u16) -> &'static str {
    match code {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        410 => "Gone",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Unknown",
    }
}

/// In the form of a UUID; no two of a process are the same.
pub(super) fn uid() -> String {
    format!("{:08x}-7c1d-4e2a-9f3b-{:012x}", std::process::id(), unique())
}

/// A Status of failure. `details` and `reason` are left out where they are null or empty.
pub(super) fn failure(code: u16, reason: &str, message: &str, details: Value) -> Value {
    let mut status = json!({"code": code, "reason": reason, "message": message});
    if !details.is_null() {
        status["details"] = details;
    }
    status
}

/// The failure that a code stands for.
pub(super) fn failure_of(code: u16, retry_after: Option<u64>) -> Value {
    let services = json!({"kind": "services"});
    let (reason, message, mut details) = match code {
        401 => ("Unauthorized", "Unauthorized", Value::Null),
        403 => (
            "Forbidden",
            "services is forbidden: User \"system:admin\" cannot list resource \"services\" in API group \"\" at the \
             cluster scope",
            services,
        ),
        404 => ("NotFound", "the server could not find the requested resource", json!({})),
        405 => ("MethodNotAllowed", "the server does not allow this method on the requested resource", json!({})),
        410 => ("Expired", "The resourceVersion for the provided watch is too old.", Value::Null),
        429 => ("TooManyRequests", "storage is (re)initializing", Value::Null),
        503 => ("ServiceUnavailable", "apiserver not ready", Value::Null),
        _ => {
            let cause = "etcdserver: request timed out";
            let details = json!({"causes": [{"message": cause}]});
            return failure(code, "InternalError", &format!("Internal error occurred: {cause}"), details);
        }
    };
    if let Some(seconds) = retry_after {
        details["retryAfterSeconds"] = json!(seconds);
    }
    failure(code, reason, message, details)
}

/// In the order of the fields of a real one.
pub(super) fn status_text(status: &Value) -> String {
    let metadata = if status["metadata"].is_null() { json!({}) } else { status["metadata"].clone() };
    let mut text = format!(
        "{{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{metadata},\"status\":\"Failure\",\"message\":{},\
         \"reason\":{}",
        status["message"], status["reason"]
    );
    if !status["details"].is_null() {
        write!(text, ",\"details\":{}", status["details"]).unwrap();
    }
    writeln!(text, ",\"code\":{}}}", status["code"]).unwrap();
    text
}
