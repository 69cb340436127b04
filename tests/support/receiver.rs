//! The far end of the vtunnel sink: a unix socket that takes PortMapping documents and keeps them.
//!
//! Stands in for the Privileged Service, whose protocol has no reply: it reads one document and closes.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{TempDir, eventually};

/// One document as it came.
#[derive(Debug, Clone)]
pub struct Received {
    pub text: String,
    pub at: Instant,
    pub since_epoch: Duration,
}

/// Takes documents until it is dropped.
pub struct Receiver {
    dir: TempDir,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    received: Vec<Received>,
    held: BTreeSet<String>,
}

impl Receiver {
    /// Listens from now on.
    pub fn new() -> Receiver {
        let receiver = Receiver::absent();
        receiver.listen();
        receiver
    }

    /// Nobody listens until [`Receiver::listen`].
    pub fn absent() -> Receiver {
        Receiver { dir: TempDir::new(), state: Arc::default() }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.join("sink")
    }

    pub fn url(&self) -> String {
        format!("unix://{}", self.path().display())
    }

    pub fn listen(&self) {
        let listener = UnixListener::bind(self.path()).unwrap();
        let state = self.state.clone();
        std::thread::spawn(move || {
            // Ends when the socket is shut down in `close`.
            while let Ok((mut stream, _)) = listener.accept() {
                let mut text = String::new();
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let mut chunk = [0; 65536];
                // By its framing: a document ends with its newline.
                while !text.ends_with('\n') {
                    match stream.read(&mut chunk) {
                        Ok(0) | Err(_) => break,
                        Ok(n) => text.push_str(std::str::from_utf8(&chunk[..n]).unwrap()),
                    }
                }
                let (at, since_epoch) = (Instant::now(), std::time::UNIX_EPOCH.elapsed().unwrap());
                if text == "close\n" {
                    return;
                }
                let mut state = state.lock().unwrap();
                take(&mut state.held, &text);
                state.received.push(Received { text, at, since_epoch });
            }
        });
    }

    /// Nobody listens any more.
    pub fn close(&self) {
        use std::io::Write as _;
        if let Ok(mut stream) = std::os::unix::net::UnixStream::connect(self.path()) {
            let _ = stream.write_all(b"close\n");
            let _ = stream.read(&mut [0]);
        }
        let _ = std::fs::remove_file(self.path());
    }

    pub fn all(&self) -> Vec<Received> {
        self.state.lock().unwrap().received.clone()
    }

    /// Forgets what came so far, as a restarted host end does.
    pub fn forget(&self) {
        *self.state.lock().unwrap() = State::default();
    }

    /// What a host end that got these documents holds: `HostIp:HostPort/protocol`, in order.
    pub fn held(&self) -> Vec<String> {
        self.state.lock().unwrap().held.iter().cloned().collect()
    }

    /// Waits until exactly these are held.
    pub fn wait_held(&self, expect: &[&str]) {
        let mut expect: Vec<String> = expect.iter().map(ToString::to_string).collect();
        expect.sort();
        eventually(&format!("forwards {expect:?}"), || match self.held() {
            held if held == expect => Ok(()),
            held => Err(held),
        });
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.close();
    }
}

/// Carries one document out on the set of forwards.
fn take(held: &mut BTreeSet<String>, text: &str) {
    let (remove, names) = read(text);
    for name in names {
        if remove {
            held.remove(&name);
        } else {
            held.insert(name);
        }
    }
}

/// A document: whether it withdraws, and what it names, as `HostIp:HostPort/protocol`.
pub fn read(document: &str) -> (bool, Vec<String>) {
    let document: Value = serde_json::from_str(document).unwrap();
    let mut names = Vec::new();
    for (key, bindings) in document["ports"].as_object().unwrap() {
        let protocol = key.split_once('/').unwrap().1;
        for binding in bindings.as_array().unwrap() {
            let (ip, port) = (binding["HostIp"].as_str().unwrap(), binding["HostPort"].as_str().unwrap());
            let ip = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            names.push(format!("{ip}:{port}/{protocol}"));
        }
    }
    (document["remove"].as_bool().unwrap(), names)
}
