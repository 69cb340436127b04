//! The commands: clients of a running agent's control socket, in the agent's own program.
//!
//! A command line whose first word does not begin with `-` is a command. Each asks one thing, and prints what docs/control.md
//! has for it, for people or (`--json`) as it came. Nothing here knows how the agent comes to its answers, and what came
//! from elsewhere reaches no terminal unescaped.

pub mod completions;
pub mod connection;
pub mod doctor;
pub mod document;
pub mod explain;
pub mod ports;
pub mod prometheus;
pub mod reset;
pub mod status;
pub mod table;
pub mod wait;
pub mod watch;

use std::ffi::OsString;
use std::io::{self, Write as _};

use crate::config;
use crate::config::commands::COMMANDS;
use crate::flags::{self, FlagError, Parsed};

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// As it should.
    Ok = 0,
    /// It went wrong under way.
    Failed = 1,
    /// It was not asked rightly.
    Usage = 2,
    /// It was, and the answer is that something is not well.
    NotWell = 3,
    /// There is no agent to ask.
    NoAgent = 4,
    /// Not in time.
    TimedOut = 5,
}

/// Why a command ends early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// For standard error, without a newline at the end; may be empty.
    pub message: String,
}

impl Failure {
    /// Ends with that code and message.
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into() }
    }
}

impl From<FlagError> for Failure {
    fn from(error: FlagError) -> Failure {
        Failure::new(Exit::Usage, error.to_string())
    }
}

impl From<io::Error> for Failure {
    /// Of standard output. A reader that went away has what it wanted.
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::new(Exit::Ok, ""),
            _ => Failure::new(Exit::Failed, format!("cannot write the output: {error}")),
        }
    }
}

/// What a command does with its command line.
type Run = fn(&Parsed) -> Result<Exit, Failure>;

/// What the command of that name does.
fn command(name: &str) -> Option<Run> {
    Some(match name {
        "explain" => explain::run,
        "status" => status::run,
        "ports" => ports::run,
        "reset" => reset::run,
        "wait" => wait::run,
        "watch" => watch::run,
        "doctor" => doctor::run,
        "completions" => completions::run,
        "help" => help,
        _ => return None,
    })
}

/// Runs the command that these words (without the program's name) are, if they are one, and gives its exit code.
pub fn run(words: &[OsString]) -> Option<u8> {
    let (first, words) = words.split_first()?;
    let name = first.to_string_lossy();
    if name.starts_with('-') {
        return None;
    }
    let found = COMMANDS.iter().find(|command| command.name == name);
    let ended = match found {
        None => Err(Failure::new(Exit::Usage, unknown(&name))),
        Some(found) => match found.usage.parse(words.to_vec()) {
            Ok(parsed) if parsed.on("help") => print(&found.usage.help()),
            Ok(parsed) => command(found.name).map_or_else(|| Err(not_built()), |run| run(&parsed)),
            Err(error) => Err(of_the_agent(found.name, &error).unwrap_or_else(|| error.into())),
        },
    };
    let exit = match ended {
        Ok(exit) => exit,
        Err(Failure { exit, message }) => {
            let of = found.map_or_else(String::new, |command| format!("{} ", command.name));
            let hint = match exit {
                Exit::Usage => format!("\nTry 'rancher-desktop-guestagent {of}--help'."),
                _ => String::new(),
            };
            if !message.is_empty() {
                say(&format!("rancher-desktop-guestagent: {message}{hint}"));
            }
            exit
        }
    };
    Some(exit as u8)
}

/// A line on standard error; that it cannot be written changes nothing.
pub fn say(text: &str) {
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Writes to standard output at once.
pub fn print(text: &str) -> Result<Exit, Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(Exit::Ok)
}

/// For a command of the table that [`command`] does not know, which a test rules out.
fn not_built() -> Failure {
    Failure::new(Exit::Failed, "this command does nothing")
}

/// What to say where a command is given a flag that the agent has instead.
fn of_the_agent(command: &str, error: &FlagError) -> Option<Failure> {
    let FlagError::Unknown { name, .. } = error else { return None };
    config::usage::USAGE.sections.iter().flat_map(|section| section.flags).find(|flag| flag.name == name)?;
    let how = if command == "doctor" { "; it comes behind --" } else { ", not of this command" };
    Some(Failure::new(Exit::Usage, format!("--{name} is a flag of the agent{how}")))
}

/// What to say of a word that is no command.
fn unknown(name: &str) -> String {
    let nearest = flags::nearest(name, COMMANDS.iter().map(|command| command.name));
    let meant = nearest.map_or_else(String::new, |nearest| format!("; did you mean {nearest}?"));
    format!("unknown command \"{}\"{meant}", flags::shown(name))
}

fn help(parsed: &Parsed) -> Result<Exit, Failure> {
    let Some(name) = parsed.operands().first() else { return print(&config::usage::USAGE.help()) };
    match COMMANDS.iter().find(|command| command.name == name) {
        Some(command) => print(&command.usage.help()),
        None => Err(Failure::new(Exit::Usage, unknown(name))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_the_table_does_something() {
        for known in &COMMANDS {
            assert!(command(known.name).is_some(), "{}", known.name);
        }
        assert!(command("stauts").is_none());
        assert_eq!(run(&["-docker".into()]), None, "the agent's own command line");
        assert_eq!(run(&[]), None);
    }
}
