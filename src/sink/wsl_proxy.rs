//! The wsl-proxy sink: PortMapping documents to Rancher Desktop's wsl-proxy, which shares ports with other distributions.
//!
//! wsl-proxy reads a document per connection, each in a thread of its own, carries it out and only then closes: that close
//! is waited for, so that documents take effect in their order. There is no reply. It keeps TCP and UDP apart, and knows
//! an open port by its number alone, so of several addresses with one port it is told of the first; of the next one when
//! that is withdrawn. Source of the protocol: Rancher Desktop `src/go/networking/pkg/portproxy`.
//!
//! Nothing tells that it has restarted but its socket, which is another file then: that is looked at for each document, and
//! now and then. It is never connected to without a document, which it would log as an error.

use std::io::{self, ErrorKind};
use std::num::NonZeroU16;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::deliver::{CLOSE_TIMEOUT, CLOSE_TIMEOUT_STOPPING, deliver};
use super::{News, Sink};
use crate::event::{Answer, Document, Operation};
use crate::net;
use crate::ordered::Map;
use crate::port::{Binding, Bindings, Protocol};
use crate::wire::port_mapping;

/// How often to look whether wsl-proxy has (re)started.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// What wsl-proxy knows an open port by.
type Port = (Protocol, NonZeroU16);

fn port(binding: Binding) -> Port {
    (binding.protocol, binding.host_port)
}

/// A socket's device, inode, and when that was made.
type Identity = (u64, u64, i64, i64);

fn identity(path: &Path) -> io::Result<Identity> {
    std::fs::metadata(path).map(|file| (file.dev(), file.ino(), file.ctime(), file.ctime_nsec()))
}

/// Tells wsl-proxy.
pub struct WslProxy {
    path: PathBuf,
    /// What is announced of each port, oldest first, with the ports behind it. wsl-proxy was told of the first.
    announced: Map<Port, Vec<(Binding, NonZeroU16)>>,
    /// What its socket was at the last document, if it was there; nothing before the first document.
    seen: Option<Option<Identity>>,
    /// The last document did not get there: the reconciler takes nothing for granted then.
    away: bool,
    restarted: bool,
    /// Its socket was not there at the last beat.
    missing: bool,
    stopping: bool,
}

impl WslProxy {
    /// A sink for the unix socket at `path`. Does no I/O.
    pub fn new(path: PathBuf) -> WslProxy {
        let (away, restarted, missing, stopping) = (false, false, false, false);
        WslProxy { path, announced: Map::new(), seen: None, away, restarted, missing, stopping }
    }

    /// The same whoever finds it out, or it would be news each time.
    fn problem(&self, error: &io::Error) -> String {
        format!("wsl-proxy: {}: {error}", self.path.display())
    }

    fn unreachable(&self, error: &io::Error) -> Answer {
        // Who is not there has nothing open, and the end of the agent need not wait for it.
        if self.stopping && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) {
            return Answer::Done { failed: Vec::new() };
        }
        Answer::Unreachable(self.problem(error))
    }

    /// Looks who is there. Another wsl-proxy than the last one knows of nothing.
    fn meet(&mut self, now: Option<Identity>) {
        if self.seen != Some(now) {
            self.announced = Map::new();
            self.seen = Some(now);
        }
    }

    fn announce(&mut self, bindings: &Bindings) -> Result<(), Answer> {
        let (mut news, mut added) = (Bindings::new(), Vec::new());
        for (binding, behind) in bindings {
            let of_port = self.announced.entry(port(*binding)).or_default();
            match of_port.iter_mut().find(|(known, _)| known == binding) {
                Some(known) => known.1 = *behind,
                None => {
                    of_port.push((*binding, *behind));
                    added.push(*binding);
                }
            }
            if of_port.first().is_some_and(|(first, _)| first == binding) {
                news.insert(*binding, *behind);
            }
        }
        let sent = self.send(Operation::Announce, &news);
        if matches!(sent, Err(Answer::Unreachable(_))) {
            // Nobody will withdraw it.
            added.iter().for_each(|binding| self.forget(*binding));
        }
        sent
    }

    fn withdraw(&mut self, bindings: &Bindings) -> Result<(), Answer> {
        let (mut old, mut next) = (Bindings::new(), Bindings::new());
        for (binding, behind) in bindings {
            let of_port = self.announced.get(&port(*binding)).map(Vec::as_slice).unwrap_or_default();
            // What is not known here may be known there.
            if of_port.first().is_none_or(|(first, _)| first == binding) {
                old.insert(*binding, *behind);
                next.extend(of_port.iter().find(|(other, _)| !bindings.contains_key(other)).copied());
            }
        }
        self.send(Operation::Withdraw, &old)?;
        if !self.stopping {
            self.send(Operation::Announce, &next)?;
        }
        bindings.keys().for_each(|binding| self.forget(*binding));
        Ok(())
    }

    fn forget(&mut self, binding: Binding) {
        if let Some(of_port) = self.announced.get_mut(&port(binding)) {
            of_port.retain(|(known, _)| *known != binding);
            if of_port.is_empty() {
                self.announced.remove(&port(binding));
            }
        }
    }

    fn send(&self, operation: Operation, bindings: &Bindings) -> Result<(), Answer> {
        if bindings.is_empty() {
            return Ok(());
        }
        let mut stream = net::connect_unix(&self.path).map_err(|error| self.unreachable(&error))?;
        let patience = if self.stopping { CLOSE_TIMEOUT_STOPPING } else { CLOSE_TIMEOUT };
        match deliver(&mut stream, &port_mapping::encode(operation, bindings, None), patience) {
            Ok(_) => Ok(()),
            Err(error) => Err(Answer::Uncertain(format!("wsl-proxy did not take the document: {error}"))),
        }
    }
}

