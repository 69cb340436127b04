//! The stdout sink: one JSON document per change and line, for people trying the agent and for scripts.
//!
//! `{"time":"2026-11-21T01:02:03.456Z","change":"add","source":"docker","owner":"4f1d…","protocol":"tcp",
//! "hostIp":"0.0.0.0","hostPort":8080,"containerPort":80}`; `change` is `add` or `remove`.

use std::io::Write as _;

use serde_json::json;

use super::Sink;
use crate::event::{Answer, Document, Operation};
use crate::logging::timestamp;

/// Prints what it is told.
pub struct Stdout;

impl Sink for Stdout {
    fn carry_out(&mut self, document: &Document) -> Answer {
        let mut lines = String::new();
        let change = match document.operation {
            Operation::Announce => "add",
            Operation::Withdraw => "remove",
        };
        for (binding, container_port) in &document.bindings {
            let line = json!({
                "time": timestamp(),
                "change": change,
                "source": document.owner.source.as_str(),
                "owner": &*document.owner.key,
                "protocol": binding.protocol.as_str(),
                "hostIp": binding.host_ip.to_string(),
                "hostPort": binding.host_port.get(),
                "containerPort": container_port.get(),
            });
            lines.push_str(&line.to_string());
            lines.push('\n');
        }
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(lines.as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => Answer::Done { failed: Vec::new() },
            Err(error) => Answer::Unreachable(format!("standard output: {error}")),
        }
    }
}
