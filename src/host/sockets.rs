//! The sockets that documents come in on: opened, accepted from, and cleaned up.
//!
//! A unix socket is only ever put where nothing is, or where a dead process left its own. It is removed at the end, if it
//! is still the one that was made. Never reads from a connection.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use vsock::VsockListener;

use crate::host::config::Listen;
use crate::net::connect_unix;

/// Why a socket could not be opened, and what to do about it.
#[derive(Debug)]
pub struct ListenError {
    listen: Listen,
    reason: String,
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}: {}", self.listen, self.reason)
    }
}

impl std::error::Error for ListenError {}

/// A socket that documents come in on.
#[derive(Debug)]
pub struct DocumentSocket {
    listen: Listen,
    listener: Listener,
}

#[derive(Debug)]
enum Listener {
    Unix { listener: UnixListener, _file: SocketFile },
    Tcp(TcpListener),
    Vsock(VsockListener, Option<u32>),
}

/// The file of a unix socket, removed when dropped.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode: whether the file is still the one that was made.
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if id_of(&self.path).is_ok_and(|id| id == self.id) {
            if let Err(error) = fs::remove_file(&self.path) {
                log::warn!("cannot remove {}: {error}", self.path.display());
            }
        }
    }
}

fn id_of(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// What an accept brought.
#[derive(Debug)]
pub enum Accepted {
    /// A connection, in non-blocking mode.
    Connection(File),
    /// A connection of a guest that is not the one to listen to; it is closed already.
    OtherGuest(u32),
}

impl DocumentSocket {
    /// Opens the socket. With a `guest_cid`, only that guest is accepted on vsock.
    pub fn open(listen: Listen, guest_cid: Option<u32>) -> Result<DocumentSocket, ListenError> {
        match Listener::open(&listen, guest_cid) {
            Ok(listener) => Ok(DocumentSocket { listen, listener }),
            Err(reason) => Err(ListenError { listen, reason }),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> &Listen {
        &self.listen
    }

    /// The next connection; `WouldBlock` when there is none.
    pub fn accept(&self) -> io::Result<Accepted> {
        let stream: OwnedFd = match &self.listener {
            Listener::Unix { listener, .. } => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                stream.into()
            }
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                stream.into()
            }
            Listener::Vsock(listener, guest_cid) => {
                let (stream, peer) = listener.accept()?;
                if guest_cid.is_some_and(|cid| cid != peer.cid()) {
                    return Ok(Accepted::OtherGuest(peer.cid()));
                }
                stream.set_nonblocking(true)?;
                stream.into()
            }
        };
        Ok(Accepted::Connection(stream.into()))
    }
}

impl AsFd for DocumentSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.listener {
            Listener::Unix { listener, .. } => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Vsock(listener, _) => listener.as_fd(),
        }
    }
}

impl Listener {
    fn open(listen: &Listen, guest_cid: Option<u32>) -> Result<Listener, String> {
        match listen {
            Listen::Unix(path) => open_unix(path),
            Listen::Tcp(addr) => {
                let listener = TcpListener::bind(addr).map_err(|e| advice(&e, "this address and port"))?;
                listener.set_nonblocking(true).map_err(|e| e.to_string())?;
                Ok(Listener::Tcp(listener))
            }
            Listen::Vsock { cid, port } => {
                let listener = VsockListener::bind_with_cid_port(*cid, *port)
                    .map_err(|e| format!("{}; is the vhost_vsock module loaded?", advice(&e, "this vsock port")))?;
                listener.set_nonblocking(true).map_err(|e| e.to_string())?;
                Ok(Listener::Vsock(listener, guest_cid))
            }
        }
    }
}

fn advice(error: &io::Error, what: &str) -> String {
    let kind = error.kind();
    if kind == io::ErrorKind::AddrInUse {
        format!("another program has {what}; stop it, or choose another")
    } else if kind == io::ErrorKind::AddrNotAvailable {
        "this host does not have the address".to_owned()
    } else if kind == io::ErrorKind::PermissionDenied {
        format!("{error}; is it run as the right user?")
    } else if kind == io::ErrorKind::NotFound {
        format!("{error}; make its directory first")
    } else {
        error.to_string()
    }
}

fn open_unix(path: &Path) -> Result<Listener, String> {
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err("a file that is not a socket is in the way; move it, or choose another path".to_owned());
        }
        Ok(_) => match connect_unix(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(|e| format!("cannot remove the socket of a dead process: {e}"))?;
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(advice(&error, "it")),
            Ok(_) | Err(_) => return Err("another program listens there; stop it, or choose another path".to_owned()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.to_string()),
    }
    let listener = UnixListener::bind(path).map_err(|e| advice(&e, "this path"))?;
    listener.set_nonblocking(true).map_err(|e| e.to_string())?;
    let id = id_of(path).map_err(|e| e.to_string())?;
    Ok(Listener::Unix { listener, _file: SocketFile { path: path.to_owned(), id } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn temp_path(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("hostagent-{}-{name}.sock", std::process::id()));
        let _ = fs::remove_file(&path);
        path
    }

    fn open(path: &Path) -> Result<DocumentSocket, String> {
        DocumentSocket::open(Listen::Unix(path.to_owned()), None).map_err(|e| e.to_string())
    }

    #[test]
    fn a_socket_is_removed_at_the_end_unless_it_is_another_s() {
        let path = temp_path("own");
        drop(open(&path).unwrap());
        assert!(!path.exists());
        let socket = open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        drop(socket);
        assert!(path.exists());
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn only_a_dead_process_s_socket_is_replaced() {
        let path = temp_path("stale");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let live = open(&path).unwrap();
        let refused = open(&path).unwrap_err();
        assert!(refused.contains("another program listens there"), "{refused}");
        assert!(UnixStream::connect(&path).is_ok());
        drop(live);
        fs::write(&path, "data").unwrap();
        let refused = open(&path).unwrap_err();
        assert!(refused.contains("not a socket"), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), b"data");
        fs::remove_file(&path).unwrap();
    }
}