impl Sink for WslProxy {
    fn carry_out(&mut self, document: &Document) -> Answer {
        let found = identity(&self.path);
        let now = found.as_ref().ok().copied();
        self.restarted |= !self.away && now.is_some() && self.seen.is_some_and(|seen| seen != now);
        self.meet(now);
        let done = match (found, document.operation) {
            (Err(error), _) => Err(self.unreachable(&error)),
            (Ok(_), Operation::Announce) => self.announce(&document.bindings),
            (Ok(_), Operation::Withdraw) => self.withdraw(&document.bindings),
        };
        self.away = matches!(done, Err(Answer::Unreachable(_)));
        done.err().unwrap_or(Answer::Done { failed: Vec::new() })
    }

    fn heartbeat(&self) -> Option<Duration> {
        Some(HEARTBEAT)
    }

    fn beat(&mut self) -> Option<Result<(), String>> {
        let now = match identity(&self.path) {
            Ok(now) => Some(now),
            Err(error) => {
                self.missing = true;
                return Some(Err(self.problem(&error)));
            }
        };
        let has_come = std::mem::take(&mut self.missing);
        let is_another = self.seen.is_some_and(|seen| seen != now);
        if is_another {
            self.meet(now);
            self.restarted = true;
        }
        (is_another || has_come).then_some(Ok(()))
    }

    fn hurry(&mut self) {
        self.stopping = true;
    }

    fn take_news(&mut self) -> Option<News> {
        std::mem::take(&mut self.restarted).then(|| News::Reset("wsl-proxy has restarted".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Owner, Source, Ticket};
    use std::os::unix::net::UnixListener;

    #[test]
    fn one_that_is_not_there_is_the_same_news_whoever_finds_out() {
        let mut sink = WslProxy::new("/nonexistent/wsl-proxy.sock".into());
        let port = NonZeroU16::new(80).unwrap();
        let binding = Binding { protocol: Protocol::Tcp, host_ip: "127.0.0.1".parse().unwrap(), host_port: port };
        let owner = Owner { source: Source::Docker, key: "a".into() };
        let (ticket, operation) = (Ticket(1), Operation::Announce);
        let document = Document { ticket, operation, owner, bindings: [(binding, port)].into_iter().collect() };
        let Answer::Unreachable(reason) = sink.carry_out(&document) else { panic!("it took the document") };
        assert_eq!(sink.beat(), Some(Err(reason)));
    }

    #[test]
    fn one_that_comes_is_seen_before_it_is_told_anything() {
        let path = std::env::temp_dir().join(format!("wsl-proxy-{}.sock", std::process::id()));
        let mut sink = WslProxy::new(path.clone());
        assert!(matches!(sink.beat(), Some(Err(_))));
        let _listener = UnixListener::bind(&path).unwrap();
        assert_eq!((sink.beat(), sink.beat()), (Some(Ok(())), None));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(sink.beat(), Some(Err(_))));
        assert_eq!(sink.take_news(), None, "it was told nothing that it could have lost");
    }
}
