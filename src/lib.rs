//! The Rancher Desktop guest agent, and its host end.

pub mod agent;
pub mod backoff;
pub mod cidr;
pub mod config;
pub mod event;
pub mod flags;
pub mod host;
pub mod logging;
pub mod net;
pub mod parse;
pub mod policy;
pub mod port;
pub mod privileges;
pub mod reconciler;
pub mod relay;
pub mod sink;
pub mod source;
pub mod stop;
pub mod supervisor;
pub mod wire;
