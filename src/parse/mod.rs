//! Bytes into values. Pure: nothing here opens a file or a socket, and no input makes it panic.

pub mod containerd;
pub mod docker;
pub mod iptables;
#[cfg(feature = "kubernetes")]
pub mod kube;
#[cfg(feature = "kubernetes")]
pub mod kubeconfig;
pub mod nat;
pub mod netlink;
pub mod nftables;
#[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "a part is for Services alone"))]
pub(crate) mod prune;
pub mod published;
pub mod route;
pub mod sockets;

use std::fmt;

/// Characters of what is wrong with JSON that are shown.
const JSON_CHARS_MAX: usize = 200;

/// Why input could not be used.
#[derive(Debug)]
pub enum ParseError {
    /// It is not JSON.
    Json(serde_json::Error),
    /// A field is missing or not of the kind it should be.
    Field {
        /// Its path.
        path: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// It ends, or goes on otherwise, where this should be.
    Missing(&'static str),
    /// There is more of something than is taken.
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// It is of a kind that is not known: of what, and which, shortened and escaped.
    Unknown(&'static str, String),
    /// It could not be fetched.
    Input(std::io::Error),
    /// iptables cannot print that table: it holds rules, sets or chains of nft's own.
    Foreign(&'static str),
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Where it expects an array or object, it quotes all of the text that is there.
            ParseError::Json(error) => write!(f, "not JSON: {:.JSON_CHARS_MAX$}", error.to_string()),
            ParseError::Field { path, expected } => write!(f, "field {path}: expected {expected}"),
            ParseError::Missing(what) => write!(f, "no {what} where it should be"),
            ParseError::TooMany { what, max } => write!(f, "more than {max} {what}"),
            ParseError::Unknown(what, name) => write!(f, "unknown {what} {name}"),
            ParseError::Input(error) => write!(f, "cannot read: {error}"),
            ParseError::Foreign(table) => {
                write!(
                    f,
                    "table {table} is not iptables' alone: move what nft has put there to a table of another name"
                )
            }
        }
    }
}

impl std::error::Error for ParseError {}

impl From<serde_json::Error> for ParseError {
    fn from(error: serde_json::Error) -> ParseError {
        ParseError::Json(error)
    }
}
