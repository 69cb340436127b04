//! The Rancher Desktop guest agent, and its host end.

pub mod backoff;
pub mod event;
pub mod policy;
pub mod port;
pub mod reconciler;
pub mod relay;
pub mod wire;
