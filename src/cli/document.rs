//! Documents of the agent, and what people are shown of them. docs/control.md has their fields.
//!
//! A field that is missing, `null` or of another type reads as nothing, so that a newer agent's documents still do.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use serde_json::Value;

/// Characters of a container's id that people know it by, and of the whole id.
const ID_CHARS: (usize, usize) = (12, 64);

/// What would change a line without being seen, besides control characters: first and last of each range.
const HIDDEN: [(u32, u32); 16] = [
    (0xad, 0xad),
    (0x34f, 0x34f),
    (0x61c, 0x61c),
    (0x115f, 0x1160),
    (0x17b4, 0x17b5),
    (0x180b, 0x180f),
    (0x200b, 0x200f),
    (0x2028, 0x202e),
    (0x2060, 0x206f),
    (0x3164, 0x3164),
    (0xfe00, 0xfe0f),
    (0xfeff, 0xfeff),
    (0xffa0, 0xffa0),
    (0xfff0, 0xfffb),
    (0x1d173, 0x1d17a),
    (0xe0000, 0xe0fff),
];

/// The field's text, as it came.
pub fn raw<'a>(document: &'a Value, field: &str) -> &'a str {
    document.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// The field's text as a terminal may have it.
pub fn text(document: &Value, field: &str) -> String {
    plain(raw(document, field))
}

/// The field's number.
pub fn number(document: &Value, field: &str) -> u64 {
    document.get(field).and_then(Value::as_u64).unwrap_or_default()
}

/// Whether the field is true.
pub fn is(document: &Value, field: &str) -> bool {
    document.get(field).and_then(Value::as_bool).unwrap_or_default()
}

/// What is in the field's array.
pub fn list<'a>(document: &'a Value, field: &str) -> &'a [Value] {
    document.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn is_hidden(c: char) -> bool {
    let code = u32::from(c);
    c.is_control() || HIDDEN.iter().any(|(first, last)| (*first..=*last).contains(&code))
}

/// The text without what would be obeyed by a terminal, or not be seen.
pub fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A line of JSON in which nothing is hidden either: only strings can have such characters.
pub fn plain_json(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    for c in line.chars() {
        if is_hidden(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    shown
}

/// `source:name`, or `source:key` where there is no name.
pub fn owner(document: &Value) -> String {
    let name = text(document, "name");
    format!("{}:{}", text(document, "source"), if name.is_empty() { key(document) } else { name })
}

/// The owner's key, of a container's id what people know it by.
pub fn key(document: &Value) -> String {
    let key = raw(document, "owner");
    let is_id = key.len() == ID_CHARS.1 && key.bytes().all(|b| b.is_ascii_hexdigit());
    plain(if is_id { key.get(..ID_CHARS.0).unwrap_or(key) } else { key })
}

/// `address:port/protocol`, of the address in that field; `-` where there is none.
pub fn endpoint(document: &Value, field: &str) -> String {
    let address = text(document, field);
    let address = match address.as_str() {
        "" => return "-".to_owned(),
        v6 if v6.contains(':') => format!("[{v6}]"),
        v4 => v4.to_owned(),
    };
    format!("{address}:{}", port(document))
}

/// `port/protocol`.
pub fn port(document: &Value) -> String {
    format!("{}/{}", number(document, "port"), text(document, "protocol"))
}

/// The sink's name as people read it: without the colon of one that is nowhere else, such as `stdout:`.
pub fn sink(document: &Value) -> String {
    plain(raw(document, "sink").trim_end_matches(':'))
}

/// How long ago that was, such as `3m12s`; never negative, and `-` where it is no time.
pub fn age(since: &str, now: SystemTime) -> String {
    match humantime::parse_rfc3339(since) {
        Ok(since) => span(now.duration_since(since).unwrap_or_default()),
        Err(_) => "-".to_owned(),
    }
}

fn span(age: Duration) -> String {
    let seconds = age.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

/// The time of the day, UTC, of an RFC 3339 time.
pub fn clock(time: &str) -> String {
    plain(time.split_once('T').map_or(time, |(_, clock)| clock))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::sink_kind;
    use serde_json::json;

    #[test]
    fn nothing_hidden_is_left() {
        assert_eq!(plain("web-1 größer 名前"), "web-1 größer 名前");
        assert_eq!(plain("a\u{1b}[31m\r\n\u{7f}\u{9b}b"), "a\\u{1b}[31m\\r\\n\\u{7f}\\u{9b}b");
        assert_eq!(plain("\u{202e}\u{2066}\u{feff}\u{e0041}"), "\\u{202e}\\u{2066}\\u{feff}\\u{e0041}");
        let line = "{\"name\":\"\u{7f}\u{9b}\u{202e}\u{e0041}é\"}";
        let shown = plain_json(line);
        assert!(!shown.chars().any(is_hidden), "{shown}");
        let (was, is): (Value, Value) = (serde_json::from_str(line).unwrap(), serde_json::from_str(&shown).unwrap());
        assert_eq!(was, is, "still the same document");
    }

    #[test]
    fn fields_that_are_missing_or_odd_read_as_nothing() {
        let document = json!({"name": null, "port": "80", "owner": 7, "stale": "yes"});
        assert_eq!((raw(&document, "name"), number(&document, "port"), raw(&document, "owner")), ("", 0, ""));
        assert!(!is(&document, "stale") && list(&document, "sources").is_empty());
        assert_eq!(number(&json!({"port": -1}), "port"), 0);
    }

    #[test]
    fn owners_have_a_name_or_a_short_id() {
        let id = "0123456789ab".repeat(5) + "cdef";
        let of = |name: Value, owner: &str| super::owner(&json!({"source": "docker", "name": name, "owner": owner}));
        assert_eq!(of(json!("web"), &id), "docker:web");
        assert_eq!(of(Value::Null, &id), "docker:0123456789ab");
        assert_eq!(of(Value::Null, "default/web"), "docker:default/web");
        assert_eq!(of(json!("\u{1b}c"), &id), "docker:\\u{1b}c");
    }

    #[test]
    fn addresses_are_written_as_in_urls() {
        let of = |ip: Value| endpoint(&json!({"published_ip": ip, "port": 80, "protocol": "tcp"}), "published_ip");
        assert_eq!(of(json!("0.0.0.0")), "0.0.0.0:80/tcp");
        assert_eq!(of(json!("::1")), "[::1]:80/tcp");
        assert_eq!(of(Value::Null), "-");
        assert_eq!(sink_kind("host-switch:http://192.168.127.1:80"), "host-switch");
    }

    #[test]
    fn ages_are_short_and_never_negative() {
        let now = humantime::parse_rfc3339("2026-01-02T03:04:05.678Z").unwrap();
        for (since, expect) in [
            ("2026-01-02T03:04:05.600Z", "0s"),
            ("2026-01-02T03:04:06.678Z", "0s"),
            ("2026-01-02T03:03:59.000Z", "6s"),
            ("2026-01-02T03:00:53.678Z", "3m12s"),
            ("2026-01-01T23:04:00.000Z", "4h0m"),
            ("2025-12-30T03:04:00.000Z", "3d0h"),
            ("yesterday", "-"),
            ("", "-"),
        ] {
            assert_eq!(age(since, now), expect, "{since}");
        }
        assert_eq!(clock("2026-01-02T03:04:05.678Z"), "03:04:05.678Z");
        assert_eq!(clock("\u{1b}"), "\\u{1b}");
    }
}
