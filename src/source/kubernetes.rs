//! The kubernetes source: what Services publish, from the API server by list and watch.

use std::fmt;

use crate::config::KubernetesConfig;
use crate::supervisor::Context;

/// Why a session ended.
#[derive(Debug)]
pub enum KubernetesError {
    /// The watch.
    Watch(String),
}

impl fmt::Display for KubernetesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KubernetesError::Watch(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for KubernetesError {}

/// One session.
pub fn session(_config: &KubernetesConfig, _context: &Context) -> (bool, KubernetesError) {
    (false, KubernetesError::Watch("not yet".into()))
}
