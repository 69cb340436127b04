//! The host's side of port 17381: takes PortMapping documents and keeps the set of forwards that they describe.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Larger than any document of this test.
const DOCUMENT_BYTES_MAX: u64 = 1 << 20;

/// Receives documents on a thread of its own, as the guest may send while the test waits for something else.
pub struct Documents {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    arrivals: Receiver<String>,
    /// Every document since the last [`Documents::forget`], with its newline.
    pub seen: Vec<String>,
    /// What is forwarded by then, as `80/tcp 0.0.0.0:8080`.
    pub forwards: BTreeSet<String>,
}

impl Documents {
    pub fn listen(path: PathBuf) -> Self {
        let listener = UnixListener::bind(&path).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, arrivals) = mpsc::channel();
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || accept(&listener, &stop, &sender)
        });
        Self { path, stop, thread: Some(thread), arrivals, seen: Vec::new(), forwards: BTreeSet::new() }
    }

    /// Forgets documents and forwards, as a host which restarted.
    pub fn forget(&mut self) {
        while let Ok(document) = self.arrivals.try_recv() {
            eprintln!("host: forgets {document:?}");
        }
        self.seen.clear();
        self.forwards.clear();
    }

    /// Takes documents until exactly these are forwarded.
    pub fn wait_for(&mut self, expected: &[&str], deadline: Duration) {
        let expected: BTreeSet<String> = expected.iter().map(|s| (*s).to_owned()).collect();
        let end = Instant::now() + deadline;
        while self.forwards != expected {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(document) = self.arrivals.recv_timeout(left) else {
                panic!("expected {expected:?} within {deadline:?}, got {:#?}", self.seen);
            };
            eprintln!("host: got {document:?}");
            self.apply(&document);
            self.seen.push(document);
        }
    }

    fn apply(&mut self, document: &str) {
        let value: serde_json::Value = serde_json::from_str(document).unwrap_or_else(|e| panic!("{document:?}: {e}"));
        let remove = value["remove"].as_bool().unwrap();
        for (key, bindings) in value["ports"].as_object().unwrap() {
            for binding in bindings.as_array().unwrap() {
                let (ip, port) = (binding["HostIp"].as_str().unwrap(), binding["HostPort"].as_str().unwrap());
                let forward = format!("{key} {ip}:{port}");
                if remove {
                    self.forwards.remove(&forward);
                } else {
                    self.forwards.insert(forward);
                }
            }
        }
    }
}

impl Drop for Documents {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        wake(&self.path);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Ends a blocking accept.
fn wake(path: &Path) {
    let _ = UnixStream::connect(path);
}

/// One document per connection, read by its newline: the backend never passes on the end of the guest's writing.
/// Closing says to the guest that its document was taken.
fn accept(listener: &UnixListener, stop: &AtomicBool, sender: &Sender<String>) {
    while let Ok((stream, _)) = listener.accept() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut document = String::new();
        match BufReader::new(stream.take(DOCUMENT_BYTES_MAX)).read_line(&mut document) {
            Ok(_) if document.ends_with('\n') => {
                let _ = sender.send(document);
            }
            ended => eprintln!("host: a connection without a document: {ended:?}, {document:?}"),
        }
    }
}
