//! Messages for people on stderr: a line each, as text or as JSON. What goes to scripts is in [`report`](super::report).

use std::io::Write as _;

use env_logger::{Builder, Target};
use jiff::Timestamp;
use log::LevelFilter;

use crate::host::config::LogFormat;

/// Makes `log` write to stderr from now on. To be called once.
pub fn start(format: LogFormat, debug: bool) {
    let mut builder = Builder::new();
    builder.target(Target::Stderr).filter_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    match format {
        LogFormat::Text => builder
            .format(|out, record| writeln!(out, "{:.3} {:<5} {}", Timestamp::now(), record.level(), record.args())),
        LogFormat::Json => builder.format(|out, record| {
            let level = record.level().as_str().to_ascii_lowercase();
            let message = serde_json::Value::from(record.args().to_string());
            writeln!(out, "{{\"time\":\"{:.3}\",\"level\":\"{level}\",\"message\":{message}}}", Timestamp::now())
        }),
    };
    builder.init();
}
