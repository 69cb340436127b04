//! Stands in for Rancher Desktop's wsl-proxy, which comes with its WSL distribution and cannot run here. It keeps the rules
//! of the real one, as they were read in its public source (`src/go/networking/pkg/portproxy`):
//!
//! - a unix socket, one PortMapping document per connection, in a thread of its own; no reply; closed when carried out;
//! - two maps, one of TCP and one of UDP, by port number alone;
//! - a port that is in its map stays as it is when it is announced again: that is only logged;
//! - a removal closes whatever the map has under that port, on whichever address.
//!
//! What is left out: it opens no sockets itself, so a port of another program is never busy here.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use super::{TempDir, eventually};

pub struct WslProxy {
    dir: TempDir,
    running: Mutex<Option<Arc<Running>>>,
}

/// One run of it: what came to it, and what it holds.
#[derive(Default)]
struct Running {
    state: Mutex<State>,
    stopped: Mutex<bool>,
}

#[derive(Default)]
struct State {
    documents: Vec<String>,
    tcp: BTreeMap<u16, String>,
    udp: BTreeMap<u16, String>,
    log: Vec<String>,
}

impl WslProxy {
    /// Listens from now on.
    pub fn new() -> WslProxy {
        let proxy = WslProxy::absent();
        proxy.start();
        proxy
    }

    /// Nobody listens until [`WslProxy::start`].
    pub fn absent() -> WslProxy {
        WslProxy { dir: TempDir::new(), running: Mutex::default() }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.join("wsl-proxy.sock")
    }

    /// For `--sink`.
    pub fn url(&self) -> String {
        format!("wsl-proxy://{}", self.path().display())
    }

    pub fn start(&self) {
        self.start_slow(Duration::ZERO);
    }

    /// Each document takes that long.
    pub fn start_slow(&self, delay: Duration) {
        let listener = UnixListener::bind(self.path()).unwrap();
        let running = Arc::new(Running::default());
        *self.running.lock().unwrap() = Some(running.clone());
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if *running.stopped.lock().unwrap() {
                    return;
                }
                let running = running.clone();
                std::thread::spawn(move || {
                    std::thread::sleep(delay);
                    running.serve(stream);
                });
            }
        });
    }

    /// Nobody listens any more, and nothing is held. As the real one, it takes its socket with it.
    pub fn stop(&self) {
        self.die();
        let _ = std::fs::remove_file(self.path());
    }

    /// Nobody listens any more, but the socket's file is left: what `kill -9` does.
    pub fn die(&self) {
        if let Some(running) = self.running.lock().unwrap().take() {
            *running.stopped.lock().unwrap() = true;
            let _ = UnixStream::connect(self.path());
        }
    }

    pub fn restart(&self) {
        self.stop();
        self.start();
    }

    fn state<T>(&self, read: impl Fn(&State) -> T) -> T {
        match &*self.running.lock().unwrap() {
            Some(running) => read(&running.state.lock().unwrap()),
            None => read(&State::default()),
        }
    }

    /// What came since its start, byte for byte.
    pub fn documents(&self) -> Vec<String> {
        self.state(|state| state.documents.clone())
    }

    /// What it would complain of.
    pub fn log(&self) -> Vec<String> {
        self.state(|state| state.log.clone())
    }

    /// What it listens on: `tcp 127.0.0.1:80`.
    pub fn open(&self) -> Vec<String> {
        self.state(|state| {
            let shown = |protocol, map: &BTreeMap<u16, String>| -> Vec<String> {
                map.iter().map(|(port, ip)| format!("{protocol} {ip}:{port}")).collect()
            };
            [shown("tcp", &state.tcp), shown("udp", &state.udp)].concat()
        })
    }

    /// Waits until it listens on exactly these.
    pub fn wait_open(&self, expect: &[&str]) {
        eventually(&format!("wsl-proxy listens on {expect:?}"), || match self.open() {
            open if open == expect => Ok(()),
            open => Err((open, self.documents())),
        });
    }

    /// Waits until exactly these documents have come.
    pub fn wait_documents(&self, expect: &[&str]) {
        eventually(&format!("documents {expect:?}"), || match self.documents() {
            documents if documents == expect => Ok(()),
            documents => Err(documents),
        });
    }
}

impl Drop for WslProxy {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Running {
    fn serve(&self, stream: UnixStream) {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut text = String::new();
        let read = BufReader::new(&stream).read_line(&mut text);
        let mut state = self.state.lock().unwrap();
        match serde_json::from_str(&text) {
            Ok(document) if read.is_ok() => state.carry_out(&document),
            other => state.log.push(format!("not a document: {read:?}, {other:?}")),
        }
        state.documents.push(text);
        // The stream is closed last.
    }
}

impl State {
    fn carry_out(&mut self, document: &Value) {
        assert!(document["connectAddrs"].is_null(), "{document}");
        for (key, bindings) in document["ports"].as_object().unwrap() {
            let map = match key.split_once('/').unwrap().1 {
                "tcp" => &mut self.tcp,
                "udp" => &mut self.udp,
                other => {
                    self.log.push(format!("protocol {other}"));
                    continue;
                }
            };
            for binding in bindings.as_array().unwrap() {
                let (ip, port) = (binding["HostIp"].as_str().unwrap(), binding["HostPort"].as_str().unwrap());
                let port: u16 = port.parse().unwrap();
                if document["remove"].as_bool().unwrap() {
                    map.remove(&port);
                } else if let Some(open) = map.get(&port) {
                    self.log.push(format!("{port} is already listened on, on {open}"));
                } else {
                    map.insert(port, ip.to_owned());
                }
            }
        }
    }
}
