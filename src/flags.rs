//! Command-line flags as Go's `flag` package takes them, which is what Rancher Desktop's own programs are started with.
//!
//! Role: a table of [`Flag`]s turns words into [`Parsed`] values, a help text, and errors that name the nearest flag.
//! It knows nothing of what a value means (`config` modules turn them into types), and never prints or exits.
//!
//! Accepted: `-name value`, `--name value`, `-name=value`, `--name=value`; a boolean `-name` or `-name=BOOL`, which
//! never takes the next word; `--` ends the flags. A flag that is given twice counts with its last value, unless it is
//! repeatable. Unlike Go's, flags and operands may be mixed, and `-h` means `--help`.

use crate::ordered::Map;
use std::ffi::OsString;
use std::fmt::{self, Write as _};

/// Columns of the help text.
const HELP_COLUMNS: usize = 96;
/// A flag and the name of its value that are wider than this get a line of their own in the help text.
const HELP_FLAG_COLUMNS: usize = 26;
/// The name of a subcommand, and the gap behind it, in the help text.
const HELP_COMMAND_COLUMNS: usize = 13;
/// Characters of a bad word that are shown.
const SHOWN_CHARS_MAX: usize = 80;

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Nothing, or a boolean after `=`.
    Bool,
    /// One value, called this in the help text.
    Value(&'static str),
    /// One value each time it is given, called this in the help text.
    Values(&'static str),
}

/// One flag.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// What it takes.
    pub takes: Takes,
    /// Its value when it is not given: empty for none; a boolean that is not `true` here is false.
    pub default: &'static str,
    /// What it is for; wrapped when shown, and broken at newlines.
    pub help: &'static str,
}

/// Flags that belong together in the help text.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// The line above them.
    pub title: &'static str,
    /// The flags, in the order they are shown.
    pub flags: &'static [Flag],
}

/// A subcommand.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    /// The word that it is called by.
    pub name: &'static str,
    /// What it is for, in a few words.
    pub about: &'static str,
    /// Its command line.
    pub usage: &'static Usage,
}

/// The command line of one program or subcommand.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// How it is called, after `Usage: `.
    pub synopsis: &'static str,
    /// What it does, in a sentence or two.
    pub about: &'static str,
    /// Its subcommands.
    pub commands: &'static [Command],
    /// Its flags.
    pub sections: &'static [Section],
    /// How many words that are no flags it takes.
    pub operands_max: usize,
    /// Shown as it is below the flags: examples, exit codes. May be empty.
    pub footer: &'static str,
}

/// Why a command line is not accepted. Everything taken from it is escaped and cut before it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlagError {
    /// There is no such flag.
    Unknown {
        /// The name that was given.
        name: String,
        /// The flag that was probably meant.
        nearest: Option<&'static str>,
    },
    /// The command line ended where a value should be.
    NoValue {
        /// The flag.
        flag: &'static str,
        /// What it takes.
        wants: &'static str,
    },
    /// The value is not one the flag takes.
    BadValue {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it, or what is wanted.
        reason: String,
    },
    /// A word that is no flag, where none is taken.
    Operand(String),
    /// The same, and the name of a subcommand.
    Command(&'static str),
    /// A word that is not UTF-8.
    NotUtf8(String),
}

impl FlagError {
    /// The error for a value that the caller could not use.
    pub fn bad_value(flag: &'static str, value: &str, reason: impl fmt::Display) -> FlagError {
        FlagError::BadValue { flag, value: value.to_owned(), reason: reason.to_string() }
    }
}

impl fmt::Display for FlagError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FlagError::Unknown { name, nearest: None } => write!(f, "unknown flag --{}", shown(name)),
            FlagError::Unknown { name, nearest: Some(flag) } => {
                write!(f, "unknown flag --{}; did you mean --{flag}?", shown(name))
            }
            FlagError::NoValue { flag, wants } => write!(f, "--{flag} needs a value: --{flag} {wants}"),
            FlagError::BadValue { flag, value, reason } => write!(f, "--{flag} \"{}\": {reason}", shown(value)),
            FlagError::Operand(word) => write!(f, "unexpected argument \"{}\": flags start with -", shown(word)),
            FlagError::Command(name) => write!(f, "{name} is a command: it comes before all flags"),
            FlagError::NotUtf8(word) => write!(f, "argument \"{}\" is not valid UTF-8", shown(word)),
        }
    }
}

