//! Writes one document: a JSON object on one line, its fields in the order in which docs/control.md has them.

use std::fmt::{self, Display, Write as _};
use std::net::IpAddr;
use std::time::SystemTime;

use crate::event::Owner;
use crate::logging::timestamp_of;
use crate::view::Tally;

/// A document that is being written.
pub(super) struct Document(String);

impl Document {
    /// One of that type.
    pub(super) fn new(kind: &str) -> Document {
        Document(String::from(r#"{"schema":1"#)).text("type", kind)
    }

    /// A part of another one.
    pub(super) fn part() -> Document {
        Document(String::from("{"))
    }

    /// A number, a boolean, or what is JSON already.
    pub(super) fn raw(mut self, field: &str, value: &dyn Display) -> Document {
        let comma = if self.0.ends_with('{') { "" } else { "," };
        // Writing to memory cannot fail.
        let _ = write!(self.0, r#"{comma}"{field}":{value}"#);
        self
    }

    pub(super) fn text(self, field: &str, value: &str) -> Document {
        self.raw(field, &Quoted(value))
    }

    pub(super) fn text_or_null(self, field: &str, value: Option<&str>) -> Document {
        match value {
            Some(value) => self.text(field, value),
            None => self.raw(field, &"null"),
        }
    }

    pub(super) fn number_or_null(self, field: &str, value: Option<u16>) -> Document {
        match value {
            Some(value) => self.raw(field, &value),
            None => self.raw(field, &"null"),
        }
    }

    pub(super) fn ip_or_null(self, field: &str, value: Option<IpAddr>) -> Document {
        self.text_or_null(field, value.map(|ip| ip.to_string()).as_deref())
    }

    pub(super) fn time(self, field: &str, value: SystemTime) -> Document {
        self.text(field, &timestamp_of(value))
    }

    pub(super) fn owner(self, owner: &Owner, name: Option<&str>) -> Document {
        self.text("source", owner.source.as_str()).text("owner", &owner.key).text_or_null("name", name)
    }

    pub(super) fn tally(self, field: &str, tally: &Tally) -> Document {
        let counts = tally.iter().fold(Document::part(), |counts, (state, count)| counts.raw(state.as_str(), &count));
        self.raw(field, &counts.end())
    }

    /// What is JSON already, in a list.
    pub(super) fn list(self, field: &str, items: &[String]) -> Document {
        self.raw(field, &format_args!("[{}]", items.join(",")))
    }

    pub(super) fn texts(self, field: &str, texts: &[String]) -> Document {
        let quoted: Vec<String> = texts.iter().map(|text| Quoted(text).to_string()).collect();
        self.list(field, &quoted)
    }

    pub(super) fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

/// Text as JSON has it. All control characters are escaped, also those that JSON would let through.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        let mut rest = self.0;
        while let Some(at) = rest.find(|c: char| matches!(c, '"' | '\\') || c.is_control()) {
            let (plain, odd) = rest.split_at(at);
            f.write_str(plain)?;
            let mut chars = odd.chars();
            match chars.next() {
                Some(c) if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
                Some(c) => write!(f, "\\{c}")?,
                None => {}
            }
            rest = chars.as_str();
        }
        f.write_str(rest)?;
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn any_text_comes_back_as_it_was() {
        let text = "a\"b\\c/\n\r\t\0\u{1b}[2J\u{7f}\u{9b}é\u{2028}😀";
        let line = Document::new("x").text("text", text).texts("list", &[text.into(), "".into()]).end();
        assert!(!line.chars().any(char::is_control), "{line}");
        let read: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read, json!({"schema": 1, "type": "x", "text": text, "list": [text, ""]}));
    }

    #[test]
    fn parts_and_nothing() {
        let line = Document::part().raw("a", &1).text_or_null("b", None).tally("c", &Tally::default()).end();
        let counts = r#"{"pending":0,"forwarding":0,"conflict":0,"denied":0,"failed":0,"left-out":0}"#;
        assert_eq!(line, format!(r#"{{"a":1,"b":null,"c":{counts}}}"#));
    }
}
