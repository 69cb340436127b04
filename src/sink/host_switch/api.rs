//! Requests to the expose API, one by one or some at once. Tells what was surely not done from what may have been.
//!
//! It keeps nothing of what it is told. No redirect is followed, no HTTP proxy used, and no answer read without an end.

use std::io::{ErrorKind, Read as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, scope};
use std::time::{Duration, Instant};

use ureq::http::Response;
use ureq::http::header::{AUTHORIZATION, CONTENT_TYPE};
use ureq::{Agent, Body, RequestBuilder, Timeout};

use super::{Base, HostSwitchConfig, files};
use crate::http;
use crate::port::Binding;
use crate::supervisor::STACK_BYTES;
use crate::wire::expose::{self, ALL_BYTES_MAX, Exposed};

/// Requests that are out at once, and connections that are kept.
const REQUESTS_MAX: usize = 8;

/// The longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Servers close a connection that has been idle for 10 s: ours are not used again after this time.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// Bytes of an answer to a request, at most.
const ANSWER_BYTES_MAX: usize = 4096;

/// Characters of an answer that people are shown.
const SHOWN_CHARS_MAX: usize = 200;

/// Why a request has no answer.
pub(super) enum Wrong {
    /// Nothing of it was done.
    Unreached(String),
    /// It may have been done.
    Cut(String),
}

impl Wrong {
    pub(super) fn reason(self) -> String {
        let (Wrong::Unreached(reason) | Wrong::Cut(reason)) = self;
        reason
    }
}

/// What became of several requests. What is in neither list was not tried.
#[derive(Default)]
pub(super) struct Asked {
    /// Carried out.
    pub(super) done: Vec<Binding>,
    /// Refused, with the server's words.
    pub(super) refused: Vec<(Binding, String)>,
    /// What ended it before all were tried.
    pub(super) wrong: Option<Wrong>,
}

/// A client of one server's API. What has the token in it has no `Debug`.
pub(super) struct Api {
    agent: Agent,
    /// `http://HOST:PORT/services/forwarder`; over a unix socket, the host is a label.
    url: String,
    shown: String,
    token_file: Option<PathBuf>,
    /// The value of the header, once the file has been read.
    authorization: Option<String>,
}

impl Api {
    pub(super) fn new(config: &HostSwitchConfig) -> Api {
        let settings = http::config_of_many(REQUESTS_MAX, CONNECT_TIMEOUT, IDLE_MAX);
        let (agent, host) = match &config.base {
            Base::Tcp(address) => (http::tcp::agent(settings), address.as_str()),
            Base::Unix(path) => (http::unix::agent(path.clone(), settings), "host-switch"),
        };
        let (url, shown) = (format!("http://{host}/services/forwarder"), config.base.to_string());
        Api { agent, url, shown, token_file: config.token_file.clone(), authorization: None }
    }

    /// To be called before requests: reads the token, where there is one that is not known.
    pub(super) fn prepare(&mut self) -> Result<(), String> {
        if let (Some(path), None) = (&self.token_file, &self.authorization) {
            self.authorization = Some(format!("Bearer {}", files::token(path)?));
        }
        Ok(())
    }

    /// The token may be another one by now.
    pub(super) fn forget_token(&mut self) {
        self.authorization = None;
    }

    /// What the server has.
    pub(super) fn all(&self, limit: Duration) -> Result<Exposed, Wrong> {
        let response = self.with_token(self.agent.get(format!("{}/all", self.url)), limit).call();
        let response = response.map_err(|error| self.failed(&error))?;
        if response.status().as_u16() != 200 {
            return Err(self.no_api(response));
        }
        let body = self.read(response, ALL_BYTES_MAX)?;
        let (exposed, skipped) = expose::list(&body).map_err(|error| {
            let shown = &self.shown;
            Wrong::Unreached(format!(
                "{shown} is no expose API, or answers to /services/forwarder/all are cut: {error}"
            ))
        })?;
        if skipped > 0 {
            log::debug!("host-switch has {skipped} forwards of other kinds");
        }
        Ok(exposed)
    }