impl std::error::Error for FlagError {}

/// A word of the command line as it may be shown: escaped and cut.
pub fn shown(text: &str) -> String {
    let cut: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    let dots = if cut.len() < text.len() { "..." } else { "" };
    format!("{}{dots}", cut.escape_debug())
}

/// The values that were given. Asking for a flag that is not in the table is a mistake of the caller's, which debug
/// builds assert.
#[derive(Debug, Clone)]
pub struct Parsed {
    usage: &'static Usage,
    given: Map<&'static str, Vec<String>>,
    /// The repeatable flags, in the order of the command line.
    repeated: Vec<(&'static str, String)>,
    operands: Vec<String>,
}

impl Parsed {
    /// Whether the flag was on the command line.
    pub fn given(&self, name: &str) -> bool {
        debug_assert!(self.usage.flag(name).is_some(), "no flag {name}");
        self.given.contains_key(name)
    }

    /// The value of a boolean flag.
    pub fn on(&self, name: &str) -> bool {
        self.value(name).and_then(parse_bool).unwrap_or(false)
    }

    /// The (last) value of a flag, or its default; `None` without either.
    pub fn value(&self, name: &str) -> Option<&str> {
        if let Some(last) = self.values(name).last() {
            return Some(last);
        }
        self.usage.flag(name).map(|flag| flag.default).filter(|default| !default.is_empty())
    }

    /// Every value that was given for a flag, in order. The default is not among them.
    pub fn values(&self, name: &str) -> &[String] {
        debug_assert!(self.usage.flag(name).is_some(), "no flag {name}");
        self.given.get(name).map_or(&[], Vec::as_slice)
    }

    /// Every repeatable flag that was given, with its value, in the order of the command line.
    pub fn repeated(&self) -> &[(&'static str, String)] {
        &self.repeated
    }

    /// The words that are no flags, at most [`Usage::operands_max`].
    pub fn operands(&self) -> &[String] {
        &self.operands
    }
}

impl Usage {
    /// Parses the words behind the program's name (and subcommand). The first mistake ends it.
    pub fn parse(&'static self, words: impl IntoIterator<Item = OsString>) -> Result<Parsed, FlagError> {
        let mut words = words
            .into_iter()
            .map(|word| word.into_string().map_err(|w| FlagError::NotUtf8(w.to_string_lossy().into_owned())));
        let mut parsed = Parsed { usage: self, given: Map::new(), repeated: Vec::new(), operands: Vec::new() };
        let mut flags_ended = false;
        while let Some(word) = words.next().transpose()? {
            let Some(body) = word.strip_prefix('-').filter(|body| !flags_ended && !body.is_empty()) else {
                if parsed.operands.len() == self.operands_max {
                    let known = self.commands.iter().find(|command| command.name == word);
                    return Err(known.map_or(FlagError::Operand(word), |command| FlagError::Command(command.name)));
                }
                parsed.operands.push(word);
                continue;
            };
            let body = body.strip_prefix('-').unwrap_or(body);
            if body.is_empty() {
                flags_ended = true;
                continue;
            }
            let (name, value) = body.split_once('=').map_or((body, None), |(n, v)| (n, Some(v.to_owned())));
            let names = self.flags().map(|flag| flag.name);
            let Some(flag) = self.flag(if name == "h" { "help" } else { name }) else {
                return Err(FlagError::Unknown { name: name.to_owned(), nearest: nearest(name, names) });
            };
            let value = match (flag.takes, value) {
                (_, Some(value)) => value,
                (Takes::Bool, None) => "true".to_owned(),
                (Takes::Value(wants) | Takes::Values(wants), None) => {
                    words.next().transpose()?.ok_or(FlagError::NoValue { flag: flag.name, wants })?
                }
            };
            if flag.takes == Takes::Bool && parse_bool(&value).is_none() {
                return Err(FlagError::bad_value(flag.name, &value, "use true or false"));
            }
            if matches!(flag.takes, Takes::Values(_)) {
                parsed.repeated.push((flag.name, value.clone()));
            }
            parsed.given.entry(flag.name).or_default().push(value);
        }
        Ok(parsed)
    }

