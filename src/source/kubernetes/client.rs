//! A client of one API server, as a kubeconfig describes it.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use ureq::http::Response;
use ureq::{Agent, Body, BodyReader};

use super::error::KubernetesError;
use crate::config::KubernetesConfig;
use crate::http::{self, ANSWER_TIMEOUT, Resumable};
use crate::parse::kube::{self, ServiceList};
use crate::parse::kubeconfig::{self, Blob, FILE_BYTES_MAX, Kubeconfig, KubeconfigError, Place};
use crate::source::lines::Lines;

/// The largest list that is read, in bytes. A Service makes about 1 KB; none of it is kept but its ports.
const LIST_BYTES_MAX: u64 = 256 << 20;

/// The longest line of a watch that is kept, in bytes. The API server takes no object above 3 MiB.
pub const EVENT_BYTES_MAX: usize = 4 << 20;

/// The server is asked to end a watch after that many seconds, so that one which does not has failed.
const WATCH_SECONDS: u64 = 60;

/// The longest that a watch may last, which is somewhat longer than asked for.
const WATCH_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS + 10);

/// The longest that a server's `Retry-After` is heeded.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

const SERVICES: &str = "/api/v1/services";

/// Asks one server. Made of a kubeconfig as it was at that moment.
pub struct Client {
    /// To be shut down where waiting for an answer is to end.
    pub agent: Agent,
    server: String,
    kubeconfig: PathBuf,
    stamp: Option<Stamp>,
    token: Option<Blob>,
}

/// A watch that goes on.
pub struct Watch {
    /// Its events.
    pub lines: Lines<Resumable<BodyReader<'static>>>,
    /// When it has to have ended.
    pub end: Instant,
}

/// Tells one version of a file from another.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Stamp> {
        let file = fs::metadata(path).ok()?;
        let modified = (file.mtime(), file.mtime_nsec());
        Some(Stamp { device: file.dev(), inode: file.ino(), bytes: file.size(), modified })
    }
}

impl Client {
    /// Reads the kubeconfig and what it names. Asks nobody yet.
    pub fn load(config: &KubernetesConfig) -> Result<Client, KubernetesError> {
        let path = &config.kubeconfig;
        // Before it is read: what is written meanwhile makes another stamp.
        let stamp = Stamp::of(path);
        let in_file = |error| KubernetesError::Kubeconfig { path: path.clone(), error };
        let bytes = read_file(path).map_err(|error| KubernetesError::File {
            what: "kubeconfig".into(),
            path: path.clone(),
            error,
        })?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|error| in_file(wrong(format!("byte {}", error.valid_up_to()), "not UTF-8 text")))?;
        let kubeconfig = kubeconfig::parse(text).map_err(in_file)?;
        if kubeconfig.insecure_skip_tls_verify && !config.insecure_tls {
            let cause = "is true, which lets anybody in between pretend to be the server: leave it out and give \
                         certificate-authority-data, or start the agent with --insecure-kubernetes-tls";
            return Err(in_file(wrong("insecure-skip-tls-verify", cause)));
        }
        let name = ServerName::try_from(kubeconfig.server_name.clone())
            .map_err(|_| in_file(wrong("tls-server-name", "neither a name nor an address")))?;
        let tls = tls_config(path, &kubeconfig)?;
        let agent = http::tls::agent(Arc::new(tls), name, http::config());
        let Kubeconfig { server, token, .. } = kubeconfig;
        Ok(Client { agent, server, kubeconfig: path.clone(), stamp, token })
    }

    /// Whether there is another kubeconfig now. One that is gone does not count.
    pub fn is_outdated(&self) -> bool {
        let now = Stamp::of(&self.kubeconfig);
        now.is_some() && now != self.stamp
    }

    /// All Services.
    pub fn list(&self, listener_ip: Ipv4Addr) -> Result<ServiceList, KubernetesError> {
        let response = self.get("", Some(ANSWER_TIMEOUT))?;
        let body = response.into_body().into_with_config().limit(LIST_BYTES_MAX).reader();
        kube::services(body, listener_ip).map_err(|error| KubernetesError::List { server: self.server.clone(), error })
    }

    /// What happens to Services from that version on.
    pub fn watch(&self, resource_version: &str) -> Result<Watch, KubernetesError> {
        let query = format!(
            "?watch=1&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={resource_version}"
        );
        let end = Instant::now() + WATCH_TIMEOUT;
        let body = self.get(&query, None)?.into_body().into_reader();
        Ok(Watch { lines: Lines::with_limit(Resumable(body), EVENT_BYTES_MAX), end })
    }

    /// An answer with status 200.
    fn get(&self, query: &str, timeout: Option<Duration>) -> Result<Response<Body>, KubernetesError> {
        let mut request =
            self.agent.get(format!("{}{SERVICES}{query}", self.server)).header("accept", "application/json");
        if let Some(token) = &self.token {
            request = request.header("authorization", self.bearer(token)?);
        }
        // Else a body that trickles in would never be silent, and never end.
        let request = request.config().timeout_global(timeout).timeout_recv_body(Some(WATCH_TIMEOUT)).build();
        let answer = request.call();
        let response = answer.map_err(|error| KubernetesError::Request { server: self.server.clone(), error })?;
        let code = response.status().as_u16();
        if code == 200 {
            return Ok(response);
        }
        let seconds = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after = seconds.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
        let status = kube::Status { code, ..kube::status(&http::message(response)) };
        Err(KubernetesError::Refused { server: self.server.clone(), status, retry_after })
    }

    /// What a watch that the server has given up comes to.
    pub fn refused(&self, status: kube::Status) -> KubernetesError {
        KubernetesError::Refused { server: self.server.clone(), status, retry_after: None }
    }

    /// Read again for each request, as the tokens of service accounts are replaced every hour.
    fn bearer(&self, token: &Blob) -> Result<String, KubernetesError> {
        let bytes = read(&self.kubeconfig, token)?;
        let text = String::from_utf8_lossy(&bytes);
        let text = kubeconfig::token(&text).map_err(|cause| KubernetesError::Kubeconfig {
            path: self.kubeconfig.clone(),
            error: wrong(&token.field, cause),
        })?;
        Ok(format!("Bearer {text}"))
    }
}

