//! The man page: written from the tables that the help is made of, and compared with `man/rancher-desktop-guestagent.8`.
//!
//! `UPDATE_MAN=1 cargo test --test man` writes it anew.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use rancher_desktop_agent::config::commands::COMMANDS;
use rancher_desktop_agent::config::usage::USAGE;
use rancher_desktop_agent::flags::{Flag, Takes, Usage};

const PATH: &str = "man/rancher-desktop-guestagent.8";

const FILES: [(&str, &str); 7] = [
    ("/run/rancher-desktop-guestagent/control.sock", "where the commands ask an agent that runs as root"),
    ("$XDG_RUNTIME_DIR/rancher-desktop-guestagent/control.sock", "the same of an agent of another user"),
    ("/run/rancher-desktop-guestagent/state.json", "what was announced to host-switch, for the next start"),
    ("/var/run/docker.sock", "the engine, unless DOCKER_HOST names another socket"),
    ("/etc/rancher/k3s/k3s.yaml", "how to reach Kubernetes, unless --kubeconfig names another"),
    ("/etc/conf.d/rancher-desktop-guestagent", "settings of the OpenRC service"),
    ("/var/log/rancher-desktop-guestagent.log", "its log"),
];

const SIGNALS: [(&str, &str); 2] = [
    (
        "SIGTERM, SIGINT",
        "Withdraws everything, for 5 s at most, and ends with 0. A second one ends it at once, with 128 and the signal's \
         number.",
    ),
    ("SIGHUP", "With --rules-file: reads that file again. Without: as SIGTERM."),
];

/// Text as roff takes it: nothing of it is a request or an escape.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let lines =
        text.lines().map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() });
    lines.collect::<Vec<_>>().join("\n.br\n")
}

fn flag(page: &mut String, flag: &Flag) {
    let name = roff(&format!("--{}", flag.name));
    let value = match flag.takes {
        Takes::Bool => String::new(),
        Takes::Value(wants) | Takes::Values(wants) => format!(" \\fI{}\\fR", roff(wants)),
    };
    let default = match (flag.takes, flag.default) {
        (_, "") | (Takes::Bool, "false") => String::new(),
        (_, default) => format!(" (default: {default})"),
    };
    let repeatable = if matches!(flag.takes, Takes::Values(_)) { " (repeatable)" } else { "" };
    writeln!(page, ".TP\n\\fB{name}\\fR{value}\n{}", roff(&format!("{}{repeatable}{default}", flag.help))).unwrap();
}

/// A part of a footer: examples or exit codes, without the line that says so.
fn part(usage: &Usage, starts: &str) -> String {
    let part = usage.footer.split("\n\n").find(|part| part.starts_with(starts)).expect(starts);
    part.split_once(':').unwrap().1.trim_matches('\n').to_owned()
}

fn examples(page: &mut String, usage: &Usage) {
    // As they stand, two columns further left.
    let text = part(usage, "Example");
    let text: Vec<String> = text.lines().map(|line| roff(line.strip_prefix("  ").unwrap())).collect();
    writeln!(page, ".PP\n.EX\n{}\n.EE", text.join("\n")).unwrap();
}

fn exit_codes(usage: &Usage) -> String {
    roff(&part(usage, "Exit codes").split_whitespace().collect::<Vec<_>>().join(" "))
}

fn tagged(page: &mut String, items: &[(&str, &str)]) {
    for (tag, text) in items {
        writeln!(page, ".TP\n\\fB{}\\fR\n{}", roff(tag), roff(text)).unwrap();
    }
}