    /// The help text, its last newline included.
    pub fn help(&self) -> String {
        let mut text = format!("Usage: {}\n\n", self.synopsis);
        wrap(&mut text, self.about, 0);
        if !self.commands.is_empty() {
            text.push_str("\nCommands:\n");
        }
        for command in self.commands {
            let _ = writeln!(text, "  {:HELP_COMMAND_COLUMNS$}{}", command.name, command.about);
        }
        for section in self.sections {
            let _ = writeln!(text, "\n{}:", section.title);
            for flag in section.flags {
                help_of(&mut text, flag);
            }
        }
        if !self.footer.is_empty() {
            let _ = writeln!(text, "\n{}", self.footer.trim_end());
        }
        text
    }

    fn flags(&self) -> impl Iterator<Item = &'static Flag> + Clone + use<> {
        self.sections.iter().flat_map(|section| section.flags)
    }

    fn flag(&self, name: &str) -> Option<&'static Flag> {
        self.flags().find(|flag| flag.name == name)
    }
}

/// The name that a mistyped one was probably meant to be: few typing mistakes away, or the only one that it begins.
pub fn nearest(name: &str, names: impl Iterator<Item = &'static str> + Clone) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let chars = name.chars().count();
    let mistakes_max = chars / 3 + 1;
    let near = |known: &'static str| {
        // Each character too many is a mistake: a long word need not be looked at.
        if chars > 2 * known.len() + 2 {
            return None;
        }
        let mistakes = typing_mistakes(&name, &known.to_ascii_lowercase());
        (mistakes <= mistakes_max && mistakes < known.len()).then_some((mistakes, known))
    };
    if let Some((_, known)) = names.clone().filter_map(near).min() {
        return Some(known);
    }
    let mut begun = names.filter(|known| name.len() > 1 && known.starts_with(&name));
    begun.next().filter(|_| begun.next().is_none())
}

/// The spellings of Go's `strconv.ParseBool`.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Characters to insert, delete or replace to get from one to the other (Levenshtein's distance).
fn typing_mistakes(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(to.chars()) {
            let best = (diagonal + usize::from(a != b)).min(left + 1).min(*cell + 1);
            diagonal = std::mem::replace(cell, best);
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

fn help_of(text: &mut String, flag: &Flag) {
    let left = match flag.takes {
        Takes::Bool => format!("  --{}", flag.name),
        Takes::Value(wants) | Takes::Values(wants) => format!("  --{} {wants}", flag.name),
    };
    let default = match (flag.takes, flag.default) {
        (_, "") | (Takes::Bool, "false") => String::new(),
        (_, default) => format!(" (default: {default})"),
    };
    let repeatable = if matches!(flag.takes, Takes::Values(_)) { " (repeatable)" } else { "" };
    if left.len() + 2 > HELP_FLAG_COLUMNS {
        let _ = write!(text, "{left}\n{:HELP_FLAG_COLUMNS$}", "");
    } else {
        let _ = write!(text, "{left:HELP_FLAG_COLUMNS$}");
    }
    wrap(text, &format!("{}{repeatable}{default}", flag.help), HELP_FLAG_COLUMNS);
}

/// Appends `words`, broken before [`HELP_COLUMNS`]; every line but the first begins with `indent` spaces.
fn wrap(text: &mut String, words: &str, indent: usize) {
    for (i, line) in words.lines().enumerate() {
        let mut column = indent;
        if i > 0 {
            let _ = write!(text, "{:indent$}", "");
        }
        for word in line.split_whitespace() {
            let width = word.chars().count();
            if column > indent && column + 1 + width > HELP_COLUMNS {
                let _ = write!(text, "\n{:indent$}", "");
                column = indent;
            } else if column > indent {
                text.push(' ');
                column += 1;
            }
            text.push_str(word);
            column += width;
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests;