fn wrong(place: impl Into<String>, cause: impl Into<String>) -> KubeconfigError {
    KubeconfigError { place: place.into(), cause: cause.into() }
}

/// A file of at most [`FILE_BYTES_MAX`] bytes.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // A pipe without a writer would block for ever.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    File::open(path)?.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

fn read(kubeconfig: &Path, blob: &Blob) -> Result<Vec<u8>, KubernetesError> {
    match &blob.place {
        Place::Inline(bytes) => Ok(bytes.clone()),
        Place::File(path) => {
            let path = kubeconfig.parent().unwrap_or(Path::new("")).join(path);
            read_file(&path).map_err(|error| KubernetesError::File { what: blob.field.clone(), path, error })
        }
    }
}

/// How to know the server, and how to prove who we are, by the kubeconfig at that path.
///
/// # Errors
/// Which field, or which file that it names, cannot be read or used. Nothing of a secret is in it.
pub fn tls_config(path: &Path, kubeconfig: &Kubeconfig) -> Result<ClientConfig, KubernetesError> {
    let in_file = |blob: &Blob, cause: String| KubernetesError::Kubeconfig {
        path: path.to_owned(),
        error: wrong(&blob.field, cause),
    };
    let certificates = |blob: &Blob| -> Result<Vec<CertificateDer<'static>>, KubernetesError> {
        let pem = read(path, blob)?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        match certificates {
            Ok(found) if !found.is_empty() => Ok(found),
            Ok(_) => Err(in_file(blob, "holds no certificate (-----BEGIN CERTIFICATE-----)".into())),
            Err(error) => Err(in_file(blob, format!("is not PEM: {}", not_pem(&error)))),
        }
    };
    let provider = Arc::new(http::crypto::provider());
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| KubernetesError::Request {
        server: kubeconfig.server.clone(),
        error: io::Error::other(error).into(),
    })?;
    let builder = match &kubeconfig.certificate_authority {
        Some(blob) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(blob)? {
                roots.add(certificate).map_err(|error| in_file(blob, format!("holds no usable authority: {error}")))?;
            }
            builder.with_root_certificates(roots)
        }
        None => builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider))),
    };
    let mut tls = match (&kubeconfig.client_certificate, &kubeconfig.client_key) {
        (Some(certificate), Some(key)) => {
            let pem = read(path, key)?;
            let der = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
                let cause = not_pem(&error);
                in_file(key, format!("holds no key in PEM (PKCS#8, PKCS#1 or SEC1, not encrypted): {cause}"))
            })?;
            builder.with_client_auth_cert(certificates(certificate)?, der).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    in_file(key, format!("is not the key of the certificate in {}", certificate.field))
                }
                _ => in_file(key, format!("cannot be used (RSA from 2048 bits, P-256 or P-384): {error}")),
            })?
        }
        _ => builder.with_no_client_auth(),
    };
    // A new connection is rare, and a full handshake with it cheap; tickets would be kept for nothing.
    tls.resumption = Resumption::disabled();
    Ok(tls)
}

/// Without what stands there, which the library's words would quote: in a key on a single line, all of it.
fn not_pem(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a -----BEGIN line is followed by no -----END line of the same name",
        pem::Error::IllegalSectionStart { .. } => "a -----BEGIN line does not end in -----",
        pem::Error::Base64Decode(_) => "what it holds is not base64",
        pem::Error::NoItemsFound => "there is none in it",
        _ => "it cannot be read",
    }
}

/// `--insecure-kubernetes-tls`: takes any certificate, as long as its key signs the handshake.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_shows_a_key() {
        let secret = "c2VjcmV0IHNlY3JldCBzZWNyZXQ=";
        let blob = |text: &str| Some(Blob { field: "f".into(), place: Place::Inline(text.as_bytes().to_vec()) });
        for text in [
            format!("-----BEGIN PRIVATE KEY----- {secret} -----END PRIVATE KEY-----\n"),
            format!("-----BEGIN PRIVATE KEY----{secret}\n-----END PRIVATE KEY-----\n"),
            format!("-----BEGIN PRIVATE KEY-----\n{secret}\n"),
            format!("-----BEGIN PRIVATE KEY-----\n{secret}!\n-----END PRIVATE KEY-----\n"),
            format!("-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----\n"),
            format!("-----BEGIN SECRET-----\n{secret}\n-----END SECRET-----\n"),
        ] {
            let kubeconfig = Kubeconfig {
                server: "https://k".into(),
                server_name: "k".into(),
                certificate_authority: None,
                insecure_skip_tls_verify: true,
                client_certificate: blob(&text),
                client_key: blob(&text),
                token: None,
            };
            let certificate = Kubeconfig { certificate_authority: blob(&text), ..kubeconfig.clone() };
            for kubeconfig in [kubeconfig, certificate] {
                let error = tls_config(Path::new("k"), &kubeconfig).unwrap_err().to_string();
                assert!(error.starts_with("kubeconfig k: f: "), "{error}");
                // As text, and as a list of bytes.
                assert!(!error.contains(&secret[..4]) && !error.contains("99, 50, 86"), "{error}");
            }
        }
    }
}