fn page() -> String {
    let mut page = String::from(
        ".\\\" Written by tests/man.rs from the tables that --help is made of: UPDATE_MAN=1 cargo test --test man\n\
         .TH RANCHER-DESKTOP-GUESTAGENT 8 \"\" \"rancher-desktop-guestagent\" \"System Administration\"\n\
         .nh\n.ad l\n\
         .SH NAME\nrancher\\-desktop\\-guestagent \\- tells the host which container ports to forward\n\
         .SH SYNOPSIS\n\\fBrancher\\-desktop\\-guestagent\\fR [\\fIflags\\fR]\n",
    );
    for command in &COMMANDS {
        let rest = command.usage.synopsis.split_once(command.name).unwrap().1.trim();
        writeln!(page, ".br\n\\fBrancher\\-desktop\\-guestagent {}\\fR {}", command.name, roff(rest)).unwrap();
    }
    writeln!(page, ".SH DESCRIPTION\n{}", roff(USAGE.about)).unwrap();
    writeln!(
        page,
        ".PP\nFlags are Go style: \\fB\\-name\\fR, \\fB\\-\\-name\\fR, \\fB\\-name=value\\fR and \\fB\\-name value\\fR are the \
         same.\nThe commands speak the protocol of the control socket, which docs/control.md of the source describes;\n\
         with \\fB\\-\\-json\\fR they print its documents."
    )
    .unwrap();
    examples(&mut page, &USAGE);
    page.push_str(".SH COMMANDS\n");
    for command in &COMMANDS {
        writeln!(page, ".SS {}\n{}", command.name, roff(command.usage.about)).unwrap();
        command.usage.sections.iter().flat_map(|section| section.flags).for_each(|f| flag(&mut page, f));
        examples(&mut page, command.usage);
    }
    page.push_str(".SH OPTIONS\nOf the agent.\n");
    for section in USAGE.sections {
        writeln!(page, ".SS {}", roff(section.title)).unwrap();
        section.flags.iter().for_each(|f| flag(&mut page, f));
    }
    writeln!(page, ".SH EXIT STATUS\n.TP\nthe agent\n{}", exit_codes(&USAGE)).unwrap();
    for command in &COMMANDS {
        writeln!(page, ".TP\n\\fB{}\\fR\n{}", command.name, exit_codes(command.usage)).unwrap();
    }
    page.push_str(".SH FILES\n");
    tagged(&mut page, &FILES);
    page.push_str(".SH SIGNALS\n");
    tagged(&mut page, &SIGNALS);
    page.push_str(
        ".SH SEE ALSO\n\\fBdocker\\fR(1), \\fBctr\\fR(8), \\fBiptables\\fR(8), \\fBnft\\fR(8), \\fBvsock\\fR(7)\n",
    );
    page
}

#[test]
fn the_man_page_is_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PATH);
    let page = page();
    if std::env::var_os("UPDATE_MAN").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap();
    if cfg!(feature = "kubernetes") {
        assert!(written == page, "{PATH} is out of date: UPDATE_MAN=1 cargo test --test man");
    }
    let places =
        ["NAME", "SYNOPSIS", "DESCRIPTION", "COMMANDS", "OPTIONS", "EXIT STATUS", "FILES", "SIGNALS", "SEE ALSO"]
            .map(|section| page.find(&format!("\n.SH {section}\n")).unwrap_or_else(|| panic!("no {section}")));
    assert!(places.is_sorted());
}

/// By mandoc or groff, whichever is installed; what every formatter would trip over is looked at in any case.
#[test]
fn it_is_good_roff() {
    let page = page();
    for (i, line) in page.lines().enumerate() {
        let request = line.strip_prefix('.').map(|rest| rest.split(' ').next().unwrap());
        let known = ["\\\"", "TH", "SH", "SS", "TP", "PP", "EX", "EE", "br", "nh", "ad"];
        assert!(request.is_none_or(|request| known.contains(&request)), "line {}: {line}", i + 1);
        assert!(!line.is_empty() && !line.starts_with('\''), "line {}", i + 1);
    }
    for (program, args) in [("mandoc", &["-T", "lint", "-W", "error"][..]), ("groff", &["-man", "-Tutf8", "-ww", "-z"])]
    {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other.unwrap(),
        };
        child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.is_empty(), "{program}: {said}");
    }
}
