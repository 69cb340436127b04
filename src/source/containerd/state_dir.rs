//! Reads nerdctl's `network-config.json` in a container's state directory.
//!
//! Which directory that is says a label, and labels are set by whoever runs containers, so the path is not trusted:
//! the last step to the directory and the one to the file follow no link, nothing but a regular file is read, opening
//! never waits (for a FIFO's writer), and what is read has a limit. Messages hold nothing of what was read, but for
//! single ports that are none (`parse/published.rs`).

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use crate::parse::ParseError;
use crate::parse::containerd::{NETWORK_CONFIG, network_config};
use crate::parse::published::Published;

/// The largest file that is read, in bytes: room for 10,000 ports.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why there is nothing to be had.
#[derive(Debug)]
pub enum StateDirError {
    /// A step of the path is not what it should be, or may not be taken.
    Unsuitable(Errno),
    /// It is not a regular file.
    NotAFile,
    /// It is larger than [`FILE_BYTES_MAX`].
    TooLarge,
    /// It is not nerdctl's.
    Content(ParseError),
    /// Reading failed, and may succeed another time.
    Read(io::Error),
}

impl fmt::Display for StateDirError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StateDirError::Unsuitable(errno) => {
                write!(f, "cannot be opened, or is a link: {}", io::Error::from(*errno))
            }
            StateDirError::NotAFile => f.write_str("is not a regular file"),
            StateDirError::TooLarge => write!(f, "is larger than {FILE_BYTES_MAX} bytes"),
            StateDirError::Content(error) => error.fmt(f),
            StateDirError::Read(error) => write!(f, "cannot be read: {error}"),
        }
    }
}

impl std::error::Error for StateDirError {}

/// The ports recorded in that directory, an absolute path without `.` and `..`; none where there is no record.
pub fn read(dir: &Path) -> Result<Published, StateDirError> {
    let opened = open(dir, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()).and_then(|dir| {
        openat(dir, NETWORK_CONFIG, OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())
    });
    let file = match opened {
        Ok(file) => File::from(file),
        Err(Errno::ENOENT) => return Ok(Published::default()),
        Err(errno @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EINTR | Errno::EIO)) => {
            return Err(StateDirError::Read(errno.into()));
        }
        Err(errno) => return Err(StateDirError::Unsuitable(errno)),
    };
    let metadata = file.metadata().map_err(StateDirError::Read)?;
    if !metadata.is_file() {
        return Err(StateDirError::NotAFile);
    }
    let mut text = Vec::new();
    // It may have grown since.
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(StateDirError::Read)?;
    if u64::try_from(text.len()).is_ok_and(|bytes| bytes > FILE_BYTES_MAX) {
        return Err(StateDirError::TooLarge);
    }
    network_config(&text).map_err(StateDirError::Content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let path = std::env::temp_dir().join(format!("rda-state-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Dir(path)
        }

        fn file(&self) -> PathBuf {
            self.0.join(NETWORK_CONFIG)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn reads_what_is_recorded() {
        let dir = Dir::new("good");
        assert_eq!(read(&dir.0).unwrap(), Published::default(), "no file");
        assert_eq!(read(&dir.0.join("missing")).unwrap(), Published::default(), "no directory");
        fs::write(dir.file(), r#"{"portMappings":[{"HostPort":1,"ContainerPort":2,"Protocol":"tcp"}]}"#).unwrap();
        assert_eq!(read(&dir.0).unwrap().bindings.len(), 1);
    }

    #[test]
    fn reads_nothing_else() {
        let dir = Dir::new("evil");
        fs::write(dir.0.join("secret"), r#"{"portMappings":[{"HostPort":1}], "password":"hunter2"}"#).unwrap();
        symlink(dir.0.join("secret"), dir.file()).unwrap();
        assert!(matches!(read(&dir.0), Err(StateDirError::Unsuitable(Errno::ELOOP))));
        fs::remove_file(dir.file()).unwrap();
        fs::create_dir(dir.file()).unwrap();
        assert!(matches!(read(&dir.0), Err(StateDirError::NotAFile)));
        fs::remove_dir(dir.file()).unwrap();
        nix::unistd::mkfifo(&dir.file(), Mode::S_IRUSR).unwrap();
        assert!(matches!(read(&dir.0), Err(StateDirError::NotAFile)), "nor waits for a writer");
        fs::remove_file(dir.file()).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.file()).unwrap();
        assert!(matches!(read(&dir.0), Err(StateDirError::Unsuitable(Errno::ENXIO))));
        fs::remove_file(dir.file()).unwrap();
        // 100 MB that take no room.
        File::create(dir.file()).unwrap().set_len(100 << 20).unwrap();
        assert!(matches!(read(&dir.0), Err(StateDirError::TooLarge)));
        for text in ["hunter2", "{\"hunter2", "[\"hunter2\"]", ""] {
            fs::write(dir.file(), text).unwrap();
            let error = read(&dir.0).unwrap_err();
            assert!(matches!(error, StateDirError::Content(_)) && !error.to_string().contains("hunter2"), "{error}");
        }
        let link = dir.0.join("link");
        symlink(&dir.0, &link).unwrap();
        assert!(matches!(read(&link), Err(StateDirError::Unsuitable(_))));
        assert!(matches!(read(&dir.file()), Err(StateDirError::Unsuitable(Errno::ENOTDIR))));
        assert!(read(Path::new("/dev")).unwrap().bindings.is_empty());
    }
}
