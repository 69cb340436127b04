//! The kubernetes source: what Services publish, from the API server by list and watch.
//!
//! A session reads the kubeconfig, lists all Services, which gives a snapshot, and follows what happens to them from that
//! version on. A watch that ends in order (the server is asked to end it every minute) goes on where it was; one that is
//! cut, that expires, or that holds what cannot be read is followed by a new list, which the reconciler compares. So
//! nothing is withdrawn and announced again because of a connection. A server that answers, but refuses, is asked again
//! later, and claims stay; one that does not answer is lost, like any engine.
//!
//! The kubeconfig is read anew for each session, and whenever it has changed: it may appear, or be replaced together with
//! its authority, long after the agent has started.

mod client;
mod error;

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backoff;
use crate::config::KubernetesConfig;
use crate::event::{Event, Owner, Source};
use crate::parse::kube::{self, Status, WatchEvent};
use crate::port::Bindings;
use crate::source::lines::Next;
use crate::supervisor::Context;
pub use client::tls_config;
use client::{Client, EVENT_BYTES_MAX};
pub use error::KubernetesError;

/// Whether the kubeconfig and the files that it names can be read and used. Asks nobody.
///
/// # Errors
/// Which of them cannot, where in it, and why.
pub fn check(config: &KubernetesConfig) -> Result<(), KubernetesError> {
    Client::load(config).map(drop)
}

/// A watch that lasts less counts as a failure, so that a server which ends them at once is asked less and less often.
const WATCH_MIN: Duration = Duration::from_secs(1);

/// Why a watch is over.
enum End {
    /// In order: it can go on from the last version.
    InOrder,
    /// Something may have been missed, for this reason.
    Broken(String),
    /// The agent ends, or there is another kubeconfig.
    Unwanted,
}

/// Lists and watches until the server is lost or the agent ends. Returns whether it could follow at last: a list alone does
/// not count, or a server that lets us list, but not watch, would be asked without pause.
pub fn session(config: &KubernetesConfig, context: &Context) -> (bool, KubernetesError) {
    let mut refusals = 0;
    loop {
        let mut healthy = false;
        let error = match follow(config, context, &mut healthy) {
            Ok(()) if context.stop.is_raised() => return (healthy, KubernetesError::Stopped),
            Ok(()) => continue,
            Err(error) => error,
        };
        let Some(pause) = error.server_answers() else { return (healthy, error) };
        refusals = if healthy { 1 } else { refusals + 1 };
        log::debug!("kubernetes: refused refusals={refusals} reason={error}");
        context.send(Event::SourceTroubled { source: Source::Kubernetes, reason: error.to_string() });
        if context.stop.wait(pause.max(backoff::wait_after(refusals))) {
            return (healthy, error);
        }
    }
}

/// With one version of the kubeconfig. `Ok`: it is not wanted any more.
fn follow(config: &KubernetesConfig, context: &Context, healthy: &mut bool) -> Result<(), KubernetesError> {
    let client = Client::load(config)?;
    let agent = client.agent.clone();
    context.stop.on_raise(move || agent.clone().shutdown());
    let mut follower = Follower { client, config, context, version: String::new(), opened: None };
    let mut failures = 0;
    let mut complete = false;
    loop {
        // Also where the watch has ended in order: one that is never silent has not asked.
        if follower.client.is_outdated() {
            return Ok(());
        }
        if !complete {
            follower.list()?;
        }
        let end = follower.watch();
        let lasted = follower.opened.is_some_and(|opened| opened.elapsed() >= WATCH_MIN);
        *healthy |= lasted;
        complete = match end? {
            End::InOrder => true,
            End::Broken(reason) => {
                log::debug!("kubernetes: the watch {reason}; listing again");
                false
            }
            End::Unwanted => return Ok(()),
        };
        failures = if lasted { 0 } else { failures + 1 };
        if failures > 0 && context.stop.wait(backoff::wait_after(failures)) {
            return Ok(());
        }
    }
}

struct Follower<'a> {
    client: Client,
    config: &'a KubernetesConfig,
    context: &'a Context,
    /// Up to which version of the Services everything is known.
    version: String,
    /// Since when the last watch was there, if the server granted it: a slow refusal is none that lasts.
    opened: Option<Instant>,
}

impl Follower<'_> {
    fn list(&mut self) -> Result<(), KubernetesError> {
        let list = self.client.list(self.config.listener_ip)?;
        self.version = list.resource_version;
        self.context.send(Event::Snapshot { source: Source::Kubernetes, claims: list.claims });
        list.skipped.into_iter().for_each(|reason| self.skipped(reason));
        Ok(())
    }

    fn watch(&mut self) -> Result<End, KubernetesError> {
        self.opened = None;
        let mut watch = match self.client.watch(&self.version) {
            Err(KubernetesError::Refused { status: Status { code: 410, .. }, .. }) => return Ok(expired()),
            watch => watch?,
        };
        self.opened = Some(Instant::now());
        loop {
            let line = match watch.lines.next_line() {
                Ok(Next::Line(line)) if line.iter().all(u8::is_ascii_whitespace) => continue,
                Ok(Next::Line(line)) => line,
                Ok(Next::TooLong) => {
                    return Ok(self.unreadable(format_args!("of more than {EVENT_BYTES_MAX} bytes")));
                }
                Ok(Next::Silence) if self.context.stop.is_raised() || self.client.is_outdated() => {
                    return Ok(End::Unwanted);
                }
                Ok(Next::Silence) if Instant::now() < watch.end => continue,
                Ok(Next::Silence) => return Ok(End::Broken("has not ended when it should have".into())),
                Ok(Next::Stalled) => return Ok(End::Broken("stalled in the middle of an event".into())),
                Ok(Next::End) => return Ok(End::InOrder),
                Err(_) if self.context.stop.is_raised() => return Ok(End::Unwanted),
                Err(error) => return Ok(End::Broken(format!("failed: {error}"))),
            };
            match kube::watch_event(&line, self.config.listener_ip) {
                Ok(WatchEvent::Error(Status { code: 410, .. })) => return Ok(expired()),
                Ok(WatchEvent::Error(status)) => return Err(self.client.refused(status)),
                Ok(event) => self.take(event),
                Err(error) => return Ok(self.unreadable(error)),
            }
        }
    }

    fn take(&mut self, event: WatchEvent) {
        self.version = match event {
            WatchEvent::Published { key, published, resource_version } => {
                published.skipped.into_iter().for_each(|reason| self.skipped(reason));
                self.claim(key, published.bindings);
                resource_version
            }
            WatchEvent::Gone { key, resource_version } => {
                self.claim(key, Bindings::new());
                resource_version
            }
            WatchEvent::Bookmark { resource_version } => resource_version,
            WatchEvent::Error(_) => return,
        };
    }

    fn claim(&self, key: Arc<str>, bindings: Bindings) {
        self.context.send(Event::Claim { owner: Owner { source: Source::Kubernetes, key }, bindings });
    }

    /// What the event would have said is in the list.
    fn unreadable(&self, what: impl Display) -> End {
        self.skipped(format!("event: {what}"));
        End::Broken("brought an event that cannot be read".into())
    }

    fn skipped(&self, reason: String) {
        self.context.send(Event::Skipped { source: Source::Kubernetes, reason });
    }
}

fn expired() -> End {
    End::Broken("has expired".into())
}
