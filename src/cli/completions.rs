//! `completions`.

use super::{Exit, Failure};
use crate::flags::Parsed;

/// Runs the command.
///
/// # Errors
/// Always, until it is built.
pub fn run(_parsed: &Parsed) -> Result<Exit, Failure> {
    Err(Failure::new(Exit::Failed, "completions: not built yet"))
}
