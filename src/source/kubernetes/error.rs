//! Why the kubernetes source cannot go on, in words for people.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError};

use crate::http::tls;
use crate::parse::ParseError;
use crate::parse::kube::Status;
use crate::parse::kubeconfig::KubeconfigError;

/// Why a session ended.
#[derive(Debug)]
pub enum KubernetesError {
    /// The kubeconfig, or a file that it names, cannot be read.
    File {
        /// `kubeconfig`, or the field that names the file.
        what: String,
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The kubeconfig cannot be used.
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Where in it, and why.
        error: KubeconfigError,
    },
    /// A request failed: nobody answered, or not to the end.
    Request {
        /// The server.
        server: String,
        /// How.
        error: ureq::Error,
    },
    /// The server answered, but not with what it was asked for.
    Refused {
        /// The server.
        server: String,
        /// Its answer.
        status: Status,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// The agent ends.
    Stopped,
    /// The list of Services cannot be used.
    List {
        /// The server.
        server: String,
        /// What is wrong with it.
        error: ParseError,
    },
}

impl KubernetesError {
    /// How long to wait at least where the server is there, and what is known of it stays true. `None`: it is lost.
    pub fn server_answers(&self) -> Option<Duration> {
        match self {
            KubernetesError::Refused { retry_after, .. } => Some(retry_after.unwrap_or_default()),
            KubernetesError::List { error: ParseError::Input(_), .. } => None,
            KubernetesError::List { .. } => Some(Duration::ZERO),
            KubernetesError::File { .. }
            | KubernetesError::Kubeconfig { .. }
            | KubernetesError::Request { .. }
            | KubernetesError::Stopped => None,
        }
    }
}

impl fmt::Display for KubernetesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KubernetesError::File { what, path, error } => {
                let remedy = match error.kind() {
                    io::ErrorKind::NotFound => " (it is looked for again until it is there)",
                    io::ErrorKind::PermissionDenied => {
                        " (the agent, even as root, reads only what its user may: let that user own the file)"
                    }
                    _ => "",
                };
                write!(f, "{what} {}: {error}{remedy}", path.display())
            }
            KubernetesError::Kubeconfig { path, error } => write!(f, "kubeconfig {}: {error}", path.display()),
            KubernetesError::Request { server, error } => {
                write!(f, "cannot ask {server}: ")?;
                match (tls::failure(error), error) {
                    (Some(error), _) => explain(error, f),
                    // The library would say "io: " before it.
                    (None, ureq::Error::Io(error)) => write!(f, "{error}"),
                    (None, error) => write!(f, "{error}"),
                }
            }
            KubernetesError::Refused { server, status: Status { code, message }, .. } => {
                let remedy = match code {
                    401 => " (wrong or expired credentials in the kubeconfig, which is read again)",
                    403 => " (the kubeconfig's user needs the rights to list and watch services)",
                    _ => "",
                };
                write!(f, "{server} answers {code}: {message}{remedy}")
            }
            KubernetesError::Stopped => f.write_str("the agent ends"),
            KubernetesError::List { server, error } => write!(f, "the list of Services from {server}: {error}"),
        }
    }
}

impl std::error::Error for KubernetesError {}

fn explain(error: &rustls::Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    use rustls::Error::{AlertReceived, InvalidCertificate, PeerIncompatible};
    match error {
        InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => f.write_str(
            "its certificate is not from the kubeconfig's certificate-authority: is the kubeconfig of another cluster, \
             or from before a reset?",
        ),
        InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            f.write_str("its certificate has expired, or this machine's clock is wrong")
        }
        InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            f.write_str("its certificate is not valid yet, or this machine's clock is wrong")
        }
        InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) => {
            f.write_str("its certificate is for other names: tls-server-name in the kubeconfig can say which to expect")
        }
        // Its own words are the variant's name alone where `derive(Debug)` is cut short (scripts/musl.sh).
        InvalidCertificate(CertificateError::Other(cause)) => write!(f, "its certificate cannot be used: {cause}"),
        AlertReceived(AlertDescription::ProtocolVersion) | PeerIncompatible(_) => {
            write!(f, "it does not speak TLS 1.3, which is needed ({error})")
        }
        AlertReceived(AlertDescription::HandshakeFailure) => f.write_str(
            "it has no algorithm in common with us, who have AES-GCM, key exchange on P-256 and P-384, and certificates \
             of RSA, P-256 and P-384",
        ),
        AlertReceived(alert) => {
            write!(f, "it ends the TLS connection ({alert:?}): is the client certificate in the kubeconfig its own?")
        }
        _ => write!(f, "{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::OtherError;
    use std::sync::Arc;

    #[test]
    fn says_what_the_server_says_without_the_library() {
        let server = || "https://k".to_owned();
        let error = io::Error::from(io::ErrorKind::ConnectionRefused).into();
        assert_eq!(
            KubernetesError::Request { server: server(), error }.to_string(),
            "cannot ask https://k: connection refused"
        );
        let body = br#"{"kind":"Status","code":403,"message":"\"u\" may not\u001b"}"#;
        let refused =
            KubernetesError::Refused { server: server(), status: crate::parse::kube::status(body), retry_after: None };
        assert_eq!(
            refused.to_string(),
            "https://k answers 403: \"u\" may not\\u{1b} (the kubeconfig's user needs the rights to list and watch services)"
        );
    }

    fn said(error: rustls::Error) -> String {
        KubernetesError::Request { server: "https://s".into(), error: io::Error::other(error).into() }.to_string()
    }

    #[test]
    fn says_what_is_wrong_with_a_certificate_and_a_handshake() {
        let itself = CertificateError::Other(OtherError(Arc::new(webpki::Error::CaUsedAsEndEntity)));
        assert_eq!(
            said(rustls::Error::InvalidCertificate(itself)),
            "cannot ask https://s: its certificate cannot be used: CaUsedAsEndEntity"
        );
        let algorithms = said(rustls::Error::AlertReceived(AlertDescription::HandshakeFailure));
        assert!(algorithms.contains("no algorithm in common"), "{algorithms}");
        let alert = said(rustls::Error::AlertReceived(AlertDescription::UnknownCA));
        assert!(alert.contains("(UnknownCA): is the client certificate"), "{alert}");
    }
}
