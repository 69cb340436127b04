//! The rules file: read at the start, and again on SIGHUP. What its text means is in `policy`.
//!
//! All of it is taken or nothing: a file that is not to be trusted, or has a bad line, is refused with the reason.

use std::path::Path;

use nix::fcntl::OFlag;

use crate::policy::{RULES_FILE_BYTES_MAX, Rule, parse_rules};
use crate::private_file::{self, Problem, WRITABLE};

/// The rules of the file.
///
/// # Errors
/// A sentence for people: which file, what is wrong with it, and what to do.
pub fn read(path: &Path) -> Result<Vec<Rule>, String> {
    let problem = |why: String| format!("--rules-file {path:?}: {why}");
    let bytes = private_file::read(path, OFlag::empty(), RULES_FILE_BYTES_MAX, WRITABLE).map_err(|error| {
        let remedy = match &error {
            Problem::Io(error) if error.kind() == std::io::ErrorKind::NotFound => ": write it, or leave the flag out",
            _ => "",
        };
        problem(format!("{error}{remedy}"))
    })?;
    // As it is for a moment while a shell writes it anew, and nobody wants to have everything published by that.
    if bytes.is_empty() {
        return Err(problem("it is empty: where no rule is wanted, write a comment (#)".into()));
    }
    let text = String::from_utf8(bytes).map_err(|_| problem("it is not UTF-8 text".into()))?;
    parse_rules(&text).map_err(|error| problem(error.to_string()))
}
