//! The Rancher Desktop guest agent, and its host end.
//!
//! In reading order:
//!
//! 1. [`port`] and [`event`]: the words that everything else uses.
//! 2. [`policy`] and [`reconciler`]: what the host should hold, and what is to be said for it. [`rules_file`] reads rules.
//! 3. [`agent`]: the loop that carries events to the reconciler and commands to the sinks.
//! 4. [`source`] and [`parse`]: where published ports are seen.
//!    [`sock_diag`] asks the kernel what listens, and [`holder`] who.
//! 5. [`sink`] and [`wire`]: who is told, and in what words.
//! 6. [`relay`]: TCP and UDP pipes, for the agent and for the host end.
//! 7. [`view`] and [`control`]: what the agent shows of itself, and the socket on which it does.
//!    [`cli`]: the commands that ask there.
//! 8. [`host`]: the host end.
//! 9. [`config`], [`flags`], [`logging`], [`privileges`], [`supervisor`], [`stop`], [`backoff`], [`net`], [`http`], [`cidr`],
//!    [`ordered`], [`queue`], [`private_file`]: what programs need.
//!
//! ARCHITECTURE.md has the flow, the invariants and the reasons.

pub mod agent;
pub mod backoff;
pub mod cidr;
pub mod cli;
pub mod config;
pub mod control;
pub mod event;
pub mod flags;
pub mod holder;
pub mod host;
pub mod http;
pub mod logging;
pub mod net;
pub mod ordered;
pub mod parse;
pub mod policy;
pub mod port;
pub mod private_file;
pub mod privileges;
pub mod queue;
pub mod reconciler;
pub mod relay;
pub mod rules_file;
pub mod sink;
pub mod sock_diag;
pub mod source;
pub mod stop;
pub mod supervisor;
pub mod view;
pub mod wire;
