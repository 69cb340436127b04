//! HTTP/1.1 as the server of Go's standard library speaks it: keep-alive, its headers in its order, its limits of time.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::forwarder::Answer;

/// What host-switch gives a request to arrive, and an idle connection to be used again.
pub const TIMEOUT: Duration = Duration::from_secs(10);

const HEAD_BYTES_MAX: usize = 1 << 20;
const BODY_BYTES_MAX: usize = 16 << 20;

/// Up to this size Go's server knows the length of a body before it has to send the head.
const BUFFER_BYTES: usize = 2048;

/// A connection over either kind of socket.
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub fn try_clone(&self) -> io::Result<Stream> {
        match self {
            Stream::Tcp(stream) => stream.try_clone().map(Stream::Tcp),
            Stream::Unix(stream) => stream.try_clone().map(Stream::Unix),
        }
    }

    pub fn shutdown(&self) {
        let _ = match self {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    /// The caller as Go's `RemoteAddr` has it.
    pub fn caller(&self) -> String {
        match self {
            Stream::Tcp(stream) => stream.peer_addr().map(|address| address.to_string()).unwrap_or_default(),
            Stream::Unix(_) => "@".to_owned(),
        }
    }

    /// The last close of the socket sends a reset. A unix socket does so only where bytes are unread.
    pub fn reset_on_close(&self) {
        if let Stream::Tcp(stream) = self {
            let now = nix::libc::linger { l_onoff: 1, l_linger: 0 };
            let _ = nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &now);
        }
    }

    pub fn set_timeouts(&self, read: Duration, write: Duration) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => {
                stream.set_read_timeout(Some(read)).and_then(|()| stream.set_write_timeout(Some(write)))
            }
            Stream::Unix(stream) => {
                stream.set_read_timeout(Some(read)).and_then(|()| stream.set_write_timeout(Some(write)))
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(into),
            Stream::Unix(stream) => stream.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A request as it was read.
pub struct Incoming {
    pub method: String,
    pub path: String,
    pub body: Vec<u8>,
    pub authorization: Option<String>,
    /// The client will not use the connection again.
    pub last: bool,
}

/// Why there is no request.
pub enum End {
    /// The client has gone, or the time is over: nothing is answered.
    Silent,
    /// What was sent is no request; answered with these words, and closed.
    Bad(&'static str),
}

/// The reading side of a connection, with what came early.
pub struct Requests {
    stream: Stream,
    ahead: Vec<u8>,
    deadline: Instant,
}

impl Requests {
    pub fn new(stream: Stream) -> Requests {
        Requests { stream, ahead: Vec::new(), deadline: Instant::now() }
    }

    /// Waits for the next request, which has [`TIMEOUT`] to begin and as long again to be there.
    pub fn next(&mut self) -> Result<Incoming, End> {
        self.deadline = Instant::now() + TIMEOUT;
        if self.ahead.is_empty() {
            self.more()?;
            self.deadline = Instant::now() + TIMEOUT;
        }
        let first = self.line()?;
        let mut words = first.split(' ');
        let (Some(method), Some(path), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(End::Bad("400 Bad Request"));
        };
        if method.is_empty() || !version.starts_with("HTTP/1.") {
            return Err(End::Bad("400 Bad Request"));
        }
        let mut incoming = Incoming {
            method: method.to_owned(),
            path: path.to_owned(),
            body: Vec::new(),
            authorization: None,
            last: version == "HTTP/1.0",
        };
        let (mut host, mut length, mut chunked) = (version == "HTTP/1.0", 0, false);
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let Some((name, value)) = line.split_once(':') else { return Err(End::Bad("400 Bad Request")) };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "host" => host = true,
                "content-length" => length = value.parse().map_err(|_| End::Bad("400 Bad Request"))?,
                "transfer-encoding" => chunked = value.eq_ignore_ascii_case("chunked"),
                "authorization" => incoming.authorization = Some(value.to_owned()),
                "connection" => incoming.last |= value.eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
        if !host {
            return Err(End::Bad("400 Bad Request: missing required Host header"));
        }
        incoming.body = if chunked { self.chunks()? } else { self.take(length)? };
        Ok(incoming)
    }

    fn chunks(&mut self) -> Result<Vec<u8>, End> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(self.line()?.trim(), 16).map_err(|_| End::Bad("400 Bad Request"))?;
            body.extend(self.take(size)?);
            // The line end after a chunk, or the empty line after the last.
            self.line()?;
            if size == 0 || body.len() > BODY_BYTES_MAX {
                return Ok(body);
            }
        }
    }

    fn take(&mut self, length: usize) -> Result<Vec<u8>, End> {
        if length > BODY_BYTES_MAX {
            return Err(End::Silent);
        }
        while self.ahead.len() < length {
            self.more()?;
        }
        let rest = self.ahead.split_off(length);
        Ok(std::mem::replace(&mut self.ahead, rest))
    }

    fn line(&mut self) -> Result<String, End> {
        loop {
            if let Some(end) = self.ahead.iter().position(|&byte| byte == b'\n') {
                let line = self.take(end + 1)?;
                return Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned());
            }
            if self.ahead.len() > HEAD_BYTES_MAX {
                return Err(End::Bad("431 Request Header Fields Too Large"));
            }
            self.more()?;
        }
    }

    fn more(&mut self) -> Result<(), End> {
        let left = self.deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.stream.set_timeouts(left, TIMEOUT).map_err(|_| End::Silent)?;
        let mut chunk = [0; 16384];
        match self.stream.read(&mut chunk) {
            Ok(0) | Err(_) => Err(End::Silent),
            Ok(n) => {
                self.ahead.extend_from_slice(&chunk[..n]);
                Ok(())
            }
        }
    }
}

/// The bytes of an answer.
pub fn encode(answer: &Answer, last: bool) -> Vec<u8> {
    let length = answer.body.len();
    let mut out = head(answer.status, answer.status != 200);
    let chunked = answer.status == 200 && length > BUFFER_BYTES;
    if !chunked {
        out += &format!("Content-Length: {length}\r\n");
    }
    if answer.status == 200 && length > 0 {
        out += "Content-Type: text/plain; charset=utf-8\r\n";
    }
    if last {
        out += "Connection: close\r\n";
    }
    if chunked {
        out += &format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n");
    } else {
        out += "\r\n";
    }
    let mut out = out.into_bytes();
    out.extend_from_slice(&answer.body);
    if chunked {
        out.extend_from_slice(b"\r\n0\r\n\r\n");
    }
    out
}

/// The first lines of an answer, up to the date.
pub fn head(status: u16, error: bool) -> String {
    let kind =
        if error { "Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n" } else { "" };
    let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
    format!("HTTP/1.1 {status} {}\r\n{kind}Date: {date}\r\n", reason(status))
}

/// What is answered to something that is no request.
pub fn bad_request(words: &str) -> Vec<u8> {
    let status = if words.starts_with("431") { "431 Request Header Fields Too Large" } else { "400 Bad Request" };
    format!("HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n{words}")
        .into_bytes()
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        301 => "Moved Permanently",
        302 => "Found",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "Other",
    }
}
