//! The text of a rules file: `allow RULE` or `deny RULE` a line. All of it is good, or none of it is taken.
//!
//! A `#` at the start of a line or behind a space begins a comment. Nothing here does I/O: `rules_file` reads the file.

use std::fmt;

use super::{RULE_FORM, Rule};

/// The most rules of a file.
pub const RULES_MAX: usize = 1024;

/// The longest file, in bytes.
pub const RULES_FILE_BYTES_MAX: usize = 65_536;

/// Characters of a bad line that are shown.
const SHOWN_CHARS_MAX: usize = 60;

/// Why a rules file is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RulesError {
    /// A line is neither a rule nor a comment.
    Line {
        /// Which, from 1.
        line: u32,
        /// The line, escaped and cut.
        text: String,
    },
    /// More than [`RULES_MAX`] rules.
    TooMany,
}

impl fmt::Display for RulesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RulesError::Line { line, text } => {
                write!(f, "line {line}: '{text}': expected allow RULE or deny RULE, where RULE is {RULE_FORM}")
            }
            RulesError::TooMany => write!(f, "more than {RULES_MAX} rules"),
        }
    }
}

impl std::error::Error for RulesError {}

/// The rules of a file, in its order.
///
/// # Errors
/// The first line that is wrong, or too many rules.
pub fn parse_rules(text: &str) -> Result<Vec<Rule>, RulesError> {
    let mut rules = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let mut words = text.split_whitespace().take_while(|word| !word.starts_with('#'));
        let Some(verb) = words.next() else { continue };
        let rule = match (verb, words.next(), words.next()) {
            ("allow", Some(rule), None) => Rule::parse(rule, true),
            ("deny", Some(rule), None) => Rule::parse(rule, false),
            _ => None,
        };
        let Some(rule) = rule else {
            let text = text.trim().chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
            return Err(RulesError::Line { line, text });
        };
        if rules.len() == RULES_MAX {
            return Err(RulesError::TooMany);
        }
        rules.push(Rule { line: Some(line), ..rule });
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_comments_and_blank_lines_are_read() {
        let text = "# ours\r\n\r\nallow tcp/8080 # the proxy\r\n \tdeny\ttcp/8000-8999  ";
        let rules = parse_rules(text).unwrap();
        let shown: Vec<String> = rules.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["allow tcp/8080 (rules file, line 3)", "deny tcp/8000-8999 (rules file, line 4)"]);
        assert_eq!(format!("{:#}", rules[0]), "allow tcp/8080");
        assert_eq!((rules[0].allow, rules[1].allow), (true, false));
        assert!(rules.iter().all(|rule| !rule.built_in));
        for nothing in ["", "\n", "#", "  # deny *\n\n"] {
            assert_eq!(parse_rules(nothing), Ok(Vec::new()), "{nothing:?}");
        }
    }

    #[test]
    fn one_bad_line_refuses_the_file_and_is_named() {
        for bad in [
            "deny",
            "deny tcp/0",
            "Deny tcp/22",
            "--deny tcp/22",
            "deny tcp/22 tcp/23",
            "tcp/22",
            "deny tcp/22#x",
            "deny = *",
            "\u{feff}deny *",
        ] {
            let error = parse_rules(&format!("allow tcp/1\n{bad}\nallow tcp/2\n")).unwrap_err();
            assert!(matches!(&error, RulesError::Line { line: 2, .. }), "{bad}: {error:?}");
            assert!(error.to_string().contains("expected allow RULE or deny RULE"), "{error}");
        }
        let error = parse_rules(&format!("\u{1b}[2J{}", "x".repeat(60_000))).unwrap_err().to_string();
        assert!(error.starts_with("line 1: '\\u{1b}[2Jxxx") && error.len() < 300, "{error}");
    }

    #[test]
    fn a_file_has_a_limit_of_rules() {
        assert_eq!(parse_rules(&"deny *\n".repeat(RULES_MAX)).map(|rules| rules.len()), Ok(RULES_MAX));
        assert_eq!(parse_rules(&"deny *\n".repeat(RULES_MAX + 1)), Err(RulesError::TooMany));
    }
}
