//! A log message split into its words and its details: `conflict binding=0.0.0.0:80/tcp reason="in use"`. Total: what is
//! not of that form is words.

/// Fields that every line has. A message cannot write others of these names.
const RESERVED: [&str; 3] = ["time", "level", "message"];

/// Details that are told apart; what comes before more of them is words.
const PAIRS_MAX: usize = 32;

/// The words, and the ` key=value` pairs at the end. Values in quotes are what Rust's `{:?}` writes of text, and come
/// without quotes and escapes. Before a key that comes twice, or is reserved, everything is words.
pub fn split(message: &str) -> (&str, Vec<(&str, String)>) {
    let mut words = message;
    let mut pairs: Vec<(&str, String)> = Vec::new();
    let mut at = 0;
    while let Some(rest) = message.get(at..).filter(|rest| !rest.is_empty()) {
        let begun = at;
        let found = pair(rest);
        at += found.as_ref().map_or_else(|| rest.find(' ').unwrap_or(rest.len()), |(_, _, len)| *len) + 1;
        let found = found.filter(|(key, ..)| begun > 0 && !RESERVED.contains(key));
        let is_full = pairs.len() == PAIRS_MAX;
        if found.as_ref().is_none_or(|(key, ..)| is_full || pairs.iter().any(|(k, _)| k == key)) {
            pairs.clear();
        }
        match found {
            Some((key, value, _)) => {
                if pairs.is_empty() {
                    words = message.get(..begun.saturating_sub(1)).unwrap_or_default();
                }
                pairs.push((key, value));
            }
            None => words = message,
        }
    }
    (words, pairs)
}

/// The pair that the text begins with, up to a space or the end of the text, and how many bytes it has.
fn pair(text: &str) -> Option<(&str, String, usize)> {
    // No further than the word: a long message is looked at once, not once a word.
    let (key, rest) = text.split_at_checked(text.find(['=', ' '])?)?;
    let rest = rest.strip_prefix('=')?;
    let valid = key.starts_with(|c: char| c.is_ascii_lowercase())
        && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !valid {
        return None;
    }
    let (value, len) = match rest.strip_prefix('"') {
        Some(quoted) => {
            let (value, len) = unquote(quoted)?;
            (value, len + 1)
        }
        None => {
            let value = rest.split(' ').next().filter(|value| !value.is_empty() && !value.contains('"'))?;
            (value.to_owned(), value.len())
        }
    };
    let len = key.len() + 1 + len;
    text.get(len..).filter(|after| after.is_empty() || after.starts_with(' ')).map(|_| (key, value, len))
}

/// Digits of an escaped character.
const HEX_DIGITS_MAX: usize = 6;

/// Text up to its closing quote, without escapes, and how many bytes it had with the quote.
fn unquote(text: &str) -> Option<(String, usize)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, at + 1)),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                '0' => '\0',
                'u' => {
                    let hex = text.get(at + 2..)?.strip_prefix('{')?;
                    let hex = hex.get(..hex.bytes().take(HEX_DIGITS_MAX + 1).position(|byte| byte == b'}')?)?;
                    // Over the braces, too.
                    chars.nth(hex.chars().count() + 1)?;
                    char::from_u32(u32::from_str_radix(hex, 16).ok()?)?
                }
                c => c,
            }),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn check(message: &str, words: &str, pairs: &[(&str, &str)]) {
        let pairs = pairs.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        assert_eq!(split(message), (words, pairs), "{message}");
    }

    #[test]
    fn details_are_split_off() {
        check("source ready source=docker", "source ready", &[("source", "docker")]);
        check("a b=1 c=\"x y\" d=z", "a", &[("b", "1"), ("c", "x y"), ("d", "z")]);
        check("a b=\"\"", "a", &[("b", "")]);
        check("a b=c=d", "a", &[("b", "c=d")]);
        let hostile = "quote \" back \\ line\n\t\r\0\u{1b}[2J ü b=1 '";
        check(&format!("a b={hostile:?} c=2"), "a", &[("b", hostile), ("c", "2")]);
    }

    #[test]
    fn a_message_of_a_megabyte_takes_no_time() {
        let begun = Instant::now();
        for (word, bytes) in [("a ", 1 << 20), (" a=\"\\u{", 1 << 18)] {
            let message = word.repeat(bytes / word.len());
            assert_eq!(split(&message), (&*message, vec![]), "{word}");
        }
        let pairs: String = (0..100_000).map(|i| format!(" k{i}=v")).collect();
        assert!(split(&pairs).1.len() <= PAIRS_MAX);
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }

    #[test]
    fn what_is_no_detail_stays_words() {
        for message in [
            "",
            " ",
            "a",
            "a b",
            "a=1",
            "a b=1 c",
            "a b=",
            "a =1",
            "a B=1",
            "a b=\"x",
            "a b=\"x\"y",
            "a \"b c=1\"",
            "a b=\"\\",
            "a b=\"\\u{110000}\"",
            "a b=\"\\u{",
            "a message=1",
            "ü=1 é",
            "a b=1  ",
        ] {
            check(message, message, &[]);
        }
        check("a b=1 c d=2", "a b=1 c", &[("d", "2")]);
        check("a b=1 b=2", "a b=1", &[("b", "2")]);
        let many: String = (0..40).map(|i| format!(" k{i}=v")).collect();
        let (words, pairs) = split(&many);
        assert_eq!((words.split(' ').count(), pairs.len()), (1 + 32, 8));
        check("a b=1 time=2 c=3", "a b=1 time=2", &[("c", "3")]);
    }
}
