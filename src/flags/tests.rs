//! Command lines and what becomes of them, with a table that has a flag of each kind.

use super::*;
use std::os::unix::ffi::OsStringExt as _;

static USAGE: Usage = Usage {
    synopsis: "prog [flag...]",
    about: "Does things.",
    commands: &[],
    sections: &[
        Section {
            title: "Sources",
            flags: &[
                Flag { name: "docker", takes: Takes::Bool, default: "false", help: "watch the engine" },
                Flag { name: "iptables", takes: Takes::Bool, default: "true", help: "scan the NAT rules" },
                Flag { name: "containerdSock", takes: Takes::Value("PATH"), default: "/run/c.sock", help: "socket" },
            ],
        },
        Section {
            title: "Other",
            flags: &[
                Flag { name: "listen", takes: Takes::Values("URL"), default: "", help: "where to listen" },
                Flag { name: "help", takes: Takes::Bool, default: "", help: "show this and exit" },
            ],
        },
    ],
    operands_max: 0,
    footer: "Example:\n  prog --docker",
};

fn parse(words: &[&str]) -> Result<Parsed, FlagError> {
    USAGE.parse(words.iter().map(OsString::from))
}

#[test]
fn takes_every_spelling_of_a_value() {
    for words in [&["-listen", "x"][..], &["--listen", "x"], &["-listen=x"], &["--listen=x"]] {
        assert_eq!(parse(words).unwrap().value("listen"), Some("x"), "{words:?}");
    }
    assert_eq!(parse(&["--listen=a=b"]).unwrap().value("listen"), Some("a=b"));
    assert_eq!(parse(&["--listen="]).unwrap().value("listen"), Some(""));
    assert_eq!(parse(&["--listen", "-x"]).unwrap().value("listen"), Some("-x"));
}

#[test]
fn booleans_never_take_the_next_word() {
    for (word, want) in [("-docker", true), ("--docker", true), ("-docker=T", true), ("-docker=0", false)] {
        assert_eq!(parse(&[word]).unwrap().on("docker"), want, "{word}");
    }
    assert_eq!(parse(&["-docker", "false"]).unwrap_err(), FlagError::Operand("false".into()));
    let error = parse(&["-docker=yes"]).unwrap_err().to_string();
    assert_eq!(error, "--docker \"yes\": use true or false");
}

#[test]
fn defaults_last_value_and_repetition() {
    let parsed = parse(&["-listen", "a", "-containerdSock", "1", "-listen", "b", "-containerdSock", "2"]).unwrap();
    assert_eq!(parsed.values("listen"), ["a", "b"]);
    assert_eq!(parsed.value("containerdSock"), Some("2"));
    let none = parse(&[]).unwrap();
    assert_eq!(none.value("containerdSock"), Some("/run/c.sock"));
    assert_eq!(none.value("listen"), None);
    assert!(none.on("iptables") && !none.given("iptables") && !none.on("docker"));
    assert!(!parse(&["-iptables=false"]).unwrap().on("iptables"));
    assert!(parse(&["-h"]).unwrap().on("help"));
}

#[test]
fn names_the_flag_that_was_probably_meant() {
    for (word, want) in [
        ("--lisen", Some("listen")),
        ("--dokcer", Some("docker")),
        ("--containerd-sock=/x", Some("containerdSock")),
        ("--containerdsock", Some("containerdSock")),
        ("--contain", Some("containerdSock")),
        ("--zzzzzz", None),
        ("---listen", Some("listen")),
    ] {
        let FlagError::Unknown { nearest, .. } = parse(&[word]).unwrap_err() else { panic!("{word}") };
        assert_eq!(nearest, want, "{word}");
    }
    assert_eq!(parse(&["--lisen"]).unwrap_err().to_string(), "unknown flag --lisen; did you mean --listen?");
}

#[test]
fn refuses_stray_words_and_missing_values() {
    assert_eq!(parse(&["--listen"]).unwrap_err().to_string(), "--listen needs a value: --listen URL");
    assert_eq!(parse(&["-"]).unwrap_err(), FlagError::Operand("-".into()));
    assert_eq!(parse(&["--", "--docker"]).unwrap_err(), FlagError::Operand("--docker".into()));
    assert!(parse(&["--"]).is_ok());
    let bad = USAGE.parse([OsString::from_vec(vec![0xff])]).unwrap_err();
    assert!(matches!(bad, FlagError::NotUtf8(_)), "{bad:?}");
    let escape = parse(&["\u{1b}[31m"]).unwrap_err().to_string();
    assert!(!escape.contains('\u{1b}'), "{escape}");
}

#[test]
fn a_long_name_is_near_to_none() {
    let names = ["docker", "kubernetes"];
    assert_eq!(nearest("kuberneteskubernetes", names.into_iter()), None);
    assert_eq!(nearest("kuberneteskube", names.into_iter()), Some("kubernetes"));
    assert_eq!(nearest(&"docker".repeat(1 << 20), names.into_iter()), None);
}

#[test]
fn takes_operands_where_they_are_wanted() {
    static EXPLAIN: Usage = Usage { operands_max: 1, ..USAGE };
    let parsed = EXPLAIN.parse(["8080", "--docker"].map(OsString::from)).unwrap();
    assert_eq!(parsed.operands(), ["8080"]);
    assert!(parsed.on("docker"));
    assert!(EXPLAIN.parse(["1", "2"].map(OsString::from)).is_err());
}

#[test]
fn help_shows_sections_defaults_and_fits_the_columns() {
    static LONG: Usage = Usage {
        sections: &[Section {
            title: "Long",
            flags: &[Flag {
                name: "a-name-that-is-far-too-long",
                takes: Takes::Values("VALUE"),
                default: "1",
                help: "words and more words and more words and more words and more words and more words\nnext",
            }],
        }],
        ..USAGE
    };
    let help = USAGE.help();
    assert!(help.starts_with("Usage: prog [flag...]\n\nDoes things.\n\nSources:\n  --docker  "), "{help}");
    assert!(help.contains("scan the NAT rules (default: true)\n"), "{help}");
    assert!(help.contains("where to listen (repeatable)\n"), "{help}");
    assert!(help.ends_with("\nExample:\n  prog --docker\n"), "{help}");
    let long = LONG.help();
    assert!(long.lines().all(|line| line.chars().count() <= HELP_COLUMNS), "{long}");
    assert!(long.contains("\n                          next (repeatable) (default: 1)\n"), "{long}");
}
