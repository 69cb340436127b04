//! One TLS connection of the server: read by its own thread, written by that thread or, on a watch, by whoever applies
//! a change. Every wait ends at a time given, or when the socket is shut down by the server that stops.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, ServerConnection, SignatureScheme,
};

use super::super::certs::Pki;

/// For a peer that no longer takes what is written, or does not finish its handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// Written at once; encrypted in memory before.
const SLICE: usize = 1 << 18;

/// What a connection is made with.
#[derive(Clone)]
pub(super) struct Tls {
    config: Arc<ServerConfig>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Tls {
    /// `alert`: ends the handshake of a client whose certificate is from elsewhere.
    pub fn new(pki: &Pki, alert: Arc<AtomicBool>) -> Tls {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(pki.client_ca()).unwrap()).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build().unwrap();
        let server = pki.server();
        let chain = vec![CertificateDer::from_pem_file(server.certificate).unwrap()];
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(Arc::new(Requested { clients: clients.clone(), alert }))
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(server.key).unwrap())
            .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Tls { config: Arc::new(config), clients }
    }
}

/// Asks for a certificate and takes any, as a real apiserver does, which has its authenticators look at it afterwards.
#[derive(Debug)]
struct Requested {
    clients: Arc<dyn ClientCertVerifier>,
    alert: Arc<AtomicBool>,
}

impl ClientCertVerifier for Requested {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.clients.verify_client_cert(end_entity, intermediates, now);
        if self.alert.load(Ordering::Relaxed) { verified } else { Ok(ClientCertVerified::assertion()) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.clients.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.clients.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}

pub(super) struct Peer {
    socket: Arc<TcpStream>,
    tls: Mutex<ServerConnection>,
}

/// What came of waiting for the client.
#[derive(Debug, PartialEq)]
pub(super) enum Came {
    Data,
    Nothing,
    /// It has hung up, or what it sent is no TLS.
    Closed,
}

impl Peer {
    /// Does the handshake. Also says whether the client has shown a certificate of the right authority.
    pub fn accept(socket: Arc<TcpStream>, tls: &Tls) -> io::Result<(Peer, bool)> {
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut connection = ServerConnection::new(tls.config.clone()).map_err(io::Error::other)?;
        connection.set_buffer_limit(None);
        let end = Instant::now() + PATIENCE;
        let mut result = Ok(());
        while result.is_ok() && connection.is_handshaking() {
            write_out(&socket, &mut connection)?;
            if !readable(&socket, end) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            result = receive(&socket, &mut connection);
        }
        // An alert too.
        write_out(&socket, &mut connection)?;
        result?;
        let known = connection
            .peer_certificates()
            .and_then(<[_]>::split_first)
            .is_some_and(|(own, others)| tls.clients.verify_client_cert(own, others, UnixTime::now()).is_ok());
        Ok((Peer { socket, tls: Mutex::new(connection) }, known))
    }

    /// Adds to `input` what the client has sent; waits for it until then.
    pub fn read(&self, input: &mut Vec<u8>, until: Instant) -> Came {
        loop {
            let before = input.len();
            let open = match self.tls.lock().unwrap().reader().read_to_end(input) {
                Ok(_) => false,
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            };
            if input.len() > before {
                return Came::Data;
            }
            if !open {
                return Came::Closed;
            }
            if !readable(&self.socket, until) {
                return Came::Nothing;
            }
            let mut tls = self.tls.lock().unwrap();
            let result = receive(&self.socket, &mut tls);
            if write_out(&self.socket, &mut tls).is_err() || result.is_err() {
                return Came::Closed;
            }
        }
    }

    /// All of it, or an error when the client is gone or has not read for ten seconds.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut tls = self.tls.lock().unwrap();
        for slice in bytes.chunks(SLICE) {
            tls.writer().write_all(slice)?;
            write_out(&self.socket, &mut tls)?;
        }
        Ok(())
    }

    /// One chunk of a chunked body.
    pub fn write_chunk(&self, bytes: &[u8]) -> io::Result<()> {
        self.write(&chunk(bytes))
    }

    /// Says nothing until the client hangs up or the server stops.
    pub fn hold(&self) {
        hold(&self.socket);
    }

    /// Ends the connection with nothing said: no last chunk, no TLS close_notify.
    pub fn cut(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Ends the connection in order.
    pub fn close(&self) {
        let mut tls = self.tls.lock().unwrap();
        tls.send_close_notify();
        let _ = write_out(&self.socket, &mut tls);
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}

/// The bytes as one chunk of a chunked body.
pub(super) fn chunk(bytes: &[u8]) -> Vec<u8> {
    let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
    chunk.extend_from_slice(bytes);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

/// Returns when the far end has hung up, or this one has been shut down.
pub(super) fn hold(socket: &TcpStream) {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::from_bits_retain(nix::libc::POLLRDHUP))];
    let _ = poll(&mut fds, PollTimeout::NONE);
}

/// Whether there is something to read, or the connection's end, before that time.
fn readable(socket: &TcpStream, until: Instant) -> bool {
    let left = until.saturating_duration_since(Instant::now());
    // Rounded up, so that it does not return just before the time.
    let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut fds, timeout), Ok(n) if n > 0)
}

/// Takes what is in the socket. To be called when it is readable.
fn receive(mut socket: &TcpStream, tls: &mut ServerConnection) -> io::Result<()> {
    if tls.read_tls(&mut socket)? == 0 && tls.is_handshaking() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    tls.process_new_packets().map_err(io::Error::other)?;
    Ok(())
}

fn write_out(mut socket: &TcpStream, tls: &mut ServerConnection) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(&mut socket)?;
    }
    Ok(())
}
