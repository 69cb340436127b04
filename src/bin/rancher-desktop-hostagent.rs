//! The host end's process: its command line, and its exit code.

use std::io::Write as _;
use std::process::ExitCode;

use log::LevelFilter;
use rancher_desktop_agent::host::config::{self, Action, USAGE};
use rancher_desktop_agent::host::run;
use rancher_desktop_agent::logging;

const NAME: &str = "rancher-desktop-hostagent";
const FAILED: u8 = 1;
const BAD_USAGE: u8 = 2;

fn main() -> ExitCode {
    let config = match config::parse(std::env::args_os().skip(1)) {
        Ok(Action::Run(config)) => config,
        Ok(Action::Check) => return ExitCode::SUCCESS,
        Ok(Action::Help) => return print(&USAGE.help()),
        Ok(Action::Version) => return print(&format!("{NAME} {}\n", env!("CARGO_PKG_VERSION"))),
        Err(error) => {
            complain(&format!("{error}\n{NAME}: --help shows all flags"));
            return ExitCode::from(BAD_USAGE);
        }
    };
    let level = if config.debug { LevelFilter::Debug } else { LevelFilter::Info };
    if let Err(error) = logging::start(config.log_format, level) {
        complain(&error.to_string());
        return ExitCode::from(FAILED);
    }
    match run::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::from(FAILED)
        }
    }
}

/// Unlike `eprintln!`, does not panic, and so change the exit code, when it cannot be written.
fn complain(text: &str) {
    let _ = std::io::stderr().write_all(format!("{NAME}: {text}\n").as_bytes());
}

/// Unlike `print!`, does not panic when nobody reads it.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(FAILED),
    }
}
