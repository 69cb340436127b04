//! A server of TLS that says what it is told to, since the stand-in for kube-apiserver only says what a real one could.

use std::io::{self, Read as _, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::support::certs::Pki;

/// Answers until it is dropped. Each connection has a thread, which ends with it.
pub struct RawServer {
    listener: Arc<TcpListener>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    requests: Arc<AtomicUsize>,
}

type Answer = dyn Fn(&str, &mut dyn Write) -> io::Result<()> + Send + Sync;

impl RawServer {
    /// `answer` writes what there is to say to a request, of which it sees the first line, and then the connection ends.
    pub fn start(
        pki: &Pki,
        address: &str,
        answer: impl Fn(&str, &mut dyn Write) -> io::Result<()> + Send + Sync + 'static,
    ) -> RawServer {
        let pair = pki.server();
        let chain = vec![CertificateDer::from_pem_file(pair.certificate).unwrap()];
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(pair.key).unwrap())
            .unwrap();
        let (config, answer): (_, Arc<Answer>) = (Arc::new(config), Arc::new(answer));
        let server = RawServer {
            listener: Arc::new(TcpListener::bind(address).unwrap()),
            connections: Arc::default(),
            requests: Arc::default(),
        };
        let (listener, connections, requests) =
            (server.listener.clone(), server.connections.clone(), server.requests.clone());
        std::thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                connections.lock().unwrap().push(socket.try_clone().unwrap());
                let (config, answer, requests) = (config.clone(), answer.clone(), requests.clone());
                // A client that has had enough ends it with an error.
                std::thread::spawn(move || serve(socket, config, &*answer, &requests));
            }
        });
        server
    }

    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// How many requests have come.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        let _ = nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        for socket in self.connections.lock().unwrap().drain(..) {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn serve(socket: TcpStream, config: Arc<ServerConfig>, answer: &Answer, requests: &AtomicUsize) -> io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.set_write_timeout(Some(Duration::from_secs(10)))?;
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, socket);
    let (mut head, mut chunk) = (Vec::new(), [0; 4096]);
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut chunk)? {
            0 => return Ok(()),
            n => head.extend_from_slice(&chunk[..n]),
        }
    }
    requests.fetch_add(1, Ordering::SeqCst);
    let head = String::from_utf8_lossy(&head);
    answer(head.lines().next().unwrap_or_default(), &mut stream)?;
    stream.conn.send_close_notify();
    stream.flush()
}
