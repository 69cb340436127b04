//! A JSON object and its arrays, taken apart while they arrive: one value at a time is in memory, and that one is limited.
//!
//! This only looks for where a value ends; whether it is JSON is for `serde_json` to say, who gets it whole. Done this way
//! because `serde_json`'s own reader has no limit for a value, and takes every byte by itself: a list costs twice as much.

use std::io::{BufRead, BufReader, ErrorKind, Read};

use super::ParseError;

/// The largest value that is kept, in bytes. The API server takes no object above 3 MiB.
pub(super) const PIECE_BYTES_MAX: usize = 4 << 20;

/// What is read at once, in bytes: a TLS record.
const CHUNK_BYTES: usize = 16 << 10;

/// Input, cut into values.
pub(super) struct Pieces<R> {
    input: BufReader<R>,
    piece: Vec<u8>,
}

impl<R: Read> Pieces<R> {
    pub fn new(input: R) -> Pieces<R> {
        Pieces { input: BufReader::with_capacity(CHUNK_BYTES, input), piece: Vec::new() }
    }

    /// The next byte that is not white space, left where it is. `None`: there is none.
    pub fn peek(&mut self) -> Result<Option<u8>, ParseError> {
        loop {
            let chunk = fill(&mut self.input)?;
            let found = chunk.iter().enumerate().find(|(_, byte)| !is_space(**byte)).map(|(at, byte)| (at, *byte));
            let (skip, ended) = (found.map_or(chunk.len(), |(at, _)| at), chunk.is_empty());
            self.input.consume(skip);
            if found.is_some() || ended {
                return Ok(found.map(|(_, byte)| byte));
            }
        }
    }

    /// Takes the next byte that is not white space if it is this one.
    pub fn take(&mut self, byte: u8) -> Result<bool, ParseError> {
        let there = self.peek()? == Some(byte);
        self.input.consume(usize::from(there));
        Ok(there)
    }

    /// Takes that byte.
    pub fn expect(&mut self, byte: u8, name: &'static str) -> Result<(), ParseError> {
        if self.take(byte)? { Ok(()) } else { Err(ParseError::Missing(name)) }
    }

    /// Whether another value follows, behind one in an object or array that `close` ends.
    pub fn more(&mut self, close: u8) -> Result<bool, ParseError> {
        if self.take(close)? {
            return Ok(false);
        }
        self.expect(b',', "comma or end of the list").map(|()| true)
    }

    /// Takes the next value. `None`: it was too large to keep, and is passed over.
    pub fn value(&mut self) -> Result<Option<&[u8]>, ParseError> {
        self.peek()?;
        self.piece.clear();
        let mut kept = true;
        let mut end = End::default();
        loop {
            let chunk = fill(&mut self.input)?;
            if chunk.is_empty() {
                return Err(ParseError::Missing("end of the list"));
            }
            let (part, found) = match end.find(chunk) {
                Some(length) => (chunk.get(..length).unwrap_or(chunk), true),
                None => (chunk, false),
            };
            kept = kept && self.piece.len().saturating_add(part.len()) <= PIECE_BYTES_MAX;
            if kept {
                self.piece.extend_from_slice(part);
            }
            let used = part.len();
            self.input.consume(used);
            if found {
                return Ok(kept.then_some(self.piece.as_slice()));
            }
        }
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

fn fill<R: Read>(input: &mut BufReader<R>) -> Result<&[u8], ParseError> {
    loop {
        match input.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(ParseError::Input(error)),
        }
    }
    // Asked again, because the borrow checker would not let the first answer out of the loop. It is in the buffer.
    Ok(input.buffer())
}

/// Looks for the end of one value, chunk by chunk.
#[derive(Default)]
struct End {
    /// Brackets that are open, of either kind.
    depth: usize,
    in_text: bool,
    escaped: bool,
}

impl End {
    /// How much of the chunk belongs to the value, where it ends in it.
    fn find(&mut self, chunk: &[u8]) -> Option<usize> {
        let mut bytes = chunk.iter().enumerate();
        loop {
            // Most of an object is text, and most of that is nothing to stop at.
            let skips = self.in_text && !self.escaped;
            let next = if skips { bytes.find(|(_, byte)| matches!(byte, b'"' | b'\\')) } else { bytes.next() };
            let (at, byte) = next?;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_text => self.escaped = true,
                b'"' => {
                    self.in_text = !self.in_text;
                    if !self.in_text && self.depth == 0 {
                        return Some(at.saturating_add(1));
                    }
                }
                _ if self.in_text => {}
                b'{' | b'[' => self.depth = self.depth.saturating_add(1),
                b'}' | b']' if self.depth > 1 => self.depth = self.depth.saturating_sub(1),
                b'}' | b']' => return Some(at.saturating_add(self.depth)),
                // Behind a number or a word.
                b',' | b':' if self.depth == 0 => return Some(at),
                byte if self.depth == 0 && is_space(*byte) => return Some(at),
                _ => {}
            }
        }
    }
}