    /// Posts a request for each binding, some at once. Ends with the first that has no answer, and starts none after `end`.
    pub(super) fn ask(&self, bindings: &[Binding], end: Instant, limit: Duration, request: Request<'_>) -> Asked {
        let (next, asked) = (AtomicUsize::new(0), Mutex::new(Asked::default()));
        let work = || {
            while let Some(binding) = bindings.get(next.fetch_add(1, Ordering::Relaxed)) {
                if Instant::now() >= end {
                    return;
                }
                let (path, body) = request(*binding);
                let result = self.post(path, &body, limit);
                // A push cannot fail half-way.
                let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
                match result {
                    Ok(None) => asked.done.push(*binding),
                    Ok(Some(refusal)) => asked.refused.push((*binding, refusal)),
                    Err(wrong) => {
                        next.store(bindings.len(), Ordering::Relaxed);
                        // What may have been done must not be forgotten over what was not.
                        if !matches!(asked.wrong, Some(Wrong::Cut(_))) {
                            asked.wrong = Some(wrong);
                        }
                    }
                }
            }
        };
        if bindings.len() == 1 {
            work();
        } else {
            scope(|threads| {
                for _ in 1..bindings.len().min(REQUESTS_MAX) {
                    let builder = Builder::new().name("sink-expose".into()).stack_size(STACK_BYTES);
                    // Where there is no thread left, there are fewer requests at once.
                    let _ = builder.spawn_scoped(threads, work);
                }
                work();
            });
        }
        asked.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: done. Otherwise the server's words of why not.
    fn post(&self, path: &str, body: &str, limit: Duration) -> Result<Option<String>, Wrong> {
        let request = self.agent.post(format!("{}/{path}", self.url)).header(CONTENT_TYPE, "application/json");
        let response = self.with_token(request, limit).send(body).map_err(|error| self.failed(&error))?;
        let status = response.status().as_u16();
        if !matches!(status, 200 | 400 | 500) {
            return Err(self.no_api(response));
        }
        let answer = self.read(response, ANSWER_BYTES_MAX)?;
        match (status, answer.is_empty()) {
            (200, true) => Ok(None),
            (200, false) => {
                Err(Wrong::Unreached(format!("{} is no expose API: answers {}", self.shown, show(&answer))))
            }
            _ => Ok(Some(show(&answer))),
        }
    }

    fn with_token<Any>(&self, request: RequestBuilder<Any>, limit: Duration) -> RequestBuilder<Any> {
        let request = match &self.authorization {
            Some(authorization) => request.header(AUTHORIZATION, authorization),
            None => request,
        };
        request.config().timeout_global(Some(limit)).build()
    }

    fn read(&self, response: Response<Body>, max: usize) -> Result<Vec<u8>, Wrong> {
        let mut body = Vec::new();
        let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
        let read = response.into_body().into_reader().take(limit).read_to_end(&mut body);
        match read {
            Err(error) => Err(Wrong::Cut(format!("the answer of {} was cut: {error}", self.shown))),
            Ok(_) if body.len() > max => {
                Err(Wrong::Unreached(format!("{} is no expose API: answers more than {max} bytes", self.shown)))
            }
            Ok(_) => Ok(body),
        }
    }

    /// The answer has a status that the API does not have.
    fn no_api(&self, response: Response<Body>) -> Wrong {
        let (status, shown) = (response.status().as_u16(), &self.shown);
        Wrong::Unreached(match (status, &self.token_file) {
            (401 | 403, None) => format!("{shown} answers {status}: name a file with its token by --api-token-file"),
            (401 | 403, Some(path)) => format!("{shown} answers {status}: it wants another token than {path:?} has"),
            _ => format!("{shown} is no expose API: answers {status} {:?}", show(&http::message(response))),
        })
    }

    fn failed(&self, error: &ureq::Error) -> Wrong {
        let unreached = match error {
            ureq::Error::Timeout(reason) => matches!(reason, Timeout::Connect | Timeout::Resolve),
            ureq::Error::HostNotFound | ureq::Error::BadUri(_) => true,
            ureq::Error::Io(error) => matches!(
                error.kind(),
                ErrorKind::ConnectionRefused
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
                    | ErrorKind::NotFound
                    | ErrorKind::PermissionDenied
                    | ErrorKind::AddrNotAvailable
            ),
            _ => false,
        };
        let reason = match error {
            ureq::Error::Timeout(_) => format!("{} does not answer in time", self.shown),
            error => format!("{}: {error}", self.shown),
        };
        if unreached { Wrong::Unreached(reason) } else { Wrong::Cut(reason) }
    }
}

/// What to post for a binding: where, and the body.
pub(super) type Request<'a> = &'a (dyn Fn(Binding) -> (&'static str, String) + Sync);

/// The server's words, as people may see them.
fn show(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    text.trim().chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect()
}
