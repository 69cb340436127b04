//! The host end's session: one line that `rancher-desktop-hostagent` answers a document with, `{"session":"<name>"}`.
//!
//! PortMapping documents have no reply, so an agent cannot know that a host end has restarted and forgotten
//! everything. Ours says who it is; another name than last time means that it did. The Privileged Service and
//! wsl-proxy answer nothing, and an agent that does not know of the line never reads it.

use serde_json::{Value, json};

/// The longest name, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// The line, its newline included.
pub fn encode(name: &str) -> Vec<u8> {
    format!("{}\n", json!({"session": name})).into_bytes()
}

/// The name in an answer; `None` for an answer of anybody else.
pub fn decode(answer: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(answer).ok()?;
    let name = value.get("session")?.as_str()?;
    (1..=NAME_BYTES_MAX).contains(&name.len()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_nothing_else() {
        assert_eq!(decode(&encode("4711-a")).as_deref(), Some("4711-a"));
        let long = encode(&"x".repeat(NAME_BYTES_MAX + 1));
        for other in [&b""[..], b"ok\n", b"{}", b"{\"session\":7}", b"{\"session\":\"\"}", b"\xff", &long] {
            assert_eq!(decode(other), None, "{}", String::from_utf8_lossy(other));
        }
    }
}
