//! `completions`: what a shell needs to complete commands, flags and values, made of the tables that the help is made of.
//!
//! One function a shell. Flags of the agent are completed with one dash or two, as both are taken.

use std::fmt::Write as _;

use super::{Exit, Failure, print};
use crate::config::commands::COMMANDS;
use crate::config::usage::USAGE;
use crate::flags::{Flag, Parsed, Takes, Usage};

/// Values of flags that take few, and of the operands of commands that do.
const VALUES: [(&str, &str); 5] = [
    ("log-level", "error warn info debug"),
    ("protocol", "tcp udp"),
    ("source", "docker containerd nat kubernetes sockets agent"),
    ("state", "pending forwarding conflict denied failed left-out withdrawn"),
    ("completions", "bash zsh fish"),
];

const PROGRAM: &str = "rancher-desktop-guestagent";

/// Prints them.
///
/// # Errors
/// Where the shell is none that is known.
pub fn run(parsed: &Parsed) -> Result<Exit, Failure> {
    let text = match parsed.operands().first().map(String::as_str) {
        Some("bash") => bash(),
        Some("zsh") => zsh(),
        Some("fish") => fish(),
        _ => return Err(Failure::new(Exit::Usage, "which shell? completions bash, zsh or fish")),
    };
    print(&text)
}

/// What a flag's value can be.
enum Value {
    /// It takes none.
    None,
    /// One of these words.
    Words(String),
    /// A file.
    Path,
    /// Something else.
    Any,
}

fn value(flag: &Flag) -> Value {
    let (Takes::Value(wants) | Takes::Values(wants)) = flag.takes else { return Value::None };
    match VALUES.iter().find(|(name, _)| *name == flag.name) {
        Some((_, words)) => Value::Words((*words).to_owned()),
        None if wants.contains('|') => Value::Words(wants.replace('|', " ")),
        None if wants == "PATH" => Value::Path,
        None => Value::Any,
    }
}

/// The words that a command takes.
fn operands(command: &str) -> String {
    match command {
        "" | "help" => COMMANDS.iter().map(|command| command.name).collect::<Vec<_>>().join(" "),
        name => VALUES.iter().find(|(of, _)| *of == name).map_or("", |(_, words)| words).to_owned(),
    }
}

/// Every command line: that of the agent, which has no name, and of each command.
fn lines() -> impl Iterator<Item = (&'static str, &'static Usage)> {
    let commands = COMMANDS.iter().map(|command| (command.name, command.usage));
    std::iter::once(("", &USAGE)).chain(commands)
}

