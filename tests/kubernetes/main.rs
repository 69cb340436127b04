//! The real agent with `-kubernetes` between a stand-in for kube-apiserver and a receiver of documents. Runs for anyone
//! who has openssl; what listens in a guest of its own needs root.
//!
//! Every test looks at what a user would see: which documents came and in what order, what is held at the end, and what
//! the log says, and how often.

#![cfg(feature = "kubernetes")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/mod.rs"]
mod support;

// Tests start in the order of their names: those that take longest come first.
mod away;
mod credentials;
mod cuts;
mod hostile;
mod kubeconfigs;
mod listeners;
mod many;
mod raw;
mod refusals;
mod restarts;
mod services;
mod start;
mod world;
