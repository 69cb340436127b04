//! The two files of the host-switch sink: what is ours there, kept over restarts of the agent, and the API's token.
//!
//! Neither is read where others could have written it, and the token not where others can read it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::fcntl::OFlag;

use crate::ordered::Set;
use crate::port::Binding;
use crate::private_file::{OPEN, Problem, WRITABLE, read};
use crate::wire::expose::{self, STATE_BYTES_MAX};

use super::HostSwitchConfig;

/// The longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 4096;

/// Keeps what is ours in the state file.
pub(super) struct StateFile {
    /// It could not be written, as said in the log.
    failed: Option<String>,
}

impl StateFile {
    pub(super) fn new() -> StateFile {
        StateFile { failed: None }
    }

    /// What an earlier run has left at the API that `config` names. A file that is not to be trusted counts as empty.
    pub(super) fn read(config: &HostSwitchConfig) -> Set<Binding> {
        let path = &config.state_file;
        let why = match read(path, OFlag::O_NOFOLLOW, STATE_BYTES_MAX, WRITABLE) {
            Err(Problem::Io(error)) if error.kind() == ErrorKind::NotFound => return Set::new(),
            Err(problem) => problem.to_string(),
            Ok(bytes) => match expose::decode_state(&bytes) {
                Err(error) => error.to_string(),
                Ok(state) => {
                    let (api, remote) = (config.base.to_string(), config.tap_ip.to_string());
                    if state.api == api && state.remote == remote {
                        return state.forwards;
                    }
                    if state.forwards.is_empty() {
                        return Set::new();
                    }
                    let (count, api, remote) = (state.forwards.len(), show(&state.api), show(&state.remote));
                    format!("it tells of {count} forwards at {api} to {remote}, which are not ours to remove from here")
                }
            },
        };
        log::warn!(
            "what an earlier run left at host-switch is not known: remove it there where it is in the way file={path:?} \
             reason={why:?}"
        );
        Set::new()
    }

    /// Replaces the file. A failure is logged once; everything works without it, but for cleaning up after a crash.
    pub(super) fn write(&mut self, config: &HostSwitchConfig, ours: &Set<Binding>) {
        let path = &config.state_file;
        let text = expose::encode_state(&config.base.to_string(), config.tap_ip, ours);
        let failed = replace(path, text.as_bytes()).err().map(|error| error.to_string());
        if failed != self.failed {
            match &failed {
                Some(why) => log::warn!(
                    "cannot keep what is ours at host-switch, a crash would leave it there: --state-file names another \
                     place file={path:?} reason={why:?}"
                ),
                None => log::info!("the state file can be written again file={path:?}"),
            }
            self.failed = failed;
        }
    }

    /// Whether the file is not up to date because it could not be written.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }
}

/// What the API's bearer token is. Errors never quote it.
///
/// # Errors
/// A sentence for people.
pub fn token(path: &Path) -> Result<String, String> {
    let problem = |why: String| format!("--api-token-file {path:?}: {why}");
    let bytes = read(path, OFlag::empty(), TOKEN_BYTES_MAX, OPEN).map_err(|error| problem(error.to_string()))?;
    let token = bytes.trim_ascii();
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err(problem("expected one line of visible ASCII, the token alone".into()));
    }
    Ok(String::from_utf8_lossy(token).into_owned())
}

/// Writes a file of that name, as a whole or not at all. It is not synced: nothing of it is worth anything after the guest
/// has gone down.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let Some((dir, name)) = path.parent().zip(path.file_name()) else { return Err(ErrorKind::InvalidInput.into()) };
    let mut temporary = name.to_owned();
    temporary.push(".new");
    let temporary = dir.join(temporary);
    let file = match create(&temporary) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            create(&temporary)
        }
        // An agent was killed while it wrote.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            fs::remove_file(&temporary)?;
            create(&temporary)
        }
        result => result,
    };
    let written = file?.write_all(bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // It may be what there was no room for.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// A word from a file, as people may see it.
fn show(text: &str) -> String {
    text.chars().take(100).flat_map(char::escape_debug).collect()
}