fn flags(usage: &'static Usage) -> impl Iterator<Item = &'static Flag> {
    usage.sections.iter().flat_map(|section| section.flags)
}

fn bash() -> String {
    // A flag means the same wherever it is taken, but for `sink`, whose value is none of few in any case.
    let mut values: Vec<(&str, String)> = Vec::new();
    let mut commands = String::new();
    for (name, usage) in lines() {
        let mut names = String::new();
        for flag in flags(usage) {
            let _ = write!(names, " {}", flag.name);
            let then = match value(flag) {
                Value::None => continue,
                Value::Words(words) => format!("words='{words}'"),
                Value::Path => "_rancher_desktop_guestagent_files; return".to_owned(),
                Value::Any => "return".to_owned(),
            };
            if !values.iter().any(|(known, _)| *known == flag.name) {
                values.push((flag.name, then));
            }
        }
        let _ = writeln!(commands, "        '{name}') flags='{}' operands='{}' ;;", names.trim_start(), operands(name));
    }
    let values: String = values.iter().map(|(name, then)| format!("        {name}) {then} ;;\n")).collect();
    BASH.replace("@VALUES@\n", &values).replace("@COMMANDS@\n", &commands)
}

const BASH: &str = r#"# bash completion of rancher-desktop-guestagent; `rancher-desktop-guestagent completions bash` prints it.
_rancher_desktop_guestagent_files() {
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
}
_rancher_desktop_guestagent() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= flag= flags= operands= words= dash=-
    COMPREPLY=()
    # bash takes the = of --flag=value for a word of its own.
    if [[ $cur == = ]]; then cur=; elif [[ $prev == = && COMP_CWORD -gt 1 ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi
    if ((COMP_CWORD > 1)) && [[ ${COMP_WORDS[1]} != -* ]]; then command=${COMP_WORDS[1]}; fi
    # Behind doctor's -- are flags of the agent.
    [[ $command != doctor || " ${COMP_WORDS[*]:0:COMP_CWORD} " != *' -- '* ]] || command=
    if [[ $prev == -* ]]; then flag=${prev#-} flag=${flag#-}; fi
    case $flag in
@VALUES@
    esac
    case $command in
@COMMANDS@
    esac
    if [[ -z $words ]]; then
        if [[ $cur == --* || -z $cur ]]; then dash=--; fi
        if [[ $cur == -* || -z $operands ]]; then
            for flag in $flags; do words+=" $dash$flag"; done
        else
            words=$operands
        fi
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -F _rancher_desktop_guestagent rancher-desktop-guestagent
"#;

/// The text as it stands between single quotes: with a backslash before each of those characters, and in place of a quote that.
fn quoted(text: &str, special: &str, quote: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\'' => out.push_str(quote),
            '\n' => out.push(' '),
            c if special.contains(c) => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

fn zsh() -> String {
    let plain = |text: &str| quoted(text, "\\:]", "'\\''");
    let mut text = format!("#compdef {PROGRAM}\n_{PROGRAM}() {{\n    local -a commands\n    commands=(\n");
    for command in &COMMANDS {
        let _ = writeln!(text, "        '{}:{}'", command.name, plain(command.about));
    }
    text.push_str(
        "    )\n    if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then\n        _describe command commands\n        \
         return\n    fi\n    local command=$words[2]\n    [[ $command == -* ]] || { shift words; (( CURRENT-- )) }\n    \
         case $command in\n",
    );
    // The agent's flags last: any other word.
    let (agent, commands): (Vec<_>, Vec<_>) = lines().partition(|(name, _)| name.is_empty());
    for (name, usage) in commands.into_iter().chain(agent) {
        let _ = write!(text, "    {}) _arguments", if name.is_empty() { "*" } else { name });
        for flag in flags(usage) {
            let (equals, value) = match value(flag) {
                Value::None => ("", String::new()),
                Value::Words(words) => ("=", format!(":value:({words})")),
                Value::Path => ("=", ":path:_files".to_owned()),
                Value::Any => ("=", ":value: ".to_owned()),
            };
            let repeat = if matches!(flag.takes, Takes::Values(_)) { "'*'" } else { "" };
            let help = plain(flag.help);
            let _ = write!(text, " \\\n        {repeat}{{-,--}}{}{equals}'[{help}]{value}'", flag.name);
        }
        match operands(name).as_str() {
            "" if usage.operands_max == 0 => {}
            "" => text.push_str(" \\\n        '*::argument: '"),
            _ if name.is_empty() => {}
            words => {
                let _ = write!(text, " \\\n        '1:argument:({words})'");
            }
        }
        text.push_str(" ;;\n");
    }
    let _ = write!(
        text,
        "    esac\n}}\nif [[ $funcstack[1] == _{PROGRAM} ]]; then _{PROGRAM} \"$@\"; else compdef _{PROGRAM} {PROGRAM}; fi\n"
    );
    text
}

fn fish() -> String {
    let plain = |text: &str| quoted(text, "\\", "\\'");
    let mut text = format!("# fish completion of {PROGRAM}\ncomplete -c {PROGRAM} -f\n");
    for command in &COMMANDS {
        let about = plain(command.about);
        let _ = writeln!(text, "complete -c {PROGRAM} -n __fish_use_subcommand -a {} -d '{about}'", command.name);
    }
    for (name, usage) in lines() {
        let when = match name {
            "" => "__fish_use_subcommand".to_owned(),
            name => format!("'__fish_seen_subcommand_from {name}'"),
        };
        let words = operands(name);
        if !name.is_empty() && !words.is_empty() {
            let _ = writeln!(text, "complete -c {PROGRAM} -n {when} -a '{words}'");
        }
        for flag in flags(usage) {
            let value = match value(flag) {
                Value::None => String::new(),
                Value::Words(words) => format!(" -x -a '{words}'"),
                Value::Path => " -r -F".to_owned(),
                Value::Any => " -x".to_owned(),
            };
            let (name, help) = (flag.name, plain(flag.help));
            let _ = writeln!(text, "complete -c {PROGRAM} -n {when} -o {name} -l {name}{value} -d '{help}'");
        }
    }
    text
}
