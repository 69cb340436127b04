//! kubeconfig files as k3s, kind and kubeadm write them, and as nobody should write them.

use super::*;

/// As k3s writes it; the data is `-----BEGIN CERTIFICATE-----` and the like.
const K3S: &str = "apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCg==
    server: https://127.0.0.1:6443
  name: default
contexts:
- context:
    cluster: default
    user: default
  name: default
current-context: default
kind: Config
preferences: {}
users:
- name: default
  user:
    client-certificate-data: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCg==
    client-key-data: LS0tLS1CRUdJTiBFQyBQUklWQVRFIEtFWS0tLS0tCg==
";

fn inline(field: &str, text: &str) -> Option<Blob> {
    Some(Blob { field: field.into(), place: Place::Inline(text.as_bytes().to_vec()) })
}

#[test]
fn reads_what_k3s_writes() {
    let expect = Kubeconfig {
        server: "https://127.0.0.1:6443".into(),
        tls_server_name: None,
        certificate_authority: inline(
            "clusters[name=default].cluster.certificate-authority-data",
            "-----BEGIN CERTIFICATE-----\n",
        ),
        insecure_skip_tls_verify: false,
        client_certificate: inline("users[name=default].user.client-certificate-data", "-----BEGIN CERTIFICATE-----\n"),
        client_key: inline("users[name=default].user.client-key-data", "-----BEGIN EC PRIVATE KEY-----\n"),
        token: None,
    };
    assert_eq!(parse(K3S), Ok(expect));
}
