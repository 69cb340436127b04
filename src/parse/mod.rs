//! Bytes into values. Pure: nothing here opens a file or a socket, and no input makes it panic.

pub mod containerd;
pub mod docker;
pub mod published;
pub mod route;

use std::fmt;

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
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParseError::Json(error) => write!(f, "not JSON: {error}"),
            ParseError::Field { path, expected } => write!(f, "field {path}: expected {expected}"),
        }
    }
}

impl std::error::Error for ParseError {}

impl From<serde_json::Error> for ParseError {
    fn from(error: serde_json::Error) -> ParseError {
        ParseError::Json(error)
    }
}
