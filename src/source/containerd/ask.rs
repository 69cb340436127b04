//! What `ctr` is run for, and its command lines. Namespaces and ids in them have been checked to be no flags.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::tasks::Ticket;
use crate::parse::containerd::{Container, FILTERS};

/// What a run of `ctr` is for.
pub enum Ask {
    /// All namespaces.
    Namespaces,
    /// The tasks of a namespace.
    Tasks(Arc<str>),
    /// Which of a namespace's containers may have ports. The tasks are what it was asked for.
    Recorded(Arc<str>, Vec<(Container, u32)>),
    /// One container.
    Info(Ticket, Container),
}

impl Ask {
    fn namespace(&self) -> Option<&str> {
        match self {
            Ask::Namespaces => None,
            Ask::Tasks(namespace) | Ask::Recorded(namespace, _) => Some(namespace),
            Ask::Info(_, container) => Some(container.namespace()),
        }
    }

    fn words(&self) -> Vec<&str> {
        match self {
            Ask::Namespaces => vec!["namespaces", "ls", "-q"],
            Ask::Tasks(_) => vec!["tasks", "ls"],
            Ask::Recorded(..) => [&["containers", "ls", "-q"], &FILTERS[..]].concat(),
            Ask::Info(_, container) => vec!["containers", "info", container.id()],
        }
    }

    /// Its command line.
    pub fn args(&self, socket: &OsStr) -> Vec<OsString> {
        let namespace = self.namespace().map(|namespace| ["-n", namespace]);
        let words = namespace.into_iter().flatten().chain(self.words());
        [OsStr::new("--address"), socket].into_iter().chain(words.map(OsStr::new)).map(OsStr::to_owned).collect()
    }

    /// Whether it is about one container, and its failure no concern of any other.
    pub fn is_look_up(&self) -> bool {
        matches!(self, Ask::Info(..))
    }
}
