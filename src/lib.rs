//! The Rancher Desktop guest agent, and its host end.

pub mod event;
pub mod flags;
pub mod host;
pub mod port;
pub mod privileges;
pub mod relay;
pub mod wire;
