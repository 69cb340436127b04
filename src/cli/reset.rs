//! `reset`: the agent withdraws everything and starts over.

use std::time::Instant;

use super::connection::{Connection, Ended, request, socket};
use super::document::{number, raw};
use super::wait::timeout;
use super::{Exit, Failure, print, say};
use crate::flags::Parsed;

/// Asks for it, and waits until it is done.
///
/// # Errors
/// Where the agent does not answer, or not in time.
pub fn run(parsed: &Parsed) -> Result<Exit, Failure> {
    let end = Instant::now() + timeout(parsed)?;
    let mut connection = Connection::open(&socket(parsed)?)?;
    connection.ask(request("reset"))?;
    let mut exit = Exit::Failed;
    loop {
        let document = match connection.next(Some(end)) {
            Ok(Some(document)) => document,
            Ok(None) if exit == Exit::Failed => return Err(Failure::new(exit, "")),
            Ok(None) => return Ok(exit),
            Err(Ended::TimedOut) => {
                let message = "the agent has not withdrawn everything in time; it goes on: ask its status";
                return Err(Failure::new(Exit::TimedOut, message));
            }
            Err(ended) => return Err(ended.into()),
        };
        let done = raw(&document.value, "type") == "reset" && raw(&document.value, "state") == "done";
        let left = number(&document.value, "left");
        if done && left == 0 {
            exit = Exit::Ok;
        }
        if parsed.on("json") {
            print(&document.json())?;
        } else if done && left == 0 {
            print("withdrew everything; starting over\n")?;
        } else if done {
            say(&format!("rancher-desktop-guestagent: {left} forwards could not be withdrawn; starting over"));
        }
    }
}
