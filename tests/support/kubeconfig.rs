//! Writes kubeconfig files in the shape of k3s's `/etc/rancher/k3s/k3s.yaml`.
//!
//! Format: the Kubernetes reference "kubeconfig (v1)". One cluster, one user and one context, all of the name `default`.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::certs::{Key, Pair, Pki, base64_of};
use super::unique;

/// What a kubeconfig says. As made by [`KubeConfig::new`] it is k3s's own: everything inline, an EC key.
#[derive(Debug, Clone)]
pub struct KubeConfig {
    pub server: String,
    /// The file of the authority that vouches for the server.
    pub ca: Option<PathBuf>,
    pub client: Option<Pair>,
    /// Name the files rather than hold what is in them.
    pub files: bool,
    pub token: Option<String>,
    pub token_file: Option<PathBuf>,
    pub insecure_skip_tls_verify: bool,
    pub tls_server_name: Option<String>,
}

impl KubeConfig {
    pub fn new(pki: &Pki, server: &str) -> KubeConfig {
        KubeConfig::with_key(pki, server, Key::EcSec1)
    }

    pub fn with_key(pki: &Pki, server: &str, key: Key) -> KubeConfig {
        KubeConfig { client: Some(pki.client(key)), ..KubeConfig::anonymous(pki, server) }
    }

    /// With a token, and no client certificate.
    pub fn with_token(pki: &Pki, server: &str, token: &str) -> KubeConfig {
        KubeConfig { token: Some(token.to_owned()), ..KubeConfig::anonymous(pki, server) }
    }

    /// With nothing that says who the client is.
    pub fn anonymous(pki: &Pki, server: &str) -> KubeConfig {
        KubeConfig {
            server: server.to_owned(),
            ca: Some(pki.ca()),
            client: None,
            files: false,
            token: None,
            token_file: None,
            insecure_skip_tls_verify: false,
            tls_server_name: None,
        }
    }

    pub fn text(&self) -> String {
        let mut text = "apiVersion: v1\nclusters:\n- cluster:\n".to_owned();
        let mut cluster = Vec::new();
        if let Some(ca) = &self.ca {
            cluster.push(self.file("certificate-authority", ca));
        }
        if self.insecure_skip_tls_verify {
            cluster.push("insecure-skip-tls-verify: true".to_owned());
        }
        cluster.push(format!("server: {}", self.server));
        cluster.extend(self.tls_server_name.iter().map(|name| format!("tls-server-name: {name}")));
        let mut user = Vec::new();
        if let Some(client) = &self.client {
            user.push(self.file("client-certificate", &client.certificate));
            user.push(self.file("client-key", &client.key));
        }
        user.extend(self.token.iter().map(|token| format!("token: {token}")));
        user.extend(self.token_file.iter().map(|path| format!("tokenFile: {}", path.display())));
        for line in cluster {
            writeln!(text, "    {line}").unwrap();
        }
        text.push_str(
            "  name: default\ncontexts:\n- context:\n    cluster: default\n    user: default\n  name: default\n",
        );
        text.push_str("current-context: default\nkind: Config\npreferences: {}\nusers:\n- name: default\n");
        text.push_str(if user.is_empty() { "  user: {}\n" } else { "  user:\n" });
        for line in user {
            writeln!(text, "    {line}").unwrap();
        }
        text
    }

    fn file(&self, field: &str, path: &Path) -> String {
        if self.files { format!("{field}: {}", path.display()) } else { format!("{field}-data: {}", base64_of(path)) }
    }

    /// Puts it there, mode 0600, at once: a reader sees all of it or what was there before.
    pub fn write(&self, path: &Path) {
        write(path, self.text().as_bytes());
    }
}

/// Puts any bytes there as [`KubeConfig::write`] does.
pub fn write(path: &Path, bytes: &[u8]) {
    let new = path.with_file_name(format!(".kubeconfig-{}", unique()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).unwrap();
    file.write_all(bytes).unwrap();
    fs::rename(&new, path).unwrap();
}
