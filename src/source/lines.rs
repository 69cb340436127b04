//! Lines of a stream, up to a limit, told apart from silence and from a peer that stalls within a line.

use std::io::{ErrorKind, Read};

/// The longest line that is kept, in bytes. An event carries its container's labels, so it can be long.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// Bytes asked for at once, and kept between lines.
const CHUNK_BYTES: usize = 8 * 1024;

/// What the next read brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A line, without its end.
    Line(Vec<u8>),
    /// A line over the limit. It is dropped to its end, which may never come.
    TooLong,
    /// Nothing came for as long as a read may take, and no line has begun.
    Silence,
    /// Nothing came for as long as a read may take, in the middle of a line.
    Stalled,
    /// The stream ended.
    End,
}

/// Cuts a stream into lines.
pub struct Lines<R> {
    input: R,
    buffer: Vec<u8>,
    /// Bytes of `buffer` known to hold no line end.
    scanned: usize,
    dropping: bool,
    line_bytes_max: usize,
}

impl<R: Read> Lines<R> {
    /// Over a stream whose reads end with `TimedOut` or `WouldBlock` after a while; lines up to [`LINE_BYTES_MAX`].
    pub fn new(input: R) -> Lines<R> {
        Lines::with_limit(input, LINE_BYTES_MAX)
    }

    /// The same with another limit, in bytes.
    pub fn with_limit(input: R, line_bytes_max: usize) -> Lines<R> {
        Lines { input, buffer: Vec::new(), scanned: 0, dropping: false, line_bytes_max }
    }

    /// The stream, to be waited for. Nothing may be read from it.
    pub fn input(&self) -> &R {
        &self.input
    }

    /// The next line, or why there is none.
    ///
    /// # Errors
    /// Those of the stream, time-outs excepted.
    pub fn next_line(&mut self) -> std::io::Result<Next> {
        loop {
            let unscanned = self.buffer.get(self.scanned..).unwrap_or_default();
            if let Some(at) = unscanned.iter().position(|b| *b == b'\n') {
                let rest = self.buffer.split_off(self.scanned + at + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                self.scanned = 0;
                line.pop();
                if std::mem::take(&mut self.dropping) {
                    continue;
                }
                return Ok(Next::Line(line));
            }
            self.scanned = self.buffer.len();
            if self.scanned > self.line_bytes_max {
                self.scanned = 0;
                self.buffer = Vec::new();
                if !std::mem::replace(&mut self.dropping, true) {
                    return Ok(Next::TooLong);
                }
            }
            if let Some(stop) = self.fill()? {
                return Ok(stop);
            }
        }
    }

    fn fill(&mut self) -> std::io::Result<Option<Next>> {
        let mut chunk = [0; CHUNK_BYTES];
        match self.input.read(&mut chunk) {
            Ok(0) => Ok(Some(Next::End)),
            Ok(n) => {
                self.buffer.extend_from_slice(chunk.get(..n).unwrap_or_default());
                Ok(None)
            }
            Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {
                let begun = self.dropping || !self.buffer.is_empty();
                Ok(Some(if begun { Next::Stalled } else { Next::Silence }))
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// What each read brings; `None` is a time-out, the end of the list the end of the stream.
    struct Script(VecDeque<Option<Vec<u8>>>);

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            match self.0.pop_front() {
                None => Ok(0),
                Some(None) => Err(ErrorKind::TimedOut.into()),
                Some(Some(mut bytes)) => {
                    let n = bytes.len().min(buffer.len());
                    buffer[..n].copy_from_slice(&bytes[..n]);
                    let rest = bytes.split_off(n);
                    if !rest.is_empty() {
                        self.0.push_front(Some(rest));
                    }
                    Ok(n)
                }
            }
        }
    }

    fn all(script: &[Option<&[u8]>]) -> Vec<Next> {
        let mut lines = Lines::new(Script(script.iter().map(|s| s.map(<[u8]>::to_vec)).collect()));
        let mut seen = Vec::new();
        loop {
            seen.push(lines.next_line().unwrap());
            if seen.last() == Some(&Next::End) {
                return seen;
            }
        }
    }

    #[test]
    fn cuts_lines_wherever_reads_end() {
        let line = |text: &str| Next::Line(text.into());
        assert_eq!(all(&[Some(b"a\nb"), Some(b"c\n\nd\n")]), [line("a"), line("bc"), line(""), line("d"), Next::End]);
        assert_eq!(all(&[None, Some(b"a"), None, Some(b"\n")]), [Next::Silence, Next::Stalled, line("a"), Next::End]);
        assert_eq!(all(&[Some(b"half")]), [Next::End]);
    }

    #[test]
    fn a_line_over_the_limit_is_dropped_and_the_next_one_read() {
        let mut long = vec![b'x'; LINE_BYTES_MAX * 2];
        long.extend_from_slice(b"\nnext\n");
        assert_eq!(all(&[Some(&long), None]), [Next::TooLong, Next::Line(b"next".into()), Next::Silence, Next::End]);
    }
}
