//! Files that decide what the agent does, or hold a secret: not read where others could have written or read them.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::geteuid;

/// Bits of a mode by which others can write.
pub const WRITABLE: u32 = 0o022;

/// Bits of a mode by which others can do anything.
pub const OPEN: u32 = 0o077;

/// Why a file is not read.
pub enum Problem {
    /// It cannot be read.
    Io(io::Error),
    /// It is something else.
    NoFile,
    /// It belongs to this user.
    Foreign(u32),
    /// With this mode, others have rights that they must not have.
    Open(u32),
    /// It is longer than this.
    TooLong(usize),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Io(error) if error.kind() == ErrorKind::PermissionDenied => {
                write!(f, "{error}: it has to belong to the agent's user")
            }
            Problem::Io(error) => error.fmt(f),
            Problem::NoFile => f.write_str("it is no regular file"),
            Problem::Foreign(owner) => write!(f, "it belongs to user {owner}: chown it to the agent's"),
            Problem::Open(mode) => write!(f, "its mode {mode:o} lets others in: chmod 600"),
            Problem::TooLong(max) => write!(f, "it is longer than {max} bytes"),
        }
    }
}

/// Reads a file that is ours or root's (ours, where `flags` say not to follow links), of at most `max` bytes, and that
/// others have none of the rights `forbidden` to.
///
/// # Errors
/// It is not such a file, or cannot be read.
pub fn read(path: &Path, flags: OFlag, max: usize, forbidden: u32) -> Result<Vec<u8>, Problem> {
    // A FIFO must not make us wait for a writer.
    let flags = flags | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(|error| {
        let symlink = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
        if symlink && flags.contains(OFlag::O_NOFOLLOW) { Problem::NoFile } else { Problem::Io(error) }
    })?;
    let meta = file.metadata().map_err(Problem::Io)?;
    let mode = meta.mode() & 0o7777;
    if !meta.is_file() {
        return Err(Problem::NoFile);
    }
    if meta.uid() != geteuid().as_raw() && (meta.uid() != 0 || flags.contains(OFlag::O_NOFOLLOW)) {
        return Err(Problem::Foreign(meta.uid()));
    }
    if mode & forbidden != 0 {
        return Err(Problem::Open(mode));
    }
    let mut bytes = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).map_err(Problem::Io)?;
    if bytes.len() > max { Err(Problem::TooLong(max)) } else { Ok(bytes) }
}
